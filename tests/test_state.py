"""The local state: the order of its rows, what survives a crash, and what is forgotten when."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from s3hashsync.core.model import Content, ContentHash, Entry, Kind, ObjectAt, Rev, Sha256
from s3hashsync.disk.state import Anchor, OpenAttempt, State
from s3hashsync.disk.state_rows import Known, key_of, path_of
from s3hashsync.disk.tree import Seen, walk
from s3hashsync.errors import Corrupt
from s3hashsync.run.gather import walk_options
from s3hashsync.run.session import open_state
from tests.harness import House

ONE, TWO = ContentHash(b"1" * 32), ContentHash(b"2" * 32)
AWKWARD = [b"a", b"a-b", b"a b", b"a.b", b"a\x01", b"a\xff", b"a\nb", b"\xc3\xa9", b"%41", b"~", b"-", b"A"]


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(str(tmp_path / "state.db"))


def known(path: bytes, hash_: ContentHash | None = ONE, kind: Kind = Kind.FILE) -> Known:
    entry = Entry(path, kind, 5, 1, 2, 3, 4, 0o644, 1000, 1000)
    return Known(entry, hash_, Sha256(bytes(hash_)) if hash_ else None)


def content(hash_: ContentHash) -> Content:
    return Content(hash_, 5, 9, 7, "STANDARD", "sha256:", "zstd", ObjectAt("v"))


def reopened(state: State, tmp_path: Path) -> State:
    return State(str(tmp_path / "state.db"))


def test_rows_come_in_the_order_of_the_walk(tmp_path: Path, state: State) -> None:
    house = House(tmp_path)
    root = os.fsencode(house.source)
    for name in AWKWARD:
        os.makedirs(os.path.join(root, b"in", name))
        for inner in AWKWARD:
            Path(os.fsdecode(os.path.join(root, b"in", name, inner))).touch()
        Path(os.fsdecode(os.path.join(root, name))).touch()
    seen = [item.key for item in walk(root, walk_options(house.source_settings())) if isinstance(item, Seen)]
    assert len(seen) == 2 + len(AWKWARD) * (2 + len(AWKWARD))
    state.mark((key, ()) for key in seen[::3])
    state.load((known(path_of(key)), None) for key in reversed(seen[1::3]))
    state.load((known(path_of(key)), None) for key in seen[2::3])
    assert [row.key for row in state.rows()] == seen == sorted(seen)


def test_keys_and_paths_are_each_other() -> None:
    assert key_of(b"a/b") == b"a\0b"
    assert path_of(key_of(b"a/b/c")) == b"a/b/c"


def test_what_was_marked_survives_the_death_of_the_process(tmp_path: Path, state: State) -> None:
    state.close()
    pid = os.fork()
    if not pid:
        child = State(str(tmp_path / "state.db"))
        child.mark([(b"p", [ONE, TWO]), (b"q", [])], [OpenAttempt(ONE, "id", Rev(b"rev"), "token")])
        os._exit(0)
    os.waitpid(pid, 0)
    state = reopened(state, tmp_path)
    assert state.dirty_hashes(b"p") == (ONE, TWO)
    assert [(row.key, row.dirty) for row in state.rows()] == [(b"p", 1), (b"q", 1)]
    assert state.attempt(ONE) == OpenAttempt(ONE, "id", Rev(b"rev"), "token")


def test_the_writes_of_a_state_are_synced(state: State) -> None:
    assert state._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert state._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_marks_add_up_until_the_path_is_settled(state: State) -> None:
    state.load([(known(b"p", ONE), content(ONE))])
    state.mark([(b"p", [ONE])])
    state.mark([(b"p", [TWO])])
    assert state.dirty_hashes(b"p") == (ONE, TWO)
    (row,) = state.rows()
    assert (row.hash, row.dirty) == (ONE, 1)
    state.settle([(known(b"p", TWO), content(TWO))], [], Anchor())
    (row,) = state.rows()
    assert (row.hash, row.dirty, state.dirty_hashes(b"p")) == (TWO, 0, ())


def test_settling_takes_rows_marks_attempts_and_anchor_in_one_step(state: State) -> None:
    state.mark([(b"p", [ONE]), (b"gone", [TWO])], [OpenAttempt(ONE, "id", None)])
    state.load([(known(b"gone", TWO), content(TWO))])

    def breaks():
        yield known(b"p"), content(ONE)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        state.settle(breaks(), [b"gone"], Anchor("r", "i", "h"))
    assert [(row.key, row.dirty) for row in state.rows()] == [(b"gone", 1), (b"p", 1)]
    state.settle([(known(b"p"), content(ONE))], [b"gone"], Anchor("r", "i", "h"))
    assert [(row.key, row.dirty) for row in state.rows()] == [(b"p", 0)]
    assert state.attempt(ONE) is None
    assert state.anchor() == Anchor("r", "i", "h", "")


def test_a_failed_path_stays_marked_when_the_others_are_settled(state: State) -> None:
    state.mark([(b"done", [ONE]), (b"failed", [TWO])])
    state.settle([(known(b"done"), content(ONE))], [], Anchor())
    assert [(row.key, row.dirty) for row in state.rows()] == [(b"done", 0), (b"failed", 1)]


def test_clearing_keeps_the_hashes_found_so_far_and_nothing_else(state: State) -> None:
    """They are facts about the disk, whatever the repository says."""
    entry = known(b"p").entry
    state.remember_hashes([(entry, ONE, Sha256(bytes(ONE)))])
    state.mark([(b"p", [ONE])], [OpenAttempt(ONE, "id", None)])
    state.set_note("rewrite", "1")
    state.set_anchor(Anchor("r", "i", "h", "p"))
    state.clear()
    assert state.has_found()
    assert list(state.rows()) == []
    assert (state.attempt(ONE), state.note("rewrite"), state.anchor()) == (None, "", Anchor())


def test_entries_come_back_as_they_were(state: State) -> None:
    entry = Entry(
        b"a\xff/b",
        Kind.SYMLINK,
        0,
        -5,
        6,
        7,
        (1 << 64) - 1,
        0o4755,
        0,
        1,
        links=3,
        rdev=9,
        target=b"\xff",
        xattrs=((b"user.a", b"\0"),),
        sparse=True,
    )
    state.load([(Known(entry, None, None), None)])
    found = state.get(key_of(entry.path))
    assert found is not None
    assert found.entry.device in (entry.device, -1)
    assert (found.entry.target, found.entry.xattrs, found.entry.mtime_ns) == (entry.target, entry.xattrs, -5)


def test_a_damaged_state_is_put_aside(tmp_path: Path, state: State) -> None:
    state.close()
    path = tmp_path / "state.db"
    path.write_bytes(b"no database at all" * 1000)
    fresh = open_state(str(path))
    assert list(fresh.rows()) == []
    assert (tmp_path / "state.db.damaged").exists()


def test_a_state_of_a_newer_version_is_left_alone(tmp_path: Path, state: State) -> None:
    state.close()
    with sqlite3.connect(tmp_path / "state.db") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(Corrupt, match="newer version"):
        open_state(str(tmp_path / "state.db"))


def test_nobody_else_may_read_a_state(tmp_path: Path, state: State) -> None:
    assert stat.S_IMODE(os.stat(tmp_path / "state.db").st_mode) == 0o600
