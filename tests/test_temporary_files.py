"""What a write that fails, is interrupted or dies leaves in the folder of an embedded repository: nothing for long."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3hashsync import errors
from s3hashsync.stores.base import Attempt
from s3hashsync.stores.local import LocalObjects
from tests.disks import fill, small_disk
from tests.program import Program

STEM = "objects/" + "ab" * 32
PART = 8 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as point:
        yield point


@pytest.fixture
def store(tmp_path: Path) -> LocalObjects:
    return LocalObjects(str(tmp_path / "repository"), create=True)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".tmp-*") if path.name != ".tmp-tidied"]


def test_an_upload_that_finds_the_disk_full_leaves_nothing(disk: Path) -> None:
    store = LocalObjects(str(disk / "repository"), create=True)
    upload = store.begin(STEM, Attempt("aa", ""), 5 * PART)
    upload.write_part(1, bytes(PART))
    upload.write_part(2, bytes(PART - 1))
    with pytest.raises(errors.NoSpace):
        upload.write_part(3, bytes(PART))
    assert leftovers(disk) == []
    assert store._folder.has_room(PART)
    with pytest.raises(errors.StoreError):
        upload.write_part(2, b"")


def test_a_put_that_finds_the_disk_full_leaves_nothing(disk: Path) -> None:
    store = LocalObjects(str(disk / "repository"), create=True)
    store.put(STEM, b"", Attempt("aa", ""))
    fill(disk)
    for write in (
        lambda: store.put(STEM, bytes(PART), Attempt("bb", "")),
        lambda: store.create_document("runs/a", bytes(PART)),
        lambda: store.replace_document("runs/a", bytes(PART)),
    ):
        with pytest.raises(errors.NoSpace):
            write()
    assert leftovers(disk) == []


def test_a_backup_that_fills_the_disk_leaves_the_room_that_there_was(tmp_path: Path, disk: Path) -> None:
    program = Program(tmp_path)
    config = tmp_path / "backup.yaml"
    config.write_text(config.read_text().replace(f"{tmp_path}/repo", f"{disk}/repo"))
    (program.docs / "large").write_bytes(os.urandom(3 * PART))
    program("init")
    assert "no space left" in program("apply", "--yes", code=1).stderr
    assert leftovers(disk) == []


def test_what_was_interrupted_goes_when_the_store_is_closed(store: LocalObjects, tmp_path: Path) -> None:
    """A second Ctrl-C: nobody aborts the upload."""
    upload = store.begin(STEM, Attempt("aa", ""), PART)
    upload.write_part(1, b"a part")
    done = store.begin(STEM, Attempt("bb", ""), PART)
    done.complete()
    store.close()
    assert leftovers(tmp_path) == []
    assert [path.name for path in (tmp_path / "repository/objects/ab").iterdir()] == [f"{'ab' * 32}.bb"]


def test_a_put_that_is_interrupted_leaves_nothing(store: LocalObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(fd: int, digest: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store._folder, "seal", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put(STEM, b"body", Attempt("aa", ""))
    assert leftovers(tmp_path) == []


WRITER = """
import signal, sys
from s3hashsync.stores.base import Attempt
from s3hashsync.stores.local import LocalObjects
upload = LocalObjects(sys.argv[1]).begin("objects/" + "ab" * 32, Attempt("aa", ""), 1)
upload.write_part(1, bytes(8 << 20))
print("written", flush=True)
signal.pause()
"""


def test_what_a_killed_process_left_goes_as_soon_as_room_is_short(disk: Path) -> None:
    """Also when everything was looked through a minute ago."""
    folder = disk / "repository"
    store = LocalObjects(str(folder), create=True)
    assert store.tidy() == 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", WRITER, folder], env=environment, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert store.tidy() == 0, "it is alive"
        writer.send_signal(signal.SIGKILL)
    assert len(leftovers(disk)) == 1
    assert store.tidy() == 1
    assert leftovers(disk) == []


def test_a_file_tidied_away_before_it_was_locked_is_made_again(
    store: LocalObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = LocalObjects(str(tmp_path / "repository"))
    lock, tidied = fcntl.flock, []

    def late(fd: int, how: int) -> None:
        if not tidied:
            tidied.append(True)
            tidied.append(other.tidy() == 1)
        lock(fd, how)

    monkeypatch.setattr("s3hashsync.stores.folder.fcntl.flock", late)
    if not store._folder.batch:
        pytest.skip("here a file is left alone for a day")
    stored = store.put(STEM, b"body", Attempt("aa", ""))
    assert tidied == [True, True]
    assert b"".join(store.read(STEM, stored.version)) == b"body"


def test_planning_leaves_nothing_in_an_empty_folder(tmp_path: Path) -> None:
    program = Program(tmp_path)
    (tmp_path / "repo").mkdir()
    for words in (["plan"], ["status"], ["apply", "--yes"], ["key", "list"]):
        program(*words, code=10)
    assert list((tmp_path / "repo").iterdir()) == []
