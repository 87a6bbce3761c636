"""Which names of a content lie in its record and which in overflow items: pure rules.

Decides what fits and which item a name belongs to. Knows neither revs nor stores: the order of writes is the ledger's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from s3hashsync.core.cost import NAMES_IN_RECORD
from s3hashsync.core.model import Record, StoredName

BYTES_IN_RECORD = 64 * 1024


def split_names(names: frozenset[StoredName]) -> tuple[frozenset[StoredName], frozenset[StoredName]]:
    """What fits into a record, and the rest."""
    if fits(names):
        return names, frozenset()
    first: list[StoredName] = []
    size = 0
    for name in sorted(names)[:NAMES_IN_RECORD]:
        size += len(name.encode())
        if size > BYTES_IN_RECORD and first:
            break
        first.append(name)
    return frozenset(first), names - frozenset(first)


def fits(names: Collection[StoredName]) -> bool:
    if len(names) > NAMES_IN_RECORD:
        return False
    # A character is four bytes at most: that settles nearly every case without encoding anything.
    return 4 * sum(map(len, names)) <= BYTES_IN_RECORD or names_size(names) <= BYTES_IN_RECORD


def names_size(names: Iterable[StoredName]) -> int:
    return sum(len(name.encode()) for name in names)


def prefix_of(name: StoredName, length: int) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:length]


def by_prefix(names: Iterable[StoredName], length: int) -> dict[str, set[StoredName]]:
    out: dict[str, set[StoredName]] = {}
    for name in names:
        out.setdefault(prefix_of(name, length), set()).add(name)
    return out


def listed_prefixes(record: Record, names: Iterable[StoredName]) -> set[str]:
    """The overflow items that count and may hold one of these names, at whatever length they were written."""
    lengths = {len(prefix) for prefix in record.buckets}
    return {p for name in names for length in lengths if (p := prefix_of(name, length)) in record.buckets}
