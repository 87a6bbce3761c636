"""How each program is called: one repository in a folder, one tree, the defaults a user would get.

Decides command lines and environments. Measures nothing. A program that is not installed is not there; one that does not know a
command leaves that cell of the table empty.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PASSWORD = "benchmark"
UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True)
class Call:
    """One command line. `folder` is where it runs."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """One program. Each of the functions takes the folder that holds everything of one round: repository, caches, state."""

    name: str
    version: str
    prepare: Callable[[str, Sequence[str]], Sequence[Call]]
    backup: Callable[[str, Sequence[str]], Call]
    restore: Callable[[str, str], Call | None]
    repository: str = "repo"


def found(peers: Mapping[str, str], names: Sequence[str], other: str | None) -> list[Program]:
    """Ourselves, the other checkout of ourselves, then every peer that was named or is on PATH."""
    makers = {"restic": _restic, "kopia": _kopia, "rustic": _rustic, "borg": _borg}
    programs = [_ours(sys.executable)]
    if other:
        programs.append(_ours(sys.executable, os.path.abspath(other)))
    for name in names:
        if name == UNVERIFIED:
            programs.append(_ours(sys.executable, verify=False))
            continue
        path = peers.get(name) or shutil.which(name)
        if path:
            programs.append(makers[name](path))
    return programs


def _version(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


def _ours(executable: str, folder: str = HERE, *, verify: bool = True) -> Program:
    """`folder` holds the package: another one than this checkout's compares two versions of ourselves. `verify`: whether what is
    uploaded is opened again before."""
    name = "s3hashsync" if folder == HERE else os.path.basename(folder)
    name = name if verify else UNVERIFIED

    def environment(home: str) -> dict[str, str]:
        return {"PYTHONPATH": folder, "XDG_STATE_HOME": f"{home}/state", "XDG_CONFIG_HOME": f"{home}/config"}

    def call(home: str, *arguments: str) -> Call:
        # Never where a checkout lies: `-m` takes the package of the working folder first.
        return Call((executable, "-m", "s3hashsync", "-c", f"{home}/backup.yaml", *arguments), environment(home), home)

    def prepare(home: str, trees: Sequence[str]) -> list[Call]:
        """Encrypted, as the others are, and packed, which is the default."""
        generate = call(home, "key", "generate", f"{home}/identity.txt")
        subprocess.run(generate.command, env={**os.environ, **generate.environment}, cwd=home, capture_output=True, check=True)
        with open(f"{home}/identity.txt", encoding="ascii") as file:
            (recipient,) = re.findall("age1[0-9a-z]+", file.read())
        body = {
            "version": 1,
            "repository": {"objects": "./repo"},
            "encryption": {"recipients": [recipient]},
            "uploads": {"verify": verify},
            "sources": [{"name": f"source{number}", "path": tree} for number, tree in enumerate(trees)],
        }
        with open(f"{home}/backup.yaml", "w", encoding="utf-8") as file:
            json.dump(body, file)  # JSON is YAML
        return [call(home, "init", "--yes", "--one-recipient")]

    def restore(home: str, target: str) -> Call:
        return call(home, "-q", "restore", "--to", target, "--identity", f"{home}/identity.txt")

    version = subprocess.run(
        (executable, "-m", "s3hashsync", "--version"),
        env={**os.environ, "PYTHONPATH": folder},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return Program(
        name,
        f"{version}, Python {sys.version.split()[0]}",
        prepare,
        lambda home, trees: call(home, "-q", "apply", "--yes", "--allow-mass-change"),
        restore,
    )


def _restic(path: str) -> Program:
    def call(home: str, *arguments: str) -> Call:
        environment = {"RESTIC_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": f"{home}/repo", "RESTIC_CACHE_DIR": f"{home}/cache"}
        return Call((path, *arguments), environment)

    return Program(
        "restic",
        _version(path, "version"),
        lambda home, trees: [call(home, "init", "--quiet")],
        lambda home, trees: call(home, "backup", "--quiet", *trees),
        lambda home, target: call(home, "restore", "--quiet", "latest", "--target", target),
    )


def _kopia(path: str) -> Program:
    def call(home: str, *arguments: str) -> Call:
        environment = {
            "KOPIA_PASSWORD": PASSWORD,
            "KOPIA_CONFIG_PATH": f"{home}/kopia.config",
            "KOPIA_CACHE_DIRECTORY": f"{home}/cache",
            "KOPIA_LOG_DIR": f"{home}/log",
            "KOPIA_CHECK_FOR_UPDATES": "false",
        }
        return Call((path, *arguments, "--no-progress") if arguments[0] in ("snapshot",) else (path, *arguments), environment)

    def prepare(home: str, trees: Sequence[str]) -> list[Call]:
        os.makedirs(f"{home}/repo")
        # Without a policy it compresses nothing; the others do.
        return [
            call(home, "repository", "create", "filesystem", "--path", f"{home}/repo"),
            call(home, "policy", "set", "--global", "--compression=zstd"),
        ]

    def restore(home: str, target: str) -> Call | None:
        listing = call(home, "snapshot", "list", "--json")
        command = [part for part in listing.command if part != "--no-progress"]
        done = subprocess.run(command, env={**os.environ, **listing.environment}, capture_output=True, check=True)
        newest = max(json.loads(done.stdout), key=lambda one: one["startTime"])
        return call(home, "restore", newest["rootEntry"]["obj"], target)

    return Program(
        "kopia",
        _version(path, "--version"),
        prepare,
        lambda home, trees: call(home, "snapshot", "create", *trees),
        restore,
    )


def _rustic(path: str) -> Program:
    def call(home: str, *arguments: str) -> Call:
        environment = {
            "RUSTIC_PASSWORD": PASSWORD,
            "RUSTIC_REPOSITORY": f"{home}/repo",
            "RUSTIC_CACHE_DIR": f"{home}/cache",
            "RUSTIC_NO_PROGRESS": "true",
        }
        return Call((path, *arguments), environment)

    return Program(
        "rustic",
        _version(path, "--version"),
        lambda home, trees: [call(home, "init")],
        lambda home, trees: call(home, "backup", *trees),
        lambda home, target: call(home, "restore", "latest", target),
    )


def _borg(path: str) -> Program:
    def call(home: str, *arguments: str, folder: str | None = None) -> Call:
        environment = {
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_REPO": f"{home}/repo",
            "BORG_BASE_DIR": f"{home}/base",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        return Call((path, *arguments), environment, folder)

    def backup(home: str, trees: Sequence[str]) -> Call:
        return call(home, "create", "--compression", "zstd,3", "::{utcnow:%Y%m%dT%H%M%S%f}", *trees)

    def restore(home: str, target: str) -> Call | None:
        listing = call(home, "list", "--last", "1", "--format", "{archive}")
        done = subprocess.run(
            listing.command, env={**os.environ, **listing.environment}, capture_output=True, text=True, check=True
        )
        os.makedirs(target, exist_ok=True)
        return call(home, "extract", f"::{done.stdout.strip()}", folder=target)

    return Program(
        "borg",
        _version(path, "--version"),
        lambda home, trees: [call(home, "init", "--encryption", "repokey-blake2")],
        backup,
        restore,
    )
