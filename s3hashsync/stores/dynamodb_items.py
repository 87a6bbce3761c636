"""How an item of the index lies in DynamoDB.

Decides attribute names, what is left out (an attribute that is absent has its default), and what an item is
billed. Reads strictly: an attribute of the wrong type, or missing, is `Corrupt`. Knows nothing of requests
and conditions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

from s3hashsync.codec.location import decode_buckets, decode_location, encode_buckets, encode_location
from s3hashsync.core.model import (
    ENCODING_ZSTD,
    ContentHash,
    Control,
    Item,
    Overflow,
    Record,
    RecordState,
    Rev,
    StoredName,
)
from s3hashsync.errors import Corrupt

Attributes: TypeAlias = dict[str, dict[str, Any]]
"""DynamoDB's own form: name -> {type: value}."""

KEY = "hash"
REV = "rev"

RECORD_ATTRIBUTES = (
    "file_names",
    "expiration",
    "size",
    "stored",
    "stored_at",
    "class",
    "checksum",
    "enc",
    "location",
    "state",
    "rev",
    "buckets",
    "spill",
)
OVERFLOW_ATTRIBUTES = ("file_names", "rev")
CONTROL_ATTRIBUTES = ("fields", "data", "rev")
_RECORD_KEY = re.compile(r"[0-9a-f]{64}")
_OVERFLOW_KEY = re.compile(r"([0-9a-f]{64})#([0-9a-f]*)")


def attribute_names(item: Item) -> tuple[str, ...]:
    """Every attribute, but the key, that an item of this kind may have: what is not in it has to be
    removed."""
    match item:
        case Record():
            return RECORD_ATTRIBUTES
        case Overflow():
            return OVERFLOW_ATTRIBUTES
        case Control():
            return CONTROL_ATTRIBUTES


def encode_item(item: Item) -> Attributes:
    attributes: Attributes = {KEY: {"S": item.key}, REV: {"S": item.rev.hex()}}
    match item:
        case Record():
            attributes |= _encode_record(item)
        case Overflow():
            attributes |= _names(item.names)
        case Control():
            if item.fields:
                # A list of pairs, not a map: fields have an order, and their names cannot collide with ours.
                attributes["fields"] = {"L": [{"L": [{"S": name}, {"S": value}]} for name, value in item.fields]}
            if item.data:
                attributes["data"] = {"B": item.data}
    return attributes


def decode_item(attributes: Attributes) -> Item:
    key = _value(attributes, KEY, "S", None)
    try:
        rev = Rev(bytes.fromhex(_value(attributes, REV, "S", None)))
        if _RECORD_KEY.fullmatch(key):
            return _decode_record(ContentHash(bytes.fromhex(key)), rev, attributes)
        if match := _OVERFLOW_KEY.fullmatch(key):
            return Overflow(ContentHash(bytes.fromhex(match[1])), match[2], rev, _decode_names(attributes))
        pairs = _value(attributes, "fields", "L", [])
        fields = tuple((pair["L"][0]["S"], pair["L"][1]["S"]) for pair in pairs)
        return Control(key, rev, fields, bytes(_value(attributes, "data", "B", b"")))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise Corrupt(f"the index item {key!r} cannot be read: {error}", "was it changed by another program?") from error


def write_units(item: Item) -> int:
    """One unit for each started KB of names and values."""
    return max(1, -(-item_size(encode_item(item)) // 1024))


def item_size(attributes: Attributes) -> int:
    """Bytes by DynamoDB's rules."""
    return sum(len(name) + _size_of(value) for name, value in attributes.items())


def _encode_record(record: Record) -> Attributes:
    attributes = _names(record.names)
    attributes["state"] = {"S": record.state.value}
    numbers = {
        "expiration": record.expiration,
        "size": record.size,
        "stored": record.stored,
        "stored_at": record.stored_at,
        "spill": record.spill,
    }
    attributes |= {name: {"N": str(number)} for name, number in numbers.items() if number}
    gone = record.state is RecordState.GONE and record.encoding == ENCODING_ZSTD
    texts = {
        "class": record.storage_class,
        "checksum": record.checksum,
        "enc": "" if gone else record.encoding,
        "location": encode_location(record.location) if record.location is not None else "",
    }
    attributes |= {name: {"S": text} for name, text in texts.items() if text}
    if record.buckets:
        attributes["buckets"] = {"B": encode_buckets(record.buckets)}
    return attributes


def _decode_record(hash_: ContentHash, rev: Rev, attributes: Attributes) -> Record:
    location = _value(attributes, "location", "S", "")
    return Record(
        hash=hash_,
        state=RecordState(_value(attributes, "state", "S", None)),
        rev=rev,
        names=_decode_names(attributes),
        expiration=_number(attributes, "expiration"),
        size=_number(attributes, "size"),
        stored=_number(attributes, "stored"),
        stored_at=_number(attributes, "stored_at"),
        storage_class=_value(attributes, "class", "S", ""),
        checksum=_value(attributes, "checksum", "S", ""),
        encoding=_value(attributes, "enc", "S", ENCODING_ZSTD),
        location=decode_location(location) if location else None,
        spill=_number(attributes, "spill"),
        buckets=decode_buckets(_value(attributes, "buckets", "B", b"")),
    )


def _names(names: frozenset[StoredName]) -> Attributes:
    return {"file_names": {"SS": sorted(names)}} if names else {}


def _decode_names(attributes: Attributes) -> frozenset[StoredName]:
    return frozenset(map(StoredName, _value(attributes, "file_names", "SS", ())))


def _number(attributes: Attributes, name: str) -> int:
    return int(_value(attributes, name, "N", "0"))


def _value(attributes: Attributes, name: str, kind: str, default: Any) -> Any:
    """The attribute's value; `default` None means that it must be there."""
    attribute = attributes.get(name)
    if attribute is None:
        if default is None:
            raise Corrupt(f"an item of the index has no attribute {name!r}", _FOREIGN)
        return default
    if kind not in attribute:
        raise Corrupt(f"an item of the index has an attribute {name!r} of another type than {kind}", _FOREIGN)
    return attribute[kind]


_FOREIGN = "is this the right table, and does no other program write to it?"

_SIZES: dict[str, Callable[[Any], int]] = {
    "S": lambda text: len(text.encode("utf-8", "surrogatepass")),
    "N": lambda text: (len(text.strip("-").strip("0")) + 1) // 2 + 1 + text.startswith("-"),
    "B": len,
    "SS": lambda texts: sum(len(text.encode("utf-8", "surrogatepass")) for text in texts),
    "L": lambda values: 3 + sum(1 + _size_of(value) for value in values),
}


def _size_of(value: dict[str, Any]) -> int:
    ((kind, inner),) = value.items()
    return _SIZES[kind](inner)
