"""A run that dies at any single operation, of a store or of its own state: the next one finds what is
missing, and stores nothing twice.

And each rule of the run's order taken out: then the same matrix must notice it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from s3hashsync.codec import pack
from s3hashsync.codec.pack import hashes_of
from s3hashsync.config.model import PackSettings
from s3hashsync.core.compile import Verdict
from s3hashsync.core.model import ContentHash, Control, Record, RecordState, Rev, object_stem, pack_key
from s3hashsync.disk import scratch
from s3hashsync.disk.state import State
from s3hashsync.errors import Interrupted, Missing, Refused, S3HashSyncError
from s3hashsync.run import acknowledge, batches, packing
from s3hashsync.run.acknowledge import CHANGES, Acknowledger
from s3hashsync.run.progress import Silent, Stop
from s3hashsync.run.rebuild import rebuild_on_newest
from s3hashsync.run.restore import RestoreOptions, apply_restore, planned_restore
from s3hashsync.run.uploads import Uploader
from s3hashsync.stores.base import Index, ObjectStore, Outcome, Stored, Write
from s3hashsync.stores.retrying import RetryingIndex, RetryingObjects, RetryPolicy
from tests.faulty import CRASHES, Crash, Fault, FaultPlan, FaultyIndex, FaultyObjects, at, on
from tests.harness import LEFT_OUT, SLOW, House, Wrap, as_they_are

Form = dict[str, object]
"""How a house is made: fields of `House`."""

PACKED: Form = {"encryption": True, "pack": PackSettings(below=1 << 20, size=1 << 20)}
LIVES = [
    (seed, seed >= 6 and "S3HASHSYNC_LIVES" not in os.environ) for seed in range(int(os.environ.get("S3HASHSYNC_LIVES", "12")))
]
"""Seeds, and whether each is for slow runs alone."""
KILLS = int(os.environ.get("S3HASHSYNC_KILLS", "10"))
ORIGINAL_TRANSACTION = State._transaction


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> Form:
    """Packs of two members, each in a frame of its own, so that one run makes several; and encrypted."""
    monkeypatch.setattr(pack, "FRAME_BYTES", 1)
    monkeypatch.setattr(packing, "MEMBERS", 2)
    return PACKED


PLAIN, SEALED = "plain", "packed and encrypted"


@pytest.fixture(params=[PLAIN, SEALED])
def form(request: pytest.FixtureRequest) -> Form:
    return {} if request.param == PLAIN else request.getfixturevalue("packed")


def each_form(*axes: tuple[str, Mapping[str, object]], slow: Callable[..., bool]) -> pytest.MarkDecorator:
    """Every combination of a form and the values of these axes. `slow` says which of them a quick run leaves out: each value of
    an axis stays in it, with another form at least."""
    names = ["form", *(name for name, _ in axes)]
    tried = []
    for form, *ids in itertools.product([PLAIN, SEALED], *(values for _, values in axes)):
        values = [axis[id_] for id_, (_, axis) in zip(ids, axes, strict=True)]
        marks = LEFT_OUT if slow(form, *values) else []
        tried.append(pytest.param(form, *values, marks=marks, id="-".join([form, *ids])))
    return pytest.mark.parametrize(names, tried, indirect=["form"])


def faults(*kinds: Fault) -> tuple[str, Mapping[str, object]]:
    return "fault", {kind.name: kind for kind in kinds}


# The source, before and after


ASIDE = "aside"


def before(house: House) -> None:
    for name in ("kept", "edited", "renamed", "deleted", "chmod", "copied"):
        house.write(f"{name}.jpg", f"content of {name}")
    house.write("folder/inside.jpg", "content inside")
    (house.source / "link").symlink_to("kept.jpg")


def change(house: House) -> None:
    """One of each: what was there is put aside, so that it can come back as the very same file."""
    source, aside = house.source, house.folder / ASIDE
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
    source, aside = house.source, house.folder / ASIDE
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


def touch(house: House) -> None:
    """Nothing changes but the times, so that every file is hashed again."""
    for folder, _, files in os.walk(house.source):
        for name in files:
            os.utime(os.path.join(folder, name), (5, 5), follow_symlinks=False)


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


def at_peace(house: House, *, fresh: bool) -> House:
    """A source with changes, whose last run is at peace (`fresh`: that was never backed up)."""
    before(house)
    if not fresh:
        house.backup()
        house = house.again()
    change(house)
    return house


def prepared(folder: Path, *, fresh: bool, **fields: object) -> House:
    return at_peace(House(folder, **fields).init(), fresh=fresh)  # type: ignore[arg-type]


class Kept:
    """What runs write (repository, state, the host's keys), put aside, so that many begin at the same moment. The source stays
    where it is, as no run changes it: a copy would have other inodes and times."""

    def __init__(self, house: House) -> None:
        self.house = house
        self._top = house.folder
        self._copy = Path(tempfile.mkdtemp(dir=house.folder.parent, prefix="kept "))
        shutil.copytree(self._top, self._copy, symlinks=True, dirs_exist_ok=True, ignore=self._not_written)

    def _not_written(self, folder: str, names: list[str]) -> set[str]:
        return {self.house.source.name, ASIDE} if Path(folder) == self._top else set()

    def again(self) -> House:
        """The next process at that moment."""
        for place in self._top.iterdir():
            if place.name not in self._not_written(str(self._top), []):
                shutil.rmtree(place) if place.is_dir() else place.unlink()
        shutil.copytree(self._copy, self._top, symlinks=True, dirs_exist_ok=True)
        return self.house.again(wrap=as_they_are)

    def from_nothing(self) -> House:
        """The same with an empty source, whatever has become of it."""
        for name in (self.house.source.name, ASIDE):
            shutil.rmtree(self._top / name, ignore_errors=True)
        return self.again()

    def drop(self) -> None:
        shutil.rmtree(self._copy)


def run_under(house: House, plan: FaultPlan, *, retrying: bool = False) -> None:
    """One backup under the plan's faults, which may kill it or make it fail."""
    house.wrap = under(plan, retrying=retrying)
    with state_under(plan), contextlib.suppress(Crash, S3HashSyncError):
        house.backup()


def count_operations(house: House) -> int:
    plan = FaultPlan()
    run_under(house, plan)
    return plan.mutations


def each_trial(
    folder: Path, fault: Fault, then: Callable[[House], None] = nothing, *, fresh: bool, **fields: object
) -> Iterator[tuple[House, FaultPlan]]:
    """A house whose run met this fault at its first, second, … operation; `then` changes the disk."""
    founded = Kept(House(folder / "house", **fields).init())  # type: ignore[arg-type]
    kept = Kept(at_peace(founded.again(), fresh=fresh))
    for number in range(1, count_operations(kept.again()) + 1):
        house = kept.again() if then is nothing else at_peace(founded.from_nothing(), fresh=fresh)
        plan = FaultPlan([at(number, fault)])
        run_under(house, plan)
        with house.looked_at():
            house.assert_safe()
            house.assert_logs_restorable()
        then(house)
        yield house.again(wrap=as_they_are), plan


def copies_of_contents(house: House) -> dict[ContentHash, int]:
    """How often each content lies in the store: as an object, or in a pack that is there."""
    with house.looked_at() as repository:
        items = {item.key: item for item in repository.index.scan() if isinstance(item, Control)}
    found: list[ContentHash] = []
    for stem, versions in house.stored_versions().items():
        kind, _, name = stem.partition("/")
        if kind == "objects":
            found += [ContentHash(bytes.fromhex(name))] * len(versions)
            continue
        first = items[pack_key(name)]
        parts = [first, *(items[f"{first.key}.{n}"] for n in range(1, int(first.get("parts"))))]
        found += hashes_of(b"".join(part.data for part in parts)) * len(versions)
    return Counter(found)


def assert_stored_once(house: House, *shown: object) -> None:
    doubled = {hash_.hex(): n for hash_, n in copies_of_contents(house).items() if n > 1}
    assert not doubled, shown


def assert_each_converges(folder: Path, fault: Fault, then: Callable[[House], None] = nothing, **fields: object) -> None:
    for house, plan in each_trial(folder, fault, then, **fields):
        done = house.backup()
        assert done.problems == []
        with house.looked_at():
            house.assert_converged()
            assert_stored_once(house, plan.names())
            house.assert_logs_restorable()


@each_form(
    faults(Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.POWER_FAILURE, Fault.LOSE_ANSWER, Fault.PARTIAL),
    ("fresh", {"first run": True, "later run": False}),
    slow=lambda form, fault, fresh: form == SEALED and fresh and fault not in (Fault.CRASH_AFTER, Fault.POWER_FAILURE),
)
def test_the_run_after_a_crash_finds_what_is_missing_and_stores_nothing_twice(
    folder: Path, form: Form, fault: Fault, fresh: bool
) -> None:
    assert_each_converges(folder, fault, fresh=fresh, **form)


@each_form(
    faults(Fault.CRASH_BEFORE, Fault.CRASH_AFTER),
    ("then", {"reverted": revert, "edited again": edit_again, "touched": touch}),
    slow=lambda form, fault, then: form == SEALED and fault is Fault.CRASH_BEFORE,
)
def test_the_disk_may_change_between_crash_and_next_run(
    folder: Path, form: Form, fault: Fault, then: Callable[[House], None]
) -> None:
    """By size and mtime a reverted file looks as it did before: only the mark in the state tells."""
    assert_each_converges(folder, fault, then, fresh=False, compare=frozenset({"size", "mtime"}), **form)


def test_a_request_may_arrive_after_the_next_run(folder: Path, form: Form) -> None:
    for house, plan in each_trial(folder, Fault.DELAY, fresh=False, **form):
        house.backup()
        plan.dead = False
        plan.release()
        house.again().assert_converged(copies=2)


def test_behind_the_retrying_stores_a_lost_answer_is_not_even_noticed(folder: Path, form: Form) -> None:
    kept = Kept(prepared(folder / "house", fresh=False, **form))
    for number in range(1, count_operations(kept.again()) + 1):
        house = kept.again()
        house.wrap = under(FaultPlan([at(number, Fault.LOSE_ANSWER)]), retrying=True)
        assert house.backup().problems == []
        house = house.again(wrap=as_they_are)
        with house.looked_at():
            house.assert_converged()
            assert_stored_once(house)


@pytest.mark.parametrize(
    ("fresh", "every"),
    [
        pytest.param(True, 1, marks=LEFT_OUT, id="first run"),
        pytest.param(False, 1, marks=LEFT_OUT, id="later run"),
        pytest.param(False, 4, id="later run, some"),
    ],
)
def test_two_crashes_one_after_the_other(folder: Path, form: Form, fresh: bool, every: int) -> None:
    """Every pair: the run that repairs dies, too, at each of its operations. The first crash may be at every n-th alone."""
    kept = Kept(prepared(folder / "house", fresh=fresh, **form))
    for first in range(1, count_operations(kept.again()) + 1, every):
        house = kept.again()
        run_under(house, FaultPlan([at(first, Fault.CRASH_AFTER)]))
        crashed, second, survived = Kept(house), 0, False
        while not survived:
            second += 1
            house, plan = crashed.again(), FaultPlan([at(second, Fault.CRASH_AFTER)])
            run_under(house, plan)
            survived = not plan.dead
            house.again(wrap=as_they_are).backup()
            house = house.again(wrap=as_they_are)
            with house.looked_at():
                house.assert_converged()
                assert_stored_once(house, first, second)
        crashed.drop()


def assert_a_pack_is_taken_up(folder: Path, fault: Fault) -> None:
    """One pack, named in three segments; a fault at each operation of that run."""
    house = House(folder / "house", log_interval=0, **PACKED).init()  # type: ignore[arg-type]
    for name in "abc":
        house.write(name, f"content of {name}")
    kept, number, survived = Kept(house), 0, False
    while not survived:
        number += 1
        house = kept.again()
        plan = FaultPlan([at(number, fault)])
        run_under(house, plan)
        survived = not plan.dead
        house.assert_safe()
        house = house.again(wrap=as_they_are)
        assert house.backup().problems == []
        with house.looked_at():
            house.assert_converged()
            assert_stored_once(house, plan.names())


@pytest.mark.parametrize(
    "fault",
    [pytest.param(Fault.CRASH_BEFORE, marks=LEFT_OUT), Fault.CRASH_AFTER, Fault.POWER_FAILURE],
)
def test_a_pack_is_remembered_until_all_of_it_is_named(folder: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_STEPS", 1)
    monkeypatch.setattr(batches, "PART_STEPS", 1)
    assert_a_pack_is_taken_up(folder, fault)


def test_a_pack_that_is_settled_earlier_is_stored_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule taken out."""
    settle = State.settle

    def settle_all(self: State, present, absent, anchor, packs=()) -> None:
        settle(self, present, absent, anchor, [pack.id for pack in self.open_packs()])

    monkeypatch.setattr(State, "settle", settle_all)
    monkeypatch.setattr(batches, "BATCH_STEPS", 1)
    monkeypatch.setattr(batches, "PART_STEPS", 1)
    with pytest.raises(AssertionError):
        assert_a_pack_is_taken_up(folder, Fault.CRASH_AFTER)


class Found(FaultyObjects):
    """What is found may have been put by a process without a barrier: a power failure takes it, too, until there is one."""

    def find(self, stem: str, attempt_id: str) -> Stored | None:
        found = super().find(stem, attempt_id)
        return None if found is None else self._remember(stem, found)


def test_what_is_taken_up_is_durable_before_it_is_named(folder: Path, form: Form) -> None:
    house = House(folder / "house", **form).init()
    for name in ("a", "b", "c"):
        house.write(name, f"content of {name}")
    run_under(house, FaultPlan([on("objects.put", Fault.CRASH_AFTER)]))
    kept, number, survived = Kept(house), 0, False
    while not survived:
        number += 1
        house, plan = kept.again(), FaultPlan([at(number, Fault.POWER_FAILURE)])
        house.wrap = found_under(plan)
        with state_under(plan), contextlib.suppress(Crash):
            house.backup()
        survived = not plan.dead
        house.again(wrap=as_they_are).assert_safe()
    assert number > 3


def found_under(plan: FaultPlan) -> Wrap:
    return lambda objects, index: (Found(objects, plan), FaultyIndex(index, plan))


# Crash and more: a lost state, an old one, no space, Ctrl-C


def aged(house: House) -> None:
    """The state as it was before the run, as an old disk image has it."""
    for suffix in ("", "-wal", "-shm"):
        old = house.folder / f"old.db{suffix}"
        if old.exists():
            shutil.copy(old, f"{house.state_path}{suffix}")
        elif os.path.exists(f"{house.state_path}{suffix}"):
            os.unlink(f"{house.state_path}{suffix}")


def recovered(house: House) -> House:
    """One backup; where the run logs are newer than the index, `rebuild` before it."""
    try:
        house.backup()
    except Refused:
        with house.repository() as repository, house.fresh_state() as state:
            rebuild_on_newest(repository, state, house.source_name, Silent())
        house = house.again()
        house.backup()
    return house.again()


@each_form(
    faults(Fault.CRASH_BEFORE, Fault.CRASH_AFTER),
    slow=lambda form, fault: form == SEALED and fault is Fault.CRASH_BEFORE,
)
def test_after_a_crash_the_state_may_be_lost(folder: Path, form: Form, fault: Fault) -> None:
    """Nothing is lost and all is found again. A segment that no head names yet needs `rebuild`; what was put
    but not named is put again."""
    for house, _ in each_trial(folder, fault, fresh=False, **form):
        house.forget_state()
        recovered(house).assert_converged(copies=2)


@each_form(
    faults(Fault.CRASH_BEFORE, Fault.CRASH_AFTER),
    ("then", {"reverted": revert, "edited again": edit_again}),
    slow=lambda form, fault, then: form == SEALED and fault is Fault.CRASH_BEFORE,
)
def test_a_lost_state_after_a_crash_may_cost_storage_and_nothing_else(
    folder: Path, form: Form, fault: Fault, then: Callable[[House], None]
) -> None:
    """A name that the dead run wrote before its segment is known to nobody once the disk has changed again."""
    for house, _ in each_trial(folder, fault, then, fresh=False, **form):
        house.forget_state()
        house = recovered(house)
        house.assert_holds()
        assert house.plan() == []


@each_form(
    faults(Fault.CRASH_BEFORE, Fault.CRASH_AFTER),
    slow=lambda form, fault: form == SEALED and fault is Fault.CRASH_BEFORE,
)
def test_after_a_crash_the_state_may_be_an_older_copy(folder: Path, form: Form, fault: Fault) -> None:
    kept = Kept(prepared(folder / "house", fresh=False, **form))
    for number in range(1, count_operations(kept.again()) + 1):
        house = kept.again()
        shutil.copy(house.state_path, house.folder / "old.db")
        run_under(house, FaultPlan([at(number, fault)]))
        aged(house)
        recovered(house.again(wrap=as_they_are)).assert_converged(copies=2)


class StopAfter(Stop):
    """Ctrl-C at the n-th moment in which somebody asks."""

    def __init__(self, moments: int) -> None:
        super().__init__()
        self.left = moments

    def __bool__(self) -> bool:
        self._count()
        return super().__bool__()

    def check(self) -> None:
        self._count()
        super().check()

    def _count(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.set()


def test_an_interruption_leaves_what_was_done_acknowledged(folder: Path, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_STEPS", 2)
    monkeypatch.setattr(batches, "PART_STEPS", 2)
    kept = Kept(prepared(folder / "house", fresh=False, **form))
    moments, finished = 0, False
    while not finished:
        moments += 1
        house = kept.again()
        house.stop = StopAfter(moments)
        try:
            house.backup()
            finished = True
        except Interrupted:
            with house.looked_at():
                house.assert_safe()
                house.assert_logs_restorable()
        house = house.again()
        house.backup()
        with house.looked_at():
            house.assert_converged()
            assert_stored_once(house)
    assert moments > 10


@contextlib.contextmanager
def tiny_disk(place: Path, size: str) -> Iterator[None]:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("full", ["repository", "state"])
def test_a_full_disk_in_the_middle_loses_nothing(folder: Path, form: Form, full: str) -> None:
    chance = random.Random(3)
    with tiny_disk(folder / full, "400k"):
        house = House(folder, **form).init()  # type: ignore[arg-type]
        before(house)
        house.backup()
        for number in range(80):
            # The state takes much metadata, the repository much content.
            house.write(f"{number:04}{'x' * 200}.jpg", chance.randbytes(10_000))
            for copy in range(20 if full == "state" else 0):
                house.write(f"{number:04}/{copy:04}{'y' * 200}.jpg", f"{number}")
        with pytest.raises(S3HashSyncError) as raised:
            house.again().backup()
        assert raised.value.hint
        house.assert_safe()
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder / full)], check=True)
        house.again().backup()
        house.again().assert_converged()


# kill -9


def scribble(house: House, chance: random.Random) -> None:
    """Some changes of every kind to a tree of some dozen files."""
    names = [f"{letter}/{number}.jpg" for letter in "abc" for number in range(12)]
    for name in chance.sample(names, 12):
        place = house.source / name
        match chance.randrange(4):
            case 0 if place.exists():
                os.unlink(place)
            case 1 if place.exists():
                other = house.source / chance.choice(names)
                other.parent.mkdir(parents=True, exist_ok=True)
                os.rename(place, other)
            case 2 if place.exists():
                os.chmod(place, chance.choice([0o600, 0o644]))
            case _:
                house.write(name, f"content {chance.randrange(30)} " * chance.randrange(1, 2_000))


def child(house: House) -> int:
    """A process of its own that makes one backup; it ends in `_exit`, for it is a copy of the test runner."""
    pid = os.fork()
    if pid:
        return pid
    try:
        house.backup()
        os._exit(0)
    except BaseException:
        os._exit(1)


def tree_of(root: Path, *, rights: bool) -> dict[str, tuple[object, ...]]:
    """What a restore must bring back: types, rights, times, bytes and targets."""
    out: dict[str, tuple[object, ...]] = {}
    for place in sorted(root.rglob("*")):
        about = place.lstat()
        content = os.readlink(place) if place.is_symlink() else place.read_bytes() if place.is_file() else None
        mode = about.st_mode if rights else stat.S_IFMT(about.st_mode)
        out[str(place.relative_to(root))] = (mode, about.st_mtime_ns, content)
    return out


def assert_restorable(house: House) -> None:
    """By the run logs and the store alone, with the user's identity, everything comes back as it is. Where files are compared by
    size and mtime alone, other rights are not seen."""
    to = house.folder / "restored"
    with house.job() as job, planned_restore(job, [house.source_name], RestoreOptions(to=str(to))) as work:
        assert not apply_restore(job, work).problems
    rights = "ctime" in house.compare
    assert tree_of(to, rights=rights) == tree_of(house.source, rights=rights)
    shutil.rmtree(to)


def test_kill_9_at_random_moments(folder: Path, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_STEPS", 3)
    monkeypatch.setattr(batches, "PART_STEPS", 3)
    if form:
        # Packs that are closed by their stored size, beside objects.
        monkeypatch.setattr(packing, "MEMBERS", 40_000)
        monkeypatch.setattr(pack, "FRAME_BYTES", 8_000)
        form = form | {"pack": PackSettings(below=12_000, size=200)}
    chance = random.Random(KILLS)
    house = House(folder, log_interval=0, threads=2, **form).init()  # type: ignore[arg-type]
    before(house)
    killed = 0
    for _ in range(KILLS * 8):
        if killed == KILLS:
            break
        scribble(house, chance)
        house = house.again()
        pid = child(house)
        time.sleep(chance.random() * 0.08)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        house.assert_safe()
        house.assert_logs_restorable()
    assert killed == KILLS
    house.again().backup()
    house.again().assert_converged()
    assert_restorable(house.again())


# Whole lives


def upset(house: House, chance: random.Random) -> None:
    """What `scribble` does not: other types at a path, touched files, hard links, empty files."""
    for place in house.source.rglob("*.jpg"):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
    scribble(house, chance)
    files = sorted(place for place in house.source.rglob("*.jpg") if place.is_file() and not place.is_symlink())
    for place in chance.sample(files, min(4, len(files))):
        other = place.with_suffix(".other")
        match chance.randrange(5):
            case 0:
                os.utime(place, (7, 7))
            case 1:
                place.write_bytes(b"")
            case 2:
                place.unlink()
                place.symlink_to("somewhere")
            case 3:
                place.unlink()
                place.mkdir()
                (place / "inside").write_text(f"inside {chance.randrange(4)}")
            case _:
                other.unlink(missing_ok=True)
                os.link(place, other)


def live(folder: Path, chance: random.Random, form: Form) -> House:
    """Some runs, each with a fault somewhere; between them the disk changes."""
    compare = chance.choice([frozenset({"size", "mtime"}), House.compare])
    house = House(folder, log_interval=chance.choice([0, 3600]), compare=compare, **form).init()  # type: ignore[arg-type]
    before(house)
    for _ in range(chance.randrange(2, 9)):
        house = house.again(wrap=as_they_are)
        fault = chance.choice([*CRASHES, Fault.LOSE_ANSWER, Fault.THROTTLE])
        run_under(house, FaultPlan([at(chance.randrange(1, 30), fault)]))
        house.assert_safe()
        upset(house, chance)
    house.again(wrap=as_they_are).backup()
    return house.again(wrap=as_they_are)


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=LEFT_OUT if later else []) for seed, later in LIVES])
def test_a_life_full_of_faults_ends_well(folder: Path, form: Form, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(batches, "BATCH_STEPS", chance.choice([1, 3, 7, 1000]))
    monkeypatch.setattr(batches, "PART_STEPS", chance.choice([1, 3, 7, 1000]))
    monkeypatch.setattr(acknowledge, "SEGMENT_STEPS", chance.choice([1, 3, 7, 1000]))
    monkeypatch.setattr(acknowledge, "CHECKPOINT_FLOOR", chance.choice([10, 1000]))
    if form:
        monkeypatch.setattr(packing, "MEMBERS", chance.choice([1, 2, 5, 1000]))
    house = live(folder, chance, form)
    house.assert_converged()
    assert all(len(versions) == 1 for versions in house.stored_versions().values())
    assert_restorable(house)


# Each rule of the order taken out


def noticed(folder: Path, then: Callable[[House], None] = nothing, **fields: object) -> bool:
    """Whether the matrix of crashes fails now."""
    try:
        for fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
            assert_each_converges(folder, fault, then, fresh=False, compare=frozenset({"size", "mtime"}), **fields)
            shutil.rmtree(folder)
            folder.mkdir()
    except (AssertionError, Refused, KeyError):
        return True
    return False


def remove_first(self: Acknowledger) -> None:
    """REMOVE before the segment."""
    drops = {h: frozenset(names) for h, names in self._pending.drops.items()}
    self._c.ledger.remove(drops, self._c.lease.guard)
    CLOSE(self)


def settle_first(self: Acknowledger) -> None:
    """Clean rows before the segment is stored."""
    pending = self._pending
    if pending.steps:
        self._c.state.settle(pending.present, pending.absent, self._c.state.anchor())
    CLOSE(self)


def remove_last(self: Acknowledger) -> None:
    """Clean rows before the removals."""
    pending = self._pending
    if not pending.steps:
        return
    anchor = self._store(pending.writer, CHANGES)
    self._c.state.settle(pending.present, pending.absent, anchor)
    self._c.ledger.remove({h: frozenset(names) for h, names in pending.drops.items()}, self._c.lease.guard)
    pending.__init__(self._new_writer(), since=0.0)  # type: ignore[misc]


CLOSE = Acknowledger.close_segment


@pytest.mark.parametrize("wrong", [remove_first, settle_first, remove_last])
def test_the_order_of_segment_removals_and_rows_matters(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Acknowledger], None]
) -> None:
    monkeypatch.setattr(Acknowledger, "close_segment", wrong)
    assert noticed(folder)


def test_without_marks_a_reverted_file_leaves_its_name_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = State.mark
    monkeypatch.setattr(State, "mark", lambda self, paths, attempts=(): mark(self, (), attempts))
    assert noticed(folder, revert)


def test_without_the_attempts_a_content_is_stored_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "attempt", lambda self, hash_: None)
    assert noticed(folder)


def test_without_the_pending_segment_the_next_run_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_anchor = State.set_anchor
    monkeypatch.setattr(State, "set_anchor", lambda self, anchor: set_anchor(self, replace(anchor, pending="")))
    assert noticed(folder)


def test_a_marked_path_is_written_again_though_its_content_is_the_marked_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for clean, a touched file would pass for one whose metadata alone have changed, with no name in the index."""
    confirmed = scratch._confirmed
    monkeypatch.setattr(scratch, "_confirmed", lambda verdict, before: confirmed(Verdict.CHANGED, before))
    assert noticed(folder, touch)


def test_the_rules_themselves_are_not_noticed(folder: Path) -> None:
    """So that the tests above fail for the rule that they take out, and for nothing else."""
    assert not noticed(folder)


def test_without_the_marks_of_packs_their_contents_are_stored_twice(
    folder: Path, packed: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(State, "open_packs", lambda self: [])
    assert noticed(folder, **packed)


@SLOW
@pytest.mark.slow
def test_the_rules_themselves_are_not_noticed_with_packs_either(folder: Path, packed: Form) -> None:
    assert not noticed(folder, **packed)


# Adopting what a dead run stored


class SweepsBefore:
    """An index before whose n-th write of a record somebody sweeps: moves that record, then deletes the version."""

    def __init__(self, index: Index, objects: ObjectStore) -> None:
        self._index = index
        self._objects = objects
        self._swept: set[str] = set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._index, name)

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        fresh = [w for w in writes if isinstance(w.item, Record) and w.item.key not in self._swept]
        for write in fresh:
            # The listing was before this run; the fence is what the run meets; the deletion comes with its next write.
            self._swept.add(write.item.key)
            if write.expects is None:
                gone = Record(write.item.hash, RecordState.GONE, Rev(b"the fence"))  # type: ignore[union-attr]
                self._index.write([Write(gone, None)])
        if not fresh:
            for write in writes:
                if isinstance(write.item, Record):
                    stem = object_stem(write.item.hash)
                    for version in OLD_VERSIONS.get(stem, ()):
                        self._objects.delete(stem, version)
        return self._index.write(writes)


OLD_VERSIONS: dict[str, list[str]] = {}


def swept_while_adopting(folder: Path) -> House:
    """A run died after its puts; while the next one adopts them, a sweep goes by that had listed them."""
    house = prepared(folder, fresh=True)
    run_under(house, FaultPlan([on("objects.barrier", Fault.CRASH_AFTER)]))
    OLD_VERSIONS.clear()
    OLD_VERSIONS.update(house.stored_versions())
    assert OLD_VERSIONS
    house = house.again(wrap=lambda objects, index: (objects, SweepsBefore(index, objects)))
    house.backup()
    return house.again(wrap=as_they_are)


def test_a_version_is_adopted_on_the_rev_of_its_attempt_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept_while_adopting(folder / "right").assert_converged(copies=2)
    attempt = State.attempt
    asked: dict[ContentHash, Rev | None] = {}

    def any_rev(self: State, hash_: ContentHash):
        found = attempt(self, hash_)
        return replace(found, expects=asked[hash_]) if found is not None else None

    def call(self: Uploader, needed):
        asked.update(needed)
        return CALL(self, needed)

    monkeypatch.setattr(State, "attempt", any_rev)
    monkeypatch.setattr(Uploader, "__call__", call)
    with pytest.raises(Missing):
        swept_while_adopting(folder / "wrong").assert_safe()


CALL = Uploader.__call__
