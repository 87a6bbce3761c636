"""Whole runs with packs, in an encrypted repository: files that change underfoot, other hosts, refusals, dead processes, and
packs switched on and off."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s3hashsync.codec import pack
from s3hashsync.config.model import PackSettings
from s3hashsync.core.model import Control, PackAt, RecordState, pack_key
from s3hashsync.core.plan import StoreContent
from s3hashsync.disk.spool import Spool
from s3hashsync.errors import S3HashSyncError
from s3hashsync.run import backup, candidates, encoding, frames, helper, packing, rehash, stored_packs, uploads
from s3hashsync.run.encoding import encoded, encoded_stream
from s3hashsync.run.frames import DoesNotOpen
from s3hashsync.run.helper import Helper
from s3hashsync.run.keyring import Seal
from s3hashsync.stores.base import Attempt, Body, Stored
from s3hashsync.stores.local import SINGLE_PUT_LIMIT
from tests.faulty import Crash, Fault, FaultPlan, FaultyObjects, Operation, Rule, on
from tests.harness import House, as_they_are
from tests.test_crash import PACKED, assert_restorable, assert_stored_once, copies_of_contents, run_under, state_under, under

ZSTD = bytes.fromhex("28b52ffd")
"""How a frame begins."""

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture(name="house")
def five_in_a_pack(folder: Path) -> House:
    """Five small files, not backed up yet; all go into one pack."""
    return filled(House(folder, **PACKED).init())  # type: ignore[arg-type]


def filled(house: House) -> House:
    for name in NAMES:
        house.write(name, f"content of {name}")
    return house


def between(house: House, act: Callable[[], object], options: backup.ApplyOptions | None = None) -> backup.Summary:
    """A backup; between its plan and its apply something happens."""
    with house.job() as job, backup.planned(job) as work:
        assert all(step.packed for step in work.plan.steps() if isinstance(step, StoreContent))
        act()
        summary, house.problems = backup.apply(job, work, options or backup.ApplyOptions())  # type: ignore[attr-defined]
        return summary


def problems(house: House) -> list[bytes]:
    return [problem.path for problem in house.problems]  # type: ignore[attr-defined]


def items(house: House) -> dict[str, Control]:
    with house.repository() as repository:
        return {item.key: item for item in repository.index.scan() if isinstance(item, Control) and item.key.startswith("pack:")}


def kinds(house: House) -> dict[str, str]:
    """Where the contents of the house's own source lie: an object, or a pack's id."""
    records = house.records()
    mine = {name: hash_ for name, hash_ in house.names().items() if name.startswith(f"{house.source_name}/")}
    places = {name.partition("/")[2]: records[hash_].location for name, hash_ in mine.items()}
    return {name: at.pack if isinstance(at, PackAt) else "object" for name, at in places.items()}


def packs_in(house: House) -> list[str]:
    return [stem for stem in house.stored_versions() if stem.startswith("packs/")]


def assert_all_well(house: House) -> None:
    """The next run has nothing to report, and everything comes back."""
    assert house.again(wrap=as_they_are).backup().problems == []
    house = house.again(wrap=as_they_are)
    house.assert_converged()
    assert_restorable(house)


# Files that do not hold still


def unreadable(monkeypatch: pytest.MonkeyPatch, path: bytes) -> None:
    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(name: bytes, *args: object, **named: object) -> object:
            if name == path:
                raise PermissionError(13, "Permission denied")
            return function(name, *args, **named)

        return refuse

    monkeypatch.setattr(candidates, "open_stable", refusing(candidates.open_stable))
    monkeypatch.setattr(frames, "read_small", refusing(frames.read_small))


@pytest.mark.parametrize("strict", [False, True], ids=["plan and apply", "saved plan"])
def test_what_changes_vanishes_or_cannot_be_read_is_left_out_of_the_pack(
    house: House, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    def act() -> None:
        house.write("a", "another content, and longer")
        (house.source / "b").unlink()
        unreadable(monkeypatch, b"c")

    summary = between(house, act, backup.ApplyOptions(strict=strict))
    assert problems(house) == [b"a", *([b"b"] if strict else []), b"c"]
    assert (summary.packs, summary.objects_put) == (1, 1)
    assert kinds(house).keys() == {"d", "e"}
    house.assert_safe()
    (item,) = items(house).values()
    assert (item.get("members"), len(item.data)) == ("2", 64)
    monkeypatch.undo()
    assert_all_well(house)


def test_a_pack_of_which_nothing_is_left_is_not_stored(house: House) -> None:
    def act() -> None:
        for name in NAMES:
            house.write(name, f"something else in {name}")

    summary = between(house, act)
    assert (summary.packs, summary.objects_put, problems(house)) == (0, 0, [name.encode() for name in NAMES])
    assert (packs_in(house), items(house)) == ([], {})
    assert_all_well(house)


def test_where_the_first_path_changed_another_one_gives_the_content(house: House) -> None:
    """It becomes an object then: the pack has been made without it."""
    house.write("a copy", "content of a")
    summary = between(house, lambda: house.write("a", "changed meanwhile"))
    assert problems(house) == []
    assert (summary.packs, summary.objects_put) == (1, 2)
    assert kinds(house)["a copy"] == "object"
    assert_all_well(house)


def test_a_helper_that_is_killed_loses_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process hashes the files and makes the frames; it dies between plan and apply."""
    monkeypatch.setattr(rehash, "WORTH_IT", 1)
    with closing(Helper()) as helper, house.job() as job, backup.planned(replace(job, helper=helper)) as work:
        assert helper._process is not None
        helper._process.kill()
        with pytest.raises(S3HashSyncError, match="helper process") as raised:
            backup.apply(replace(job, helper=helper), work, backup.ApplyOptions())
        assert raised.value.hint
    assert packs_in(house) == []
    assert_all_well(house)


# Another host


def other(house: House) -> House:
    return house.again(host="desktop", state_name="other state", source_name="other").enroll()


def test_what_another_host_stored_meanwhile_is_not_stored_again(house: House) -> None:
    second = other(house)
    for name in ("a", "b"):
        second.write(name, f"content of {name}")
    summary = between(house, second.backup)
    assert summary.packs == 1
    places = kinds(house)
    assert places["a"] == places["b"] != places["c"], "the two that were there have the other host's pack"
    assert_all_well(house)
    assert_all_well(second.again())


def test_a_pack_of_contents_that_are_all_there_by_now_is_not_put(house: House) -> None:
    second = filled(other(house))
    summary = between(house, second.backup)
    assert (summary.packs, summary.objects_put, summary.adopted) == (0, 0, 0)
    assert len(packs_in(house)) == len(items(house)) == 1
    assert_stored_once(house)
    assert_all_well(house)


def test_what_is_trash_by_now_is_undeleted_and_not_stored_again(house: House) -> None:
    """Stored and dropped by another host, between plan and put."""
    second = other(house)

    def act() -> None:
        second.write("a", "content of a")
        second.backup()
        (second.source / "a").unlink()
        second.again().backup()
        assert [record.state for record in house.records().values()] == [RecordState.TRASH]

    summary = between(house, act)
    assert (summary.packs, summary.objects_put) == (1, 1)
    assert kinds(house)["a"] != kinds(house)["b"]
    assert_all_well(house)


# Items


def on_items(fault: Fault, nth: int = 1) -> Rule:
    """At the n-th write of a pack's item."""
    seen: list[Operation] = []

    def rule(operation: Operation) -> Fault | None:
        if operation.name != "index.write" or not operation.key.startswith("pack:"):
            return None
        seen.append(operation)
        return fault if len(seen) == nth else None

    return rule


@pytest.mark.parametrize("fault", [Fault.DENY, Fault.THROTTLE, Fault.LOSE_ANSWER])
def test_without_its_item_no_pack_is_put(house: House, fault: Fault) -> None:
    plan = FaultPlan([on_items(fault)])
    house.wrap = under(plan)
    with pytest.raises(S3HashSyncError):
        house.backup()
    assert "objects.put" not in plan.names()
    assert (packs_in(house), house.records()) == ([], {})
    assert_all_well(house)
    assert_stored_once(house)


def test_the_order_is_revs_mark_item_pack_records(house: House) -> None:
    plan = FaultPlan()
    house.wrap = under(plan)
    with state_under(plan):
        house.backup()
    names = [f"item {one.key[:5]}" if one.name == "index.write" else one.name for one in plan.log]
    (put,) = [n for n, name in enumerate(names) if name == "objects.put"]
    # The steps' own mark goes on beside it.
    before = [name for name in names[:put] if name != "state"]
    assert before[-2:] == ["index.read", "item pack:"]
    read, item = (max(n for n, name in enumerate(names[:put]) if name == wanted) for wanted in before[-2:])
    assert "state" in names[read:item]
    assert [name for name in names[put:] if name != "state"][:2] == ["objects.put", "objects.barrier"]
    assert min(n for n, name in enumerate(names) if name.startswith("item ") and n > item) > put


def test_what_had_no_record_before_its_pack_was_put_is_not_looked_up_again(house: House) -> None:
    plan = FaultPlan()
    house.wrap = under(plan)
    house.backup()
    records = {hash_.hex() for hash_ in house.again(wrap=as_they_are).records()}
    looked = [one.name == "index.read" and bool(records & set(one.key.split(","))) for one in plan.log]
    put = [one.name for one in plan.log].index("objects.put")
    assert (sum(looked[:put]), sum(looked[put:])) == (2, 0), "once for the plan, and once before the put"


@pytest.mark.parametrize("size", [1, 2, 5])
def test_members_in_several_items(house: House, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(stored_packs, "MEMBERS_IN_ITEM", size)
    house.backup()
    found = items(house)
    (id_,) = {at.location.pack for at in house.records().values() if isinstance(at.location, PackAt)}
    parts = -(-5 // size)
    assert found.keys() == {pack_key(id_), *(f"{pack_key(id_)}.{n}" for n in range(1, parts))}
    assert found[pack_key(id_)].get("parts") == str(parts)
    assert set(copies_of_contents(house)) == set(house.contents().values())
    assert_all_well(house)


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_crash_between_the_items_of_a_pack(house: House, monkeypatch: pytest.MonkeyPatch, fault: Fault, nth: int) -> None:
    monkeypatch.setattr(stored_packs, "MEMBERS_IN_ITEM", 2)
    run_under(house, FaultPlan([on_items(fault, nth)]))
    assert packs_in(house) == []
    assert_all_well(house)
    assert_stored_once(house)


# What dead processes leave


def dead_after_the_put(house: House) -> House:
    run_under(house, FaultPlan([on("objects.put", Fault.CRASH_AFTER)]))
    assert (len(packs_in(house)), house.records()) == (1, {})
    return house.again(wrap=as_they_are)


@pytest.mark.parametrize("then", [PACKED["pack"], None], ids=["with packs", "without packs"])
def test_a_pack_that_a_dead_process_had_put_is_taken_up(house: House, then: PackSettings | None) -> None:
    house = dead_after_the_put(house).again(pack=then)
    house.write("new", "a content of its own")
    done = house.backup()
    assert (done.summary.adopted, done.summary.objects_put, done.summary.packs) == (5, 1, int(then is not None))
    assert_stored_once(house)
    assert_all_well(house)


def test_a_pack_that_is_wanted_in_part_is_taken_up_in_part(house: House) -> None:
    house = dead_after_the_put(house)
    house.write("a", "changed before the next run")
    done = house.backup()
    assert (done.summary.adopted, done.summary.packs) == (4, 1)
    with house.state() as state:
        assert state.open_packs() == []
    assert_stored_once(house)
    assert_all_well(house)


def test_a_pack_that_is_not_whole_is_not_taken_up(house: House) -> None:
    house = dead_after_the_put(house)
    (place,) = (house.folder / "repository" / "packs").rglob("*.*")
    os.truncate(place, place.stat().st_size - 1)
    done = house.backup()
    assert (done.summary.adopted, done.summary.packs) == (0, 1)
    assert_all_well(house)


def test_a_pack_is_taken_up_once(house: House) -> None:
    """A run that adopts and dies leaves it to the next; what was named by then is left alone."""
    house = dead_after_the_put(house)
    run_under(house, FaultPlan([on("objects.create_document", Fault.CRASH_BEFORE)]))
    done = house.again(wrap=as_they_are).backup()
    assert (done.summary.adopted, done.summary.objects_put) == (0, 0)
    assert_stored_once(house)
    assert_all_well(house)


def test_no_file_of_a_pack_outlives_its_process(house: House) -> None:
    """It waits to be sent in a file without a name."""
    before = {place.name for place in house.folder.iterdir()}
    house.wrap = under(FaultPlan([on("objects.put", Fault.CRASH_BEFORE)]))
    with pytest.raises(Crash):
        house.backup()
    assert {place.name for place in house.folder.iterdir()} - before == {"state"}
    assert not [
        place for place in house.state_folder.iterdir() if place.name.partition(".")[2] not in ("db", "lock", "db-wal", "db-shm")
    ]


# Many packs


@pytest.fixture
def many(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """Six packs of two members, and nothing else."""
    monkeypatch.setattr(packing, "MEMBERS", 2)
    monkeypatch.setattr(pack, "FRAME_BYTES", 1)
    for number in range(12 - len(NAMES)):
        house.write(f"{number}", f"content {number}")
    return house


def test_one_pack_is_on_its_way_at_a_time(many: House) -> None:
    under_way: list[str] = []
    most = 0

    class Slow(FaultyObjects):
        def put(self, stem: str, body: Body, attempt: Attempt) -> Stored:
            nonlocal most
            under_way.append(stem)
            most = max(most, len(under_way))
            time.sleep(0.02)
            try:
                return super().put(stem, body, attempt)
            finally:
                under_way.remove(stem)

    many.wrap = lambda objects, index: (Slow(objects, FaultPlan()), index)
    assert many.backup().summary.packs == 6
    assert most == 1


def test_a_pack_that_is_named_is_not_remembered(many: House) -> None:
    many = many.again(log_interval=0)
    run_under(many, FaultPlan([on("objects.put", Fault.CRASH_BEFORE, 6)]))
    with many.state() as state:
        assert len(state.open_packs()) <= 3


def test_every_object_and_pack_has_a_seal_of_its_own(many: House) -> None:
    for number in range(3):
        many.write(f"large {number}", random.Random(number).randbytes(1 << 20))
    many.backup()
    stored = many.folder / "repository"
    files = [path for top in ("objects", "packs") for path in (stored / top).rglob("*") if path.is_file()]
    headers = [path.read_bytes().partition(b"\n---")[0] for path in files]
    assert len(set(headers)) == len(headers) == 9


# Packs on, off, and of another size

FORMS = [None, PackSettings(1 << 20, 1 << 20), PackSettings(60, 1 << 20), PackSettings(1 << 20, 50), None]


def test_packs_may_be_switched_on_and_off_and_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "FRAME_BYTES", 1)
    chance = random.Random(1)
    house = House(folder, encryption=True).init()
    stored: set[str] = set()
    for number, form in enumerate(FORMS):
        house = house.again(pack=form)
        assert number == 0 or house.plan() == []
        for size in (20, 100, 5_000):
            house.write(f"{number}/{size}", chance.randbytes(size))
        summary = house.backup().summary
        small = 0 if form is None else sum(size < form.below for size in (20, 100, 5_000))
        objects = 3 - small
        assert summary.bytes_uploaded == 5_120, "nothing is uploaded again"
        assert summary.objects_put - summary.packs == objects
        assert bool(summary.packs) is bool(small)
        assert stored < set(house.stored_versions())
        stored = set(house.stored_versions())
        house.again().assert_converged()
        assert_restorable(house.again())
    assert_stored_once(house)


def test_a_packed_content_is_moved_copied_dropped_and_undeleted_without_an_upload(house: House) -> None:
    house.backup()
    stored = house.stored_versions()
    source = house.source
    os.rename(source / "a", source / "moved")
    house.write("copy", "content of b")
    (source / "c").unlink()
    assert house.again().backup().summary.objects_put == 0
    (gone,) = [record for record in house.records().values() if record.state is RecordState.TRASH]
    assert isinstance(gone.location, PackAt)
    house.write("c", "content of c")
    assert house.again(pack=None).backup().summary.objects_put == 0
    assert house.stored_versions() == stored
    assert_all_well(house)


def test_small_and_large_contents_of_one_plan(house: House) -> None:
    for number in range(6):
        house.write(f"large {number}", random.Random(number).randbytes(2 << 20))
    summary = house.backup().summary
    assert (summary.packs, summary.objects_put) == (1, 7)
    assert {name for name, place in kinds(house).items() if place == "object"} == {f"large {number}" for number in range(6)}
    assert_all_well(house)


# What goes wrong on this machine


@pytest.mark.parametrize("encryption", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("verify", [True, False], ids=["verified", "not verified"])
@pytest.mark.parametrize("size", [1_000, SINGLE_PUT_LIMIT + 1], ids=["in one piece", "in parts"])
def test_an_object_that_does_not_open_again_is_not_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch, size: int, verify: bool, encryption: bool
) -> None:
    def other(chunks: Iterable[bytes], size: int, seal: Seal | None) -> Iterator[bytes]:
        return encoded_stream((chunk[::-1] for chunk in chunks), size, seal)

    monkeypatch.setattr(uploads, "encoded", lambda content, seal: encoded(content[::-1], seal))
    monkeypatch.setattr(uploads, "encoded_stream", other)
    house = House(folder, encryption=encryption, verify=verify).init()
    house.write("a", random.Random(1).randbytes(size))
    done = house.backup()
    assert [problem.path for problem in done.problems] == ([b"a"] if verify else [])
    assert (len(house.records()), len(house.stored_versions())) == ((0, 0) if verify else (1, 1))
    if verify:
        assert "does not open to what was read" in done.problems[0].message
        monkeypatch.undo()
        assert_all_well(house)


BROKEN = (
    "from s3hashsync.codec.pack import Uncompressed;"
    "right = Uncompressed.compress;"
    "flip = lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:];"
    "Uncompressed.compress = lambda taken: flip(right(taken));"
)
"""What a faulty processor does, in the helper as well."""


class Flipping(Spool):
    """A faulty disk."""

    def append(self, piece: Any) -> None:
        super().append(bytes([piece[0] ^ 4]) + bytes(piece[1:]))


@pytest.mark.parametrize("helped", [False, True], ids=["threads", "helper"])
@pytest.mark.parametrize("where", ["processor", "disk"])
def test_a_run_opens_its_packs_again(house: House, monkeypatch: pytest.MonkeyPatch, where: str, helped: bool) -> None:
    if where == "disk":
        monkeypatch.setattr(packing, "Spool", Flipping)
    else:
        monkeypatch.setattr(pack.Uncompressed, "compress", pack.Uncompressed.compress)
        exec(BROKEN, {})
        monkeypatch.setattr(helper, "_START", helper._START.replace("serve()", f"{BROKEN} serve()"))
    monkeypatch.setattr(rehash, "WORTH_IT", 1)
    with closing(Helper()) as other_process, house.job() as job:
        job = replace(job, helper=other_process if helped else None)
        with backup.planned(job) as work, pytest.raises(DoesNotOpen):
            backup.apply(job, work, backup.ApplyOptions())
    assert (house.records(), house.stored_versions(), items(house)) == ({}, {}, {})
    monkeypatch.undo()
    assert_all_well(house)


def test_a_pack_that_has_lost_its_last_frame_is_not_stored(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(pieces: Iterator[bytes], seal: Seal | None) -> Iterator[bytes]:
        whole = b"".join(encoding.opened_again(pieces, seal))
        end = pack.end_frame()
        return iter((whole[: whole.rindex(ZSTD, 0, -len(end))], end))

    monkeypatch.setattr(pack, "FRAME_BYTES", 1)
    monkeypatch.setattr(packing, "opened_again", lossy)
    with pytest.raises(DoesNotOpen, match="does not end as it should"):
        house.backup()
    assert house.records() == {}


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "not verified"])
def test_a_pack_with_another_content_in_it_is_not_stored(house: House, monkeypatch: pytest.MonkeyPatch, verify: bool) -> None:
    add = pack.FrameBuilder.add
    monkeypatch.setattr(pack.FrameBuilder, "add", lambda self, hash_, content: add(self, hash_, content[::-1]))
    house = house.again(verify=verify)
    if not verify:
        assert house.backup().summary.packs == 1
        return
    with pytest.raises(DoesNotOpen, match="comes out of it as another one"):
        house.backup()
    assert (house.records(), house.stored_versions(), items(house)) == ({}, {}, {})
    monkeypatch.undo()
    assert_all_well(house)


def test_a_pack_that_is_stored_as_another_one_is_not_named(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes in the temporary file change after they were opened again."""

    class Rotten(Spool):
        rotten = False

        def __getitem__(self, number: Any) -> Any:
            piece = super().__getitem__(number)
            return bytes([piece[0] ^ 1]) + piece[1:] if self.rotten and number == 0 else piece

    fill = packing._Making._filled

    def filled(making: packing._Making, body: Rotten) -> str:
        checksum = fill(making, body)
        body.rotten = True
        return checksum

    monkeypatch.setattr(packing, "Spool", Rotten)
    monkeypatch.setattr(packing._Making, "_filled", filled)
    with pytest.raises(DoesNotOpen, match="what was stored is another one"):
        house.backup()
    assert house.records() == {}
    monkeypatch.undo()
    assert_all_well(house)
