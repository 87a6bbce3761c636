"""The state of one source at one moment, in a temporary SQLite database, and what is to be restored of it.

Decides the order (that of the walk: keys are paths with NUL for slash; that of the packs for what comes out of them), which paths
are hard links of one file, and which hold the same content. Memory stays flat: SQLite spills to a temporary file that nobody else
can open. Knows nothing of run logs, stores or of what a restore does with a path.
"""

from __future__ import annotations

import marshal
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from s3hashsync.core.model import Content, ContentHash, Entry, Kind, ObjectAt, PackAt, Sha256
from s3hashsync.core.restore_plan import Existing
from s3hashsync.core.value import value

_SCHEMA = """
CREATE TABLE entries (
    key BLOB PRIMARY KEY, hash BLOB, sha256 BLOB, device TEXT, inode TEXT, folder INTEGER, entry BLOB NOT NULL, content BLOB
) WITHOUT ROWID;
CREATE TABLE chosen (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE work (
    key BLOB PRIMARY KEY, mate BLOB, twin BLOB, blocked INTEGER NOT NULL DEFAULT 0, there BLOB,
    pack INTEGER, frame INTEGER, length INTEGER, start INTEGER, reach INTEGER
) WITHOUT ROWID;
CREATE TABLE packs (number INTEGER PRIMARY KEY, pack TEXT, version TEXT, encoding TEXT);
"""

# Entries with `device` NULL have one name only. A path is its own first mate and twin: that is NULL.
_PREPARE = """
INSERT INTO work (key, mate, twin)
SELECT key, nullif(mate, key), nullif(twin, key) FROM (
  SELECT e.key AS key,
    CASE WHEN device IS NOT NULL THEN min(e.key) OVER (PARTITION BY device, inode, hash) END AS mate,
    CASE WHEN hash IS NOT NULL THEN min(e.key) OVER (PARTITION BY hash) END AS twin
  FROM entries AS e JOIN chosen AS c ON c.key = e.key)
"""

_WORK = """
SELECT e.entry, e.hash, e.sha256, e.content, w.mate, w.twin, w.blocked, w.there
FROM work AS w JOIN entries AS e ON e.key = w.key WHERE w.key > ? ORDER BY w.key LIMIT 1000
"""

_FRAMES = """
SELECT w.pack, p.pack, p.version, p.encoding, w.frame, w.length, max(w.reach)
FROM work AS w JOIN packs AS p ON p.number = w.pack
WHERE w.pack IS NOT NULL AND (w.pack, w.frame, w.length) > (?, ?, ?)
GROUP BY w.pack, w.frame, w.length ORDER BY w.pack, w.frame, w.length LIMIT 1000
"""

_MEMBERS = _WORK.replace(
    "WHERE w.key > ? ORDER BY w.key",
    "WHERE w.pack = ? AND w.frame = ? AND w.length = ? AND (w.start, w.key) > (?, ?) ORDER BY w.start, w.key",
).replace("SELECT ", "SELECT w.start, ")

_RELATED = "(w.mate IS NOT NULL OR w.twin IS NOT NULL OR w.there IS NOT NULL)"
_PAGE = 1000
_ROW = "SELECT entry, hash, sha256, content FROM entries"
_fields_of = attrgetter(*(f.name for f in fields(Entry)))
_content_fields_of = attrgetter(*(f.name for f in fields(Content)))
_pack_fields_of = attrgetter(*(f.name for f in fields(PackAt)))
_KINDS = {kind.value: kind for kind in Kind}


@value
class SnapshotRow:
    """One path of the source as it was."""

    entry: Entry
    hash: ContentHash | None
    sha256: Sha256 | None
    content: Content | None


@value
class WorkRow:
    """One path to restore, with what was found in the target; see `core.restore_plan` for the words."""

    row: SnapshotRow
    mate: bytes | None
    twin: bytes | None
    blocked: bool
    there: Existing | None


@dataclass(frozen=True, slots=True)
class PackFrame:
    """A frame of a pack that holds something to restore. `offset` and `length` are its place before encryption; nothing that is
    wanted lies behind `reach` in it; all in bytes. `number` is the pack's here."""

    number: int
    pack: str
    version: str
    encoding: str
    offset: int
    length: int
    reach: int


class Snapshot:
    """Filled once, then read again and again. One thread at a time, but for `frames` and `members`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packs: dict[tuple[str, str, str], int] = {}
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.executescript(_SCHEMA)
        self._db.execute("PRAGMA cache_size=-32000")

    def close(self) -> None:
        self._db.close()

    # Filling

    def fold(self, present: Iterable[SnapshotRow], absent: Iterable[bytes]) -> None:
        """A later state on top: these paths are there now, those no longer."""
        self._db.execute("BEGIN")
        self._db.executemany("DELETE FROM entries WHERE key = ?", [(_key(path),) for path in absent])
        self._db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", map(_values, present))
        self._db.execute("COMMIT")

    def unlocated(self) -> Iterator[list[ContentHash]]:
        """Contents without a place, in batches, each once."""
        sql = "SELECT DISTINCT hash FROM entries WHERE hash > ? AND content IS NULL ORDER BY hash LIMIT 1000"
        last = b""
        while page := [row[0] for row in self._db.execute(sql, (last,))]:
            last = page[-1]
            yield page

    def locate(self, hash_: ContentHash, content: Content) -> None:
        """Give a content without a place this one."""
        sql = "UPDATE entries SET content = ? WHERE hash = ? AND content IS NULL"
        self._db.execute(sql, (_pack_content(content), hash_))

    def locate_inside(self) -> None:
        """Contents without a place have the one that another path with the same content says."""
        self._db.execute(
            "CREATE TEMP TABLE known AS SELECT hash, max(content) AS content FROM entries"
            " WHERE hash IN (SELECT hash FROM entries WHERE content IS NULL AND hash IS NOT NULL) GROUP BY hash"
        )
        self._db.execute(
            "UPDATE entries SET content = (SELECT content FROM known WHERE known.hash = entries.hash)"
            " WHERE content IS NULL AND hash IS NOT NULL"
        )
        self._db.execute("DROP TABLE known")

    # Reading

    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM entries").fetchone()[0])

    def row(self, path: bytes) -> SnapshotRow | None:
        found = self._db.execute(f"{_ROW} WHERE key = ?", (_key(path),)).fetchone()
        return _row(found) if found else None

    def rows(self) -> Iterator[SnapshotRow]:
        """Everything, in the order of the walk."""
        return self._rows("1", ())

    def below(self, path: bytes) -> Iterator[SnapshotRow]:
        """Everything in this folder, at any depth, without the folder itself."""
        if not path:
            return self._rows("key > x''", ())
        return self._rows("key > ? AND key < ?", (_key(path) + b"\0", _key(path) + b"\1"))

    def children(self, path: bytes) -> Iterator[SnapshotRow]:
        """What lies right in this folder."""
        if not path:
            return self._rows("key > x'' AND instr(key, x'00') = 0", ())
        start = _key(path) + b"\0"
        wanted = (start, _key(path) + b"\1", len(start) + 1)
        return self._rows("key > ? AND key < ? AND instr(substr(key, ?), x'00') = 0", wanted)

    def _rows(self, condition: str, values: tuple[object, ...]) -> Iterator[SnapshotRow]:
        cursor = self._db.execute(f"{_ROW} WHERE {condition} ORDER BY key", values)
        while page := cursor.fetchmany(_PAGE):
            yield from map(_row, page)

    # Restoring

    def choose(self, paths: Iterable[bytes]) -> None:
        """These paths are to be restored."""
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR IGNORE INTO chosen VALUES (?)", ((_key(path),) for path in paths))
        self._db.execute("COMMIT")

    def choose_all(self) -> None:
        self._db.execute("INSERT OR IGNORE INTO chosen SELECT key FROM entries")

    def prepare(self) -> int:
        """Once, when everything has been chosen: find what hangs together. Answers how many paths there are."""
        self._db.execute(_PREPARE)
        return int(self._db.execute("SELECT count(*) FROM work").fetchone()[0])

    def note_found(self, found: Iterable[tuple[bytes, bool, Existing | None]]) -> None:
        """What the target holds: path, whether it is blocked, what is there."""
        rows = [(int(blocked), _pack_existing(there) if there else None, _key(path)) for path, blocked, there in found]
        self._db.execute("BEGIN")
        self._db.executemany("UPDATE work SET blocked = ?, there = ? WHERE key = ?", rows)
        self._db.execute("COMMIT")

    def note_packed(self, packed: Iterable[tuple[bytes, Content]]) -> None:
        """These paths come out of packs: `frames` and `members` tell them, `work` can leave them out."""
        rows = [(*self._place(content), _key(path)) for path, content in packed if isinstance(content.location, PackAt)]
        self._db.execute("BEGIN")
        self._db.executemany("UPDATE work SET pack = ?, frame = ?, length = ?, start = ?, reach = ? WHERE key = ?", rows)
        self._db.execute("COMMIT")

    def _place(self, content: Content) -> tuple[int, int, int, int, int]:
        at = content.location
        assert isinstance(at, PackAt)
        pack = at.pack, at.version, content.encoding
        number = self._packs.get(pack)
        if number is None:
            number = self._packs[pack] = len(self._packs)
            self._db.execute("INSERT INTO packs VALUES (?, ?, ?, ?)", (number, *pack))
        return number, at.frame_offset, at.frame_length, at.offset, at.offset + content.size

    def order_packed(self) -> None:
        """Once, when all have been noted."""
        self._db.execute("CREATE INDEX packed ON work (pack, frame, length, start, key, reach) WHERE pack IS NOT NULL")

    def frames(self) -> Iterator[PackFrame]:
        """What is to be read of packs: pack by pack, each from its beginning to its end."""
        last = -1, 0, 0
        while page := self._page(_FRAMES, last):
            frames = [PackFrame(*row) for row in page]
            yield from frames
            last = frames[-1].number, frames[-1].offset, frames[-1].length

    def members(self, frame: PackFrame) -> Iterator[WorkRow]:
        """What is to be restored out of this frame, in the order in which it lies there."""
        within = frame.number, frame.offset, frame.length
        start, key = -1, b""
        while page := self._page(_MEMBERS, (*within, start, key)):
            rows = [_work(row[1:]) for row in page]
            yield from rows
            if len(rows) < _PAGE:
                return
            start, key = page[-1][0], _key(rows[-1].row.entry.path)

    def _page(self, sql: str, values: tuple[object, ...]) -> list[Any]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def work(self, *, related: bool = False, packed: bool = True) -> Iterator[WorkRow]:
        """In the order of the walk; what was found may be noted while this is read. `related`: only what may depend on
        another path, or on what is there. Without `packed` what comes out of packs is left out."""
        conditions = [_RELATED] * related + ["w.pack IS NULL"] * (not packed)
        sql = _WORK.replace("WHERE", " AND ".join(["WHERE TRUE", *conditions, ""]))
        # The root's key is empty, and none is smaller.
        page = self._db.execute(sql.replace("w.key > ?", "w.key >= x''")).fetchall()
        while page:
            rows = [_work(row) for row in page]
            yield from rows
            page = self._db.execute(sql, (_key(rows[-1].row.entry.path),)).fetchall()

    def inode_found(self, path: bytes) -> tuple[int, int] | None:
        """Device and inode of what was found at this path."""
        row = self._db.execute("SELECT there FROM work WHERE key = ?", (_key(path),)).fetchone()
        if row is None or row[0] is None:
            return None
        entry = _existing(row[0]).entry
        return entry.device, entry.inode

    def folders_backwards(self) -> Iterator[WorkRow]:
        """The folders among the work, what is inside before what it is in."""
        sql = _WORK.replace("w.key > ?", "e.folder AND w.key < ?").replace("ORDER BY w.key", "ORDER BY w.key DESC")
        page = self._db.execute(sql.replace("AND w.key < ?", "")).fetchall()
        while page:
            rows = [_work(row) for row in page]
            yield from rows
            page = self._db.execute(sql, (_key(rows[-1].row.entry.path),)).fetchall()


def _key(path: bytes) -> bytes:
    return path.replace(b"/", b"\0")


def _values(row: SnapshotRow) -> tuple[object, ...]:
    entry = row.entry
    linked = entry.kind is Kind.FILE and entry.links > 1
    # As text: device and inode numbers of 64 bits do not fit into SQLite's integers.
    group = (str(entry.device), str(entry.inode)) if linked else (None, None)
    content = _pack_content(row.content) if row.content is not None else None
    return _key(entry.path), row.hash, row.sha256, *group, entry.kind is Kind.DIRECTORY, _pack_entry(entry), content


def _row(row: tuple[bytes, ContentHash | None, Sha256 | None, bytes | None]) -> SnapshotRow:
    entry, hash_, sha256, content = row
    return SnapshotRow(_entry(entry), hash_, sha256, _content(content) if content is not None else None)


def _work(row: tuple[object, ...]) -> WorkRow:
    entry, hash_, sha256, content, mate, twin, blocked, there = row
    return WorkRow(
        row=_row((entry, hash_, sha256, content)),  # type: ignore[arg-type]
        mate=mate.replace(b"\0", b"/") if isinstance(mate, bytes) else None,
        twin=twin.replace(b"\0", b"/") if isinstance(twin, bytes) else None,
        blocked=bool(blocked),
        there=_existing(there) if isinstance(there, bytes) else None,
    )


# What is unpacked was written by this very process.


def _pack_entry(entry: Entry) -> bytes:
    path, kind, *rest = _fields_of(entry)
    return marshal.dumps((path, kind.value, *rest))


def _entry(data: bytes) -> Entry:
    path, kind, *rest = marshal.loads(data)
    return Entry(path, _KINDS[kind], *rest)


def _pack_content(content: Content) -> bytes:
    *rest, location = _content_fields_of(content)
    return marshal.dumps((*rest, location.version if isinstance(location, ObjectAt) else _pack_fields_of(location)))


def _content(data: bytes) -> Content:
    *rest, location = marshal.loads(data)
    values = (*rest, ObjectAt(location) if isinstance(location, str) else PackAt(*location))
    return Content(*values)


def _pack_existing(there: Existing) -> bytes:
    return marshal.dumps((_pack_entry(there.entry), there.sha256, there.empty, there.linked))


def _existing(data: bytes) -> Existing:
    entry, *rest = marshal.loads(data)
    return Existing(_entry(entry), *rest)
