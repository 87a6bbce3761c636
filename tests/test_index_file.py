"""The file of the embedded index where it can be read and not written, is of an earlier format, or is damaged."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3hashsync import errors
from s3hashsync.stores.base import Write
from s3hashsync.stores.sqlite import SqliteIndex
from s3hashsync.stores.sqlite_damaged import put_aside_if_damaged
from tests.conformance.index import control, record
from tests.disks import fill, small_disk
from tests.program import Program


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as point:
        yield point


def made(path: str, count: int = 2000) -> SqliteIndex:
    index = SqliteIndex(path, create=True)
    index.write([Write(record(f"src/{number}"), None) for number in range(count)])
    return index


LEAVER = """
import os, sys
from s3hashsync.stores.base import Write
from s3hashsync.stores.sqlite import SqliteIndex
from tests.conformance.index import record
index = SqliteIndex(sys.argv[1], create=True)
index.write([Write(record(f"src/{number}"), None) for number in range(2000)])
os._exit(0)
"""


def left_by_a_dead_process(path: str) -> None:
    """With its log beside it."""
    subprocess.run([sys.executable, "-c", LEAVER, path], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert os.path.getsize(f"{path}-wal")
    os.unlink(f"{path}-shm")  # as on a disk that was taken to another machine


@pytest.mark.parametrize("left", [False, True])
def test_an_index_on_a_full_disk_can_be_read(disk: Path, left: bool) -> None:
    path = str(disk / "index.db")
    if left:
        left_by_a_dead_process(path)
    else:
        made(path).close()
    fill(disk)
    index = SqliteIndex(path)
    assert len(list(index.scan())) == 2000
    with pytest.raises(errors.NoSpace):
        index.write([Write(record(f"more/{number}"), None) for number in range(2000)])
    assert len(list(index.scan())) == 2000
    index.close()
    os.unlink(disk / "fill")
    again = SqliteIndex(path)
    again.write([Write(record("more"), None)])
    assert len(list(again.scan())) == 2001


@pytest.mark.parametrize("left", [False, True])
def test_an_index_on_a_disk_that_may_only_be_read_can_be_read(disk: Path, left: bool) -> None:
    path = str(disk / "index.db")
    if left:
        left_by_a_dead_process(path)
    else:
        made(path).close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    index = SqliteIndex(path)
    assert len(list(index.scan())) == 2000
    with pytest.raises(errors.Denied):
        index.write([Write(record("more"), None)])
    index.close()


def test_a_repository_on_a_full_disk_can_be_restored_from(tmp_path: Path, disk: Path) -> None:
    program = Program(tmp_path)
    config = tmp_path / "backup.yaml"
    config.write_text(config.read_text().replace(f"{tmp_path}/repo", f"{disk}/repo"))
    program("init")
    program("apply", "--yes")
    os.unlink(disk / "repo" / ".tmp-tidied")
    fill(disk)
    assert "docs: 1 file" in program("status").stdout
    assert "a.txt" in program("ls", "docs").stdout
    program("restore", "docs", "--to", "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "a\n"
    (program.docs / "b.txt").write_text("b" * 100_000)
    assert "no space left" in program("apply", "--yes", code=1).stderr


# An earlier format


def first_format(path: str) -> None:
    """Items without binary data: as it was before there were packs."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("ALTER TABLE controls DROP COLUMN data; PRAGMA user_version = 1")


def format_of(path: str) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_reading_leaves_the_format_as_it_is(tmp_path: Path) -> None:
    path = str(tmp_path / "index.db")
    kept = control("repository", id="1")
    index = SqliteIndex(path, create=True)
    index.write([Write(kept, None)])
    index.close()
    first_format(path)
    reader, writer = SqliteIndex(path), SqliteIndex(path)
    for index in (reader, writer):
        assert index.read(["repository"]) == {"repository": kept}
        assert list(index.scan()) == [kept]
        # A write that loses its condition changes nothing either.
        assert not index.write([Write(control("repository"), None)])[0].written
    assert format_of(path) == 1
    more = control("more")
    writer.write([Write(more, None)])
    assert format_of(path) == 2
    assert sorted(item.key for item in reader.scan()) == ["more", "repository"]
    assert reader.read(["more"]) == {"more": more}


def test_an_upgrade_that_failed_is_made_by_the_next_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "index.db")
    made(path, 1).close()
    first_format(path)
    index = SqliteIndex(path)
    with monkeypatch.context() as patch:
        patch.setattr("s3hashsync.stores.sqlite.insertions", lambda into, found: [("INSERT INTO nowhere VALUES (?)", [1])])
        with pytest.raises(errors.StoreError):
            index.write([Write(control("a"), None)])
    assert index.read(["a"]) == {}
    index.write([Write(control("a"), None)])
    assert format_of(path) == 2


def test_reading_commands_leave_the_format_as_it_is(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program("init")
    program("apply", "--yes")
    path = str(tmp_path / "repo" / "index.db")
    first_format(path)
    for words in (["ls", "docs"], ["status"], ["plan"], ["history", "docs"], ["doctor"]):
        program(*words)
    assert format_of(path) == 1


# Damage


def overwrite_with_junk(path: Path) -> None:
    path.write_bytes(b"no database at all" * 3000)


def overwrite_the_middle(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(2 * 4096)
        file.write(b"\xff" * (path.stat().st_size - 3 * 4096))


def cut_off(path: Path) -> None:
    os.truncate(path, 2 * 4096 + 100)


def leave_a_few_bytes(path: Path) -> None:
    os.truncate(path, 50)


DAMAGES = [overwrite_with_junk, overwrite_the_middle, cut_off, leave_a_few_bytes]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_put_aside_and_made_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    program = Program(tmp_path)
    for number in range(30):
        (program.docs / f"{number}.txt").write_text(f"{number}\n")
    program("init")
    program("apply", "--yes")
    path = tmp_path / "repo" / "index.db"
    damage(path)
    said = program("apply", "--yes", code=None)
    if said.returncode:
        assert str(path) in said.stderr
        assert "s3hashsync rebuild --index" in said.stderr
    broken = path.read_bytes()
    done = program("rebuild", "--index", "--yes")
    assert f"{path}.damaged" in done.stderr
    assert Path(f"{path}.damaged").read_bytes() == broken
    assert program.lines("restore", "docs", "--to", "out")[-1]["files_restored"] == 31
    assert program.lines("apply", "--yes")[-1]["objects_put"] == 0


def test_a_lost_index_names_the_command_that_makes_it_anew(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program("init")
    program("apply", "--yes")
    path = tmp_path / "repo" / "index.db"
    path.unlink()
    for words in (["ls", "docs"], ["restore", "docs", "--to", "out"], ["status"]):
        said = program(*words, code=4).stderr
        assert str(path) in said
        assert "s3hashsync rebuild --index" in said
    program("rebuild", "--index", "--yes")
    program("restore", "docs", "--to", "out")


def test_what_was_put_aside_before_stays(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    (tmp_path / "repository.json").touch()
    for number in range(3):
        path.write_bytes(b"junk" * (1000 + number))
        assert put_aside_if_damaged(str(path)) == f"{path}.damaged{number or ''}"
    assert sorted(one.stat().st_size for one in tmp_path.iterdir()) == [0, 4000, 4004, 4008]


@pytest.mark.parametrize("content", [b"a text of somebody\n" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_what_never_was_an_index_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(errors.Corrupt, match="nothing says that it was an index"):
        put_aside_if_damaged(str(path))
    assert path.read_bytes() == content


def test_an_index_elsewhere_is_known_by_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    made(str(path), 10).close()
    overwrite_the_middle(path)
    assert put_aside_if_damaged(str(path)) == f"{path}.damaged"


def test_a_whole_index_and_another_programs_stay_where_they_are(tmp_path: Path) -> None:
    mine, other = tmp_path / "index.db", tmp_path / "other.db"
    made(str(mine), 10).close()
    with contextlib.closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE addresses (name)")
    assert put_aside_if_damaged(str(mine)) is None
    with pytest.raises(errors.Corrupt, match="not an index of s3hashsync"):
        put_aside_if_damaged(str(other))
    assert put_aside_if_damaged(str(tmp_path / "none.db")) is None
    assert sorted(os.listdir(tmp_path)) == ["index.db", "other.db"]


def test_rebuild_leaves_another_programs_database_alone(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program("init")
    program("apply", "--yes")
    path = tmp_path / "repo" / "index.db"
    shutil.move(path, tmp_path / "mine.db")
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE addresses (name)")
    before = path.read_bytes()
    assert "not an index" in program("rebuild", "--index", "--yes", code=1).stderr
    assert path.read_bytes() == before


def test_many_may_make_and_open_it_at_once(folder: Path) -> None:
    """SQLite does not wait where another connection is just changing the journal's mode; and a log may go between two looks."""
    for turn in range(60):
        path = str(folder / str(turn) / "index.db")
        together = threading.Barrier(4)

        def opened(_: int, path: str = path, together: threading.Barrier = together) -> None:
            together.wait()
            SqliteIndex(path, create=True).close()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(opened, range(4)))
