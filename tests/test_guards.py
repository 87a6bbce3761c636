"""A disk that is not mounted looks like a folder from which everything was deleted: it is refused, never backed up as a
deletion."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.program import Program


@contextmanager
def mounted(place: Path) -> Iterator[None]:
    """A small file system of its own at this place."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def ready(tmp_path: Path) -> Program:
    program = Program(tmp_path)
    program("init")
    return program


def test_a_source_that_was_a_mount_point_is_refused_when_it_is_none(ready: Program) -> None:
    with mounted(ready.docs):
        (ready.docs / "on-the-disk").write_text("precious\n")
        ready("apply", "--yes")
    assert "no longer a mount point" in ready("apply", "--yes", code=4).stderr
    assert [line["path"] for line in ready.lines("ls", "docs")] == ["on-the-disk"]


def test_a_disk_inside_a_source_that_is_not_mounted_is_refused(ready: Program) -> None:
    disk = ready.docs / "disk"
    with mounted(disk):
        (disk / "on-the-disk").write_text("precious\n")
        ready("apply", "--yes")
    done = ready("apply", "--yes", code=4)
    assert f"{disk} is no longer a mount point" in done.stderr
    assert "disk/on-the-disk" in [line["path"] for line in ready.lines("ls", "-R", "docs")]
    with mounted(disk):
        (disk / "on-the-disk").write_text("precious\n")
        ready("apply", "--yes")
    # Gone for good: said on purpose, by rebuilding, or by removing or excluding the place.
    ready("rebuild", "docs")
    ready("apply", "--yes")
    assert "disk/on-the-disk" not in [line["path"] for line in ready.lines("ls", "-R", "docs")]


def test_a_mount_point_that_was_removed_or_excluded_is_no_obstacle(ready: Program) -> None:
    disk = ready.docs / "disk"
    with mounted(disk):
        (disk / "file").write_text("x\n")
        ready("apply", "--yes")
    config = ready.base / "backup.yaml"
    config.write_text(config.read_text().replace('"*.tmp"', '"*.tmp", "/disk/"'))
    ready("plan")
    config.write_text(config.read_text().replace(', "/disk/"', ""))
    ready("plan", code=4)
    disk.rmdir()
    ready("apply", "--yes")
