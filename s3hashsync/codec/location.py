"""How an index that stores text and bytes writes a location and the set of overflow buckets.

Decides two compact formats and reads them back strictly: what it does not know is `Corrupt`, never a guess.
Knows nothing of the index that holds them.

Location: `1o:<version>` for an object, `1p:<pack>:<version>:<frame offset>:<frame length>:<offset>` for a
place in a pack. The leading 1 is the format; a third kind, a list of parts, is reserved. Versions are
whatever a server calls them, so `%` and `:` in them are percent-encoded.

Buckets: for each length of prefix that occurs one byte, the length, then a bitmap of 16^length bits, most
significant first. Where a plain list is shorter the length has its high bit set; a count of four bytes and
the prefixes follow, each in as many bytes as its digits need.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote, unquote

from s3hashsync.core.model import Location, ObjectAt, PackAt
from s3hashsync.errors import Corrupt

_SPARSE = 0x80
_HEX = frozenset("0123456789abcdef")
_SAFE = "".join(chr(c) for c in range(33, 127) if chr(c) not in "%:")


def encode_location(location: Location) -> str:
    if isinstance(location, PackAt):
        in_pack = _in_pack(location.pack, location.version)
        return f"{in_pack}{location.frame_offset}:{location.frame_length}:{location.offset}"
    return f"1o:{_quoted(location.version)}"


def decode_location(text: str) -> Location:
    match text.split(":"):
        case ["1o", version]:
            return ObjectAt(unquote(version))
        case ["1p", pack, version, *numbers] if len(numbers) == 3 and all(_is_number(n) for n in numbers):
            frame_offset, frame_length, offset = map(int, numbers)
            return PackAt(unquote(pack), unquote(version), frame_offset, frame_length, offset)
        case _:
            raise Corrupt(
                f"the index holds a location that this version cannot read: {text[:100]!r}",
                "was it written by a newer version of this program?",
            )


def encode_buckets(buckets: frozenset[str]) -> bytes:
    """b"" for none."""
    by_level: dict[int, list[str]] = {}
    for prefix in sorted(buckets):
        if not _HEX.issuperset(prefix):
            raise ValueError(f"no hexadecimal prefix: {prefix!r}")
        by_level.setdefault(len(prefix), []).append(prefix)
    return b"".join(_encode_level(level, by_level[level]) for level in sorted(by_level))


def decode_buckets(data: bytes) -> frozenset[str]:
    return frozenset(_decode(data))


def _encode_level(level: int, prefixes: list[str]) -> bytes:
    width = (level + 1) // 2
    listed = 4 + width * len(prefixes)
    if level >= _SPARSE:
        raise ValueError(f"a prefix of {level} digits is longer than a hash has")
    if listed < _bitmap_size(level):
        numbers = (_number(prefix).to_bytes(width, "big") for prefix in prefixes)
        return bytes([_SPARSE | level]) + len(prefixes).to_bytes(4, "big") + b"".join(numbers)
    bitmap = bytearray(_bitmap_size(level))
    for prefix in prefixes:
        number = _number(prefix)
        bitmap[number >> 3] |= 0x80 >> (number & 7)
    return bytes([level]) + bytes(bitmap)


def _decode(data: bytes) -> Iterator[str]:
    at = 0
    while at < len(data):
        level, sparse = data[at] & ~_SPARSE, bool(data[at] & _SPARSE)
        at += 1
        if sparse:
            width, count = (level + 1) // 2, int.from_bytes(_taken(data, at, 4), "big")
            body = _taken(data, at + 4, width * count)
            slices = (body[i * width : (i + 1) * width] for i in range(count))
            yield from (_digits(int.from_bytes(each, "big"), level) for each in slices)
            at += 4 + len(body)
        else:
            bitmap = _taken(data, at, _bitmap_size(level))
            yield from (_digits(n, level) for n in range(1 << 4 * level) if bitmap[n >> 3] & (0x80 >> (n & 7)))
            at += len(bitmap)


def _taken(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise Corrupt("the index holds a list of overflow items that is cut short")
    return data[at : at + size]


def _bitmap_size(level: int) -> int:
    return ((1 << 4 * level) + 7) // 8


def _number(prefix: str) -> int:
    return int(prefix, 16) if prefix else 0


def _digits(number: int, level: int) -> str:
    return f"{number:0{level}x}" if level else ""


@lru_cache(1024)
def _in_pack(pack: str, version: str) -> str:
    """Remembered: the contents of one pack all have the same."""
    return f"1p:{_quoted(pack)}:{_quoted(version)}:"


def _quoted(text: str) -> str:
    return quote(text, safe=_SAFE)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
