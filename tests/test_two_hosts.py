"""Two hosts, or two processes of one host, on one repository at once."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from s3hashsync.codec import pack
from s3hashsync.core.model import Record, RecordState
from s3hashsync.errors import ExitCode, Locked
from s3hashsync.run import backup, packing
from s3hashsync.run.history import CHECKPOINT, read_header
from s3hashsync.run.lease import Lease, read_source
from s3hashsync.stores.base import Index, Outcome, Write
from s3hashsync.stores.retrying import RetryingIndex, RetryingObjects, RetryPolicy
from tests.harness import House, as_they_are
from tests.test_crash import PACKED, Form, assert_restorable

ROUNDS = int(os.environ.get("S3HASHSYNC_ROUNDS", "10"))
TAKE_OVER = backup.ApplyOptions(take_over=True)


@pytest.fixture
def house(folder: Path) -> House:
    house = House(folder).init()
    for name in ("kept", "lost on the old host", "third"):
        house.write(name, f"content of {name}")
    house.backup()
    return house.again()


def other_machine(house: House) -> House:
    """Another host with the same source: its own disk, which holds what the first one's held, and no state."""
    shutil.copytree(house.source, house.folder / "other disk", symlinks=True)
    return house.again(host="desktop", state_name="other state", tree="other disk")


# Two sources with the same contents


def at_once(houses: Sequence[House]) -> None:
    """One process for each, started together."""
    go, ready = os.pipe()
    children = []
    for house in houses:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.close(ready)
                os.read(go, 1)
                house.backup()
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    os.close(ready)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(houses)
    os.close(go)


def retrying(objects, index):
    policy = RetryPolicy(first_wait=0.01)
    return RetryingObjects(objects, policy), RetryingIndex(index, policy)


def shuffle(house: House, contents: Sequence[str], chance: random.Random) -> None:
    for number in range(40):
        if chance.random() < 0.5:
            house.write(f"{number}", chance.choice(contents))
        else:
            (house.source / f"{number}").unlink(missing_ok=True)


def two_houses(folder: Path, form: Form) -> tuple[House, House]:
    """Two hosts, each with a source of its own; with encryption both are enrolled."""
    first = House(folder, wrap=retrying, source_name="one", host="one", state_name="one state", **form).init()  # type: ignore[arg-type]
    second = first.again(source_name="two", host="two", state_name="two state")
    return first, second.enroll() if form else second


@pytest.mark.parametrize("form", [{}, PACKED], ids=["plain", "packed and encrypted"])
def test_two_hosts_with_the_same_contents_lose_nothing(folder: Path, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(7)
    if form:
        # Several packs a run.
        monkeypatch.setattr(packing, "MEMBERS", 7)
        monkeypatch.setattr(pack, "FRAME_BYTES", 2_000)
    first, second = two_houses(folder, form)
    for round_ in range(ROUNDS):
        contents = [f"content {round_ // 2} {number}" for number in range(25)]
        for house in (first, second):
            shuffle(house, contents, chance)
        first, second = first.again(), second.again()
        at_once([first, second])
        for house in (first, second):
            house.again().assert_converged(copies=2 * (round_ + 1))
        records = first.records()
        both = set(first.contents().values()) & set(second.contents().values())
        for hash_ in both:
            names = records[hash_].names
            assert {name.partition("/")[0] for name in names} == {"one", "two"}
    for house in (first, second):
        assert_restorable(house.again())
    kinds = Counter(stem.partition("/")[0] for stem in first.stored_versions())
    # A content that the other host has just named is not packed; one whose record moved meanwhile becomes an object.
    assert bool(kinds["packs"]) is bool(form), kinds


# The lock of a source


def test_another_host_on_the_same_source_is_refused(house: House) -> None:
    before = house.names()
    with pytest.raises(Locked) as raised:
        other_machine(house).backup()
    assert raised.value.exit_code == ExitCode.LOCKED == 11
    assert "take-over" in (raised.value.hint or "")
    assert house.names() == before


def test_a_second_process_on_the_same_host_is_refused(house: House) -> None:
    with house.job() as job, backup.planned(job), pytest.raises(Locked, match="process"):
        house.again().backup()


def test_after_a_take_over_the_old_host_is_refused(house: House) -> None:
    new = other_machine(house)
    new.backup(TAKE_OVER)
    new.again().assert_converged()
    with pytest.raises(Locked):
        house.again().backup()
    house.again().backup(TAKE_OVER)
    house.again().assert_converged()


def test_a_new_owner_writes_every_name_and_a_checkpoint(house: House) -> None:
    before = {hash_: record.rev for hash_, record in house.records().items()}
    new = other_machine(house)
    done = new.backup(TAKE_OVER)
    assert done.summary.objects_put == 0
    after = {hash_: record.rev for hash_, record in house.records().items()}
    assert before.keys() == after.keys()
    assert all(after[hash_] != rev for hash_, rev in before.items())
    assert new.again().plan() == []
    with new.repository() as repository:
        facts = read_source(repository.index, new.source_name)
        assert facts is not None
        assert read_header(repository, facts.head).kind == CHECKPOINT


def test_a_take_over_that_died_is_carried_on_by_the_next_run(house: House) -> None:
    """The rest of the names is written although the source is ours already."""
    new = other_machine(house)
    before = {hash_: record.rev for hash_, record in house.records().items()}
    new.wrap = lambda objects, index: (objects, Meanwhile(index, is_add, stop_here))
    with pytest.raises(Dies):
        new.backup(TAKE_OVER)
    new.again(wrap=as_they_are).backup()
    after = {hash_: record.rev for hash_, record in house.records().items()}
    assert all(after[hash_] != rev for hash_, rev in before.items())


class Dies(BaseException):
    pass


def stop_here() -> None:
    raise Dies


class Meanwhile:
    """An index: right before the first write that `when` knows, something else happens."""

    def __init__(self, index: Index, when: Callable[[Write], bool], act: Callable[[], object]) -> None:
        self._index = index
        self._when = when
        self._act: Callable[[], object] | None = act

    def __getattr__(self, name: str) -> object:
        return getattr(self._index, name)

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        if self._act is not None and any(map(self._when, writes)):
            act, self._act = self._act, None
            act()
        return self._index.write(writes)


def is_removal(write: Write) -> bool:
    return isinstance(write.item, Record) and write.item.state is RecordState.TRASH


def is_add(write: Write) -> bool:
    return isinstance(write.item, Record) and write.item.state is RecordState.LIVE


def overtaken(house: House) -> House:
    """The old host has sent its removal, and before that arrives the new one takes over, finds the file and acknowledges it."""
    new = other_machine(house)
    (house.source / "lost on the old host").unlink()
    house.wrap = lambda objects, index: (
        objects,
        Meanwhile(index, is_removal, lambda: new.backup(TAKE_OVER)),
    )
    return new


def test_a_removal_in_flight_at_a_take_over_fails(house: House) -> None:
    new = overtaken(house)
    with pytest.raises(Locked):
        house.backup()
    new.again().assert_converged()


def test_without_asking_for_the_lease_the_removal_would_win(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "guard", lambda self: None)
    new = overtaken(house)
    house.backup()
    with pytest.raises(AssertionError, match="does not have it"):
        new.again().assert_safe()


def test_what_was_planned_before_another_run_is_not_applied_after_it(house: House) -> None:
    """Its first segment would follow the one that the other run followed, and leave the other's out of the logs."""
    elsewhere = house.again(state_name="a copy of the state")
    house.write("a", "planned by both")
    shutil.copytree(house.state_folder, elsewhere.state_folder)
    with house.job() as job, backup.planned(job) as work:
        house.write("b", "seen by the other alone")
        elsewhere.backup()
        with pytest.raises(Locked, match="since this run looked"):
            backup.apply(job, work, backup.ApplyOptions())
    house.again().backup()
    house.again().assert_converged()
