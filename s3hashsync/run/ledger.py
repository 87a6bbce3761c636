"""The write protocol of the index: ADD, REMOVE and OVERFLOW, in batches.

Every change is one conditional write of a whole item on the rev that was read; a refused write means read again and start over.
What keeps content safe here:
- a name is added even where it is there already, so that the record's rev moves and a late request of a dead process fails;
- bytes are stored after the record was read and named on exactly that rev; bytes whose write was refused are never used again,
  and never deleted by whoever stored them;
- the caller's guard is asked after the records were read and before they are written, once a round;
- an overflow item is written before the record that lists it, and dropped only on a rev that was read before the item was seen
  empty.
Decides nothing about files, plans or logs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from s3hashsync.core.cost import DEEPEST, spill_length
from s3hashsync.core.model import (
    ContentHash,
    Location,
    ObjectAt,
    Overflow,
    Record,
    RecordState,
    Rev,
    StoredName,
    object_stem,
    overflow_key,
)
from s3hashsync.core.overflow import BYTES_IN_RECORD, by_prefix, fits, listed_prefixes, names_size, prefix_of, split_names
from s3hashsync.core.value import value
from s3hashsync.errors import Corrupt, S3HashSyncError, StoreError, Unreachable
from s3hashsync.stores.base import Index, ObjectStore, Outcome, Write

BYTES_IN_BUCKET = 192 * 1024
ROUNDS = 30
REV_BYTES = 12


@value
class Terms:
    """For how long content is kept and where: durations in seconds."""

    storage_class: str
    min_storage_seconds: int
    keep_deleted_seconds: int
    append_only: bool = False


@value
class Supply:
    """Bytes that were stored for one content: where and in which encoding, how many of them (a packed content's share), their
    checksum ("" in a pack), the content's own size, and when (epoch seconds)."""

    location: Location
    encoding: str
    stored: int
    checksum: str
    size: int
    stored_at: int


class Supplier(Protocol):
    """Stores contents when the ledger needs them."""

    def __call__(self, needed: Mapping[ContentHash, Rev | None]) -> Mapping[ContentHash, Supply | S3HashSyncError]:
        """Store each content anew and durably, or say why not. The value is the rev that its record has now (None: no record)."""


@dataclass(slots=True)
class Tally:
    """What was written, for the summary."""

    writes: int = 0
    units: int = 0


@dataclass(slots=True)
class _Round:
    """What one round has read."""

    records: dict[ContentHash, Record]
    buckets: dict[str, Overflow] = field(default_factory=dict)


_LIVE, _TRASH = RecordState.LIVE, RecordState.TRASH
_Pending = TypeVar("_Pending")


class Ledger:
    """Adds names to contents and removes them. For any thread: one of them adds or removes at a time."""

    def __init__(
        self,
        index: Index,
        objects: ObjectStore,
        terms: Terms,
        clock: Callable[[], float],
        entropy: Callable[[int], bytes],
    ) -> None:
        self._index = index
        self._objects = objects
        self._terms = terms
        self._clock = clock
        self._entropy = entropy
        self._turn = threading.Lock()
        self.tally = Tally()

    # ADD

    def add(
        self,
        wanted: Mapping[ContentHash, frozenset[StoredName]],
        supplier: Supplier,
        guard: Callable[[], None],
        absent: Collection[ContentHash] = (),
    ) -> dict[ContentHash, Record | S3HashSyncError]:
        """Give every content its names. Answers with the live record, or with why it could not be done. `absent`: these had no
        record a moment ago and are not looked up again; one that has come since refuses the write."""
        pending = dict(wanted)
        done: dict[ContentHash, Record | S3HashSyncError] = {}
        with self._turn:
            for _ in range(ROUNDS):
                if not pending:
                    return done
                records = self.records(pending.keys() - absent)
                self._add_round(pending, records, done, supplier, guard)
                absent = ()
        for hash_ in pending:
            done[hash_] = Unreachable(f"the record of {hash_.hex()} keeps changing", "run apply again")
        return done

    def _add_round(
        self,
        pending: dict[ContentHash, frozenset[StoredName]],
        records: dict[ContentHash, Record],
        done: dict[ContentHash, Record | S3HashSyncError],
        supplier: Supplier,
        guard: Callable[[], None],
    ) -> None:
        needed = {
            h: records[h].rev if h in records else None
            for h in pending
            if h not in records or records[h].state not in (_LIVE, _TRASH)
        }
        supplies = supplier(needed) if needed else {}
        for hash_, answer in supplies.items():
            if isinstance(answer, S3HashSyncError):
                done[hash_] = answer
                del pending[hash_]
        guard()
        writes: dict[ContentHash, tuple[Record, frozenset[StoredName]]] = {}
        spilling: dict[ContentHash, tuple[Record, frozenset[StoredName]]] = {}
        for hash_, names in pending.items():
            record, supply = records.get(hash_), supplies.get(hash_)
            if isinstance(supply, Supply):
                first, rest = split_names(names)
                writes[hash_] = (self._fresh(hash_, supply, first, record), rest)
            elif record is not None and record.state is _TRASH:
                first, rest = split_names(names)
                writes[hash_] = (replace(record, state=_LIVE, names=first, rev=self._rev()), rest)
            elif record is not None:
                union = record.names | names
                if union == record.names or (not record.buckets and fits(union)):
                    writes[hash_] = (replace(record, names=union, rev=self._rev()), frozenset())
                else:
                    spilling[hash_] = (record, names - record.names)
        writes |= self._spill(spilling)
        self._write_records(writes, records, pending, done)

    def _write_records(
        self,
        writes: Mapping[ContentHash, tuple[Record, frozenset[StoredName]]],
        before: Mapping[ContentHash, Record],
        pending: dict[ContentHash, frozenset[StoredName]],
        done: dict[ContentHash, Record | S3HashSyncError],
    ) -> None:
        batch = [Write(record, before[h].rev if h in before else None) for h, (record, _) in writes.items()]
        for write, outcome, hash_ in zip(batch, self._write(batch), writes, strict=True):
            if not outcome.written:
                continue
            record = write.item
            assert isinstance(record, Record)
            if hash_ in before and before[hash_].state is _TRASH and isinstance(record.location, ObjectAt):
                self._unmark(hash_)
            rest = writes[hash_][1]
            if rest:
                pending[hash_] = rest
            else:
                done[hash_] = record
                del pending[hash_]

    def _fresh(self, hash_: ContentHash, supply: Supply, names: frozenset[StoredName], before: Record | None) -> Record:
        return Record(
            hash=hash_,
            state=_LIVE,
            rev=self._rev(),
            names=names,
            expiration=max(supply.stored_at + self._terms.min_storage_seconds, 0),
            size=supply.size,
            stored=supply.stored,
            stored_at=supply.stored_at,
            storage_class=self._terms.storage_class,
            checksum=supply.checksum,
            encoding=supply.encoding,
            location=supply.location,
            spill=before.spill if before else 0,
        )

    def _unmark(self, hash_: ContentHash) -> None:
        """Best effort: a host without that right leaves the marker to `clean`; the record is the truth."""
        if self._objects.versioned:
            try:
                self._objects.unmark(object_stem(hash_))
            except StoreError:
                return

    # OVERFLOW

    def _spill(
        self, spilling: Mapping[ContentHash, tuple[Record, frozenset[StoredName]]]
    ) -> dict[ContentHash, tuple[Record, frozenset[StoredName]]]:
        """Write the overflow items of these records; answers with the record writes that make them count."""
        if not spilling:
            return {}
        plans: dict[ContentHash, dict[str, set[StoredName]]] = {}
        for hash_, (record, names) in spilling.items():
            # Names may be long: a bucket's share is counted in names of 1 KB at least.
            length = spill_length(max(len(names), names_size(names) // 1024), record.spill)
            plans[hash_] = by_prefix(names, length)
        found = self._overflows(overflow_key(h, p) for h, plan in plans.items() for p in plan)
        out: dict[ContentHash, tuple[Record, frozenset[StoredName]]] = {}
        for hash_, plan in plans.items():
            record, _ = spilling[hash_]
            placed = self._fill_buckets(hash_, plan, found)
            if placed is None:
                continue
            length, crowded = placed
            record = replace(record, spill=max(record.spill, length), buckets=record.buckets.union(plan))
            spill = min(record.spill + crowded, DEEPEST)
            out[hash_] = (replace(record, spill=spill, rev=self._rev()), frozenset())
        return out

    def _fill_buckets(
        self, hash_: ContentHash, plan: Mapping[str, set[StoredName]], found: Mapping[str, Overflow]
    ) -> tuple[int, int] | None:
        """(prefix length, 1 when a bucket is crowded and the next names should go one level deeper), or None when a write was
        refused: the record is read again and everything starts over."""
        writes = []
        crowded = 0
        for prefix, names in plan.items():
            item = found.get(overflow_key(hash_, prefix))
            union = frozenset(names | item.names) if item else frozenset(names)
            crowded |= names_size(union) > BYTES_IN_RECORD
            if names_size(union) > BYTES_IN_BUCKET and len(prefix) >= DEEPEST:
                raise Corrupt(f"content {hash_.hex()} has more names than the index can hold")
            writes.append(Write(Overflow(hash_, prefix, self._rev(), union), item.rev if item else None))
        if not all(outcome.written for outcome in self._write(writes)):
            return None
        return len(next(iter(plan))), int(crowded)

    def _overflows(self, keys: Iterable[str]) -> dict[str, Overflow]:
        items = self._index.read(list(keys))
        return {key: item for key, item in items.items() if isinstance(item, Overflow)}

    # REMOVE

    def remove(self, dropped: Mapping[ContentHash, frozenset[StoredName]], guard: Callable[[], None]) -> None:
        """Take names away. A content that loses its last name goes to the trash. Raises `Unreachable` when a record keeps
        changing; what was not removed is found again by the next run."""
        pending = dict(dropped)
        trashed: dict[ContentHash, Rev] = {}
        if not pending:
            return
        with self._turn:
            for _ in range(ROUNDS):
                if not pending:
                    break
                self._remove_round(pending, trashed, guard)
            if pending:
                raise Unreachable("records keep changing while names are removed from them", "run apply again")
            self._mark(trashed)

    def _remove_round(
        self,
        pending: dict[ContentHash, frozenset[StoredName]],
        trashed: dict[ContentHash, Rev],
        guard: Callable[[], None],
    ) -> None:
        seen = self._look(pending)
        seen.buckets |= self._strays(pending, seen)
        guard()
        refused = self._empty_buckets(pending, seen)
        _keep_live(pending, seen, refused)
        if any(record.buckets for record in seen.records.values()):
            # Records first, buckets second: an empty bucket is dropped on a rev that is older than the sight of it.
            seen = self._look(pending)
            _keep_live(pending, seen, refused)
            guard()
        writes: dict[ContentHash, Record] = {}
        for hash_, names in list(pending.items()):
            if hash_ in refused:
                continue
            after = self._without(seen, hash_, names)
            if after is None:
                del pending[hash_]
            else:
                writes[hash_] = after
        batch = [Write(replace(r, rev=self._rev()), seen.records[h].rev) for h, r in writes.items()]
        for write, outcome, hash_ in zip(batch, self._write(batch), writes, strict=True):
            if outcome.written:
                del pending[hash_]
                # A pack has no marker: other contents in it may be live.
                if isinstance(write.item, Record) and write.item.state is _TRASH and isinstance(write.item.location, ObjectAt):
                    trashed[hash_] = write.item.rev

    def _look(self, pending: Mapping[ContentHash, frozenset[StoredName]]) -> _Round:
        seen = _Round(self.records(pending))
        keys = {
            overflow_key(h, prefix)
            for h, record in seen.records.items()
            if record.state is _LIVE and record.buckets
            for prefix in listed_prefixes(record, pending[h])
        }
        if keys:
            seen.buckets = self._overflows(keys)
        return seen

    def _strays(self, pending: Mapping[ContentHash, frozenset[StoredName]], seen: _Round) -> dict[str, Overflow]:
        """The overflow items that hold such a name and do not count: a process died before the record listed them. Left
        there, the name would count as soon as another one needs the item."""
        keys = {
            overflow_key(hash_, prefix_of(name, length))
            for hash_, record in seen.records.items()
            for name in pending[hash_] - record.names
            if not any(name in _names_in(seen.buckets, overflow_key(hash_, p)) for p in listed_prefixes(record, [name]))
            for length in range(1, DEEPEST + 1)
        }
        return self._overflows(keys - seen.buckets.keys()) if keys else {}

    def _empty_buckets(self, pending: Mapping[ContentHash, frozenset[StoredName]], seen: _Round) -> set[ContentHash]:
        writes = []
        for item in seen.buckets.values():
            rest = item.names - pending.get(item.hash, frozenset())
            if rest != item.names:
                writes.append(Write(replace(item, rev=self._rev(), names=rest), item.rev))
        outcomes = self._write(writes)
        return {w.item.hash for w, o in zip(writes, outcomes, strict=True) if not o.written and isinstance(w.item, Overflow)}

    def _without(self, seen: _Round, hash_: ContentHash, names: frozenset[StoredName]) -> Record | None:
        """The record after the removal, or None when nothing about it changes."""
        record = seen.records[hash_]
        rest = record.names - names
        empty = {prefix for prefix in listed_prefixes(record, names) if not _names_in(seen.buckets, overflow_key(hash_, prefix))}
        buckets = record.buckets - empty
        if rest == record.names and buckets == record.buckets:
            return None
        state = _LIVE if rest or buckets else _TRASH
        expiration = max(record.expiration, int(self._clock()) + self._terms.keep_deleted_seconds)
        return replace(record, state=state, names=rest, buckets=buckets, expiration=expiration)

    def _mark(self, trashed: Mapping[ContentHash, Rev]) -> None:
        """Delete markers for people and lifecycle rules: advice, never the truth, so a failure here is not a failure of the
        run."""
        if not trashed or not self._objects.versioned or self._terms.append_only:
            return
        marked = []
        for hash_ in trashed:
            try:
                self._objects.mark(object_stem(hash_))
                marked.append(hash_)
            except StoreError:
                continue
        for hash_, record in self.records(marked).items():
            if record.rev != trashed[hash_]:
                self._unmark(hash_)

    # Both

    def records(self, hashes: Collection[ContentHash]) -> dict[ContentHash, Record]:
        """The records of these hashes; one that is not in the answer is proven absent."""
        if not hashes:
            return {}
        items = self._index.read([h.hex() for h in hashes])
        return {item.hash: item for item in items.values() if isinstance(item, Record)}

    def _write(self, writes: list[Write]) -> list[Outcome]:
        if not writes:
            return []
        outcomes = self._index.write(writes)
        self.tally.writes += sum(outcome.written for outcome in outcomes)
        self.tally.units += sum(
            self._index.write_units(write.item) for write, outcome in zip(writes, outcomes, strict=True) if outcome.written
        )
        return outcomes

    def _rev(self) -> Rev:
        return Rev(self._entropy(REV_BYTES))


def _keep_live(pending: dict[ContentHash, frozenset[StoredName]], seen: _Round, refused: Collection[ContentHash]) -> None:
    """Only live records have names; where there is none, nothing is left to remove (but from an overflow item that was
    refused)."""
    for hash_ in list(pending):
        if hash_ in refused:
            continue
        if hash_ not in seen.records or seen.records[hash_].state is not _LIVE:
            del pending[hash_]


def _names_in(buckets: Mapping[str, Overflow], key: str) -> frozenset[StoredName]:
    return buckets[key].names if key in buckets else frozenset()
