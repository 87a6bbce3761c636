"""How an item lies in a row of the SQLite index: hashes, revs and names as bytes, repeated words and packs
by number.

Decides the tables and the compact forms. Knows nothing of transactions, locks or conditions. Compared with
text it saves about a tenth of the size of a repository of small files.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Callable
from typing import Any

from s3hashsync.core.model import (
    ContentHash,
    Control,
    Location,
    ObjectAt,
    Overflow,
    PackAt,
    Record,
    RecordState,
    Rev,
    StoredName,
)

SCHEMA = """
CREATE TABLE words (number INTEGER PRIMARY KEY, word TEXT NOT NULL UNIQUE);
CREATE TABLE packs (number INTEGER PRIMARY KEY, pack, version, UNIQUE (pack, version));
CREATE TABLE records (
    hash BLOB PRIMARY KEY, rev BLOB NOT NULL, state INTEGER NOT NULL, names BLOB, expiration INTEGER, size
    INTEGER, stored INTEGER, stored_at INTEGER, class INTEGER, checksum, encoding INTEGER, version, pack
    INTEGER, frame_offset INTEGER, frame_length INTEGER, offset INTEGER, spill INTEGER, buckets BLOB
) WITHOUT ROWID;
CREATE TABLE overflows (
    hash BLOB NOT NULL, prefix TEXT NOT NULL, rev BLOB NOT NULL, names BLOB, PRIMARY KEY (hash, prefix)
) WITHOUT ROWID;
CREATE TABLE controls (key TEXT PRIMARY KEY, rev BLOB NOT NULL, fields TEXT NOT NULL, data BLOB) WITHOUT ROWID;
"""
UPGRADES = {1: "ALTER TABLE controls ADD COLUMN data BLOB"}
"""From each earlier format to the next one."""

RECORD_COLUMNS = 18
SELECT_RECORDS = """SELECT
    hash, rev, state, names, expiration, size, stored, stored_at, class, checksum, encoding, records.version,
    records.pack, frame_offset, frame_length, offset, spill, buckets, packs.pack, packs.version
    FROM records LEFT JOIN packs ON packs.number = records.pack"""

Cell = bytes | str | int | None
Row = tuple[Cell, ...]

# The place in this list is what the file stores: append only.
_STATES = [RecordState.LIVE, RecordState.TRASH, RecordState.PURGING, RecordState.GONE]
_STATE_NUMBERS = {state: number for number, state in enumerate(_STATES)}
_HEX = re.compile(r"(?:[0-9a-f]{2})+")
_KEY = re.compile(r"([0-9a-f]{64})(?:#([0-9a-f]+))?")
_BITMAP = struct.Struct("<BI")


def parsed_key(key: str) -> tuple[bytes, str | None] | None:
    """Hash and overflow prefix (None for a record); None for a control item's key."""
    if len(key) == 64:
        # By far the most, and four times for each file of a first backup: without the regular expression.
        try:
            hash_ = bytes.fromhex(key)
        except ValueError:
            return None
        return (hash_, None) if hash_.hex() == key else None
    match = _KEY.fullmatch(key)
    return (bytes.fromhex(match[1]), match[2]) if match else None


def to_cell(text: str) -> bytes | str:
    """Half the size where the text is hexadecimal, as versions of a folder and pack ids are."""
    return bytes.fromhex(text) if _HEX.fullmatch(text) else text


def from_cell(cell: Cell) -> str:
    return cell.hex() if isinstance(cell, bytes) else str(cell)


def _names_cell(names: frozenset[StoredName]) -> bytes | None:
    """A path holds no NUL, so neither does a name."""
    return "\0".join(sorted(names)).encode() if names else None


def _names(cell: bytes | None) -> frozenset[StoredName]:
    return frozenset(map(StoredName, cell.decode().split("\0"))) if cell is not None else frozenset()


def _checksum_cell(checksum: str) -> bytes | str:
    algorithm, _, value = checksum.partition(":")
    if algorithm == "sha256" and len(value) == 44:
        try:
            raw = binascii.a2b_base64(value, strict_mode=True)
        except binascii.Error:
            return checksum
        if len(raw) == 32 and base64.b64encode(raw).decode() == value:
            return raw
    return checksum


def _checksum(cell: Cell) -> str:
    return f"sha256:{base64.b64encode(cell).decode()}" if isinstance(cell, bytes) else str(cell)


def buckets_cell(buckets: frozenset[str]) -> bytes | None:
    """For every length of prefix a bitmap of those that count, without its last zero bytes."""
    bitmaps: dict[int, int] = {}
    for prefix in buckets:
        bitmaps[len(prefix)] = bitmaps.get(len(prefix), 0) | 1 << int(prefix, 16)
    parts = []
    for length, bits in sorted(bitmaps.items()):
        raw = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
        parts += [_BITMAP.pack(length, len(raw)), raw]
    return b"".join(parts) or None


def buckets_of(cell: bytes | None) -> frozenset[str]:
    found: set[str] = set()
    start = 0
    while cell is not None and start < len(cell):
        length, size = _BITMAP.unpack_from(cell, start)
        start += _BITMAP.size
        for number, byte in enumerate(cell[start : start + size]):
            found.update(f"{number * 8 + bit:0{length}x}" for bit in range(8) if byte >> bit & 1)
        start += size
    return frozenset(found)


def record_row(record: Record, word: Callable[[str], int], pack: Callable[[str, str], int]) -> Row:
    """`word` and `pack` give the number of a storage class or encoding, and of a pack's version."""
    place: Row
    match record.location:
        case ObjectAt(version):
            place = (to_cell(version), None, None, None, None)
        case PackAt(id_, version, frame_offset, frame_length, offset):
            place = (None, pack(id_, version), frame_offset, frame_length, offset)
        case None:
            place = (None, None, None, None, None)
    return (
        record.hash,
        record.rev,
        _STATE_NUMBERS[record.state],
        _names_cell(record.names),
        record.expiration,
        record.size,
        record.stored,
        record.stored_at,
        word(record.storage_class),
        _checksum_cell(record.checksum),
        word(record.encoding),
        *place,
        record.spill,
        buckets_cell(record.buckets),
    )


def record_of(row: tuple[Any, ...], word: Callable[[int], str]) -> Record:
    hash_, rev, state, names, expiration, size, stored, stored_at, class_, checksum, encoding = row[:11]
    version, number, frame_offset, frame_length, offset, spill, buckets, pack, pack_version = row[11:]
    location: Location | None = None
    if number is not None:
        location = PackAt(from_cell(pack), from_cell(pack_version), frame_offset, frame_length, offset)
    elif version is not None:
        location = ObjectAt(from_cell(version))
    return Record(
        ContentHash(hash_),
        _STATES[state],
        Rev(rev),
        _names(names),
        expiration,
        size,
        stored,
        stored_at,
        word(class_),
        _checksum(checksum),
        word(encoding),
        location,
        spill,
        buckets_of(buckets),
    )


def overflow_row(item: Overflow) -> Row:
    return (item.hash, item.prefix, item.rev, _names_cell(item.names))


def overflow_of(hash_: bytes, prefix: str, rev: bytes, names: bytes | None) -> Overflow:
    return Overflow(ContentHash(hash_), prefix, Rev(rev), _names(names))


def control_row(item: Control) -> Row:
    return (item.key, item.rev, json.dumps(item.fields, ensure_ascii=False, separators=(",", ":")), item.data or None)


def control_of(key: str, rev: bytes, fields: str, data: bytes | None) -> Control:
    return Control(key, Rev(rev), tuple((name, value) for name, value in json.loads(fields)), data or b"")
