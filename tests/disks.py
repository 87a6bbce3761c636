"""Small disks that can be filled, where the machine lets a test mount one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(point: Path) -> Iterator[Path]:
    """A disk of its own, mounted at `point`; the test is skipped where that is not allowed."""
    point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", point]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def fill(disk: Path) -> None:
    """To the last byte."""
    with suppress(OSError), open(disk / "fill", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
