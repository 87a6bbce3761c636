"""What was added is logged, removed and settled beside the next part: what goes on at once, what waits, and who hears of it."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from s3hashsync.core.model import Control, Item
from s3hashsync.disk.state import State
from s3hashsync.errors import Interrupted, NoSpace, Unreachable
from s3hashsync.run import acknowledge, batches
from s3hashsync.run.acknowledge import Acknowledger
from s3hashsync.run.lease import SourceFacts, acquire
from s3hashsync.run.ledger import Ledger
from s3hashsync.stores.base import Outcome, Write
from s3hashsync.stores.sqlite import SqliteIndex
from tests.faulty import Fault, FaultPlan, at
from tests.harness import LEFT_OUT, House, as_they_are
from tests.memory import fast_folder
from tests.test_crash import Kept, assert_stored_once, count_operations, prepared, run_under

LONG = 30.0
"""Seconds; what does not go on in the meantime waits."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        yield Path(name)


@pytest.fixture
def house(folder: Path) -> House:
    house = House(folder).init()
    for number in range(6):
        house.write(f"folder/{number}.jpg", f"content {number}")
    return house


@pytest.fixture(autouse=True)
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is a part, and has a segment of its own."""
    monkeypatch.setattr(batches, "BATCH_STEPS", 1)
    monkeypatch.setattr(batches, "PART_STEPS", 1)
    monkeypatch.setattr(acknowledge, "SEGMENT_STEPS", 1)


def test_the_next_part_is_added_while_a_segment_is_closed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    third, in_time = threading.Event(), []
    add, close, parts = Ledger.add, Acknowledger.close_segment, count(1)

    def adding(self: Ledger, *args: object) -> object:
        if next(parts) == 3:
            third.set()
        return add(self, *args)  # type: ignore[arg-type]

    def closing(self: Acknowledger) -> None:
        if self.done == 2 and not in_time:
            in_time.append(third.wait(LONG))
        close(self)

    monkeypatch.setattr(Ledger, "add", adding)
    monkeypatch.setattr(Acknowledger, "close_segment", closing)
    house.backup()
    house.again().assert_converged()
    assert in_time == [True]


def test_what_cannot_be_acknowledged_stops_the_run_and_is_raised(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    settle, add = State.settle, Ledger.add
    parts: list[int] = []

    def full(self: State, *args: object) -> None:
        raise NoSpace("no space left for the local state")

    def counted(self: Ledger, wanted: Collection[object], *args: object) -> object:
        parts.append(len(wanted))
        return add(self, wanted, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(State, "settle", full)
    monkeypatch.setattr(Ledger, "add", counted)
    with pytest.raises(NoSpace):
        house.backup()
    # One that failed, one beside it, and one more whose acknowledgement was not begun.
    assert len(parts) <= 3
    monkeypatch.setattr(State, "settle", settle)
    house = house.again()
    house.backup()
    house.again().assert_converged()


def test_what_was_added_before_a_failure_is_acknowledged_first(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends when both halves have."""
    add, close, parts = Ledger.add, Acknowledger.close_segment, count(1)
    fails = threading.Event()

    def failing_third(self: Ledger, *args: object) -> object:
        if next(parts) == 3:
            fails.set()
            raise Unreachable("the index does not answer")
        return add(self, *args)  # type: ignore[arg-type]

    def late(self: Acknowledger) -> None:
        if self.done == 2:
            assert fails.wait(LONG)
        close(self)

    monkeypatch.setattr(Ledger, "add", failing_third)
    monkeypatch.setattr(Acknowledger, "close_segment", late)
    with pytest.raises(Unreachable):
        house.backup()
    with house.state() as state:
        assert state.count() == 2


def test_an_interruption_leaves_every_added_part_acknowledged(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    add, parts = Ledger.add, count(1)

    def fifth_stops(self: Ledger, *args: object) -> object:
        if next(parts) == 5:
            house.stop.set()
        return add(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "add", fifth_stops)
    with pytest.raises(Interrupted):
        house.backup()
    with house.state() as state:
        assert state.count_files() == len(house.records()) == 2


def test_names_are_not_removed_while_others_are_added(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.backup()
    for number in range(6):
        house.write(f"folder/{number}.jpg", f"changed {number}")
    add, remove = Ledger._add_round, Ledger._remove_round
    adding, seen = threading.Event(), []

    def slow(self: Ledger, *args: object) -> None:
        adding.set()
        time.sleep(0.05)
        add(self, *args)  # type: ignore[arg-type]
        adding.clear()

    def removing(self: Ledger, *args: object) -> None:
        seen.append(adding.is_set())
        remove(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "_add_round", slow)
    monkeypatch.setattr(Ledger, "_remove_round", removing)
    house = house.again()
    house.backup()
    assert seen == [False] * 6
    house.again().assert_converged()


class SlowAnswers(SqliteIndex):
    """Whoever writes a source's item hears of it only after another thread has looked at it."""

    def __init__(self, path: str) -> None:
        super().__init__(path, create=True)
        self.written, self.looked = threading.Event(), threading.Event()
        self.slow = False

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes = super().write(writes)
        if self.slow and isinstance(writes[0].item, Control):
            self.written.set()
            self.looked.wait(0.3)
        return outcomes

    def read(self, keys: Collection[str]) -> dict[str, Item]:
        items = super().read(keys)
        if self.slow:
            self.looked.set()
        return items


def test_a_lease_that_is_moved_on_is_not_taken_for_lost(folder: Path) -> None:
    index = SlowAnswers(str(folder / "index.db"))
    lease, _ = acquire(index, SourceFacts("photos", "laptop", "run", "", 0), random.Random(1).randbytes)
    index.slow = True
    raised: list[BaseException] = []

    def guarding() -> None:
        assert index.written.wait(LONG)
        try:
            lease.guard()
        except BaseException as error:
            raised.append(error)

    other = threading.Thread(target=guarding)
    other.start()
    lease.advance(SourceFacts("photos", "laptop", "run", "runs/photos/1", 1))
    other.join()
    index.close()
    assert raised == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault.CRASH_AFTER,
        *(pytest.param(fault, marks=LEFT_OUT) for fault in (Fault.CRASH_BEFORE, Fault.POWER_FAILURE)),
    ],
)
def test_a_crash_between_parts_loses_nothing(folder: Path, fault: Fault) -> None:
    """Both halves are at work: which operation comes at which number differs from time to time."""
    kept = Kept(prepared(folder / "house", fresh=False))
    for number in range(1, count_operations(kept.again()) + 1):
        house = kept.again()
        run_under(house, FaultPlan([at(number, fault)]))
        house.assert_safe()
        house = house.again(wrap=as_they_are)
        assert house.backup().problems == []
        with house.looked_at():
            house.assert_converged()
            assert_stored_once(house)
