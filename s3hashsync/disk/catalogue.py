"""What run logs say of contents and names, collected for a new index: a temporary SQLite database.

Decides nothing: it gathers who holds what, where it lies, and when it was last taken from a path. Memory stays flat.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby

from s3hashsync.codec.location import decode_location, encode_location
from s3hashsync.core.model import Content, ContentHash, ObjectAt, StoredName, object_stem

_SCHEMA = """
CREATE TABLE contents (
    hash BLOB NOT NULL, size INTEGER NOT NULL, stored INTEGER NOT NULL, stored_at INTEGER NOT NULL, class TEXT NOT NULL,
    checksum TEXT NOT NULL, encoding TEXT NOT NULL, location TEXT NOT NULL,
    UNIQUE (hash, location)
);
CREATE TABLE names (hash BLOB NOT NULL, name TEXT NOT NULL, PRIMARY KEY (hash, name)) WITHOUT ROWID;
CREATE TABLE removals (hash BLOB PRIMARY KEY, time INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE versions (stem TEXT NOT NULL, version TEXT NOT NULL, PRIMARY KEY (stem, version)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A content with the names that hold it now (none: it was deleted) and the last time it lost one, epoch seconds."""

    content: Content
    names: frozenset[StoredName]
    removed_at: int


class Catalogue:
    """Filled once, then read once, by one thread."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def add_names(self, rows: Iterable[tuple[ContentHash, StoredName]]) -> None:
        self._many("INSERT OR IGNORE INTO names VALUES (?, ?)", rows)

    def add_contents(self, contents: Iterable[Content]) -> None:
        """Newest first within a source: of the places of one hash the first one counts that is still there."""
        self._many(
            "INSERT OR IGNORE INTO contents VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    c.hash,
                    c.size,
                    c.stored,
                    c.stored_at,
                    c.storage_class,
                    c.checksum,
                    c.encoding,
                    encode_location(c.location),
                )
                for c in contents
            ),
        )

    def add_removals(self, rows: Iterable[tuple[ContentHash, int]]) -> None:
        self._many("INSERT INTO removals VALUES (?, ?) ON CONFLICT (hash) DO UPDATE SET time = max(time, excluded.time)", rows)

    def add_versions(self, rows: Iterable[tuple[str, str]]) -> None:
        self._many("INSERT OR IGNORE INTO versions VALUES (?, ?)", rows)

    def has_version(self, stem: str, version: str) -> bool:
        found = self._db.execute("SELECT 1 FROM versions WHERE stem = ? AND version = ?", (stem, version)).fetchone()
        return found is not None

    def is_there(self, content: Content) -> bool:
        """Whether the object store holds what this place names."""
        location = content.location
        return isinstance(location, ObjectAt) and self.has_version(object_stem(content.hash), location.version)

    def found(self) -> Iterator[Found]:
        """Every content, by hash. A place that is gone (purged, and stored anew since, maybe by another source) does not hide
        one that is there."""
        for hash_, places in groupby(self._contents(), lambda content: content.hash):
            first = next(places)
            content = next((c for c in chain([first], places) if self.is_there(c)), first)
            names = self._db.execute("SELECT name FROM names WHERE hash = ?", (hash_,)).fetchall()
            removed = self._db.execute("SELECT time FROM removals WHERE hash = ?", (hash_,)).fetchone()
            yield Found(content, frozenset(StoredName(row[0]) for row in names), removed[0] if removed else 0)

    def _contents(self) -> Iterator[Content]:
        cursor = self._db.execute("SELECT * FROM contents ORDER BY hash, rowid")
        while page := cursor.fetchmany(1000):
            for hash_, size, stored, stored_at, class_, checksum, encoding, location in page:
                place = decode_location(location)
                yield Content(hash_, size, stored, stored_at, class_, checksum, encoding, place)

    def unlocated(self) -> list[StoredName]:
        """Names of contents that no log locates."""
        rows = self._db.execute("SELECT name FROM names WHERE hash NOT IN (SELECT hash FROM contents) ORDER BY name")
        return [StoredName(row[0]) for row in rows]

    def _many(self, sql: str, rows: Iterable[tuple[object, ...]]) -> None:
        self._db.execute("BEGIN")
        self._db.executemany(sql, rows)
        self._db.execute("COMMIT")
