"""A run that dies at any single operation, of a store or of its own state: the next one finds what is
missing, and stores nothing twice.

And each rule of the run's order taken out: then the same matrix must notice it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3hashsync.disk.state import State
from s3hashsync.errors import S3HashSyncError
from s3hashsync.stores.base import Index, ObjectStore
from s3hashsync.stores.retrying import RetryingIndex, RetryingObjects, RetryPolicy
from tests.faulty import Crash, Fault, FaultPlan, FaultyIndex, FaultyObjects, at
from tests.harness import House, Wrap, as_they_are, fast_folder

KILLS = int(os.environ.get("S3HASHSYNC_KILLS", "25"))
ORIGINAL_TRANSACTION = State._transaction


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        yield Path(name)


# The source, before and after


def before(house: House) -> None:
    for name in ("kept", "edited", "renamed", "deleted", "chmod", "copied"):
        house.write(f"{name}.jpg", f"content of {name}")
    house.write("folder/inside.jpg", "content inside")
    (house.source / "link").symlink_to("kept.jpg")


def change(house: House) -> None:
    """One of each: what was there is put aside, so that it can come back as the very same file."""
    source, aside = house.source, house.folder / "aside"
    aside.mkdir()
    os.rename(source / "edited.jpg", aside / "edited.jpg")
    os.rename(source / "deleted.jpg", aside / "deleted.jpg")
    house.write("edited.jpg", "edited, and longer now")
    house.write("new.jpg", "a new content")
    house.write("empty", "")
    house.write("new folder/copy.jpg", "content of copied")
    os.rename(source / "renamed.jpg", source / "renamed to.jpg")
    os.chmod(source / "chmod.jpg", 0o600)
    (source / "new link").symlink_to("new.jpg")


def revert(house: House) -> None:
    """Every path as it was before `change`, with its old inode and mtime."""
    source, aside = house.source, house.folder / "aside"
    os.rename(aside / "edited.jpg", source / "edited.jpg")
    os.rename(aside / "deleted.jpg", source / "deleted.jpg")
    os.rename(source / "renamed to.jpg", source / "renamed.jpg")
    os.chmod(source / "chmod.jpg", 0o644)
    for name in ("new.jpg", "empty", "new link"):
        os.unlink(source / name)
    shutil.rmtree(source / "new folder")


def edit_again(house: House) -> None:
    house.write("edited.jpg", "a third content of the edited one")
    house.write("new.jpg", "content of deleted")
    os.rename(house.source / "renamed to.jpg", house.source / "renamed a third time.jpg")


def nothing(house: House) -> None: ...


# Faults at the stores and at the state


@contextlib.contextmanager
def state_under(plan: FaultPlan) -> Iterator[None]:
    """The transactions of the local state are operations of the plan, too."""

    @contextlib.contextmanager
    def transaction(self: State) -> Iterator[None]:
        fault = plan.begin("state", "", mutates=True)
        if fault in (Fault.CRASH_BEFORE, Fault.POWER_FAILURE):
            raise plan.die(power=fault is Fault.POWER_FAILURE)
        with ORIGINAL_TRANSACTION(self):
            yield
        if fault is Fault.CRASH_AFTER:
            raise plan.die()

    State._transaction = transaction  # type: ignore[method-assign]
    try:
        yield
    finally:
        State._transaction = ORIGINAL_TRANSACTION  # type: ignore[method-assign]


def under(plan: FaultPlan, *, retrying: bool = False) -> Wrap:
    policy = RetryPolicy(first_wait=0.0, longest_wait=0.0, sleep=lambda seconds: None)

    def wrap(objects: ObjectStore, index: Index) -> tuple[ObjectStore, Index]:
        faulty = FaultyObjects(objects, plan), FaultyIndex(index, plan)
        return (RetryingObjects(faulty[0], policy), RetryingIndex(faulty[1], policy)) if retrying else faulty

    return wrap


def prepared(folder: Path, *, fresh: bool, **fields: object) -> House:
    """A source with changes, whose last run is at peace (`fresh`: that was never backed up)."""
    house = House(folder, **fields).init()  # type: ignore[arg-type]
    before(house)
    if not fresh:
        house.backup()
        house = house.again()
    change(house)
    return house


def run_under(house: House, plan: FaultPlan, *, retrying: bool = False) -> None:
    """One backup under the plan's faults, which may kill it or make it fail."""
    house.wrap = under(plan, retrying=retrying)
    with state_under(plan), contextlib.suppress(Crash, S3HashSyncError):
        house.backup()


def count_operations(folder: Path, **fields: object) -> int:
    plan = FaultPlan()
    run_under(prepared(folder / "dry", **fields), plan)  # type: ignore[arg-type]
    return plan.mutations


def each_trial(
    folder: Path, fault: Fault, then: Callable[[House], None] = nothing, **fields: object
) -> Iterator[tuple[House, FaultPlan]]:
    """A house whose run met this fault at its first, second, … operation; `then` changes the disk."""
    for number in range(1, count_operations(folder, **fields) + 1):
        place = folder / str(number)
        house, plan = prepared(place, **fields), FaultPlan([at(number, fault)])  # type: ignore[arg-type]
        run_under(house, plan)
        house.assert_safe()
        house.assert_logs_restorable()
        then(house)
        yield house.again(wrap=as_they_are), plan
        shutil.rmtree(place)


def assert_each_converges(
    folder: Path, fault: Fault, then: Callable[[House], None] = nothing, **fields: object
) -> None:
    for house, plan in each_trial(folder, fault, then, **fields):
        done = house.backup()
        assert done.problems == []
        house.assert_converged()
        assert all(len(versions) == 1 for versions in house.stored_versions().values()), plan.names()
        house.assert_logs_restorable()


@pytest.mark.parametrize("fresh", [True, False], ids=["first run", "later run"])
@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.POWER_FAILURE, Fault.LOSE_ANSWER])
def test_the_run_after_a_crash_finds_what_is_missing_and_stores_nothing_twice(
    folder: Path, fault: Fault, fresh: bool
) -> None:
    assert_each_converges(folder, fault, fresh=fresh)


@pytest.mark.parametrize("then", [revert, edit_again], ids=["reverted", "edited again"])
@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
def test_the_disk_may_change_between_crash_and_next_run(
    folder: Path, fault: Fault, then: Callable[[House], None]
) -> None:
    """By size and mtime a reverted file looks as it did before: only the mark in the state tells."""
    assert_each_converges(folder, fault, then, fresh=False, compare=frozenset({"size", "mtime"}))


def test_a_request_may_arrive_after_the_next_run(folder: Path) -> None:
    for house, plan in each_trial(folder, Fault.DELAY, fresh=False):
        house.backup()
        plan.dead = False
        plan.release()
        house.again().assert_converged(copies=2)


def test_behind_the_retrying_stores_a_lost_answer_is_not_even_noticed(folder: Path) -> None:
    for number in range(1, count_operations(folder, fresh=False) + 1):
        house = prepared(folder / str(number), fresh=False)
        house.wrap = under(FaultPlan([at(number, Fault.LOSE_ANSWER)]), retrying=True)
        assert house.backup().problems == []
        house.again(wrap=as_they_are).assert_converged()
        assert all(len(versions) == 1 for versions in house.stored_versions().values())


@pytest.mark.parametrize("fresh", [True, False], ids=["first run", "later run"])
def test_two_crashes_one_after_the_other(folder: Path, fresh: bool) -> None:
    """Every pair: the run that repairs dies, too, at each of its operations."""
    total = count_operations(folder, fresh=fresh)
    for first in range(1, total + 1):
        second, survived = 0, False
        while not survived:
            second += 1
            house = prepared(folder / f"{first}.{second}", fresh=fresh)
            run_under(house, FaultPlan([at(first, Fault.CRASH_AFTER)]))
            plan = FaultPlan([at(second, Fault.CRASH_AFTER)])
            house = house.again()
            run_under(house, plan)
            survived = not plan.dead
            house.again(wrap=as_they_are).backup()
            house = house.again(wrap=as_they_are)
            house.assert_converged()
            shutil.rmtree(house.folder)
