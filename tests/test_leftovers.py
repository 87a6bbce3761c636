"""What a dead process has left in the store and in its notes: when the next run takes it up, and when it stores anew."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s3hashsync.codec.pack import hashes_of
from s3hashsync.codec.zstd import encode
from s3hashsync.core.model import Control, PackAt, Record, RecordState, Rev, pack_key
from s3hashsync.core.plan import path_of
from s3hashsync.disk.spool import Spool
from s3hashsync.disk.state import State
from s3hashsync.errors import Denied, Locked, StoreError, Unreachable
from s3hashsync.run import gather, packing, rehash, stored_packs
from s3hashsync.run.frames import DoesNotOpen
from s3hashsync.run.ledger import Terms
from s3hashsync.run.progress import Silent
from s3hashsync.run.reindex import Rebuilder, rebuild_index
from s3hashsync.stores import folder as folders
from s3hashsync.stores.base import Attempt, Body, Stored, Write
from tests.faulty import Crash, Fault, FaultPlan, FaultyIndex, FaultyObjects, on
from tests.harness import House, as_they_are
from tests.test_crash import PACKED, Form, run_under
from tests.test_pack_runs import NAMES, assert_all_well, between, filled, items, kinds, on_items, packs_in
from tests.test_pack_runs import five_in_a_pack as five_in_a_pack
from tests.test_two_hosts import TAKE_OVER, other_machine

PUT_AND_DIED = [on("objects.put", Fault.CRASH_AFTER)]


@pytest.fixture(params=[{}, PACKED], ids=["plain", "packed and encrypted"])
def left(request: pytest.FixtureRequest, folder: Path) -> House:
    """A run has stored its first object or pack, and died."""
    house = filled(House(folder, **request.param).init())
    run_under(house, FaultPlan(PUT_AND_DIED))
    return house.again(wrap=as_they_are)


class Finding(FaultyObjects):
    """A store that answers something else when it is asked for an attempt."""

    answer: Callable[[Stored | None], Stored | None]

    def find(self, stem: str, attempt_id: str) -> Stored | None:
        return type(self).answer(super().find(stem, attempt_id))


def finding(house: House, answer: Callable[[Stored | None], Stored | None]) -> House:
    kind = type("Answering", (Finding,), {"answer": staticmethod(answer)})
    return house.again(wrap=lambda objects, index: (kind(objects, FaultPlan()), index))


# Whether it is there


def test_what_cannot_be_written_back_is_not_found(left: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that failed: the bytes are still in memory, and look whole until they are read from the disk."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "sync_file", fail)
        with left.repository() as repository, left.state() as state:
            for pack in state.open_packs():
                assert repository.objects.find(f"packs/{pack.id}", pack.attempt) is None
            for hash_ in left.contents().values():
                if (attempt := state.attempt(hash_)) is not None:
                    assert repository.objects.find(f"objects/{hash_.hex()}", attempt.id) is None
    assert left.backup().summary.adopted > 0


def broken(found: Stored | None) -> Stored | None:
    raise StoreError("Input/output error")


@pytest.mark.parametrize("error", [Denied("no right"), Unreachable("no answer")], ids=["denied", "unreachable"])
def test_where_nobody_can_look_the_run_ends(left: House, error: StoreError) -> None:
    def refuse(found: Stored | None) -> Stored | None:
        raise error

    with pytest.raises(type(error)):
        finding(left, refuse).backup()
    assert_all_well(left)


def test_what_cannot_be_read_is_stored_anew(left: House) -> None:
    done = finding(left, broken).backup()
    assert (done.problems, done.summary.adopted) == ([], 0)
    left.again().assert_holds()


def test_an_object_that_holds_something_else_is_not_taken_up(folder: Path) -> None:
    house = House(folder).init()
    house.write("a", "content a")
    run_under(house, FaultPlan(PUT_AND_DIED))
    ((stem, (version,)),) = house.stored_versions().items()
    with house.repository() as repository:
        repository.objects.delete(stem, version)
        repository.objects.put(stem, encode(b"content b"), Attempt(version, "STANDARD"))
    house = house.again(wrap=as_they_are)
    assert house.backup().summary.adopted == 0
    house.again().assert_safe()


def test_a_pack_of_which_the_store_tells_no_checksum_is_not_taken_up(house: House) -> None:
    run_under(house, FaultPlan(PUT_AND_DIED))
    house = finding(house.again(wrap=as_they_are), lambda found: found and replace(found, checksum=""))
    assert house.backup().summary.adopted == 0
    assert_all_well(house)


def test_a_pack_that_was_found_wrong_is_forgotten(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rotten(Spool):
        rotten = False

        def __getitem__(self, number: Any) -> Any:
            piece = super().__getitem__(number)
            return piece[:-1] + bytes([piece[-1] ^ 1]) if self.rotten and number == len(self) - 1 else piece

    fill = packing._Making._filled

    def rot(making: packing._Making, body: Rotten) -> str:
        checksum = fill(making, body)
        body.rotten = True
        return checksum

    with monkeypatch.context() as patch:
        patch.setattr(packing, "Spool", Rotten)
        patch.setattr(packing._Making, "_filled", rot)
        with pytest.raises(DoesNotOpen):
            house.backup()
    with house.state() as state:
        assert state.open_packs() == []
    assert_all_well(house)


# Whether the index lists it


def without_index(house: House) -> Path:
    place = house.folder / "repository" / "index.db"
    for end in ("", "-wal", "-shm"):
        Path(f"{place}{end}").unlink(missing_ok=True)
    return place


def assert_every_pack_is_listed(house: House) -> None:
    house.assert_holds()
    packs = {record.location.pack for record in house.records().values() if isinstance(record.location, PackAt)}
    assert packs
    assert {f"pack:{pack}" for pack in packs} <= items(house).keys()


def test_a_pack_of_a_lost_index_is_not_taken_up(house: House) -> None:
    run_under(house, FaultPlan(PUT_AND_DIED))
    without_index(house)
    house = house.again(wrap=as_they_are)
    rebuild(house)
    house.backup()
    assert_every_pack_is_listed(house)


def rebuild(house: House, plan: FaultPlan | None = None) -> None:
    with house._stores(create=True) as (objects, index):
        keys = house.keys(objects, identity=True)
        into = FaultyIndex(index, plan or FaultPlan())
        rebuild_index(Rebuilder(objects, into, Terms("STANDARD", 0, 0), Silent(), house.clock, os.urandom, keys))


def test_a_rebuild_that_dies_leaves_no_record_in_a_pack_that_nobody_knows(house: House) -> None:
    """A pack without a list has no members whom anybody could ask: whoever purges it deletes what those records name."""
    house.backup()
    (house.source / NAMES[0]).unlink()
    house = house.again()
    house.backup()
    without_index(house)
    seen: set[RecordState] = set()
    nth, done = 0, False
    while not done:
        nth += 1
        try:
            rebuild(house, FaultPlan([on("index.write", Fault.CRASH_AFTER, nth)]))
            done = True
        except Crash:
            with house._stores() as (_, index):
                found = list(index.scan())
            lists = {item.key: set(hashes_of(item.data)) for item in found if isinstance(item, Control)}
            for record in found:
                if isinstance(record, Record) and isinstance(record.location, PackAt):
                    assert record.hash in lists[pack_key(record.location.pack)]
                    seen.add(record.state)
            without_index(house)
    assert len(seen) == 2, "no crash came between live and dead records, or between them and the packs"
    house.again(wrap=as_they_are).backup()
    assert_every_pack_is_listed(house)


def test_a_pack_whose_item_an_older_table_lacks_is_not_taken_up(house: House) -> None:
    """The run that died had stored no segment: nothing else tells that the table is older."""
    shutil.copy(house.folder / "repository" / "index.db", house.folder / "older")
    run_under(house, FaultPlan(PUT_AND_DIED))
    shutil.copy(house.folder / "older", without_index(house))
    house = house.again(wrap=as_they_are)
    house.backup()
    assert_every_pack_is_listed(house)


def test_a_state_made_anew_remembers_no_pack(house: House) -> None:
    run_under(house, FaultPlan(PUT_AND_DIED))
    with house.state() as state:
        assert state.open_packs()
        state.clear()
        assert state.open_packs() == []


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_the_item_that_says_how_many_there_are_comes_last(house: House, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    monkeypatch.setattr(stored_packs, "MEMBERS_IN_ITEM", 2)
    run_under(house, FaultPlan([on_items(Fault.CRASH_AFTER, nth)]))
    there = items(house)
    assert len(there) == nth
    for key, item in there.items():
        assert all(f"{key}.{number}" in there for number in range(1, int(item.get("parts", "1"))))


# What has changed since the revs were read


def test_what_is_gone_by_now_is_named_from_the_pack(house: House) -> None:
    """Their records have a rev: they are read again, and named on it."""
    with house.repository() as repository:
        for hash_ in list(house.contents().values())[:3]:
            repository.index.write([Write(Record(hash_, RecordState.GONE, Rev(random.randbytes(12))), None)])
    summary = house.backup().summary
    assert (summary.packs, summary.objects_put) == (1, 1)
    assert set(kinds(house).values()) == {stem.removeprefix("packs/") for stem in packs_in(house)}


def test_a_pack_of_contents_that_are_all_trash_by_now_is_not_put(house: House) -> None:
    second = house.again(host="desktop", state_name="other state", source_name="other").enroll()
    filled(second)

    def come_and_go() -> None:
        second.backup()
        for name in NAMES:
            (second.source / name).unlink()
        second.again().backup()

    summary = between(house, come_and_go)
    assert (summary.packs, summary.objects_put) == (0, 0)
    assert len(packs_in(house)) == 1
    assert_all_well(house)


@pytest.mark.parametrize("form", [{}, PACKED], ids=["plain", "packed and encrypted"])
def test_a_host_that_was_overtaken_while_it_stored_adds_no_name(folder: Path, form: Form) -> None:
    house = House(folder, **form).init()  # type: ignore[arg-type]
    house.write("kept", "content of kept")
    house.backup()
    house = house.again()
    new = other_machine(house)
    if form:
        new.enroll()
    house.write("of the old host alone", "and of no other")
    taken: list[bool] = []

    class Overtaken(FaultyObjects):
        def put(self, stem: str, body: Body, attempt: Attempt) -> Stored:
            if not taken:
                taken.append(True)
                new.backup(TAKE_OVER)
            return super().put(stem, body, attempt)

    house.wrap = lambda objects, index: (Overtaken(objects, FaultPlan()), index)
    with pytest.raises(Locked):
        house.backup()
    assert not [name for name in new.again().names() if "alone" in name]


# Memory


def test_paths_of_which_only_the_stat_is_new_do_not_wait_for_the_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.backup()
    for name in NAMES:
        copy = house.source / f"{name}.copy"
        shutil.copy2(house.source / name, copy)
        os.replace(copy, house.source / name)
    sizes: list[int] = []
    refresh = State.refresh

    def noted(state: State, rows: Any) -> None:
        sizes.append(len(rows))
        refresh(state, rows)

    monkeypatch.setattr(State, "refresh", noted)
    monkeypatch.setattr(gather, "REFRESHED", 1)
    monkeypatch.setattr(rehash, "REFRESHED", 1)
    monkeypatch.setattr(rehash, "_GROUP", 2)
    house = house.again()
    assert [path_of(step) for step in house.plan()] == [b""], "the folder itself has another time"
    assert (sum(sizes), max(sizes)) == (len(NAMES), 2)
    sizes.clear()
    house.again().backup()
    assert sum(sizes) == 0
