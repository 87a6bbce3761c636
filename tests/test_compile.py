"""Planning is pure: changes in, steps out; totals from steps; the saved form gives back the very same steps."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3hashsync.codec import plan_file
from s3hashsync.core.compile import Before, Change, Known, Verdict, compile_change
from s3hashsync.core.cost import NAMES_IN_RECORD, index_writes
from s3hashsync.core.model import ContentHash, Entry, Kind, ObjectAt, RecordState, Sha256
from s3hashsync.core.plan import (
    AddName,
    ExcludeName,
    Expected,
    MoveName,
    NoteEntry,
    PlanHeader,
    Problem,
    Reason,
    RemoveName,
    SourceHeader,
    Step,
    StoreContent,
    Undelete,
    UpdateMetadata,
    total,
)
from s3hashsync.errors import Corrupt

H1, H2 = ContentHash(b"1" * 32), ContentHash(b"2" * 32)
FILE = Entry(b"a", Kind.FILE, 5, 1, 2, 3, 4, 0o644, 0, 0)
FOLDER = replace(FILE, kind=Kind.DIRECTORY, size=0)
LIVE, TRASH = Known(RecordState.LIVE, ObjectAt("v")), Known(RecordState.TRASH, ObjectAt("v"))
GONE, PURGING = Known(RecordState.GONE, None), Known(RecordState.PURGING, ObjectAt("v"))


def new(**fields: object) -> Change:
    return replace(Change("s", b"a", Verdict.NEW, FILE, H1, Sha256(H1)), **fields)  # type: ignore[arg-type]


BEFORE = Before(Kind.FILE, 9, (H2,))

CASES: list[tuple[str, Change, type[Step] | None, str, Reason | None]] = [  # type: ignore[valid-type]
    ("new content", new(), StoreContent, "+", Reason.NEW),
    ("gone content is stored again", new(known=GONE), StoreContent, "+", Reason.NEW),
    ("content being purged is stored again", new(known=PURGING), StoreContent, "+", Reason.NEW),
    ("content stored already", new(known=LIVE), AddName, "=", Reason.COPIED),
    ("content that an earlier step stores", new(first=False), AddName, "=", Reason.COPIED),
    ("content in the trash", new(known=TRASH), Undelete, "^", Reason.RETURNED),
    ("a copy of what an earlier step undeletes", new(known=TRASH, first=False), AddName, "=", Reason.COPIED),
    ("moved", new(known=LIVE, origin=b"old"), MoveName, ">", Reason.MOVED),
    ("changed", new(verdict=Verdict.CHANGED, before=BEFORE), StoreContent, "~", Reason.CHANGED),
    ("changed to something known", new(verdict=Verdict.CHANGED, before=BEFORE, known=LIVE), AddName, "~", Reason.CHANGED),
    ("type changed", new(verdict=Verdict.CHANGED, before=Before(Kind.SYMLINK, 0, ())), StoreContent, "~", Reason.REPLACED),
    ("unconfirmed", new(verdict=Verdict.UNCONFIRMED, known=LIVE), AddName, "=", Reason.UNCONFIRMED),
    ("rewritten", new(verdict=Verdict.REWRITE, known=LIVE, before=BEFORE), AddName, "=", Reason.TAKE_OVER),
    ("metadata", new(verdict=Verdict.METADATA), UpdateMetadata, "m", Reason.METADATA),
    ("folder", Change("s", b"a", Verdict.NEW, FOLDER), NoteEntry, "+", Reason.NEW),
    ("deleted", Change("s", b"a", Verdict.GONE, before=BEFORE), RemoveName, "-", Reason.DELETED),
    ("moved away", Change("s", b"a", Verdict.GONE, before=BEFORE, moved_away=True), None, "", None),
    ("excluded", Change("s", b"a", Verdict.EXCLUDED, before=BEFORE, rule="*.tmp"), ExcludeName, "x", Reason.EXCLUDED),
]


@pytest.mark.parametrize(("name", "change", "kind", "symbol", "reason"), CASES, ids=[case[0] for case in CASES])
def test_a_change_becomes_this_step(name: str, change: Change, kind: type | None, symbol: str, reason: Reason | None) -> None:
    step = compile_change(change)
    assert type(step) is (kind or type(None))
    if step is not None:
        assert (step.symbol, step.reason) == (symbol, reason)


def test_a_changed_path_drops_every_hash_it_may_be_under_but_the_new_one() -> None:
    step = compile_change(new(verdict=Verdict.UNCONFIRMED, before=Before(Kind.FILE, 1, (H1, H2))))
    assert isinstance(step, StoreContent)
    assert step.drops == (H2,)


def test_index_writes_are_counted_once_a_content_and_direction() -> None:
    steps = [compile_change(new(first=number == 0)) for number in range(10)]
    totals = total(step for step in steps if step)
    assert (totals.add, totals.copy, totals.objects_put, totals.bytes_upload, totals.index_writes) == (1, 9, 1, 5, 1)


def test_many_names_cost_more_writes_and_never_fewer_than_fewer_names() -> None:
    assert index_writes(NAMES_IN_RECORD) == 1
    assert index_writes(NAMES_IN_RECORD + 1) == 3
    assert index_writes(1000, spill=3) > 800
    counts = [index_writes(names) for names in (1, 65, 1000, 50_000, 100_000)]
    assert counts == sorted(counts)


hashes = st.binary(min_size=32, max_size=32).map(ContentHash)
paths = st.binary(min_size=1, max_size=20).filter(lambda path: b"\0" not in path)
entries = st.builds(
    Entry,
    path=paths,
    kind=st.sampled_from(Kind),
    size=st.just(0),
    mtime_ns=st.integers(-(10**18), 10**18),
    ctime_ns=st.integers(0, 10**18),
    inode=st.integers(0, 2**63),
    device=st.integers(0, 2**63),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**31),
    gid=st.integers(0, 2**31),
    links=st.integers(1, 5),
    rdev=st.integers(0, 2**40),
    target=st.none() | paths,
    xattrs=st.lists(st.tuples(paths, st.binary(max_size=8)), max_size=2).map(tuple),
    sparse=st.booleans(),
)
expectations = st.builds(
    Expected,
    st.none() | st.sampled_from(RecordState),
    st.none() | st.builds(ObjectAt, st.text(min_size=1, max_size=8)),
    st.booleans(),
    st.integers(0, 4),
)
reasons = st.sampled_from(Reason)
drops = st.lists(hashes, max_size=3).map(tuple)
common = (st.just("s"), entries, hashes, hashes.map(Sha256), drops, reasons, expectations)
steps = st.one_of(
    st.builds(StoreContent, *common),
    st.builds(AddName, *common),
    st.builds(Undelete, *common),
    st.builds(MoveName, st.just("s"), entries, paths, hashes, hashes.map(Sha256), drops, reasons, expectations),
    st.builds(NoteEntry, st.just("s"), entries, drops, reasons),
    st.builds(UpdateMetadata, st.just("s"), entries, st.none() | hashes, st.none() | hashes.map(Sha256), reasons),
    st.builds(RemoveName, st.just("s"), paths, st.sampled_from(Kind), st.integers(0, 2**50), drops, reasons),
    st.builds(ExcludeName, st.just("s"), paths, st.sampled_from(Kind), st.integers(0, 2**50), drops, st.text(), reasons),
)
HEADER = PlanHeader("r", "i", "h", 1.5, (SourceHeader("s", "/s", "", 1, 2, 3, 4, 5, 6, 7),), ("old",))


@given(st.lists(steps, max_size=5))
def test_a_saved_plan_gives_back_the_very_steps(written: list[Step]) -> None:
    file = io.BytesIO()
    problems = (Problem("s", b"\xff", "unreadable"),)
    plan_file.write_plan(file, HEADER, problems, written)
    file.seek(0)
    assert plan_file.read_header(file) == (HEADER, problems)
    file.seek(0)
    assert list(plan_file.read_steps(file)) == written


@given(st.integers(0, 400), st.binary(max_size=3))
def test_a_damaged_plan_is_never_read_as_another_one(cut: int, tail: bytes) -> None:
    file = io.BytesIO()
    step = StoreContent("s", FILE, H1, Sha256(H1), (), Reason.NEW, Expected(None))
    plan_file.write_plan(file, HEADER, (), [step])
    data = file.getvalue()
    damaged = data[: max(len(data) - 1 - cut, 0)] + tail
    if damaged == data:
        return
    try:
        assert list(plan_file.read_steps(io.BytesIO(damaged))) == [step]
    except Corrupt:
        return
