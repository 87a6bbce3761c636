"""The write protocol of the index under every interleaving and fault, and each of its rules taken out.

The searches run the real `Ledger` and the real `Lease`. CLEAN and SWEEP are written here as the design has them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from s3hashsync.core.model import (
    ContentHash,
    Item,
    ObjectAt,
    Overflow,
    Record,
    RecordState,
    Rev,
    StoredName,
    object_stem,
    overflow_key,
)
from s3hashsync.errors import Locked, S3HashSyncError
from s3hashsync.run import ledger as rules
from s3hashsync.run.lease import SourceFacts, acquire
from s3hashsync.run.ledger import Ledger, Supply, Terms
from s3hashsync.stores.base import Attempt, Outcome, Write
from s3hashsync.stores.sqlite import SqliteIndex
from tests.protocol.explorer import Faults, Process, Remote, Search, Violation, World, broken, start

H = ContentHash(bytes(31) + b"\7")
KEY, STEM = H.hex(), object_stem(H)
TERMS = Terms("STANDARD", 0, 0)
LIVE, TRASH, PURGING, GONE = RecordState.LIVE, RecordState.TRASH, RecordState.PURGING, RecordState.GONE
V0 = [(STEM, "v0")]


def record(state: RecordState, *names: str, buckets: Sequence[str] = ()) -> Record:
    return Record(
        H,
        state,
        Rev(b"first"),
        frozenset(StoredName(name) for name in names),
        location=ObjectAt("v0"),
        spill=int(bool(buckets)),
        buckets=frozenset(buckets),
    )


@contextmanager
def changed(thing: object, name: str, value: object) -> Iterator[None]:
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        setattr(thing, name, before)


# Processes


def no_guard() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Uploads:
    """A supplier that stores anew each time. With `reuse` (the rule taken out) it offers again what was refused."""

    remote: Remote
    reuse: bool = False
    mine: list[str] | None = None

    def __call__(self, needed: Mapping[ContentHash, Rev | None]) -> Mapping[ContentHash, Supply | S3HashSyncError]:
        mine = self.mine if self.mine is not None else []
        if not (self.reuse and mine):
            mine.append(self.remote.put(STEM, b"", Attempt("", "STANDARD")).version)
        stored = replace_version(mine[-1])
        return {hash_: Supply(stored, 1, 0) for hash_ in needed}


def replace_version(version: str):  # noqa: ANN201
    from s3hashsync.stores.base import Stored

    return Stored(version, 1, "")


def adds(*names: str, ledger: type[Ledger] = Ledger, reuse: bool = False) -> Process:
    wanted = frozenset(StoredName(name) for name in names)

    def body(remote: Remote) -> None:
        for name in sorted(wanted):
            remote.note("adding", name)
        uploads = Uploads(remote, reuse, [])
        made = ledger(remote, remote, TERMS, lambda: 2_000.0, remote.entropy)  # type: ignore[arg-type]
        made.mine = uploads.mine  # type: ignore[attr-defined]
        answer = made.add({H: wanted}, uploads, no_guard)[H]
        if isinstance(answer, Record):
            for name in sorted(wanted):
                remote.note("acknowledged", name)

    return Process(f"add {','.join(names)}", body, StoredName(names[0]))


def removes(*names: str, ledger: type[Ledger] = Ledger) -> Process:
    dropped = frozenset(StoredName(name) for name in names)

    def body(remote: Remote) -> None:
        for name in sorted(dropped):
            remote.note("removing", name)
        made = ledger(remote, remote, TERMS, lambda: 2_000.0, remote.entropy)  # type: ignore[arg-type]
        made.remove({H: dropped}, no_guard)
        for name in sorted(dropped):
            remote.note("removed", name)

    return Process(f"remove {','.join(names)}", body, StoredName(names[0]))


def read_record(remote: Remote) -> Record | None:
    item = remote.read([KEY]).get(KEY)
    return item if isinstance(item, Record) else None


def moved(remote: Remote, before: Record | None, **fields: object) -> Record | None:
    """The record after a write on its rev, None when that was refused."""
    after = replace(before or Record(H, GONE, Rev(b"")), rev=Rev(remote.entropy(12)), **fields)
    (outcome,) = remote.write([Write(after, before.rev if before else None)])
    return after if outcome.written else None


def gone_fields() -> dict[str, object]:
    return {"state": GONE, "names": frozenset(), "location": None, "buckets": frozenset()}


def cleans(*, purging: bool = True, pinned: bool = True, tombstone: bool = True) -> Process:
    """Trash (expired always here) -> purging; delete exactly the pinned version; -> gone."""

    def body(remote: Remote) -> None:
        found = read_record(remote)
        while found is not None and found.state is TRASH and purging:
            after = moved(remote, found, state=PURGING)
            found = after or read_record(remote)
        if found is None or found.state not in (TRASH, PURGING):
            return
        versions = [found.content.location.version] if pinned else [v.version for v in remote.versions(STEM)]  # type: ignore[union-attr]
        for version in versions:
            remote.delete(STEM, version)
        if tombstone:
            moved(remote, found, **gone_fields())
        else:
            remote.forget(KEY, found.rev)

    return Process("clean", body)


def sweeps(*, fence: bool = True) -> Process:
    """List; move the record in whatever state; if it was moved as it was seen, delete what it does not point to."""

    def body(remote: Remote) -> None:
        while True:
            versions = [version.version for version in remote.versions(STEM)]
            found = read_record(remote)
            pinned = getattr(found.location, "version", None) if found else None
            orphans = [version for version in versions if version != pinned]
            if not orphans:
                return
            if not fence or moved(remote, found):
                break
        for version in orphans:
            remote.delete(STEM, version)

    return Process("sweep", body)


# Scenarios

Make = Callable[[], Sequence[Process]]


@dataclass(frozen=True, slots=True)
class Scenario:
    title: str
    processes: Sequence[Process]
    items: Sequence[Item] = ()
    versions: Sequence[tuple[str, str]] = ()
    acknowledged: Sequence[str] = ()

    def search(self, faults: Faults, limit: int = 400_000, *, by_rev: bool = True) -> tuple[Violation | None, Search]:
        search = Search(self.processes, limit, by_rev=by_rev)
        begin = start(
            self.processes, self.items, self.versions, [StoredName(n) for n in self.acknowledged], faults
        )
        return search.run(begin), search


def content_scenarios(ledger: type[Ledger] = Ledger, *, reuse: bool = False) -> list[Scenario]:
    """One content; with `ledger` or `reuse`, a rule taken out."""

    def add(*names: str) -> Process:
        return adds(*names, ledger=ledger, reuse=reuse)

    def remove(*names: str) -> Process:
        return removes(*names, ledger=ledger)

    live, trash = [record(LIVE, "c")], [record(TRASH)]
    return [
        Scenario("two adds of a new content", [add("a"), add("b"), sweeps()]),
        Scenario("a new content is added, removed, cleaned", [add("a"), remove("a"), cleans()]),
        Scenario("remove the last name while another is added", [remove("c"), add("b"), cleans()], live, V0, ["c"]),
        Scenario("remove and add the same name", [remove("c"), add("c"), cleans()], live, V0, ["c"]),
        Scenario("remove and add again, then sweep", [remove("c"), add("c"), sweeps()], live, V0, ["c"]),
        Scenario("undelete while it is cleaned", [add("a"), add("b"), cleans()], trash, V0),
        Scenario("undelete, clean, clean", [add("a"), cleans(), cleans()], trash, V0),
        Scenario("undelete, clean, sweep", [add("a"), cleans(), sweeps()], trash, V0),
    ]


def in_bucket(digit: str) -> Iterator[str]:
    """Names whose overflow item at the first length is `digit`."""
    return (name for i in range(10_000) if rules._prefix(name := StoredName(f"n{i}"), 1) == digit)


O1, O2, *_ = (name for name, _ in zip(in_bucket("a"), range(2), strict=False))
OTHER = next(in_bucket("b"))


def overflow_scenarios(ledger: type[Ledger] = Ledger) -> list[Scenario]:
    """One name is all that a record holds here: O1 and O2 spill into one overflow item, OTHER into another."""

    def add(*names: str) -> Process:
        return adds(*names, ledger=ledger)

    def remove(*names: str) -> Process:
        return removes(*names, ledger=ledger)

    plain = [record(LIVE, "m")]
    spilled = [record(LIVE, "m", buckets=["a"]), Overflow(H, "a", Rev(b"bucket"), frozenset({O1}))]
    only = [record(LIVE, buckets=["a"]), Overflow(H, "a", Rev(b"bucket"), frozenset({O1}))]
    stale = [record(TRASH), Overflow(H, "a", Rev(b"bucket"))]
    return [
        Scenario("the first spill, the record's name goes", [add(O1), remove("m"), cleans()], plain, V0, ["m"]),
        Scenario("two spills into one item", [add(O1), add(O2)], plain, V0, ["m"]),
        Scenario("a name goes, one comes, in one item", [remove(O1), add(O2), cleans()], only, V0, [O1]),
        Scenario("all names go while one comes", [remove("m", O1), add(O2)], spilled, V0, ["m", O1]),
        Scenario("remove and add the same spilled name", [remove(O1), add(O1)], only, V0, [O1]),
        Scenario("two removes in one item", [remove(O1), remove("m"), cleans()], spilled, V0, ["m", O1]),
        Scenario("a new life with old overflow items", [add("m", O1), cleans(), sweeps()], stale, V0),
        Scenario("a spill is taken back", [add(O1), remove(O1), add(O2)], plain, V0, ["m"]),
    ]


ONE_EACH = [Faults(), Faults(crashes=1), Faults(lost=1), Faults(crashes=1, delayed=1)]
