"""What tests of the parts miss: paths that nobody could look at, numbers that do not fit, promises that outlive an index."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from s3hashsync.cli.times import moment_text
from s3hashsync.config import SourceSettings
from s3hashsync.core.model import Content, ContentHash, Entry, Kind, ObjectAt, Sha256, StoredName, object_stem
from s3hashsync.core.plan import AddName, RemoveName, StoreContent
from s3hashsync.disk import folder, metadata, tree
from s3hashsync.disk.catalogue import Catalogue
from s3hashsync.disk.state import State
from s3hashsync.disk.state_rows import Known
from s3hashsync.disk.tree import is_below
from s3hashsync.errors import Refused
from s3hashsync.run import backup, gather, saved_plan
from s3hashsync.run.ledger import Terms
from s3hashsync.run.progress import Silent
from s3hashsync.run.reindex import Rebuilder, rebuild_index
from s3hashsync.run.restore import RestoreOptions, apply_restore, planned_restore
from tests.faulty import Crash, Fault, FaultPlan, on
from tests.harness import House, as_they_are, fast_folder
from tests.test_crash import run_under, under
from tests.test_two_hosts import TAKE_OVER, other_machine


@pytest.fixture
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        yield House(Path(name)).init()


class Negating(House):
    """Excludes by the configuration what an ignore file takes back."""

    def source_settings(self) -> SourceSettings:
        return replace(super().source_settings(), exclude=("*.tmp",), ignore_files=(".keep",))


def broken_os(**calls: Callable[..., object]) -> SimpleNamespace:
    """The module `os`, with some calls that fail."""
    return SimpleNamespace(**{**vars(os), **calls})


def unreadable(name: bytes, code: int) -> Callable[..., int]:
    def opened(path: str | bytes, flags: int, *rest: int, dir_fd: int | None = None) -> int:
        if path == name:
            raise OSError(code, os.strerror(code))
        return os.open(path, flags, *rest, dir_fd=dir_fd)

    return opened


# What could not be looked at keeps what is known of it


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_an_ignore_file_that_cannot_be_read_removes_nothing(house: House, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Without its negations the rules above leave out more than they should."""
    house = Negating(house.folder, seed=7)
    house.write("d/.keep", "!precious.tmp\n!/sub/\n")
    house.write("d/precious.tmp", "precious")
    house.write("d/sub.tmp/x", "left out")
    house.backup()
    before = house.names()
    assert "photos/d/precious.tmp" in before
    monkeypatch.setattr(folder, "os", broken_os(open=unreadable(b".keep", code)))
    house = house.again()
    assert house.plan() == []
    assert [problem.path for problem in house.backup().problems] == [b"d/.keep"]
    assert house.names() == before
    os.unlink(house.source / "d/precious.tmp")
    # What is gone is gone, whatever the rules say.
    assert [step.path for step in house.plan() if isinstance(step, RemoveName)] == [b"d/precious.tmp"]


def test_a_file_that_the_listing_missed_is_not_taken_for_deleted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename while a folder is listed may hide the name from the listing."""
    house.write("a", "content of a")
    house.write("b", "content of b")
    house.backup()

    def listing_without_b(root: bytes, options: tree.WalkOptions) -> Iterator[tree.Item]:
        return (item for item in tree.walk(root, options) if item.path != b"b")

    monkeypatch.setattr(gather, "walk", listing_without_b)
    house = house.again()
    assert house.plan() == []
    assert [problem.path for problem in house.backup().problems] == [b"b"]
    assert "photos/b" in house.names()


def test_what_lies_behind_a_symlink_is_deleted_and_not_excluded(house: House) -> None:
    house.write("d/x", "content")
    house.backup()
    os.rename(house.source / "d", house.folder / "elsewhere")
    (house.source / "d").symlink_to(house.folder / "elsewhere")
    house = house.again()
    assert [type(step) for step in house.plan() if not hasattr(step, "entry")] == [RemoveName]
    house.backup()
    house.again().assert_converged()


def test_is_below_looks_through_real_folders_alone(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").touch()
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "loop").symlink_to("loop")
    paths = (b"", b"d", b"d/f", b"d/g", b"d/f/x", b"link", b"link/f", b"loop", b"loop/x")
    there = [path for path in paths if is_below(root, path)]
    assert there == [b"", b"d", b"d/f", b"link", b"loop"]


def test_a_symlink_that_cannot_be_read_is_kept_and_named(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.write("f", "content")
    (house.source / "link").symlink_to("f")
    house.backup()

    def broken(path: bytes) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(metadata, "os", broken_os(readlink=broken))
    os.utime(house.source / "link", ns=(1, 1), follow_symlinks=False)
    house = house.again()
    assert house.plan() == []
    assert [problem.path for problem in house.backup().problems] == [b"link"]
    assert b"link" in house.logged()


def test_a_symlink_too_deep_for_one_path_is_named(house: House) -> None:
    fd = os.open(house.source, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=fd)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.symlink("target", "link", dir_fd=fd)
    os.close(fd)
    assert [problem.path[-5:] for problem in house.backup().problems] == [b"/link"]


# Numbers that do not fit


@pytest.mark.parametrize("seconds", [2**35, -(2**35), 15_032_385_535])
def test_a_time_beyond_64_bits_of_nanoseconds_stops_nothing(house: House, seconds: int) -> None:
    house.write("f", "content")
    house.write("empty", "")
    house.write("other", "other content")
    for name in ("f", "empty"):
        os.utime(house.source / name, (seconds, seconds))
    stat = os.stat(house.source / "f")
    if abs(stat.st_mtime_ns) < 1 << 63:
        pytest.skip("this file system holds no such time")
    assert house.backup().problems == []
    house = house.again()
    house.assert_converged()
    assert house.logged()[b"f"].entry.mtime_ns == stat.st_mtime_ns
    with house.state() as state:
        assert {known.entry.mtime_ns for known, _ in state.all_known() if known.entry.path == b"f"} == {stat.st_mtime_ns}
    os.utime(house.source / "f", (5, 5))
    assert len(house.plan()) == 1


def test_a_moment_beyond_the_calendar_is_shown_as_a_number() -> None:
    assert moment_text(float(1 << 50)) == f"@{1 << 50}"
    assert moment_text(float(-(1 << 50))) == f"@-{1 << 50}"


def test_inodes_and_devices_of_64_bits_come_back(tmp_path: Path) -> None:
    state = State(str(tmp_path / "state.db"))
    entry = Entry(b"f", Kind.FILE, 1, 5, 6, (1 << 64) - 3, (1 << 64) - 7, 0o644, 0, 0, links=2)
    state.load([(Known(entry, ContentHash(bytes(32)), Sha256(bytes(32))), None)])
    state.remember_hashes([(entry, ContentHash(bytes(32)), Sha256(bytes(32)))])
    state.refresh([(entry, False)])
    found = state.get(b"f")
    assert found is not None
    assert found.entry == entry
    state.close()


# A new owner, or a new index: every name that is kept is written


def test_a_new_owner_writes_the_names_of_what_it_cannot_read(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "closed/f", "later"):
        house.write(name, f"content of {name}")
    house.backup()
    new = other_machine(house.again())
    monkeypatch.setattr(tree, "os", broken_os(open=unreadable(b"closed", errno.EACCES)))
    paths = {step.entry.path for step in new.plan() if isinstance(step, AddName | StoreContent)}
    assert paths == {b"open", b"closed/f", b"later"}
    done = new.backup(TAKE_OVER)
    assert [problem.path for problem in done.problems] == [b"closed"]
    assert set(new.names()) == {"photos/open", "photos/closed/f", "photos/later"}


def test_a_lost_state_does_not_forget_a_take_over_that_was_not_finished(house: House) -> None:
    for number in range(3):
        house.write(f"{number}", f"content {number}")
    house.backup()
    new = other_machine(house.again())
    plan = FaultPlan([on("objects.create_document", Fault.CRASH_BEFORE)])
    new.wrap = under(plan)
    with pytest.raises(Crash):
        new.backup(TAKE_OVER)
    new = new.again(wrap=as_they_are)
    new.forget_state()
    assert {step.entry.path for step in new.plan() if isinstance(step, AddName)} == {b"0", b"1", b"2"}
    new.backup()
    new = new.again()
    new.forget_state()
    assert new.plan() == []


def test_content_that_a_rebuilt_index_found_missing_is_uploaded_again(house: House) -> None:
    house.write("lost", "content that will be lost")
    house.write("kept", "content that stays")
    house.backup()
    house = house.again()
    lost = object_stem(house.contents()["photos/lost"])
    with house._stores() as (objects, _):
        for version in list(objects.versions("objects/")):
            if version.stem == lost:
                objects.delete(version.stem, version.version)
    for path in (house.folder / "repository").glob("index.db*"):
        path.unlink()
    with house._stores(create=True) as (objects, index):
        rebuilder = Rebuilder(objects, index, Terms("STANDARD", 0, 0), Silent(), house.clock, os.urandom)
        assert [problem.path for problem in rebuild_index(rebuilder)[1]] == [b"lost"]
    house.backup()
    house.again().assert_converged()


def test_a_place_that_is_gone_does_not_hide_one_that_is_there() -> None:
    """Purged and stored anew by another source since: an older log, read first, still names the old place."""
    hash_ = ContentHash(bytes(32))
    contents = [Content(hash_, 1, 2, 3, "STANDARD", "", "zstd", ObjectAt(version)) for version in ("old", "new")]
    catalogue = Catalogue()
    catalogue.add_contents(contents)
    catalogue.add_contents(contents[:1])
    catalogue.add_names([(hash_, StoredName("b/f"))])
    catalogue.add_versions([(object_stem(hash_), "new", 2)])
    (found,) = catalogue.found()
    assert found.content.location == ObjectAt("new")
    assert found.names == {"b/f"}
    catalogue.close()


# Saved plans


def test_a_saved_plan_drops_what_a_dead_run_left(house: House, tmp_path: Path) -> None:
    house.write("f", "first")
    house.backup()
    house = house.again()
    house.write("f", "third")
    with house.job() as job, backup.planned(job) as work:
        saved_plan.save(work.plan, str(tmp_path / "plan"))
    third = (house.source / "f").stat()
    os.rename(house.source / "f", house.folder / "aside")
    house.write("f", "second")
    run_under(house, FaultPlan([on("objects.create_document", Fault.CRASH_BEFORE)]))
    os.replace(house.folder / "aside", house.source / "f")
    assert (house.source / "f").stat().st_ino == third.st_ino
    house = house.again(wrap=as_they_are)
    with house.job() as job, saved_plan.reopened(job, saved_plan.load(str(tmp_path / "plan"))) as work:
        _, problems = backup.apply(job, work, backup.ApplyOptions(strict=True))
    assert problems == []
    assert house.names() == house.contents()


# Guards


def test_a_rebuilt_state_remembers_that_the_root_was_a_mount_point(house: House) -> None:
    house.write("f", "content")
    house.backup()
    with house.state() as state:
        state.set_note("mount", "1")
        state.set_anchor(replace(state.anchor(), head="another"))
    with pytest.raises(Refused, match="mount point"):
        house.again().plan()


# Restore


def test_a_name_that_appears_during_a_restore_is_named(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also two names of the source that are one in the target (upper and lower case): one of them is not restored."""
    house.write("f", "content")
    (house.source / "link").symlink_to("f")
    house.backup()
    house = house.again()
    to = house.folder / "restored"
    with house.job() as job, planned_restore(job, [house.source_name], RestoreOptions(to=str(to))) as work:
        to.mkdir()
        (to / "f").write_text("somebody else's")
        (to / "link").write_text("somebody else's")
        done = apply_restore(job, work)
    assert {problem.path for problem in done.problems} == {b"f", b"link"}
    assert (to / "f").read_text() == "somebody else's"
