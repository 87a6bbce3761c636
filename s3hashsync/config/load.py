"""Finding `backup.yaml`, and reading it to a `Config` or to all its faults.

Decides where the file is looked for and in which order it is checked. Knows nothing of single keys.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from s3hashsync.config import build, document, explain, syntax
from s3hashsync.config.faults import FaultLog, Place, Places, Value
from s3hashsync.config.locations import Folder
from s3hashsync.config.model import Config
from s3hashsync.errors import ConfigError, UsageError

NAME = "backup.yaml"
# PyYAML takes seconds for more, and nobody writes that much by hand.
MAX_BYTES = 1024 * 1024


def find_config(cwd: str, environ: Mapping[str, str]) -> str:
    """The path of the configuration, where the command line names none.

    The file that S3HASHSYNC_CONFIG names is taken whether it is there or not: to fall back on another one
    silently would back up something else than was asked for. A broken link counts as there, for the same
    reason.
    """
    if named := environ.get("S3HASHSYNC_CONFIG"):
        return os.path.join(cwd, named)
    candidates = [os.path.join(cwd, NAME)]
    home = environ.get("HOME", "")
    base = environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    if not base.startswith("/"):
        base = os.path.join(home, ".config") if home.startswith("/") else ""
    if base:
        candidates.append(os.path.join(base, "s3hashsync", NAME))
    for candidate in candidates:
        if os.path.lexists(candidate):
            return candidate
    looked = " and ".join(candidates)
    raise UsageError("there is no configuration", f"looked for {looked}; name another file with -c or S3HASHSYNC_CONFIG")


def load(path: str, environ: Mapping[str, str], hostname: str) -> Config:
    """The configuration in a file; a ConfigError with every fault in it. Runs nothing and reads no secret."""
    log = FaultLog(Places())
    config = None
    file, raw = _read(path, log)
    text = None if raw is None else _decode(raw, log)
    if text is not None:
        root = build.Group(file, Folder.of(file, environ), log, (), _keys(text, environ, log))
        # Without a single key nothing was understood, and that is reported already.
        config = build.build(root, hostname) if root.keys else None
    if log.faults() or config is None:
        raise ConfigError(path, log.faults())
    return config


def _keys(text: str, environ: Mapping[str, str], log: FaultLog) -> dict[str, Value]:
    """The keys of the file, checked against the schema; none where the file cannot be understood."""
    node = syntax.compose(text, log)
    if node is None:
        if not log.faults():
            log.at_value((), "the file is empty", "begin with version: 1; backup.yaml.example shows the rest")
        return {}
    try:
        value = document.to_value(node, environ, log)
    except document.TooLargeError:
        return {}
    log.next_stage()
    explain.check(value, log)
    log.next_stage()
    return value if isinstance(value, dict) else {}


def _read(path: str, log: FaultLog) -> tuple[str, bytes | None]:
    hint = None
    try:
        file = os.path.abspath(path)
        with open(file, "rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
        if len(raw) <= MAX_BYTES:
            return file, raw
        message = "the file is larger than 1 MiB"
    except FileNotFoundError:
        message, hint = "there is no such file", "name another with -c, or begin with backup.yaml.example"
    except IsADirectoryError:
        message, hint = "this is a folder, not a file", f"name the file in it: {os.path.join(path, NAME)}"
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    except ValueError:
        message = "no file can have this name"
    log.at_place((), Place(0, 0), message, hint)
    return path, None


def _decode(raw: bytes, log: FaultLog) -> str | None:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line_start = before.rfind(b"\n") + 1
        column = len(before[line_start:].decode("utf-8", "replace")) + 1
        place = Place(before.count(b"\n") + 1, column)
        log.at_place((), place, "the file is not UTF-8", "save it again as UTF-8")
        return None
