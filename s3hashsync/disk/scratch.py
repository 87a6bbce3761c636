"""What a plan in the making has found: changes and their joins by hash, in a temporary SQLite database.

Decides the order of steps (by source, then all paths of one content together, in the order of their first path) and which gone
path pairs with which new one as a move. Memory stays flat: SQLite spills to a temporary file that nobody else can open.
"""

from __future__ import annotations

import marshal
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from s3hashsync.codec.location import decode_location, encode_location
from s3hashsync.codec.sql import insertions, matches
from s3hashsync.core.compile import Before, Change, Known, Verdict
from s3hashsync.core.model import ContentHash, Entry, Kind, RecordState, Sha256
from s3hashsync.core.value import value

_SCHEMA = """
CREATE TABLE changes (
    n INTEGER PRIMARY KEY, source INTEGER NOT NULL, path BLOB NOT NULL, verdict TEXT NOT NULL, entry BLOB,
    before_kind TEXT, before_size INTEGER, before_hashes BLOB, rule TEXT NOT NULL, needs_hash INTEGER NOT NULL
);
-- Apart from the changes: a hash is found after its row was written, and a row that grows costs ten times an appended one.
CREATE TABLE hashes (n INTEGER PRIMARY KEY, hash BLOB NOT NULL, sha256 BLOB);
CREATE TABLE known (hash BLOB PRIMARY KEY, state TEXT NOT NULL, location TEXT, spill INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE moves (gone INTEGER PRIMARY KEY, new INTEGER NOT NULL UNIQUE);
"""

_PAIR = """
INSERT INTO moves
SELECT gone.n, new.n FROM
  (SELECT n, source, before_hashes AS hash, row_number() OVER (PARTITION BY source, before_hashes ORDER BY n) AS rank
   FROM changes WHERE verdict = 'gone' AND before_kind = 'file' AND length(before_hashes) = 32) AS gone
JOIN
  (SELECT n, source, hash, row_number() OVER (PARTITION BY source, hash ORDER BY n) AS rank
   FROM changes JOIN hashes USING (n) WHERE verdict = 'new') AS new
ON gone.source = new.source AND gone.hash = new.hash AND gone.rank = new.rank
JOIN known ON known.hash = new.hash AND known.state = 'live'
"""

_READ = """
SELECT c.source, c.path, c.verdict, c.entry, h.hash, h.sha256, c.before_kind, c.before_size, c.before_hashes, c.rule,
       k.state, k.location, k.spill, o.first = c.n AND o.brings, origin.path, left.gone IS NOT NULL
FROM ordered AS o JOIN changes AS c ON c.n = o.n
LEFT JOIN hashes AS h ON h.n = c.n
LEFT JOIN known AS k ON k.hash = h.hash
LEFT JOIN moves AS came ON came.new = c.n LEFT JOIN changes AS origin ON origin.n = came.gone
LEFT JOIN moves AS left ON left.gone = c.n
ORDER BY o.rowid
"""

_GROUP = """
CREATE TABLE contents AS
SELECT hash, count(*) AS paths FROM hashes JOIN changes USING (n) WHERE verdict != 'metadata' GROUP BY hash
"""

# Most contents have one path: only the others are worth a partition, which costs as much as all the rest.
_ORDER = """
CREATE TABLE copies (n INTEGER PRIMARY KEY, first INTEGER NOT NULL, place INTEGER NOT NULL);
INSERT INTO copies
SELECT n, min(n) OVER (PARTITION BY hash), min(n) OVER (PARTITION BY source, hash)
FROM hashes JOIN changes USING (n)
WHERE hash IN (SELECT hash FROM contents WHERE paths > 1) AND verdict != 'metadata';
CREATE TABLE ordered AS
SELECT n, coalesce(first, n) AS first, hash IS NOT NULL AND verdict != 'metadata' AS brings
FROM changes LEFT JOIN hashes USING (n) LEFT JOIN copies USING (n)
ORDER BY source, coalesce(place, n), n
"""

_TO_HASH = """
SELECT n, entry, verdict, before_kind, before_size, before_hashes FROM changes
WHERE n > ? AND needs_hash = 1 AND source = ? AND NOT EXISTS (SELECT 1 FROM hashes WHERE hashes.n = changes.n)
ORDER BY n LIMIT 1000
"""

_PUT_HASH = "INSERT OR REPLACE INTO hashes"

# Looking a value up costs a fifth of calling the enumeration, and this runs for every path of every reading.
_KINDS = {kind.value: kind for kind in Kind}
_VERDICTS = {verdict.value: verdict for verdict in Verdict}
_STATES = {state.value: state for state in RecordState}


@value
class ToHash:
    """A file that has to be read before its change is known; `before` is the hash of its row, None where that is not
    confirmed: then its name is written again, whatever the content turns out to be."""

    n: int
    entry: Entry
    before: ContentHash | None


class Scratch:
    """Filled by the gathering, then read again and again by the plan. One thread at a time."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.executescript(_SCHEMA)
        self._db.execute("PRAGMA cache_size=-4000")
        self._sources: list[str] = []
        self._next = 0

    def close(self) -> None:
        self._db.close()

    def begin_source(self, name: str) -> None:
        self._sources.append(name)

    def add(self, changes: Iterable[tuple[Change, bool]]) -> list[ToHash]:
        """Changes of the source begun last, each with whether its content still has to be hashed; answers those that have."""
        rows = []
        hashes = []
        unread: list[ToHash] = []
        for change, needs_hash in changes:
            if needs_hash and change.entry is not None:
                unread.append(ToHash(self._next, change.entry, _confirmed(change.verdict, change.before)))
            if change.hash is not None:
                hashes.append((self._next, change.hash, change.sha256))
            before = change.before
            rows.append(
                (
                    self._next,
                    len(self._sources) - 1,
                    change.path,
                    change.verdict.value,
                    _pack(change.entry) if change.entry else None,
                    before.kind.value if before else None,
                    before.size if before else None,
                    b"".join(before.hashes) if before else None,
                    change.rule,
                    int(needs_hash),
                )
            )
            self._next += 1
        with self._transaction():
            self._insert("INSERT INTO changes", rows)
            self._insert(_PUT_HASH, hashes)
        return unread

    def to_hash(self) -> Iterator[ToHash]:
        """The files of the source begun last whose content has to be read and has no hash yet, in the order of the walk."""
        last = -1
        while page := self._db.execute(_TO_HASH, (last, len(self._sources) - 1)).fetchall():
            last = page[-1][0]
            for n, entry, verdict, *before in page:
                yield ToHash(n, _unpack(entry), _confirmed(_VERDICTS[verdict], _before(*before)))

    def set_hashes(self, found: Iterable[tuple[int, ContentHash, Sha256]]) -> None:
        with self._transaction():
            self._insert(_PUT_HASH, list(found))

    def set_verdicts(self, changed: Iterable[tuple[int, Verdict]]) -> None:
        with self._transaction():
            self._db.executemany("UPDATE changes SET verdict = ? WHERE n = ?", [(v.value, n) for n, v in changed])

    def forget(self, numbers: Sequence[int]) -> None:
        with self._transaction():
            for statement, values in matches("DELETE FROM changes WHERE n", numbers):
                self._db.execute(statement, values)

    def _insert(self, into: str, rows: Sequence[Sequence[object]]) -> None:
        for statement, values in insertions(into, rows):
            self._db.execute(statement, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One for each row takes ten times as long. What fails ends the plan, and with it the file."""
        self._db.execute("BEGIN")
        yield
        self._db.execute("COMMIT")

    def hashes(self) -> Iterator[list[ContentHash]]:
        """Every content that a change brings, in batches, each once: when everything has been added."""
        self._db.execute(_GROUP)
        cursor = self._db.execute("SELECT hash FROM contents")
        while batch := cursor.fetchmany(2000):
            yield [ContentHash(row[0]) for row in batch]

    def set_known(self, known: Mapping[ContentHash, Known]) -> None:
        rows = [(h, k.state.value, encode_location(k.location) if k.location else None, k.spill) for h, k in known.items()]
        with self._transaction():
            self._insert("INSERT OR REPLACE INTO known", rows)

    def join(self) -> None:
        """Pair moves and fix the order: once, after `hashes`."""
        # Numbering all that is new takes longer than everything else here.
        if self._db.execute("SELECT 1 FROM changes WHERE verdict = 'gone' LIMIT 1").fetchone():
            self._db.execute(_PAIR)
        self._db.executescript(_ORDER)

    def changes(self) -> Iterator[Change]:
        """All changes in the order in which they are to be taken; may be called again and again after `join`."""
        cursor = self._db.cursor()
        cursor.execute(_READ)
        while batch := cursor.fetchmany(1000):
            for row in batch:
                yield self._change(row)

    def _change(self, row: tuple[Any, ...]) -> Change:
        source, path, verdict, entry, hash_, sha256, kind, size, hashes, rule, state, location, spill, *joined = row
        first, origin, left = joined
        return Change(
            self._sources[source],
            path,
            _VERDICTS[verdict],
            _unpack(entry) if entry is not None else None,
            hash_,
            sha256,
            _before(kind, size, hashes),
            Known(_STATES[state], decode_location(location) if location else None, spill) if state else None,
            bool(first),
            origin,
            bool(left),
            rule,
        )


def _confirmed(verdict: Verdict, before: Before | None) -> ContentHash | None:
    """The hash that a path surely had, and has been looked at again for."""
    if verdict is not Verdict.CHANGED or before is None or before.kind is not Kind.FILE or len(before.hashes) != 1:
        return None
    return before.hashes[0]


def _before(kind: str | None, size: int, hashes: bytes) -> Before | None:
    return Before(_KINDS[kind], size, _split(hashes)) if kind is not None else None


def _split(hashes: bytes) -> tuple[ContentHash, ...]:
    return tuple(ContentHash(hashes[i : i + 32]) for i in range(0, len(hashes), 32))


def _pack(e: Entry) -> bytes:
    return marshal.dumps(
        (
            e.path,
            e.kind.value,
            e.size,
            e.mtime_ns,
            e.ctime_ns,
            e.inode,
            e.device,
            e.mode,
            e.uid,
            e.gid,
            e.links,
            e.rdev,
            e.target,
            e.xattrs,
            e.sparse,
        )
    )


def _unpack(data: bytes) -> Entry:
    path, kind, *rest = marshal.loads(data)  # written by this very process a moment ago
    return Entry(path, _KINDS[kind], *rest)
