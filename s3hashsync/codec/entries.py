"""Entries and contents as JSON objects: what a run-log line and a saved plan hold.

Decides names and forms of the fields. Readers ignore fields they do not know. Text that is not UTF-8 goes into a sibling field
`<name>_b64`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TypeAlias

from s3hashsync.codec.location import decode_location, encode_location
from s3hashsync.core.model import Content, ContentHash, Entry, Kind
from s3hashsync.errors import Corrupt

Json: TypeAlias = "dict[str, object]"


def put_bytes(target: Json, field: str, value: bytes) -> None:
    try:
        target[field] = value.decode("utf-8")
    except UnicodeDecodeError:
        target[field] = value.decode("utf-8", "replace")
        target[f"{field}_b64"] = base64.b64encode(value).decode("ascii")


def get_bytes(source: Mapping[str, object], field: str) -> bytes:
    exact = source.get(f"{field}_b64")
    text = source.get(field)
    try:
        if isinstance(exact, str):
            return base64.b64decode(exact, validate=True)
        if isinstance(text, str):
            return text.encode("utf-8")
    except ValueError:
        raise Corrupt(f"the field {field!r} is not readable") from None
    raise Corrupt(f"the field {field!r} is missing")


def get_int(source: Mapping[str, object], field: str, default: int | None = None) -> int:
    value = source.get(field, default)
    if not isinstance(value, int):
        raise Corrupt(f"the field {field!r} is not a whole number")
    return value


def get_text(source: Mapping[str, object], field: str, default: str | None = None) -> str:
    value = source.get(field, default)
    if not isinstance(value, str):
        raise Corrupt(f"the field {field!r} is not a text")
    return value


def entry_to_json(entry: Entry) -> Json:
    """Times in nanoseconds since 1970; `mode` as four octal digits, the way chmod takes it."""
    out: Json = {}
    put_bytes(out, "path", entry.path)
    out["type"] = entry.kind.value
    if entry.kind is Kind.FILE:
        out["size"] = entry.size
    out["mtime"] = entry.mtime_ns
    out["ctime"] = entry.ctime_ns
    out["inode"] = entry.inode
    out["device"] = entry.device
    out["mode"] = f"{entry.mode:04o}"
    out["uid"] = entry.uid
    out["gid"] = entry.gid
    if entry.links != 1:
        out["links"] = entry.links
    if entry.rdev:
        out["rdev"] = entry.rdev
    if entry.target is not None:
        put_bytes(out, "target", entry.target)
    if entry.xattrs:
        out["xattrs"] = [[_b64(name), _b64(value)] for name, value in entry.xattrs]
    if entry.sparse:
        out["sparse"] = True
    return out


def entry_from_json(line: Mapping[str, object]) -> Entry:
    """Raises `Corrupt` for a line that is no entry."""
    try:
        kind = Kind(line.get("type"))
        mode = int(get_text(line, "mode"), 8)
        xattrs = line.get("xattrs", [])
        pairs = tuple((base64.b64decode(n), base64.b64decode(v)) for n, v in xattrs)  # type: ignore[attr-defined]
    except (ValueError, TypeError) as error:
        raise Corrupt(f"not an entry: {error}") from None
    if any(b"\0" in name for name, _ in pairs):
        raise Corrupt("not an entry: an extended attribute has a NUL byte in its name")
    return Entry(
        path=get_bytes(line, "path"),
        kind=kind,
        size=get_int(line, "size", 0),
        mtime_ns=get_int(line, "mtime"),
        ctime_ns=get_int(line, "ctime", 0),
        inode=get_int(line, "inode", 0),
        device=get_int(line, "device", 0),
        mode=mode,
        uid=get_int(line, "uid", 0),
        gid=get_int(line, "gid", 0),
        links=get_int(line, "links", 1),
        rdev=_device(line),
        target=_target(line),
        xattrs=pairs,
        sparse=line.get("sparse") is True,
    )


def _device(line: Mapping[str, object]) -> int:
    """What no file system has would only be noticed where it is handed to the system, in the middle of a restore."""
    rdev = get_int(line, "rdev", 0)
    if not 0 <= rdev < 1 << 63:
        raise Corrupt("the field 'rdev' is not the number of a device")
    return rdev


def _target(line: Mapping[str, object]) -> bytes | None:
    target = get_bytes(line, "target") if "target" in line else None
    if target is not None and b"\0" in target:
        raise Corrupt("the field 'target' has a NUL byte")
    return target


def content_to_json(content: Content) -> Json:
    return {
        "location": encode_location(content.location),
        "stored": content.stored,
        "stored_at": content.stored_at,
        "class": content.storage_class,
        "checksum": content.checksum,
        "encoding": content.encoding,
    }


def content_from_json(hash_: ContentHash, size: int, line: Mapping[str, object]) -> Content:
    return Content(
        hash=hash_,
        size=size,
        stored=get_int(line, "stored"),
        stored_at=get_int(line, "stored_at", 0),
        storage_class=get_text(line, "class", ""),
        checksum=get_text(line, "checksum", ""),
        encoding=get_text(line, "encoding"),
        location=decode_location(get_text(line, "location")),
    )


def hash_from_hex(text: object) -> ContentHash:
    if not isinstance(text, str) or len(text) != 64:
        raise Corrupt("not a hash of 64 hexadecimal digits")
    try:
        return ContentHash(bytes.fromhex(text))
    except ValueError:
        raise Corrupt("not a hash of 64 hexadecimal digits") from None


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
