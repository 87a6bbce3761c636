"""The embedded stores under the conformance suites, and what only they do."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from s3hashsync import errors
from s3hashsync.core.model import Control
from s3hashsync.stores.base import Attempt, Write
from s3hashsync.stores.filesystem import translated
from s3hashsync.stores.local import LocalObjects
from s3hashsync.stores.sqlite import SqliteIndex
from tests.conformance.index import IndexSuite, MakeIndex, control, fresh_rev, record
from tests.conformance.objects import MakeObjects, ObjectStoreSuite


class TestLocalObjects(ObjectStoreSuite):
    keeps_storage_class = False
    resumes = False

    @pytest.fixture
    def make_objects(self, tmp_path: Path) -> MakeObjects:
        return lambda: LocalObjects(str(tmp_path / "repository"), create=True)


class TestSqliteIndex(IndexSuite):
    @pytest.fixture
    def make_index(self, tmp_path: Path) -> MakeIndex:
        return lambda: SqliteIndex(str(tmp_path / "index.db"), create=True)


class TestLocalObjectsFileByFile(TestLocalObjects):
    """As on file systems whose syncfs cannot be believed: every file is synced before it gets its name."""

    many = 60

    @pytest.fixture
    def make_objects(self, tmp_path: Path) -> MakeObjects:
        def make() -> LocalObjects:
            store = LocalObjects(str(tmp_path / "repository"), create=True)
            store._folder.batch = False
            return store

        return make


class TestSqliteIndexWithoutWal(IndexSuite):
    """As on a network file system."""

    many = 500

    @pytest.fixture
    def make_index(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeIndex:
        monkeypatch.setattr("s3hashsync.stores.sqlite.file_system_kind", lambda path: "nfs4")

        def make() -> SqliteIndex:
            index = SqliteIndex(str(tmp_path / "index.db"), create=True)
            assert index.remote
            assert index._db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
            return index

        return make


# the folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def store(folder: Path) -> LocalObjects:
    return LocalObjects(str(folder), create=True)


STEM = "objects/" + "ab" * 32


def test_layout_and_modes(store: LocalObjects, folder: Path) -> None:
    store.put(STEM, b"body", Attempt("0f" * 16, ""))
    store.put("packs/1234", b"pack", Attempt("aa", ""))
    store.create_document("runs/src/1.1", b"log")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [f"objects/ab/{'ab' * 32}.{'0f' * 16}", "packs/12/1234.aa", "runs/src/1.1"]
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o600 if path.is_file() else 0o700)


def test_a_missing_folder_is_not_made(folder: Path) -> None:
    with pytest.raises(errors.Missing, match="no such folder") as raised:
        LocalObjects(str(folder))
    assert raised.value.hint
    assert not folder.exists()


def test_a_removed_folder_is_no_proof_of_absence(store: LocalObjects, folder: Path) -> None:
    """Were it `Missing`, or an empty listing, the backup would take every version for lost."""
    version = store.put(STEM, b"body", Attempt("aa", "")).version
    shutil.rmtree(folder)
    for operation in (
        lambda: list(store.read(STEM, version)),
        lambda: list(store.versions("objects/")),
        lambda: list(store.documents("")),
        lambda: store.find(STEM, "aa"),
        lambda: store.read_document("repository.json"),
        lambda: store.delete(STEM, version),
        lambda: store.put(STEM, b"body", Attempt("bb", "")),
        lambda: store.create_document("repository.json", b""),
    ):
        with pytest.raises(errors.Unreachable, match="removed"):
            operation()


def test_a_fan_out_folder_taken_away_is_made_again(store: LocalObjects, folder: Path) -> None:
    store.put(STEM, b"body", Attempt("aa", ""))
    shutil.rmtree(folder / "objects")
    store.put(STEM, b"body", Attempt("bb", ""))
    assert [version.version for version in store.versions(STEM)] == ["bb"]


def test_a_torn_file_is_not_found(store: LocalObjects, folder: Path) -> None:
    """What a power failure before the barrier may leave: the name is there, the bytes are not."""
    if not store._folder.batch:
        pytest.skip("here every file is synced before it gets its name")
    store.put(STEM, b"a body", Attempt("aa", ""))
    os.truncate(folder / f"objects/ab/{'ab' * 32}.aa", 3)
    assert store.find(STEM, "aa") is None
    with pytest.raises(errors.Corrupt):
        store.put(STEM, b"a body", Attempt("aa", ""))


def test_what_is_found_is_made_durable_by_the_next_barrier(
    store: LocalObjects, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever put it may have died before its own."""
    store.put(STEM, b"body", Attempt("aa", ""))
    after = LocalObjects(str(folder))
    synced: list[bool] = []
    sync = after._folder._sync
    monkeypatch.setattr(after._folder, "_sync", lambda: (synced.append(True), sync()))
    after.barrier()
    assert not synced
    assert after.find(STEM, "aa") is not None
    after.barrier()
    assert synced


def test_a_barrier_that_failed_never_succeeds(store: LocalObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system drops pages it could not write: a second sync would have nothing to report."""

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    store.put(STEM, b"body", Attempt("aa", ""))
    monkeypatch.setattr(store._folder, "_sync", fail)
    with pytest.raises(errors.StoreError):
        store.barrier()
    monkeypatch.undo()
    with pytest.raises(errors.StoreError):
        store.barrier()


@pytest.mark.parametrize("key", ["../x", "a/../b", "/etc/passwd", "a//b", "", ".", "runs/.tmp-1", "a\0b"])
def test_no_key_leads_out_of_the_folder(store: LocalObjects, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        store.create_document(key, b"")
    with pytest.raises(ValueError, match="not a key"):
        store.put(key, b"", Attempt("aa", ""))


def test_a_version_of_another_store_is_missing(store: LocalObjects) -> None:
    for version in ["3/L4kqtJ", "../x", "", "a.b"]:
        with pytest.raises(errors.Missing):
            list(store.read(STEM, version))
        store.delete(STEM, version)


@pytest.mark.parametrize("batch", [True, False])
def test_tidy_removes_what_dead_processes_left(store: LocalObjects, folder: Path, batch: bool) -> None:
    """At once where a lock tells the living from the dead, otherwise after a day."""
    store._folder.batch = batch
    upload = store.begin(STEM, Attempt("aa", ""), 1)
    upload.write_part(1, b"alive, if slow")
    (living,) = (folder / "objects/ab").iterdir()
    stale, fresh = folder / "objects/ab/.tmp-stale", folder / "runs/.tmp-fresh"
    fresh.parent.mkdir()
    for path in (stale, fresh):
        path.write_bytes(b"")
    for path in (living, stale):
        os.utime(path, (1, 1))
    assert store.tidy() == 1 + batch
    assert (stale.exists(), fresh.exists(), living.exists()) == (False, not batch, True)
    assert store.tidy() == 0
    assert upload.complete().size == 14
    assert [document.key for document in store.documents("")] == []


@pytest.mark.parametrize(
    ("number", "expected", "transient"),
    [
        (errno.ENOSPC, errors.NoSpace, False),
        (errno.EDQUOT, errors.NoSpace, False),
        (errno.EACCES, errors.Denied, False),
        (errno.EROFS, errors.Denied, False),
        (errno.ESTALE, errors.Unreachable, True),
        (errno.EIO, errors.StoreError, False),
    ],
)
def test_errors_say_where_and_what_to_do(number: int, expected: type[errors.StoreError], transient: bool) -> None:
    error = translated(OSError(number, os.strerror(number)), "cannot write x", "/mnt/usb/backups")
    assert type(error) is expected
    assert error.transient is transient
    assert error.hint
    assert "/mnt/usb/backups" in f"{error.message} {error.hint}"


# the SQLite file


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "index.db")


def test_a_mistyped_path_is_no_empty_index(tmp_path: Path, path: str) -> None:
    for absent in (path, str(tmp_path / "no such folder" / "index.db")):
        with pytest.raises(errors.Missing):
            SqliteIndex(absent)
        assert not os.path.exists(absent)
    Path(path).touch()
    with pytest.raises(errors.Missing):
        SqliteIndex(path)


def test_an_index_is_opened_again(path: str) -> None:
    item = record("src/a")
    first = SqliteIndex(path, create=True)
    first.write([Write(item, None)])
    first.close()
    assert SqliteIndex(path).read([item.key]) == {item.key: item}
    assert os.stat(path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("create", [True, False])
def test_foreign_files_are_left_alone(path: str, create: bool) -> None:
    Path(path).write_bytes(b"a letter to my landlord, and no database at all" * 100)
    with pytest.raises(errors.Corrupt):
        SqliteIndex(path, create=create)
    os.unlink(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE addresses (name)")
    with pytest.raises(errors.Corrupt, match="not an index"):
        SqliteIndex(path, create=create)


def test_a_newer_format_is_refused(path: str) -> None:
    SqliteIndex(path, create=True).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(errors.Unsupported, match="format 99"):
        SqliteIndex(path)


def test_the_first_format_is_read_and_upgraded(path: str) -> None:
    """Items without binary data: as it was before there were packs."""
    kept = control("repository", id="1")
    index = SqliteIndex(path, create=True)
    index.write([Write(kept, None)])
    index.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("ALTER TABLE controls DROP COLUMN data; PRAGMA user_version = 1")
    upgraded = SqliteIndex(path)
    assert upgraded.read(["repository"]) == {"repository": kept}
    pack = Control("pack:12", fresh_rev(), (("members", "2"),), bytes(64))
    upgraded.write([Write(pack, None)])
    assert list(upgraded.scan()) == [pack, kept]
    upgraded.close()


def test_a_lock_held_too_long_is_transient(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3hashsync.stores.sqlite.BUSY_SECONDS", 0.05)
    index = SqliteIndex(path, create=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.Unreachable):
            index.write([Write(record("src/a"), None)])
        assert index.read(["repository"]) == {}
        other.execute("ROLLBACK")
    item = record("src/a")
    assert index.write([Write(item, None)])[0].written


def test_a_file_replaced_under_it_takes_no_writes_for_done(path: str) -> None:
    index = SqliteIndex(path, create=True)
    os.unlink(path)
    with pytest.raises(errors.StoreError, match="while in use"):
        index.write([Write(record("src/a"), None)])


def test_a_damaged_file_is_corrupt(path: str) -> None:
    index = SqliteIndex(path, create=True)
    index.write([Write(record(f"src/{number}"), None) for number in range(2_000)])
    index.close()
    with open(path, "r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 200_000)
    with pytest.raises(errors.Corrupt) as raised:
        list(SqliteIndex(path).scan())
    assert raised.value.hint


ADDER = """
import dataclasses, secrets, sys
from s3hashsync.core.model import Control
from s3hashsync.stores.base import Write
from s3hashsync.stores.sqlite import SqliteIndex

index, done = SqliteIndex(sys.argv[1], create=True), 0
while done < 50:
    current = index.read(["counter"]).get("counter")
    count = int(current.get("count")) if current else 0
    wanted = Control("counter", secrets.token_bytes(12), (("count", str(count + 1)),))
    done += index.write([Write(wanted, current.rev if current else None)])[0].written
"""


def test_several_processes_lose_no_update(path: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    adders = [subprocess.Popen([sys.executable, "-c", ADDER, path], env=environment) for _ in range(3)]
    assert [adder.wait() for adder in adders] == [0, 0, 0]
    counter = SqliteIndex(path).read(["counter"])["counter"]
    assert isinstance(counter, Control)
    assert counter.get("count") == "150"


def test_a_barrier_of_another_thread_forgets_no_folder(tmp_path: Path) -> None:
    """One thread stands between the two things that it notes, while the other has its barrier."""
    store = LocalObjects(str(tmp_path), create=True)
    folder = store._folder
    folder.batch = False
    synced: set[str] = set()
    sync = folder.sync_folders

    def seen(folders: set[str]) -> None:
        synced.update(folders)
        sync(folders)

    folder.sync_folders = seen  # type: ignore[method-assign]
    pack, thing = "packs/" + "00" * 16, "objects/" + "aa" * 32
    for stem in (pack, thing):
        store.put(stem, b"first", Attempt("0" * 16, "STANDARD"))
    store.barrier()
    synced.clear()
    lock, arrived, go = folder._lock, threading.Event(), threading.Event()

    class Gate:
        def __enter__(self) -> None:
            if threading.current_thread().name == "pack":
                arrived.set()
                go.wait(5)
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    folder._lock = Gate()  # type: ignore[assignment]

    def put() -> None:
        store.put(pack, b"pack", Attempt("1" * 16, "STANDARD"))
        store.barrier()

    thread = threading.Thread(target=put, name="pack")
    thread.start()
    arrived.wait(5)
    store.put(thing, b"thing", Attempt("1" * 16, "STANDARD"))
    store.barrier()
    go.set()
    thread.join()
    assert any(name.startswith("packs/") for name in synced)
    store.close()
