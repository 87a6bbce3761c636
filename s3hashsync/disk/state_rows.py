"""A row of the local state: a path with its metadata and the place of its content, as SQLite holds them.

Decides the columns' forms: paths with NUL for slash, kinds as numbers, 64 bits with a sign, rare metadata as JSON. Knows no
database.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple

from s3hashsync.codec.location import decode_location, encode_location
from s3hashsync.core.model import Content, ContentHash, Entry, Kind, Sha256
from s3hashsync.core.value import value

_KINDS = tuple(Kind)
_KIND_NUMBER = {kind: number for number, kind in enumerate(_KINDS)}
FILE_NUMBER = _KIND_NUMBER[Kind.FILE]
_HALF = 1 << 63
UNKNOWN_TIME = -(1 << 62)
"""The mtime of a row that was rebuilt from the index: no file has it, so the file is hashed once."""


class Row(NamedTuple):
    """What comparing needs of one path; `kind` is a number (`kind_of`), `dirty` whether a run left it unconfirmed."""

    key: bytes
    kind: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    racy: int
    hash: ContentHash | None
    dirty: int


def kind_of(number: int) -> Kind:
    return _KINDS[number]


def number_of(kind: Kind) -> int:
    return _KIND_NUMBER[kind]


def key_of(path: bytes) -> bytes:
    return path.replace(b"/", b"\0")


def path_of(key: bytes) -> bytes:
    return key.replace(b"\0", b"/")


@value
class Known:
    """A path of the state with all that is known of it. `sha256` is None beside a hash where only the keyed one is known: the row
    was made from the index of an encrypted repository."""

    entry: Entry
    hash: ContentHash | None
    sha256: Sha256 | None
    racy: bool = False


def file_row(known: Known) -> tuple[object, ...]:
    e = known.entry
    return (
        key_of(e.path),
        _KIND_NUMBER[e.kind],
        e.size,
        wrapped(e.mtime_ns),
        wrapped(e.ctime_ns),
        wrapped(e.inode),
        wrapped(e.device),
        e.mode,
        e.uid,
        e.gid,
        e.links,
        int(known.racy),
        known.hash,
        _sha256_column(known),
        _extra(e),
    )


def _sha256_column(known: Known) -> bytes | None:
    """Without encryption the hash is the SHA-256: kept once (NULL). One that is not known beside a hash is empty."""
    if known.hash is None:
        return known.sha256
    if known.sha256 is None:
        return b""
    return None if known.sha256 == bytes(known.hash) else known.sha256


def _known_sha256(column: object, hash_: object) -> object:
    return hash_ if column is None else column or None


def wrapped(number: int) -> int:
    """As SQLite can hold it: its integers have 64 bits with a sign. Inodes and devices of some file systems use the highest bit,
    and a time beyond the year 2262 has more nanoseconds; what does not fit wraps around."""
    return number if -_HALF <= number < _HALF else (number + _HALF) % (2 * _HALF) - _HALF


def _extra(entry: Entry) -> str | None:
    extra: dict[str, object] = {}
    if wrapped(entry.mtime_ns) != entry.mtime_ns:
        extra["mtime"] = entry.mtime_ns
    if entry.rdev:
        extra["rdev"] = entry.rdev
    if entry.target is not None:
        extra["target"] = b64encode(entry.target).decode("ascii")
    if entry.xattrs:
        extra["xattrs"] = [[b64encode(n).decode("ascii"), b64encode(v).decode("ascii")] for n, v in entry.xattrs]
    if entry.sparse:
        extra["sparse"] = True
    return json.dumps(extra) if extra else None


def known_from(row: Sequence[object]) -> Known:
    key, kind, size, mtime, ctime, inode, device, mode, uid, gid, links, racy, hash_, sha256, extra = row
    more = json.loads(extra) if isinstance(extra, str) else {}
    target = more.get("target")
    entry = Entry(
        path=path_of(key),  # type: ignore[arg-type]
        kind=_KINDS[kind],  # type: ignore[call-overload]
        size=size,  # type: ignore[arg-type]
        mtime_ns=more.get("mtime", mtime),
        ctime_ns=ctime,  # type: ignore[arg-type]
        inode=inode % (2 * _HALF),  # type: ignore[operator]
        device=device % (2 * _HALF),  # type: ignore[operator]
        mode=mode,  # type: ignore[arg-type]
        uid=uid,  # type: ignore[arg-type]
        gid=gid,  # type: ignore[arg-type]
        links=links,  # type: ignore[arg-type]
        rdev=more.get("rdev", 0),
        target=b64decode(target) if target is not None else None,
        xattrs=tuple((b64decode(n), b64decode(v)) for n, v in more.get("xattrs", [])),
        sparse=more.get("sparse", False),
    )
    return Known(entry, hash_, _known_sha256(sha256, hash_), bool(racy))  # type: ignore[arg-type]


def content_row(content: Content) -> tuple[object, ...]:
    return (
        content.hash,
        content.size,
        content.stored,
        content.stored_at,
        content.storage_class,
        content.checksum,
        content.encoding,
        encode_location(content.location),
    )


def content_from(row: Sequence[Any]) -> Content:
    hash_, size, stored, stored_at, class_, checksum, encoding, location = row
    return Content(hash_, size, stored, stored_at, class_, checksum, encoding, decode_location(location))
