"""The local state of one source: what the last acknowledged run left, in SQLite.

It is a cache: deleting it costs time, never a result. Decides the tables and what is durable when: `mark` survives a power
failure before it returns, so does `settle`. Knows neither the index nor the object store.

Rows are keyed by the path with NUL for slash, so that SQLite's byte order is the order of the walk.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

from s3hashsync.codec.sql import insertions, matches
from s3hashsync.core.model import Content, ContentHash, Entry, ObjectAt, Rev, Sha256
from s3hashsync.disk.state_rows import FILE_NUMBER, Known, Row, content_from, content_row, file_row, key_of, known_from, wrapped
from s3hashsync.errors import Corrupt, NoSpace, S3HashSyncError

SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    key BLOB PRIMARY KEY, kind INTEGER NOT NULL, size INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL,
    inode INTEGER NOT NULL, device INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
    links INTEGER NOT NULL, racy INTEGER NOT NULL, hash BLOB, sha256 BLOB, extra TEXT
) WITHOUT ROWID;
CREATE TABLE dirty (key BLOB NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (key, hash)) WITHOUT ROWID;
CREATE TABLE hashed (
    key BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL, inode INTEGER NOT NULL,
    hash BLOB NOT NULL, sha256 BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE contents (
    hash BLOB PRIMARY KEY, size INTEGER NOT NULL, stored INTEGER NOT NULL, stored_at INTEGER NOT NULL, class TEXT NOT NULL,
    checksum TEXT NOT NULL, encoding TEXT NOT NULL, location TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE attempts (hash BLOB PRIMARY KEY, id TEXT NOT NULL, expects BLOB, token TEXT NOT NULL) WITHOUT ROWID;
"""

_PACKS = """
CREATE TABLE packs (
    id TEXT PRIMARY KEY, attempt TEXT NOT NULL, checksum TEXT NOT NULL, encoding TEXT NOT NULL, stored_at INTEGER NOT NULL,
    members BLOB NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """A put that may or may not have happened: its attempt id, the rev that the record had before it, and, for an upload in
    parts, what the store needs to go on with it."""

    hash: ContentHash
    id: str
    expects: Rev | None
    token: str = ""


@dataclass(frozen=True, slots=True)
class OpenPack:
    """The put of a pack that may or may not have happened. `checksum` is that of the whole pack, `members` what whoever made it
    needs to name its contents, in a form of its own; `stored_at` in epoch seconds."""

    id: str
    attempt: str
    checksum: str
    encoding: str
    stored_at: int
    members: bytes


@dataclass(frozen=True, slots=True)
class Anchor:
    """On what a state stands. It is believed only when repository and incarnation are the index's, and the index's head of the
    run logs is `head` or `pending` (a segment that was about to be written when the process died)."""

    repository: str = ""
    incarnation: str = ""
    head: str = ""
    pending: str = ""


class State:
    """One source's state, used by one process at a time (the caller holds the source's lock). Any thread may write; what one of
    them is writing the others may see before it is durable."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.RLock()
        with _translated(path):
            fresh = not os.path.exists(path)
            if fresh:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA wal_autocheckpoint=8000")
            self._db.execute("PRAGMA cache_size=-4000")
            self._prepare()

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA_VERSION:
            return
        if version > SCHEMA_VERSION:
            raise Corrupt(f"{self._path} was written by a newer version", "use that version, or delete the file: it is rebuilt")
        # The first version had no packs.
        missing = _PACKS if version else _SCHEMA + _PACKS
        self._db.executescript(f"BEGIN;{missing}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")

    def close(self) -> None:
        self._db.close()

    # What the state stands on

    def anchor(self) -> Anchor:
        with _translated(self._path):
            meta = dict(self._db.execute("SELECT name, value FROM meta"))
        return Anchor(*(meta.get(name, "") for name in ("repository", "incarnation", "head", "pending")))

    def set_anchor(self, anchor: Anchor) -> None:
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                [(name, getattr(anchor, name)) for name in ("repository", "incarnation", "head", "pending")],
            )

    def note(self, name: str) -> str:
        """A small fact kept with the state; "" when it was never set."""
        with _translated(self._path):
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def set_note(self, name: str, value: str) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def clear(self) -> None:
        """Forget everything but the hashes found so far: those are facts about the disk, whatever the repository says."""
        with self._transaction():
            for table in ("meta", "files", "dirty", "contents", "attempts", "packs"):
                self._db.execute(f"DELETE FROM {table}")

    # Rows

    def rows(self) -> Iterator[Row]:
        """Every path the state knows, by key; paths that are only dirty (never acknowledged) are in `dirty_only`."""
        cursor = self._db.cursor()
        with _translated(self._path):
            cursor.execute(
                "SELECT key, kind, size, mtime, ctime, inode, racy, hash,"
                " EXISTS (SELECT 1 FROM dirty WHERE dirty.key = files.key) FROM files"
                " UNION ALL SELECT DISTINCT key, -1, 0, 0, 0, 0, 1, NULL, 1 FROM dirty"
                " WHERE NOT EXISTS (SELECT 1 FROM files WHERE files.key = dirty.key) ORDER BY key"
            )
            while batch := cursor.fetchmany(2000):
                yield from map(Row._make, batch)

    def get(self, key: bytes) -> Known | None:
        with _translated(self._path):
            row = self._db.execute("SELECT * FROM files WHERE key = ?", (key,)).fetchone()
        return known_from(row) if row else None

    def content(self, hash_: ContentHash) -> Content | None:
        """Where a content lies, as it was when its name was last written."""
        with _translated(self._path):
            row = self._db.execute("SELECT * FROM contents WHERE hash = ?", (hash_,)).fetchone()
        return content_from(row) if row else None

    def all_known(self) -> Iterator[tuple[Known, Content | None]]:
        """Everything, by key, with the location of each content: what a checkpoint holds."""
        cursor = self._db.cursor()
        with _translated(self._path):
            cursor.execute("SELECT files.*, contents.* FROM files LEFT JOIN contents ON contents.hash = files.hash ORDER BY key")
            while batch := cursor.fetchmany(1000):
                for row in batch:
                    yield known_from(row[:15]), content_from(row[15:]) if row[15] is not None else None

    def dirty_hashes(self, key: bytes) -> tuple[ContentHash, ...]:
        with _translated(self._path):
            rows = self._db.execute("SELECT hash FROM dirty WHERE key = ? AND hash != x'' ORDER BY hash", (key,)).fetchall()
        return tuple(ContentHash(row[0]) for row in rows)

    def is_dirty(self, key: bytes) -> bool:
        with _translated(self._path):
            return self._db.execute("SELECT 1 FROM dirty WHERE key = ? LIMIT 1", (key,)).fetchone() is not None

    def count(self) -> int:
        with _translated(self._path):
            return int(self._db.execute("SELECT count(*) FROM files").fetchone()[0])

    def count_files(self) -> int:
        with _translated(self._path):
            return int(self._db.execute("SELECT count(*) FROM files WHERE kind = ?", (FILE_NUMBER,)).fetchone()[0])

    def count_files_and_bytes(self) -> tuple[int, int]:
        with _translated(self._path):
            query = "SELECT count(*), coalesce(sum(size), 0) FROM files WHERE kind = ?"
            files, size = self._db.execute(query, (FILE_NUMBER,)).fetchone()
        return int(files), int(size)

    def refresh(self, rows: Iterable[tuple[Entry, bool]]) -> None:
        """Take over stat fields of paths whose content and metadata are what the run log says already."""
        with self._transaction():
            self._db.executemany(
                "UPDATE files SET ctime = ?, inode = ?, device = ?, mtime = ?, racy = ? WHERE key = ?",
                [
                    (*map(wrapped, (entry.ctime_ns, entry.inode, entry.device, entry.mtime_ns)), int(racy), key_of(entry.path))
                    for entry, racy in rows
                ],
            )

    def load(self, rows: Iterable[tuple[Known, Content | None]]) -> None:
        """Write rows wholesale, for a rebuild."""
        with self._transaction():
            for page in _pages(rows):
                self._insert(_PUT_FILE, [file_row(known) for known, _ in page])
                self._insert(_PUT_CONTENT, [content_row(content) for _, content in page if content is not None])

    def drop(self, keys: Iterable[bytes]) -> None:
        """Take rows out, for a rebuild that replays removals."""
        with self._transaction():
            self._delete("files", "key", list(keys))

    # Batches

    def mark(
        self,
        paths: Iterable[tuple[bytes, Sequence[ContentHash]]],
        attempts: Iterable[OpenAttempt] = (),
    ) -> None:
        """Durable before it returns: these paths (keys) may be under these hashes, and these puts may happen."""
        rows = [(key, hash_) for key, hashes in paths for hash_ in hashes or (b"",)]
        with self._transaction():
            self._insert("INSERT OR IGNORE INTO dirty", rows)
            self._insert("INSERT OR REPLACE INTO attempts", [(a.hash, a.id, a.expects, a.token) for a in attempts])

    def attempt(self, hash_: ContentHash) -> OpenAttempt | None:
        with _translated(self._path):
            row = self._db.execute("SELECT * FROM attempts WHERE hash = ?", (hash_,)).fetchone()
        return OpenAttempt(row[0], row[1], row[2], row[3]) if row else None

    def resumable(self) -> set[str]:
        """The attempt ids of uploads in parts that may go on."""
        with _translated(self._path):
            return {row[0] for row in self._db.execute("SELECT id FROM attempts WHERE token != ''")}

    def unwanted_uploads(self) -> list[OpenAttempt]:
        """Those in parts whose content no dirty path may be under. At the end of a whole run nobody wants them any more: what it
        asked for is settled, or dirty."""
        query = "SELECT * FROM attempts WHERE token != '' AND NOT EXISTS (SELECT 1 FROM dirty WHERE dirty.hash = attempts.hash)"
        with _translated(self._path):
            return [OpenAttempt(*row) for row in self._db.execute(query).fetchall()]

    def forget_attempts(self, hashes: Sequence[ContentHash]) -> None:
        """What these may have left is not taken up any more."""
        if hashes:
            with self._transaction():
                self._delete("attempts", "hash", hashes)

    def mark_pack(self, pack: OpenPack) -> None:
        """Durable before it returns: this put may happen."""
        row = (pack.id, pack.attempt, pack.checksum, pack.encoding, pack.stored_at, pack.members)
        with self._transaction():
            self._db.execute("INSERT INTO packs VALUES (?, ?, ?, ?, ?, ?)", row)

    def open_packs(self) -> list[OpenPack]:
        """Those that were marked and not settled."""
        with _translated(self._path):
            return [OpenPack(*row) for row in self._db.execute("SELECT * FROM packs").fetchall()]

    def forget_packs(self, ids: Iterable[str]) -> None:
        """What these may have left is not taken up any more."""
        wanted = list(ids)
        if wanted:
            with self._transaction():
                self._forget_packs(wanted)

    def _forget_packs(self, ids: Iterable[str]) -> None:
        self._db.executemany("DELETE FROM packs WHERE id = ?", [(id_,) for id_ in ids])

    def settle(
        self,
        present: Iterable[tuple[Known, Content | None]],
        absent: Iterable[bytes],
        anchor: Anchor,
        packs: Iterable[str] = (),
    ) -> None:
        """The end of a batch, in one durable step: these paths are as they are here, those keys are gone, none is dirty; what
        these packs hold is named."""
        with self._transaction():
            for rows in _pages(present):
                # A content once, however many of these paths hold it.
                contents = {content.hash: content for _, content in rows if content is not None}
                self._insert(_PUT_FILE, [file_row(known) for known, _ in rows])
                self._delete("dirty", "key", [key_of(known.entry.path) for known, _ in rows])
                # By hash: neighbours in the tree are written together.
                self._insert(_PUT_CONTENT, sorted(map(content_row, contents.values())))
                # What lies in packs has no attempts of its own.
                self._delete("attempts", "hash", [c.hash for c in contents.values() if isinstance(c.location, ObjectAt)])
            gone = list(absent)
            self._delete("files", "key", gone)
            self._delete("dirty", "key", gone)
            self._forget_packs(packs)
            self._db.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                [(name, getattr(anchor, name)) for name in ("repository", "incarnation", "head", "pending")],
            )

    def _insert(self, into: str, rows: Sequence[Sequence[object]]) -> None:
        for statement, values in insertions(into, rows):
            self._db.execute(statement, values)

    def _delete(self, table: str, column: str, keys: Sequence[bytes]) -> None:
        for statement, values in matches(f"DELETE FROM {table} WHERE {column}", keys):
            self._db.execute(statement, values)

    # Hashes of an unfinished plan

    def hash_found(self, key: bytes, stat: os.stat_result) -> tuple[ContentHash, Sha256] | None:
        """The hash that an earlier plan found for this path, when nothing about the file has changed since."""
        with _translated(self._path):
            row = self._db.execute(
                "SELECT hash, sha256 FROM hashed WHERE key = ? AND size = ? AND mtime = ? AND ctime = ? AND inode = ?",
                (key, stat.st_size, wrapped(stat.st_mtime_ns), wrapped(stat.st_ctime_ns), wrapped(stat.st_ino)),
            ).fetchone()
        return (row[0], row[1]) if row else None

    def has_found(self) -> bool:
        with _translated(self._path):
            return self._db.execute("SELECT 1 FROM hashed LIMIT 1").fetchone() is not None

    def forget_hashes(self) -> None:
        """All that was found has been taken over."""
        if self.has_found():
            with self._transaction():
                self._db.execute("DELETE FROM hashed")

    def remember_hashes(self, found: Iterable[tuple[Entry, ContentHash, Sha256]]) -> None:
        with self._transaction():
            self._insert(
                "INSERT OR REPLACE INTO hashed",
                [(key_of(e.path), e.size, wrapped(e.mtime_ns), wrapped(e.ctime_ns), wrapped(e.inode), h, s) for e, h, s in found],
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, _translated(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite may have done that itself.
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise


_PUT_FILE = "INSERT OR REPLACE INTO files"
_PUT_CONTENT = "INSERT OR REPLACE INTO contents"
_PAGE = 1000


def _pages(present: Iterable[tuple[Known, Content | None]]) -> Iterator[list[tuple[Known, Content | None]]]:
    rows = iter(present)
    while page := list(islice(rows, _PAGE)):
        yield page


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """SQLite's errors become ours."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        text = str(error)
        if "full" in text or getattr(error, "errno", None) == 28:
            raise NoSpace(f"no space left for the local state {path}", "free some space and run again") from error
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            raise Corrupt(f"the local state {path} is damaged ({text})", "delete it: it is rebuilt by itself") from error
        raise S3HashSyncError(f"cannot use the local state {path}: {text}", "check the folder's rights and free space") from error
