"""Trees, repositories in all forms, and a shell that holds stock tools alone: what the tests of recovery share.

Decides what a tree must hold to be a good test, and which tools count as stock. Knows nothing of what is tested.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.install_servers import tools_folder
from tests.program import Program

# What this machine does not have `make integration` has installed.
os.environ["PATH"] = f"{os.environ['PATH']}:{tools_folder()}"

ROOT = Path(__file__).resolve().parents[1]
COREUTILS = [
    *["base64", "cat", "chmod", "chown", "cp", "cut", "dirname", "head", "id", "ln", "ls", "mkdir", "mktemp", "mv", "rm"],
    *["rmdir", "sha256sum", "sort", "tac", "tail", "touch", "wc"],
]
OTHERS = ["age", "bash", "env", "grep", "jq", "openssl", "sed", "tar", "xargs", "zstd"]
MISSING = [tool for tool in (*COREUTILS, *OTHERS) if shutil.which(tool) is None]
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

_TO_RUN = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def script_of(page: Path) -> str:
    """All blocks of a page that are to be run, one behind the other."""
    return "\n".join(_TO_RUN.findall(page.read_text()))


def stock_path(folder: Path, *, aws: bool = False) -> str:
    """A PATH with the stock tools and nothing else, above all no Python."""
    folder.mkdir()
    for tool in (*COREUTILS, *OTHERS):
        found = shutil.which(tool)
        assert found, f"{tool} is not installed"
        (folder / tool).symlink_to(found)
    if aws:
        # It is a Python program itself, and finds its own where the machine keeps it.
        found = shutil.which("aws")
        assert found, "`aws` is not installed: python tests/install_servers.py"
        (folder / "aws").write_text(f'#!/bin/sh\nPATH="{os.environ["PATH"]}" exec "{found}" "$@"\n')
        (folder / "aws").chmod(0o755)
    assert shutil.which("python3", path=str(folder)) is None
    return str(folder)


@dataclass(frozen=True)
class Form:
    """How a repository stores what it is given."""

    encrypted: bool
    packed: bool

    def __str__(self) -> str:
        return ("age" if self.encrypted else "plain") + ("-packs" if self.packed else "-objects")

    @property
    def pack(self) -> str:
        return "{below: 256KiB, size: 4MiB}" if self.packed else "off"


FORMS = [Form(encrypted, packed) for encrypted in (False, True) for packed in (False, True)]

CONFIG = """\
version: 1
repository:
  objects: {base}/repo
  pack: {pack}
encryption: {encryption}
host: here
sources:
  - name: docs
    path: {base}/docs
"""


def identity_file(folder: Path) -> tuple[Path, str]:
    """A new identity, made by `age-keygen`, and its recipient."""
    path = folder / f"identity-{len(list(folder.glob('identity-*')))}.txt"
    subprocess.run(["age-keygen", "-o", path], capture_output=True, check=True)
    recipient = subprocess.run(["age-keygen", "-y", path], capture_output=True, check=True, text=True).stdout.strip()
    return path, recipient


def encryption_of(form: Form, folder: Path) -> tuple[str, str]:
    """The value of `encryption:`, and the identity file that opens it ("" without)."""
    if not form.encrypted:
        return "off", ""
    identity, recipient = identity_file(folder)
    _, other = identity_file(folder)
    return f"{{recipients: [{other}, {recipient}]}}", str(identity)


def make_tree(root: Path) -> None:
    (root / "letters").mkdir(mode=0o750)
    (root / "letters" / "one.txt").write_text("one\n" * 5000)
    (root / "letters" / "with space, and ümlaut.txt").write_text("two\n")
    (root / "gone.txt").write_text("soon gone\n")
    (root / "empty").touch()
    (root / "empty folder").mkdir()
    (root / "new\nline").write_text("a name of two lines\n")
    (root / "end\n").mkdir()
    (root / "end\n" / "link\n").symlink_to("target\n")
    (root / "-dash").write_text("a name that looks like an option\n")
    (root / "link").symlink_to("letters/one.txt")
    (root / "up").symlink_to("../../elsewhere")
    Path(os.fsdecode(os.fsencode(root) + b"/link to \xfe")).symlink_to(os.fsdecode(b"to \xfd"))
    Path(os.fsdecode(os.fsencode(root) + b"/not \xff utf-8")).write_bytes(os.urandom(300_000))
    # In packs these are more than one frame.
    for number in range(12):
        (root / "letters" / f"{number:02}").write_bytes(os.urandom(120_000))


def change_tree(root: Path) -> None:
    (root / "gone.txt").unlink()
    (root / "letters" / "one.txt").write_text("changed\n")
    (root / "letters" / "one.txt").chmod(0o600)
    (root / "copy.txt").write_text("two\n")
    (root / "link").unlink()
    (root / "link").symlink_to("copy.txt")


def picture(root: Path) -> dict[bytes, tuple[int, object]]:
    """Every path with its rights and what it holds."""
    found: dict[bytes, tuple[int, object]] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, os.fsencode(root))
            if os.path.islink(path):
                found[relative] = (0, os.readlink(path))
            elif os.path.isdir(path):
                found[relative] = (os.stat(path).st_mode, "folder")
            else:
                with open(path, "rb") as file:
                    found[relative] = (os.stat(path).st_mode, file.read())
    return found


def back_up(program: Program) -> None:
    """Several runs, with everything that a run log can say: changes, removals, metadata, a checkpoint, and changes behind it."""
    make_tree(program.docs)
    program("apply", "--yes")
    change_tree(program.docs)
    program("apply", "--yes")
    # A take-over leaves a checkpoint, at which the walk through the log ends.
    config = program.base / "backup.yaml"
    config.write_text(config.read_text().replace("host: here", "host: another"))
    program("apply", "--take-over", "--yes")
    (program.docs / "later.txt").write_text("after the checkpoint\n")
    (program.docs / "letters" / "with space, and ümlaut.txt").chmod(0o604)
    (program.docs / "-dash").unlink()
    program("apply", "--yes")


def run(
    command: list[str], environment: Mapping[str, str], cwd: Path, *, code: int = 0, said: str = ""
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(command, env=environment, cwd=cwd, input=said.encode(), capture_output=True, check=False)
    assert done.returncode == code, (
        f"exit {done.returncode}\n{done.stdout.decode(errors='replace')}\n{done.stderr.decode(errors='replace')}"
    )
    return done
