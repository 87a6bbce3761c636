"""The write protocol of the index under every interleaving and fault, and each of its rules taken out.

The searches run the real `Ledger` and the real `Lease`. CLEAN and SWEEP are written here as the design has them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from s3hashsync.core import overflow as rules
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
from s3hashsync.errors import Denied, Locked, S3HashSyncError
from s3hashsync.run.lease import SourceFacts, acquire
from s3hashsync.run.ledger import Ledger, Supply, Terms
from s3hashsync.stores.base import Attempt, Index, Outcome, Write
from s3hashsync.stores.sqlite import SqliteIndex
from tests.faulty import FaultPlan, FaultyIndex
from tests.harness import LEFT_OUT, SLOW
from tests.protocol.explorer import Faults, Process, Remote, Request, Search, Violation, broken, start

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
        return {hash_: Supply(ObjectAt(mine[-1]), "zstd", 1, "", 1, 0) for hash_ in needed}


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


@dataclass(frozen=True, slots=True)
class Scenario:
    title: str
    processes: Sequence[Process]
    items: Sequence[Item] = ()
    versions: Sequence[tuple[str, str]] = ()
    acknowledged: Sequence[str] = ()

    def search(self, faults: Faults, limit: int = 400_000, *, by_rev: bool = True) -> tuple[Violation | None, Search]:
        search = Search(self.processes, limit, by_rev=by_rev, ghosts=not faults.delayed)
        begin = start(self.processes, self.items, self.versions, [StoredName(n) for n in self.acknowledged], faults)
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
    return (name for i in range(10_000) if rules.prefix_of(name := StoredName(f"n{i}"), 1) == digit)


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


BUDGETS = [Faults(), Faults(crashes=1), Faults(lost=1), Faults(crashes=1, delayed=1)]
FIRST = 8_000
"""Worlds of a quick search, breadth first."""
WORLDS = int(os.environ.get("S3HASHSYNC_WORLDS", "30000"))
"""Of a slow one; 600000 are all of most scenarios, and take an hour."""


@pytest.fixture
def one_name_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "NAMES_IN_RECORD", 1)


def holds(scenario: Scenario, faults: Faults, limit: int) -> Search:
    violation, search = scenario.search(faults, limit)
    assert violation is None, str(violation)
    return search


def limits(quick: int, slow: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("limit", [quick, pytest.param(slow, marks=LEFT_OUT)])


def by_title(scenarios: Sequence[Scenario]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scenario", scenarios, ids=[scenario.title for scenario in scenarios])


@by_title(content_scenarios())
@limits(FIRST, WORLDS)
def test_no_interleaving_of_one_content_loses_anything(scenario: Scenario, limit: int) -> None:
    for faults in BUDGETS:
        holds(scenario, faults, limit)


@by_title(overflow_scenarios())
@limits(FIRST, WORLDS)
@pytest.mark.usefixtures("one_name_a_record")
def test_no_interleaving_of_overflow_items_loses_anything(scenario: Scenario, limit: int) -> None:
    for faults in BUDGETS:
        holds(scenario, faults, limit)


@SLOW
@pytest.mark.slow
@by_title(content_scenarios())
def test_one_content_at_a_crash_a_lost_answer_and_a_delayed_request_at_once(scenario: Scenario) -> None:
    holds(scenario, Faults(1, 1, 1), limit=WORLDS)


@SLOW
@pytest.mark.slow
@by_title(overflow_scenarios())
@pytest.mark.usefixtures("one_name_a_record")
def test_overflow_items_at_a_crash_a_lost_answer_and_a_delayed_request_at_once(scenario: Scenario) -> None:
    holds(scenario, Faults(1, 1, 1), limit=WORLDS)


# Each rule taken out


class LeavesPresentNamesAlone(Ledger):
    """Acknowledges a name that is there already without moving the record's rev."""

    def _add_round(self, pending, records, done, supplier, guard):
        for hash_, found in records.items():
            if found.state is LIVE and pending[hash_] <= found.names:
                done[hash_] = found
                del pending[hash_]
        super()._add_round(pending, records, done, supplier, guard)


class DeletesItsOwnUpload(Ledger):
    """Cleans up after a refused write."""

    def _write(self, writes: list[Write]) -> list[Outcome]:
        outcomes = super()._write(writes)
        for write, outcome in zip(writes, outcomes, strict=True):
            version = getattr(getattr(write.item, "location", None), "version", None)
            if not outcome.written and version in getattr(self, "mine", ()):
                self._objects.delete(STEM, version)
        return outcomes


class BucketsAfterRecords(Ledger):
    """Writes the record that lists an overflow item before the item."""

    def _fill_buckets(self, hash_, plan, found):
        self.held = getattr(self, "held", [])
        for prefix, names in plan.items():
            item = found.get(overflow_key(hash_, prefix))
            union = frozenset(names) | (item.names if item else frozenset())
            self.held.append(Write(Overflow(hash_, prefix, self._rev(), union), item.rev if item else None))
        return len(next(iter(plan))), 0

    def _write_records(self, writes, before, pending, done):
        super()._write_records(writes, before, pending, done)
        held, self.held = getattr(self, "held", []), []
        self._write(held)


class DropsOnAnOlderLook(Ledger):
    """Looks at the overflow items first and at the record afterwards."""

    def _look(self, pending):
        older = super()._look(pending)
        older.records = self.records(pending)
        return older


class LeavesStrays(Ledger):
    """Removes a name only where it counts."""

    def _strays(self, pending, seen):
        return {}


def caught(scenarios: Sequence[Scenario], faults: Faults, word: str, *, by_rev: bool = True) -> None:
    """Passes when one of the searches finds the violation that is expected without the rule."""
    for scenario in scenarios:
        violation, _ = scenario.search(faults, 100_000, by_rev=by_rev)
        if violation is not None:
            assert word in violation.message, str(violation)
            return
    pytest.fail("a rule was taken out, and no search noticed it")


def titled(scenarios: Sequence[Scenario], *words: str) -> list[Scenario]:
    return [scenario for scenario in scenarios if any(word in scenario.title for word in words)]


def test_without_moving_the_rev_of_a_present_name_a_late_removal_wins() -> None:
    scenarios = titled(content_scenarios(LeavesPresentNamesAlone), "the same name")
    caught(scenarios, Faults(crashes=1, delayed=1), "acknowledged names are lost")


def test_conditions_on_the_state_are_not_enough() -> None:
    caught(content_scenarios(), Faults(), "lost", by_rev=False)


def test_an_uploader_must_not_delete_its_own_version() -> None:
    caught(titled(content_scenarios(DeletesItsOwnUpload), "two adds"), Faults(lost=1), "bytes that are deleted")


def test_a_version_whose_write_was_refused_must_not_be_used() -> None:
    caught(titled(content_scenarios(reuse=True), "two adds"), Faults(), "bytes that are deleted")


@pytest.mark.usefixtures("one_name_a_record")
def test_an_overflow_item_must_be_written_before_its_record() -> None:
    caught(overflow_scenarios(BucketsAfterRecords), Faults(), "acknowledged names are lost")


@pytest.mark.usefixtures("one_name_a_record")
def test_an_overflow_item_must_be_dropped_on_a_rev_older_than_its_look() -> None:
    caught(overflow_scenarios(DropsOnAnOlderLook), Faults(), "acknowledged names are lost")


@pytest.mark.usefixtures("one_name_a_record")
def test_a_name_must_be_removed_from_overflow_items_that_do_not_count_yet() -> None:
    caught(titled(overflow_scenarios(LeavesStrays), "taken back"), Faults(crashes=1), "still there")


def with_cleaning(clean: Process, sweep: Process) -> list[Scenario]:
    live, trash = [record(LIVE, "c")], [record(TRASH)]
    return [
        Scenario("undelete while it is cleaned", [adds("a"), clean], trash, V0),
        Scenario("remove, clean, add", [removes("c"), adds("b"), clean], live, V0, ["c"]),
        Scenario("add and sweep", [adds("a"), sweep]),
        Scenario("add, remove, clean", [adds("a"), removes("a"), clean]),
        Scenario("undelete, clean, clean", [adds("a"), clean, clean], trash, V0),
        Scenario("undelete, clean, sweep", [adds("a"), clean, sweep], trash, V0),
    ]


@limits(FIRST, WORLDS)
def test_the_scenarios_of_cleaning_hold(limit: int) -> None:
    for scenario in with_cleaning(cleans(), sweeps()):
        holds(scenario, Faults(1, 0, 1), limit)


@pytest.mark.parametrize("rule", ["purging", "pinned", "tombstone"])
def test_cleaning_needs(rule: str) -> None:
    caught(with_cleaning(cleans(**{rule: False}), sweeps()), Faults(crashes=1, delayed=1), "deleted")


def test_sweeping_must_move_the_record_after_the_listing() -> None:
    caught(with_cleaning(cleans(), sweeps(fence=False)), Faults(), "deleted")


# Taking a source over

SOURCE = "s"


def owner(number: int) -> SourceFacts:
    return SourceFacts(SOURCE, f"host{number}", f"run{number}", "", 0)


def old_host(*, asks: bool) -> Process:
    """Holds the lease (or takes it first of all), and removes a name that its own disk has no more."""

    def body(remote: Remote) -> None:
        try:
            lease, _ = acquire(remote, owner(1), remote.entropy)
            made = Ledger(remote, remote, TERMS, lambda: 2_000.0, remote.entropy)  # type: ignore[arg-type]
            made.remove({H: frozenset({StoredName("c")})}, lease.guard if asks else no_guard)
        except Locked:
            return

    return Process("old host", body)


def new_host(ledger: type[Ledger]) -> Process:
    """Takes over, and says that its file is stored."""

    def body(remote: Remote) -> None:
        name = StoredName("c")
        try:
            lease, _ = acquire(remote, owner(2), remote.entropy, take_over=True)
            made = ledger(remote, remote, TERMS, lambda: 2_000.0, remote.entropy)  # type: ignore[arg-type]
            answer = made.add({H: frozenset({name})}, Uploads(remote, mine=[]), lease.guard)[H]
        except Locked:
            return
        if isinstance(answer, Record):
            remote.note("acknowledged", name)

    return Process("new host", body)


def take_over(*, asks: bool = True, ledger: type[Ledger] = Ledger) -> Violation | None:
    scenario = Scenario("take-over", [old_host(asks=asks), new_host(ledger)], [record(LIVE, "c")], V0)
    for faults in (Faults(), Faults(crashes=1, delayed=1)):
        violation, search = scenario.search(faults)
        if violation is not None:
            return violation
        assert search.complete
    return None


def test_a_take_over_loses_nothing() -> None:
    assert take_over() is None


def test_an_old_owner_must_ask_for_its_lease_between_reading_and_writing() -> None:
    assert take_over(asks=False) is not None


def test_a_new_owner_must_write_the_names_that_it_finds() -> None:
    assert take_over(ledger=LeavesPresentNamesAlone) is not None


# The same on the real index


class Walk:
    """One random interleaving, in memory and on SQLite at once: every answer must be the same."""

    def __init__(self, scenario: Scenario, index: SqliteIndex, chance: random.Random) -> None:
        self.search = Search(scenario.processes)
        self.index = index
        self.chance = chance
        begin = start(scenario.processes, scenario.items, scenario.versions)
        self.world = begin._replace(acknowledged=frozenset(map(StoredName, scenario.acknowledged)))
        for table in ("records", "overflows", "controls"):
            index._db.execute(f"DELETE FROM {table}")
        index.write([Write(item, None) for item in scenario.items])

    def run(self) -> None:
        while self.waiting() or self.world.late:
            self.step()
            assert broken(self.world, ghosts=False) is None

    def waiting(self) -> list[int]:
        search, world = self.search, self.world
        return [n for n in range(len(search.processes)) if search._runs(world, n) and not search._waits(world, n)]

    def step(self) -> None:
        waiting = self.waiting()
        if self.world.late and (not waiting or self.chance.random() < 0.1):
            late, *rest = self.world.late
            self.world = self.world._replace(late=tuple(rest))
            self.send(late)
            return
        number = self.chance.choice(waiting)
        answers = self.world.answers[number]
        assert answers is not None
        request = self.search.following(number, answers)
        assert request is not None
        fate = self.chance.random() if request.verb in ("write", "put", "delete") else 1.0
        if fate < 0.05:
            self.world = self.world._replace(late=(*self.world.late, request))
            return
        answer = self.send(request)
        if fate < 0.1:
            return
        if fate < 0.15:
            answers_now = (*self.world.answers[:number], None, *self.world.answers[number + 1 :])
            self.world = self.world._replace(answers=answers_now)
            return
        self.world = self.search._hear(self.world, number, self.search.further(answers, answer))

    def send(self, request: Request) -> object:
        self.world, answer = self.search._apply(self.world, request)
        if request.verb == "read":
            assert sorted(self.index.read(request.what).items()) == sorted((i.key, i) for i in answer)
        elif request.verb == "write":
            assert tuple(self.index.write(request.what)) == answer
        return answer


@pytest.mark.usefixtures("one_name_a_record")
def test_random_interleavings_on_sqlite_answer_as_in_memory(tmp_path: Path) -> None:
    chance = random.Random(1)
    index = SqliteIndex(str(tmp_path / "index.db"), create=True)
    index._db.execute("PRAGMA synchronous = OFF")
    scenarios = [*content_scenarios(), *overflow_scenarios()]
    for _ in range(600):
        Walk(chance.choice(scenarios), index, chance).run()
    index.close()


# Delete markers: advice, never the truth


class Markers:
    """As much of a store with versions as markers need: which stems have one. `meanwhile` happens right after the first mark."""

    versioned = True

    def __init__(self, *, denied: bool = False) -> None:
        self.marked: set[str] = set()
        self.denied = denied
        self.meanwhile: Callable[[], object] | None = None

    def mark(self, stem: str) -> None:
        if self.denied:
            raise Denied("no right to delete")
        self.marked.add(stem)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()

    def unmark(self, stem: str) -> None:
        if self.denied:
            raise Denied("no right to delete")
        self.marked.discard(stem)


class Book:
    """An index in SQLite with one live content under the name c, and the markers of its store. One host adds, another removes."""

    def __init__(self, folder: Path, terms: Terms = TERMS, *, denied: bool = False) -> None:
        self.index = SqliteIndex(str(folder / "index.db"), create=True)
        self.index.write([Write(record(LIVE, "c"), None)])
        self.markers = Markers(denied=denied)
        self.adding, self.removing = (
            Ledger(self.index, self.markers, terms, lambda: 2_000.0, random.Random(host).randbytes)  # type: ignore[arg-type]
            for host in (1, 2)
        )

    def add(self, name: str) -> None:
        answer = self.adding.add({H: frozenset({StoredName(name)})}, no_uploads, no_guard)[H]
        assert isinstance(answer, Record)

    def remove(self, name: str) -> None:
        self.removing.remove({H: frozenset({StoredName(name)})}, no_guard)

    def state(self) -> RecordState:
        item = self.index.read([KEY])[KEY]
        assert isinstance(item, Record)
        return item.state


def no_uploads(needed: Mapping[ContentHash, Rev | None]) -> Mapping[ContentHash, Supply | S3HashSyncError]:
    raise AssertionError("nothing has to be uploaded")


def test_the_last_name_leaves_a_marker_and_the_next_one_takes_it_away(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.add("d")
    book.remove("c")
    assert book.markers.marked == set()
    book.remove("d")
    assert (book.state(), book.markers.marked) == (TRASH, {STEM})
    book.add("e")
    assert (book.state(), book.markers.marked) == (LIVE, set())


def test_a_marker_that_came_after_an_undelete_is_taken_away(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.markers.meanwhile = lambda: book.add("d")
    book.remove("c")
    assert (book.state(), book.markers.marked) == (LIVE, set())


def test_an_append_only_host_puts_no_markers(tmp_path: Path) -> None:
    book = Book(tmp_path, replace(TERMS, append_only=True))
    book.remove("c")
    assert (book.state(), book.markers.marked) == (TRASH, set())


def test_a_host_without_the_right_to_markers_removes_and_undeletes_all_the_same(tmp_path: Path) -> None:
    book = Book(tmp_path, denied=True)
    book.remove("c")
    assert book.state() is TRASH
    book.add("d")
    assert book.state() is LIVE


class Counted(FaultyIndex):
    """Keeps what was read."""

    def __init__(self, index: Index) -> None:
        super().__init__(index, FaultPlan())
        self.asked: list[set[str]] = []

    def read(self, keys: Collection[str]) -> dict[str, Item]:
        self.asked.append(set(keys))
        return super().read(keys)


def added_as_absent(book: Book, hash_: ContentHash) -> tuple[Record, list[set[str]], list[dict[ContentHash, Rev | None]]]:
    """The name n is added to what is said to have no record: the record, what was read, and what was to be stored."""
    index = Counted(book.index)
    ledger = Ledger(index, book.markers, TERMS, lambda: 2_000.0, random.Random(2).randbytes)  # type: ignore[arg-type]
    needs: list[dict[ContentHash, Rev | None]] = []

    def store(needed: Mapping[ContentHash, Rev | None]) -> Mapping[ContentHash, Supply | S3HashSyncError]:
        needs.append(dict(needed))
        return {one: Supply(ObjectAt("mine"), "zstd", 1, "", 1, 0) for one in needed}

    answer = ledger.add({hash_: frozenset({StoredName("n")})}, store, no_guard, {hash_})[hash_]
    assert isinstance(answer, Record)
    return answer, index.asked, needs


def test_what_is_known_to_be_absent_is_not_looked_up(tmp_path: Path) -> None:
    other = ContentHash(bytes(32))
    record, asked, needs = added_as_absent(Book(tmp_path), other)
    assert (record.names, asked, needs) == ({"n"}, [], [{other: None}])


def test_what_was_absent_and_has_come_since_is_looked_up_after_all(tmp_path: Path) -> None:
    """The refused write is no failure, and nothing is stored a second time."""
    book = Book(tmp_path)
    record, asked, needs = added_as_absent(book, H)
    assert record.names == {"c", "n"}
    assert record.location != ObjectAt("mine")
    assert (asked, needs) == ([{KEY}], [{H: None}])


def test_expiration_only_rises_within_one_life(tmp_path: Path) -> None:
    book = Book(tmp_path, replace(TERMS, keep_deleted_seconds=500))
    found = []
    for act in (lambda: book.add("d"), lambda: book.remove("c"), lambda: book.remove("d"), lambda: book.add("e")):
        act()
        found.append(book.index.read([KEY])[KEY].expiration)  # type: ignore[union-attr]
    assert found == [0, 2_500, 2_500, 2_500]
