"""What run logs say of contents and names, collected for a new index: a temporary SQLite database.

Decides nothing: it gathers who holds what, where it lies, and when it was last taken from a path. Memory stays flat.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby

from s3hashsync.codec.location import decode_location, encode_location
from s3hashsync.core.model import Content, ContentHash, ObjectAt, PackAt, StoredName, object_stem, pack_stem

_SCHEMA = """
CREATE TABLE contents (
    hash BLOB NOT NULL, size INTEGER NOT NULL, stored INTEGER NOT NULL, stored_at INTEGER NOT NULL, class TEXT NOT NULL,
    checksum TEXT NOT NULL, encoding TEXT NOT NULL, location TEXT NOT NULL,
    UNIQUE (hash, location)
);
CREATE TABLE names (hash BLOB NOT NULL, name TEXT NOT NULL, PRIMARY KEY (hash, name)) WITHOUT ROWID;
CREATE TABLE removals (hash BLOB PRIMARY KEY, time INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE versions (
    stem TEXT NOT NULL, version TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (stem, version)
) WITHOUT ROWID;
CREATE TABLE members (
    pack TEXT NOT NULL, frame INTEGER NOT NULL, start INTEGER NOT NULL, hash BLOB NOT NULL, version TEXT NOT NULL,
    PRIMARY KEY (pack, frame, start, hash, version)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A content with the names that hold it now (none: it was deleted) and the last time it lost one, epoch seconds."""

    content: Content
    names: frozenset[StoredName]
    removed_at: int


@dataclass(frozen=True, slots=True)
class FoundPack:
    """A pack that is there, with those of its contents that the logs mention, in their order. `stored`: its bytes."""

    id: str
    version: str
    stored: int
    members: tuple[ContentHash, ...]


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
        """Newest first within a source: of the places of one hash the first one counts that is still there. A pack's members are
        kept beside them: also one that lies elsewhere now has a copy in it."""
        contents = list(contents)
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
        self._many(
            "INSERT OR IGNORE INTO members VALUES (?, ?, ?, ?, ?)",
            ((at.pack, at.frame_offset, at.offset, c.hash, at.version) for c in contents if isinstance(at := c.location, PackAt)),
        )

    def add_removals(self, rows: Iterable[tuple[ContentHash, int]]) -> None:
        self._many("INSERT INTO removals VALUES (?, ?) ON CONFLICT (hash) DO UPDATE SET time = max(time, excluded.time)", rows)

    def add_versions(self, rows: Iterable[tuple[str, str, int]]) -> None:
        """Stem, version and size of what the object store holds."""
        self._many("INSERT OR IGNORE INTO versions VALUES (?, ?, ?)", rows)

    def is_there(self, content: Content) -> bool:
        """Whether the object store holds what this place names."""
        location = content.location
        stem = object_stem(content.hash) if isinstance(location, ObjectAt) else pack_stem(location.pack)
        return self._size(stem, location.version) is not None

    def _size(self, stem: str, version: str) -> int | None:
        sql = "SELECT size FROM versions WHERE stem = ? AND version = ?"
        row = self._db.execute(sql, (stem, version)).fetchone()
        return None if row is None else int(row[0])

    def packs(self) -> Iterator[FoundPack]:
        """Every pack that some content lies in and that is there, by id."""
        cursor = self._db.execute("SELECT pack, version, hash FROM members ORDER BY pack, frame, start, hash, version")
        for pack, rows in groupby(cursor, lambda row: str(row[0])):
            members: dict[ContentHash, None] = {}
            versions: dict[str, None] = {}
            for _, version, hash_ in rows:
                members[ContentHash(hash_)] = None
                versions[version] = None
            there = ((version, self._size(pack_stem(pack), version)) for version in versions)
            found = next(((version, size) for version, size in there if size is not None), None)
            if found is not None:
                yield FoundPack(pack, found[0], found[1], tuple(members))

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

    def unlocated(self) -> list[tuple[ContentHash, StoredName]]:
        """Names of contents that no log locates."""
        rows = self._db.execute("SELECT hash, name FROM names WHERE hash NOT IN (SELECT hash FROM contents) ORDER BY name")
        return [(ContentHash(row[0]), StoredName(row[1])) for row in rows]

    def _many(self, sql: str, rows: Iterable[tuple[object, ...]]) -> None:
        self._db.execute("BEGIN")
        self._db.executemany(sql, rows)
        self._db.execute("COMMIT")
