"""The retrying wrapper: what is tried again, how often, and that a repeated operation still means what it
said."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from s3hashsync import errors
from s3hashsync.core.model import Item
from s3hashsync.stores.base import Attempt, Index, ObjectStore, Outcome, Write
from s3hashsync.stores.local import LocalObjects
from s3hashsync.stores.retrying import RetryEvent, RetryingIndex, RetryingObjects, RetryPolicy
from s3hashsync.stores.sqlite import SqliteIndex
from tests.conformance.index import IndexSuite, MakeIndex, moved, record
from tests.conformance.objects import MakeObjects, ObjectStoreSuite, fetch, fresh_stem
from tests.faulty import (
    SURVIVABLE,
    Crash,
    Fault,
    FaultPlan,
    FaultyIndex,
    FaultyObjects,
    Operation,
    at,
    on,
)


@dataclass
class Heard:
    """A policy that does not wait, and what it told."""

    events: list[RetryEvent] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def policy(self, **limits: float) -> RetryPolicy:
        return RetryPolicy(sleep=self.slept.append, **limits)  # type: ignore[arg-type]

    def objects(self, store: ObjectStore, **limits: float) -> RetryingObjects:
        return RetryingObjects(store, self.policy(**limits), self.events.append)

    def index(self, index: Index, **limits: float) -> RetryingIndex:
        return RetryingIndex(index, self.policy(**limits), self.events.append)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def local(tmp_path: Path) -> LocalObjects:
    return LocalObjects(str(tmp_path / "repository"), create=True)


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteIndex:
    return SqliteIndex(str(tmp_path / "index.db"), create=True)


def attempt() -> Attempt:
    return Attempt(secrets.token_hex(16), "STANDARD")


# conformance, with every third operation failing in one way or another


def flaky(operation: Operation) -> Fault | None:
    faults = [Fault.LOSE_ANSWER, Fault.THROTTLE, Fault.PARTIAL]
    turn = operation.nth + len(operation.name)
    return faults[turn // 3 % 3] if turn % 3 == 0 else None


class TestFlakyObjects(ObjectStoreSuite):
    keeps_storage_class = False
    resumes = False

    @pytest.fixture
    def make_objects(self, tmp_path: Path) -> MakeObjects:
        plan, policy = FaultPlan([flaky]), Heard().policy()
        folder = str(tmp_path / "repository")
        return lambda: RetryingObjects(FaultyObjects(LocalObjects(folder, create=True), plan), policy)


class TestFlakyIndex(IndexSuite):
    @pytest.fixture
    def make_index(self, tmp_path: Path) -> MakeIndex:
        plan, policy = FaultPlan([flaky]), Heard().policy()
        path = str(tmp_path / "index.db")
        return lambda: RetryingIndex(FaultyIndex(SqliteIndex(path, create=True), plan), policy)


# what is tried again


class Failing:
    """An index that fails so many times before it answers."""

    def __init__(self, times: int, error: errors.StoreError | Crash) -> None:
        self.times = times
        self.error = error
        self.calls = 0

    def read(self, keys: Collection[str]) -> dict[str, Item]:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return {}

    def scan(self) -> Iterator[Item]:
        raise NotImplementedError

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        raise NotImplementedError

    def write_units(self, item: Item) -> int:
        return 0


def test_a_passing_failure_is_tried_again_and_told(heard: Heard) -> None:
    failing = Failing(3, errors.Unreachable("busy"))
    assert heard.index(failing).read([]) == {}
    assert failing.calls == 4
    assert [event.attempt for event in heard.events] == [1, 2, 3]
    assert {event.operation for event in heard.events} == {"read index"}
    assert {event.error for event in heard.events} == {failing.error}
    assert [event.wait_seconds for event in heard.events] == heard.slept
    assert heard.slept[0] < heard.slept[1] + 1 < heard.slept[2] + 2  # growing, up to the jitter


@pytest.mark.parametrize(
    "error",
    [errors.Denied("no"), errors.Missing("gone"), errors.NoSpace("full"), errors.StoreError("odd"), Crash()],
)
def test_a_lasting_failure_is_not_tried_again(heard: Heard, error: errors.StoreError | Crash) -> None:
    failing = Failing(1, error)
    with pytest.raises(type(error)):
        heard.index(failing).read([])
    assert failing.calls == 1
    assert heard.events == []


def test_attempts_are_bounded(heard: Heard) -> None:
    failing = Failing(99, errors.Unreachable("busy"))
    with pytest.raises(errors.Unreachable):
        heard.index(failing, attempts=5).read([])
    assert failing.calls == 5
    assert len(heard.slept) == 4


def test_total_time_is_bounded(heard: Heard) -> None:
    failing = Failing(99, errors.Unreachable("busy"))
    with pytest.raises(errors.Unreachable):
        heard.index(failing, attempts=1_000, total_seconds=20.0, first_wait=0.1, longest_wait=3.0).read([])
    assert 10.0 < sum(heard.slept) <= 20.0


# streams


def test_a_broken_read_goes_on_where_it_broke(local: LocalObjects, heard: Heard) -> None:
    stem, body = fresh_stem(), secrets.token_bytes(5_000_000)
    version = local.put(stem, body, attempt()).version
    plan = FaultPlan([on("objects.read", Fault.PARTIAL, nth) for nth in (1, 2, 3)])
    store = heard.objects(FaultyObjects(local, plan))
    assert fetch(store, stem, version) == body
    assert len(heard.events) == 3
    plan = FaultPlan([on("objects.read", Fault.PARTIAL, nth) for nth in (1, 2)])
    store = heard.objects(FaultyObjects(local, plan))
    assert fetch(store, stem, version, 1_000, 3_000_000) == body[1_000:3_001_000]


def test_a_read_that_never_works_ends(local: LocalObjects, heard: Heard) -> None:
    stem = fresh_stem()
    version = local.put(stem, b"body", attempt()).version
    plan = FaultPlan([on("objects.read", Fault.THROTTLE, 0)])
    store = heard.objects(FaultyObjects(local, plan), attempts=4)
    with pytest.raises(errors.Unreachable):
        fetch(store, stem, version)
    assert len(plan.log) == 4


def test_broken_listings_are_whole_and_yield_nothing_twice(local: LocalObjects, heard: Heard) -> None:
    stems = sorted(fresh_stem() for _ in range(20))
    made = {(stem, local.put(stem, b"x", attempt()).version) for stem in stems for _ in range(3)}
    keys = [f"runs/src/{number:02d}" for number in range(30)]
    for key in keys:
        local.create_document(key, b"x")
    names = ("objects.versions", "objects.documents")
    plan = FaultPlan([on(name, Fault.PARTIAL, nth) for name in names for nth in (1, 2, 3)])
    store = heard.objects(FaultyObjects(local, plan))
    listed = [(version.stem, version.version) for version in store.versions("objects/")]
    assert len(listed) == len(made)
    assert set(listed) == made
    assert [stem for stem, _ in listed] == sorted(stem for stem, _ in listed)
    assert [document.key for document in store.documents("runs/")] == keys


def test_a_broken_scan_begins_anew_and_ends(sqlite: SqliteIndex, heard: Heard) -> None:
    items = [record(f"src/{number}") for number in range(100)]
    sqlite.write([Write(item, None) for item in items])
    plan = FaultPlan([on("index.scan", Fault.PARTIAL, nth) for nth in (1, 2)])
    scanned: list[Item] = list(heard.index(FaultyIndex(sqlite, plan)).scan())
    assert {item.key for item in scanned} == {item.key for item in items}
    plan = FaultPlan([on("index.scan", Fault.PARTIAL, 0)])
    with pytest.raises(errors.StoreError, match="broke 3 times"):
        list(heard.index(FaultyIndex(sqlite, plan), attempts=3).scan())


# lost answers


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.THROTTLE, Fault.DELAY])
def test_a_create_in_doubt_is_told_from_a_taken_key(local: LocalObjects, heard: Heard, fault: Fault) -> None:
    plan = FaultPlan([at(1, fault)])
    store = heard.objects(FaultyObjects(local, plan))
    store.create_document("runs/src/1", b"ours")
    assert plan.release() == (fault is Fault.DELAY)
    assert local.read_document("runs/src/1") == b"ours"
    with pytest.raises(errors.AlreadyThere):  # in no doubt: the same bytes are no excuse
        store.create_document("runs/src/1", b"ours")


def test_a_key_taken_by_another_in_doubt_is_refused(local: LocalObjects, heard: Heard) -> None:
    local.create_document("runs/src/1", b"theirs")
    store = heard.objects(FaultyObjects(local, FaultPlan([at(1, Fault.THROTTLE)])))
    with pytest.raises(errors.AlreadyThere):
        store.create_document("runs/src/1", b"ours")


@pytest.mark.parametrize("fault", SURVIVABLE)
def test_a_put_with_any_survivable_fault_leaves_one_version(local: LocalObjects, heard: Heard, fault: Fault) -> None:
    plan, stem = FaultPlan([at(1, fault)]), fresh_stem()
    stored = heard.objects(FaultyObjects(local, plan)).put(stem, b"body", attempt())
    plan.release()
    assert [version.version for version in local.versions(stem)] == [stored.version]
    assert fetch(local, stem, stored.version) == b"body"


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.THROTTLE])
@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_an_upload_survives_a_fault_at_each_step(local: LocalObjects, heard: Heard, fault: Fault, place: int) -> None:
    plan, stem = FaultPlan([at(place, fault)]), fresh_stem()
    store = heard.objects(FaultyObjects(local, plan))
    upload = store.begin(stem, attempt(), 12 << 20)
    first = secrets.token_bytes(upload.part_size)
    upload.write_part(1, first)
    upload.write_part(2, b"the end")
    stored = upload.complete()
    assert fetch(local, stem, stored.version) == first + b"the end"
    assert len(heard.events) == 1


@pytest.mark.parametrize("fault", SURVIVABLE)
def test_a_write_with_any_survivable_fault_is_written_once(sqlite: SqliteIndex, heard: Heard, fault: Fault) -> None:
    plan = FaultPlan([at(1, fault)])
    index = heard.index(FaultyIndex(sqlite, plan))
    items = [record(f"src/{number}") for number in range(10)]
    assert index.write([Write(item, None) for item in items]) == [Outcome(written=True)] * 10
    later = moved(items[0])
    assert index.write([Write(later, items[0].rev)]) == [Outcome(written=True)]
    plan.release()  # what was delayed finds its conditions gone
    assert sqlite.read([later.key]) == {later.key: later}


# the faulty stores themselves


def three_operations(store: FaultyObjects, index: FaultyIndex) -> Iterator[str]:
    store.put("objects/" + "ab" * 32, b"body", Attempt("01", ""))
    yield "put"
    store.barrier()
    yield "barrier"
    index.write([Write(record("src/a"), None)])
    yield "write"


def run_into(seen: list[str], steps: Iterator[str]) -> None:
    for step in steps:
        seen.append(step)


@pytest.mark.parametrize(
    ("mutation", "fault", "done", "versions", "items"),
    [
        (1, Fault.CRASH_BEFORE, [], 0, 0),
        (1, Fault.CRASH_AFTER, [], 1, 0),
        (2, Fault.CRASH_BEFORE, ["put"], 1, 0),
        (2, Fault.POWER_FAILURE, ["put"], 0, 0),
        (3, Fault.POWER_FAILURE, ["put", "barrier"], 1, 0),
        (3, Fault.CRASH_AFTER, ["put", "barrier"], 1, 1),
    ],
)
def test_a_crash_is_for_good(
    local: LocalObjects,
    sqlite: SqliteIndex,
    mutation: int,
    fault: Fault,
    done: list[str],
    versions: int,
    items: int,
) -> None:
    plan = FaultPlan([at(mutation, fault)])
    store, index = FaultyObjects(local, plan), FaultyIndex(sqlite, plan)
    seen: list[str] = []
    with pytest.raises(Crash):
        run_into(seen, three_operations(store, index))
    assert seen == done
    assert len(list(local.versions("objects/"))) == versions
    assert len(list(sqlite.scan())) == items
    with pytest.raises(Crash):
        list(index.scan())
    with pytest.raises(Crash):
        store.barrier()
    assert plan.mutations == mutation
