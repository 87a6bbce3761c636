"""The index in one SQLite file, for one host.

Decides transactions, conditions and durability. Knows nothing of the protocol that its items follow. One
connection under a lock serves all threads of a process; other processes are kept apart by SQLite's own
locks. On a network file system it runs without WAL, whose shared memory does not work there; `remote` says
so, for such an index must serve one host only. Reading changes nothing in the file: it is upgraded by the
first write, and it can be read where nothing can be written.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from s3hashsync import errors
from s3hashsync.codec.sql import insertions
from s3hashsync.core.model import Control, Item, Overflow, Record, Rev
from s3hashsync.stores import sqlite_rows as rows
from s3hashsync.stores.base import Outcome, Write
from s3hashsync.stores.filesystem import file_system_kind, is_remote, translated

APPLICATION_ID = 0x73336873  # "s3hs"
SCHEMA_VERSION = 2
BUSY_SECONDS = 30.0
CHUNK = 500
"""Keys of one SELECT: below every build's limit of parameters."""
_MARKS = {width: ", ".join("?" * width) for width in (8, CHUNK)}
"""By how many keys a statement takes. Most reads ask for few, which takes a wide one twenty times as long."""
PAGE = 500
_REMEMBERED = 10_000
_FOREIGN = "check index: in the configuration; no file of another program is touched"
_MEND = "s3hashsync rebuild --index puts the damaged file aside, and makes a new index from the run logs"
_RIGHTS = "check the rights of the file and of its folder: SQLite writes to both"
_UNWRITABLE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})
LOGS = ("-wal", "-journal")
"""What SQLite writes beside a file before it writes to it."""


class Damaged(errors.Corrupt):
    """The file is no whole SQLite database. (Another program's database is not damaged, but not ours.)"""


class SqliteIndex:
    """`stores.base.Index`. Opening never makes a file unless `create` says so: a mistyped path must not be
    an empty index."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        self.path = os.path.abspath(path)
        self.remote = is_remote(file_system_kind(os.path.dirname(self.path)))
        self._lock = threading.RLock()
        self._word_numbers: dict[str, int] = {}
        self._words: dict[int, str] = {}
        self._packs: dict[tuple[str, str], int] = {}
        self._format = 1  # at least
        self._prepare_file(create=create)
        with self._translating("open"):
            self._db = self._connect()
            try:
                self._check_format(create=create)
                self._identity = self._file_identity()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        with self._lock, self._translating("close"):
            self._db.close()

    # opening

    def _prepare_file(self, *, create: bool) -> None:
        folder = os.path.dirname(self.path)
        try:
            if create:
                os.makedirs(folder, mode=0o700, exist_ok=True)
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            elif os.stat(self.path).st_size == 0:  # an init that was cut short
                raise FileNotFoundError
        except (FileNotFoundError, NotADirectoryError) as error:
            hint = "is the path right, and the disk mounted? `init` makes a new repository"
            raise errors.Missing(f"{self.path}: there is no index", hint) from error
        except OSError as error:
            raise translated(error, f"cannot open {self.path}", folder) from error

    def _connect(self) -> sqlite3.Connection:
        """In the first way that lets the file be read: a disk that may only be read, or that is full, can still be restored
        from."""
        self.read_only = not (os.access(self.path, os.W_OK) and os.access(os.path.dirname(self.path), os.W_OK))
        *ways, last = self._ways()
        for uri, alone in ways:
            try:
                return self._connected(uri, alone=alone)
            except sqlite3.Error as error:
                if _primary(error) not in _UNWRITABLE:
                    raise
        return self._connected(last[0], alone=last[1])

    def _ways(self) -> Iterator[tuple[str, bool]]:
        """Parameters of the URI, and whether the process has the file to itself: then SQLite needs no shared memory, which takes
        room on the disk."""
        # Without a log beside it the file is whole. Another process may be taking it away at this moment.
        whole = not any(_size(f"{self.path}{end}") for end in LOGS)
        if not self.read_only:
            yield "mode=rw", False
            yield "mode=rw", True
        elif whole:
            yield "mode=ro&immutable=1", False
        else:
            yield "mode=ro", False
            # The log that a dead process left is read along. Nobody here can change it, and no lock can be had.
            yield "mode=ro&vfs=unix-none", True

    def _connected(self, uri: str, *, alone: bool) -> sqlite3.Connection:
        db = sqlite3.connect(
            f"file:{urllib.parse.quote(self.path)}?{uri}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if alone:
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except BaseException:
            db.close()
            raise
        return db

    def _configure(self) -> None:
        """Once it is known that the file is ours."""
        if self.read_only:
            return
        mode = self._switched("DELETE" if self.remote else "WAL")
        # With a rollback journal FULL does not sync the folder after a commit: a power failure could take
        # it back.
        self._db.execute(f"PRAGMA synchronous = {'FULL' if mode == 'wal' else 'EXTRA'}")
        self._db.execute("PRAGMA fullfsync = ON")  # macOS: fsync(2) stops at the disk's cache
        self._db.execute("PRAGMA wal_autocheckpoint = 12000")
        self._db.execute("PRAGMA cache_size = -8192")
        self._db.execute("PRAGMA trusted_schema = OFF")

    def _switched(self, wanted: str) -> str:
        """The journal mode after asking for this one. Where another process is just doing the same, SQLite does not wait by
        itself, as it does everywhere else."""
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                (mode,) = self._db.execute(f"PRAGMA journal_mode = {wanted}").fetchone()
                return str(mode)
            except sqlite3.OperationalError as error:
                if _primary(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(0.01)

    def _check_format(self, *, create: bool) -> None:
        if create:
            self._db.execute("BEGIN IMMEDIATE")
            if self._pragma("user_version") == 0 and not self._one("SELECT count(*) FROM sqlite_schema"):
                for statement in filter(str.strip, rows.SCHEMA.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        if self._pragma("application_id") != APPLICATION_ID:
            raise errors.Corrupt(f"{self.path}: not an index of s3hashsync", _FOREIGN)
        self._configure()
        version = self._pragma("user_version")
        if version > SCHEMA_VERSION:
            raise errors.Unsupported(
                f"{self.path}: the index has format {version}, this program knows {SCHEMA_VERSION} at most",
                "use a newer s3hashsync",
            )

    def _upgrade(self) -> None:
        """In the transaction of the first write."""
        for version in range(self._pragma("user_version"), SCHEMA_VERSION):
            self._db.execute(rows.UPGRADES[version])
            self._db.execute(f"PRAGMA user_version = {version + 1}")
        self._format = SCHEMA_VERSION

    def _data(self) -> str:
        """The column is not in a file of the first format; another process may upgrade it at any moment."""
        if self._format == 1:
            self._format = self._pragma("user_version")
        return "NULL" if self._format == 1 else "data"

    def check(self) -> None:
        """Raises `Damaged` where the file is. Reads all of it."""
        with self._lock, self._translating("read"):
            (found,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise Damaged(f"{self.path} is damaged: {found}", _MEND)

    def _pragma(self, name: str) -> int:
        return self._one(f"PRAGMA {name}")

    def _one(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])

    def _file_identity(self) -> tuple[int, int]:
        info = os.stat(self.path)
        return info.st_dev, info.st_ino

    # errors

    @contextlib.contextmanager
    def _translating(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._translated(error, what) from error
        except OSError as error:
            raise translated(error, f"cannot {what} {self.path}", os.path.dirname(self.path)) from error

    def _translated(self, error: sqlite3.Error, what: str) -> errors.S3HashSyncError:
        reason = f"cannot {what} {self.path}: {error}"
        match _primary(error):
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
                return errors.Unreachable(reason, "another process holds the index for long: wait for it, or stop it")
            case sqlite3.SQLITE_FULL:
                return errors.NoSpace(f"{reason} (no space left)", "free some space on that disk, or raise its quota")
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return Damaged(reason, _MEND)
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH | sqlite3.SQLITE_CANTOPEN:
                return errors.Denied(reason, _RIGHTS)
            case sqlite3.SQLITE_IOERR:
                return errors.StoreError(reason, "is the disk connected, healthy, and not full?")
            case _:
                return errors.StoreError(reason)

    # reading

    def read(self, keys: Collection[str]) -> dict[str, Item]:
        wanted = list(dict.fromkeys(keys))
        with self._lock, self._translating("read"):
            return {item.key: item for item in self._items(wanted)}

    def _items(self, keys: list[str]) -> Iterator[Item]:
        hashes, places, controls = _sorted_out(keys)
        for row in self._chunked(f"{rows.SELECT_RECORDS} WHERE hash", hashes):
            yield rows.record_of(row, self._word)
        for hash_, prefix in places:
            query = "SELECT hash, prefix, rev, names FROM overflows WHERE hash = ? AND prefix = ?"
            for row in self._db.execute(query, (hash_, prefix)):
                yield rows.overflow_of(*row)
        for row in self._chunked(f"SELECT key, rev, fields, {self._data()} FROM controls WHERE key", controls):
            yield rows.control_of(*row)

    def _chunked(self, before: str, keys: Sequence[bytes | str]) -> Iterator[tuple[Any, ...]]:
        """Rows of `before` ("SELECT … WHERE key") followed by IN and these keys."""
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            width = next(width for width in _MARKS if len(chunk) <= width)
            # Filled up with NULLs, which equal nothing: so it is one statement of each width, prepared once.
            yield from self._db.execute(f"{before} IN ({_MARKS[width]})", [*chunk, *[None] * (width - len(chunk))]).fetchall()

    def _word(self, number: int) -> str:
        if number not in self._words:
            self._words = dict(self._db.execute("SELECT number, word FROM words").fetchall())
        return self._words[number]

    def scan(self) -> Iterator[Item]:
        """In pages, each a transaction of its own: a scan that is read slowly stops no writer."""
        query = f"{rows.SELECT_RECORDS} WHERE hash > ? ORDER BY hash LIMIT {PAGE}"
        for row in self._pages(query, [b""]):
            with self._lock, self._translating("read"):
                item = rows.record_of(row, self._word)
            yield item
        query = "SELECT hash, prefix, rev, names FROM overflows WHERE (hash, prefix) > (?, ?)"
        for row in self._pages(f"{query} ORDER BY hash, prefix LIMIT {PAGE}", [b"", ""]):
            yield rows.overflow_of(*row)
        with self._lock, self._translating("read"):
            query = f"SELECT key, rev, fields, {self._data()} FROM controls WHERE key > ? ORDER BY key LIMIT {PAGE}"
        for row in self._pages(query, [""]):
            yield rows.control_of(*row)

    def _pages(self, query: str, after: list[bytes | str]) -> Iterator[tuple[Any, ...]]:
        """Rows whose first columns are the key."""
        while True:
            with self._lock, self._translating("read"):
                page = self._db.execute(query, after).fetchall()
            yield from page
            if len(page) < PAGE:
                return
            after = list(page[-1][: len(after)])

    # writing

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        """One transaction: after an error none of them was applied, save where the commit itself was cut
        short."""
        if len({write.item.key for write in writes}) != len(writes):
            raise ValueError("two writes of one call have the same key")
        if not writes:
            return []
        with self._transaction():
            revs = self._revs([write.item.key for write in writes])
            current = [revs.get(write.item.key) for write in writes]
            # A write whose own rev is there was applied before, and only its answer was lost.
            held = [rev == write.item.rev for write, rev in zip(writes, current, strict=True)]
            allowed = [rev == write.expects for write, rev in zip(writes, current, strict=True)]
            pairs = list(zip(writes, held, allowed, strict=True))
            self._put(write.item for write, is_held, is_allowed in pairs if is_allowed and not is_held)
            refused = [write.item.key for write, is_held, is_allowed in pairs if not is_allowed and not is_held]
            found = {item.key: item for item in self._items(refused)}
        return [
            Outcome(written=True) if is_held or is_allowed else Outcome(written=False, found=found.get(write.item.key))
            for write, is_held, is_allowed in pairs
        ]

    def write_units(self, item: Item) -> int:
        return 0

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        if self.read_only:
            # SQLite itself would only notice with the first row.
            raise errors.Denied(f"cannot write {self.path}: it may only be read", _RIGHTS)
        with self._lock, self._translating("write"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # Numbers that were drawn in it are gone with it.
                self._word_numbers, self._words, self._packs, self._format = {}, {}, {}, 1
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            self._must_be_in_place()

    def _must_be_in_place(self) -> None:
        """SQLite goes on writing into a file that was deleted or replaced under it; nobody would ever read
        that."""
        try:
            in_place = self._file_identity() == self._identity
        except FileNotFoundError:
            in_place = False
        if not in_place:
            raise errors.StoreError(f"{self.path} was moved, deleted or replaced while in use", "put it back and run again")

    def _revs(self, keys: list[str]) -> dict[str, Rev]:
        hashes, places, controls = _sorted_out(keys)
        revs: dict[str, Rev] = {}
        for hash_, rev in self._chunked("SELECT hash, rev FROM records WHERE hash", hashes):
            revs[hash_.hex()] = Rev(rev)
        for hash_, prefix in places:
            query = "SELECT rev FROM overflows WHERE hash = ? AND prefix = ?"
            for (rev,) in self._db.execute(query, (hash_, prefix)):
                revs[f"{hash_.hex()}#{prefix}"] = Rev(rev)
        for key, rev in self._chunked("SELECT key, rev FROM controls WHERE key", controls):
            revs[key] = Rev(rev)
        return revs

    def _put(self, items: Iterable[Item]) -> None:
        records: list[rows.Row] = []
        overflows: list[rows.Row] = []
        controls: list[rows.Row] = []
        for item in items:
            match item:
                case Record():
                    records.append(rows.record_row(item, self._word_number, self._pack_number))
                case Overflow():
                    overflows.append(rows.overflow_row(item))
                case Control():
                    controls.append(rows.control_row(item))
        if self._format < SCHEMA_VERSION and (records or overflows or controls):
            self._upgrade()
        records.sort()  # by hash, which is unique: neighbours in the tree are written together
        for table, table_rows in (("records", records), ("overflows", overflows), ("controls", controls)):
            for statement, values in insertions(f"INSERT OR REPLACE INTO {table}", table_rows):
                self._db.execute(statement, values)

    def _word_number(self, word: str) -> int:
        number = self._word_numbers.get(word)
        if number is None:
            self._db.execute("INSERT OR IGNORE INTO words (word) VALUES (?)", (word,))
            (number,) = self._db.execute("SELECT number FROM words WHERE word = ?", (word,)).fetchone()
            self._word_numbers[word] = number
        return number

    def _pack_number(self, pack: str, version: str) -> int:
        number = self._packs.get((pack, version))
        if number is None:
            cells = (rows.to_cell(pack), rows.to_cell(version))
            self._db.execute("INSERT OR IGNORE INTO packs (pack, version) VALUES (?, ?)", cells)
            query = "SELECT number FROM packs WHERE pack = ? AND version = ?"
            (number,) = self._db.execute(query, cells).fetchone()
            if len(self._packs) >= _REMEMBERED:
                self._packs.clear()
            self._packs[pack, version] = number
        return number


def _size(path: str) -> int:
    """Bytes; none where there is no such file."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _sorted_out(keys: Iterable[str]) -> tuple[list[bytes], list[tuple[bytes, str]], list[str]]:
    """Keys of records, of overflow items and of control items."""
    hashes: list[bytes] = []
    places: list[tuple[bytes, str]] = []
    controls: list[str] = []
    for key in keys:
        match rows.parsed_key(key):
            case None:
                controls.append(key)
            case hash_, None:
                hashes.append(hash_)
            case hash_, prefix:
                places.append((hash_, prefix))
    return hashes, places, controls


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
