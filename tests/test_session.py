"""Which local state is believed, how it is made anew, and what a content with very many names goes through."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3hashsync.core.model import Overflow, Record, RecordState
from s3hashsync.core.plan import UpdateMetadata
from s3hashsync.disk.state import Anchor
from s3hashsync.errors import Refused
from s3hashsync.run import batches
from s3hashsync.run.history import newest_key
from s3hashsync.run.lease import read_source
from s3hashsync.run.progress import Silent
from s3hashsync.run.rebuild import rebuild_on_newest
from s3hashsync.run.session import open_session
from tests.faulty import Fault, FaultPlan, at, on
from tests.harness import House, as_they_are, fast_folder
from tests.test_crash import run_under


@pytest.fixture
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        house = House(Path(folder)).init()
        for number in range(5):
            house.write(f"folder/{number}.jpg", f"content {number}")
        house.write("empty", "")
        (house.source / "link").symlink_to("empty")
        house.backup()
        yield house.again()


def rows(house: House) -> list[tuple[bytes, bytes | None, int]]:
    with house.state() as state:
        return [(row.key, row.hash, row.dirty) for row in state.rows()]


def opened(house: House) -> list[tuple[bytes, bytes | None, int]]:
    """The rows after a session was opened, which makes the state anew where it is not believed."""
    folder, settings = str(house.state_folder), house.source_settings()
    with house.repository() as repository, open_session(repository, folder, settings, house.host, Silent()):
        pass
    return rows(house)


def spoil(house: House, **fields: str) -> None:
    """Another anchor, and a row that only this state has."""
    with house.state() as state:
        state.set_anchor(replace(state.anchor(), **fields))
        state.drop([b"empty"])


@pytest.mark.parametrize(
    "fields", [{"repository": "another"}, {"incarnation": "another"}, {"head": "runs/photos/another.000001"}, {"head": ""}]
)
def test_a_state_of_another_repository_incarnation_or_head_is_made_anew(house: House, fields: dict[str, str]) -> None:
    before = rows(house)
    spoil(house, **fields)
    assert rows(house) != before
    assert opened(house) == before
    assert house.plan() == []


def test_a_state_that_stands_on_the_head_is_believed(house: House) -> None:
    spoil(house)
    spoiled = rows(house)
    assert opened(house) == spoiled


def test_a_segment_that_was_stored_before_the_crash_is_where_the_state_stands(house: House) -> None:
    house.write("new", "new content")
    run_under(house, FaultPlan([on("objects.create_document", Fault.CRASH_AFTER)]))
    assert (b"new", 1) in [(key, dirty) for key, _, dirty in opened(house)]
    with house.repository() as repository, house.state() as state:
        assert state.anchor().head == newest_key(repository.objects, house.source_name)
        assert state.anchor().pending == ""
    house.again(wrap=as_they_are).backup()
    house.again(wrap=as_they_are).assert_converged()


def test_a_segment_that_was_not_stored_before_the_crash_is_forgotten(house: House) -> None:
    house.write("new", "new content")
    with house.state() as state:
        head = state.anchor().head
    run_under(house, FaultPlan([on("objects.create_document", Fault.CRASH_BEFORE)]))
    opened(house)
    with house.state() as state:
        assert state.anchor().head == head
    house.again(wrap=as_they_are).backup()
    house.again(wrap=as_they_are).assert_converged()


@pytest.mark.parametrize("lost", [False, True], ids=["with its state", "without a state"])
def test_run_logs_newer_than_the_index_are_refused_until_a_rebuild(house: House, lost: bool) -> None:
    """The table was restored to an older point: its records may lack names that the logs acknowledge."""
    index = house.folder / "repository" / "index.db"
    shutil.copy(index, house.folder / "older")
    house.write("new", "new content")
    os.unlink(house.source / "folder/1.jpg")
    house.backup()
    for suffix in ("-wal", "-shm"):
        Path(f"{index}{suffix}").unlink(missing_ok=True)
    shutil.copy(house.folder / "older", index)
    if lost:
        house.forget_state()
    house = house.again()
    if lost:
        with pytest.raises(Refused, match="newer than the index"):
            house.backup()
    with house.repository() as repository, house.fresh_state() as state:
        rebuild_on_newest(repository, state, house.source_name, Silent())
    house.backup()
    house.again().assert_converged(copies=2)


# Made anew


def test_from_the_logs_nothing_is_hashed_and_the_plan_is_empty(house: House) -> None:
    before = rows(house)
    house.forget_state()
    done = house.backup()
    assert rows(house) == before
    assert (done.totals.steps, done.summary.files_hashed, done.summary.objects_put) == (0, 0, 0)
    house.again().assert_converged()


def lose_logs(house: House) -> None:
    """The segments cannot be read any more; their keys are still there."""
    for segment in (house.folder / "repository/runs/photos").iterdir():
        segment.write_bytes(b"damaged")


def test_from_the_index_everything_is_hashed_once_and_nothing_is_uploaded(house: House) -> None:
    house.forget_state()
    lose_logs(house)
    done = house.backup()
    assert (done.summary.files_hashed, done.summary.objects_put, done.summary.index_writes) == (5, 0, 0)
    assert {type(step) for step in house.again().plan()} == set()
    house.again().assert_converged()


def test_a_plan_after_a_rebuild_from_the_index_has_metadata_alone(house: House) -> None:
    house.forget_state()
    lose_logs(house)
    steps = house.plan()
    assert {type(step) for step in steps if step.entry.size} == {UpdateMetadata}  # type: ignore[union-attr]


def test_a_path_under_two_contents_is_settled_after_a_rebuild_from_the_index(house: House) -> None:
    """A run died between ADD and REMOVE, and then state and logs were lost."""
    house.write("folder/1.jpg", "changed")
    with house.job():
        run_under(house, FaultPlan([at_removal()]))
    house.forget_state()
    lose_logs(house)
    with house.repository() as repository, house.fresh_state() as state:
        rebuild_on_newest(repository, state, house.source_name, Silent())
    house = house.again(wrap=as_they_are)
    house.backup()
    house.again().assert_converged()


def at_removal():
    """At the write after the segment was stored and named."""
    writes = 0

    def rule(operation):
        nonlocal writes
        writes += operation.name == "index.write"
        return Fault.CRASH_BEFORE if writes == 4 else None

    return rule


def test_removals_that_two_dead_runs_left_are_settled_after_a_lost_state(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run dies before its removals, the second one after it has settled some of them; then the state is lost."""
    for number in range(5):
        house.write(f"folder/{number}.jpg", f"changed {number}")
    run_under(house, FaultPlan([at_removal()]))
    monkeypatch.setattr(batches, "BATCH_STEPS", 2)
    monkeypatch.setattr(batches, "PART_STEPS", 2)
    house = house.again(log_interval=0, wrap=as_they_are)
    run_under(house, FaultPlan([on("objects.create_document", Fault.CRASH_BEFORE, 2)]))
    house.forget_state()
    house = house.again(wrap=as_they_are)
    for number in range(5):
        house.write(f"folder/{number}.jpg", f"changed again {number}")
    house.backup()
    house.again().assert_converged(copies=2)


# One content with very many names


def overflow_items(house: House) -> list[Overflow]:
    with house.repository() as repository:
        return [item for item in repository.index.scan() if isinstance(item, Overflow)]


def the_record(house: House) -> Record:
    (record,) = (r for r in house.records().values() if r.size == len("the same"))
    return record


def write_copies(house: House) -> None:
    for number in range(300):
        house.write(f"copies/{number:03}", "the same")


def test_three_hundred_copies_come_and_go(house: House) -> None:
    write_copies(house)
    done = house.backup()
    assert done.summary.objects_put == 1
    record = the_record(house)
    assert len(record.names) <= 64
    assert record.buckets
    assert len(house.names_of(record.hash)) == 300
    house.again().assert_converged()
    for number in range(0, 300, 2):
        os.unlink(house.source / f"copies/{number:03}")
    house.again().backup()
    assert len(house.names_of(record.hash)) == 150
    house.again().assert_converged()
    shutil.rmtree(house.source / "copies")
    house.again().backup()
    assert the_record(house).state is RecordState.TRASH
    assert not any(item.names for item in overflow_items(house))
    house.again().assert_converged()
    write_copies(house)
    assert house.again().backup().summary.objects_put == 0
    house.again().assert_converged()


@pytest.mark.parametrize("lose", [House.forget_state, lose_logs], ids=["from the logs", "from the index"])
def test_overflow_names_survive_a_rebuild(house: House, lose: Callable[[House], None]) -> None:
    write_copies(house)
    house.backup()
    lose(house)
    if house.state_folder.exists():
        house.forget_state()
    done = house.again().backup()
    assert (done.summary.objects_put, done.summary.index_writes) == (0, 0)
    house.again().assert_converged()


def test_a_crash_among_three_hundred_copies_leaves_no_name_behind(house: House) -> None:
    """At each write of the run that stores them; before the next run they are all gone."""
    number, survived = 0, False
    while not survived:
        number += 1
        place = house.folder.with_name(f"{house.folder.name}.{number}")
        trial = House(place).init()
        trial.write("one", "another content")
        write_copies(trial)
        plan = FaultPlan([at(number, Fault.CRASH_AFTER)])
        run_under(trial, plan)
        survived = not plan.dead
        shutil.rmtree(trial.source / "copies")
        trial = trial.again(wrap=as_they_are)
        trial.backup()
        trial.again().assert_converged()
        assert not any(item.names for item in overflow_items(trial))
        shutil.rmtree(place)


# What an unfinished plan has hashed


def test_a_plan_that_was_not_applied_need_not_be_hashed_again(house: House) -> None:
    house.write("new", "new content")
    house.plan()
    assert house.again().backup().summary.files_hashed == 0


def test_what_was_hashed_while_it_was_racy_is_hashed_again(house: House) -> None:
    """It may have changed since without a new time; two minutes later nobody could tell."""
    house = house.again(ahead=0.0)
    house.write("new", "new content")
    house.plan()
    assert house.again(ahead=120.0).backup().summary.files_hashed == 1


def test_a_fresh_state_stands_on_nothing(house: House) -> None:
    other = house.again(source_name="another", state_name="another state")
    assert opened(other) == []
    with other.repository() as repository, other.state() as state:
        assert read_source(repository.index, "another") is None
        identity = repository.identity
        assert state.anchor() == Anchor(identity.id, identity.incarnation)
