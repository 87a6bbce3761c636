"""Restoring: what comes back is what was there, nothing wrong gets a name, and nothing is touched that should stay."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s3hashsync.config import S3Url
from s3hashsync.config.model import PackSettings
from s3hashsync.core.model import Entry, Kind, ObjectAt, Rev
from s3hashsync.core.restore_plan import Conflict, CopyFile, PlaceFile, RestorePlan
from s3hashsync.core.selection import name_matcher, parse_selection, path_matcher
from s3hashsync.errors import Archived, ExitCode, Interrupted, S3HashSyncError, Unreachable, UsageError
from s3hashsync.run.history import CHANGES, Line, Present, SegmentHeader, SegmentWriter, segment_key, store_segment
from s3hashsync.run.progress import Silent
from s3hashsync.run.repository import control_item
from s3hashsync.run.restore import Restored, RestoreOptions, apply_restore, planned_restore
from s3hashsync.run.snapshots import find_head
from s3hashsync.stores.base import Index, ObjectStore, Write
from s3hashsync.stores.sqlite import SqliteIndex
from tests.harness import SOURCE, House

OLD = -1_000_000_123_456_789
NS = 1_500_000_000_123_456_789
ODD = [b"plain", b"-rf", b"new\nline", b"\xff\xfe", b" ", b"x" * 255, b"[a]*?", b"...", "müll".encode()]


STORED: dict[str, dict[str, Any]] = {
    "objects": {},
    "packs": {"pack": PackSettings(below=256 << 10, size=1 << 20)},
    "encrypted packs": {"pack": PackSettings(below=256 << 10, size=1 << 20), "encryption": True},
}
however_stored = pytest.mark.parametrize("house", STORED, indirect=True)


@pytest.fixture
def house(tmp_path: Path, request: pytest.FixtureRequest) -> House:
    """Each content an object, unless a test asks for more."""
    return House(tmp_path / "house", **STORED[getattr(request, "param", "objects")]).init()


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "restored"


def restore(house: House, *selections: str, **options: Any) -> Restored:
    if isinstance(options.get("to"), Path):
        options["to"] = str(options["to"])
    with house.job() as job, planned_restore(job, selections or (SOURCE,), RestoreOptions(**options)) as work:
        return apply_restore(job, work)


def plan(house: House, *selections: str, **options: Any) -> RestorePlan:
    with house.job() as job, planned_restore(job, selections or (SOURCE,), RestoreOptions(**options)) as work:
        return replace(work.plan, steps=iter(list(work.plan.steps())).__iter__)


def make_odd_tree(root: Path) -> None:
    top = os.fsencode(root)
    for number, name in enumerate(ODD):
        write(top + b"/" + name, b"content %d" % number)
        os.utime(top + b"/" + name, ns=(NS + number, OLD + number))
    os.makedirs(root / "a/b/c/empty")
    (root / "a/empty").write_bytes(b"")
    (root / "a/twin").write_bytes(b"content 0")
    (root / "a/big").write_bytes(os.urandom(5 << 18) * 4)
    with open(root / "sparse", "wb") as file:
        file.truncate(5 << 20)
        file.seek(3 << 20)
        file.write(b"in the middle")
    os.symlink("/nowhere/at all", root / "dangling")
    os.symlink(b"\xff../a", root / "a/odd-link")
    os.link(root / "a/big", root / "zz-hard")
    os.link(root / "a/big", root / "a/b/hard")
    os.mkfifo(root / "fifo", 0o640)
    (root / "suid").write_bytes(b"#!")
    os.chmod(root / "suid", 0o6755)
    os.mkdir(root / "sticky")
    os.chmod(root / "sticky", 0o3775)
    with suppress(OSError):
        os.setxattr(root / "a/twin", "user.note", b"\0\xffbinary")
        os.setxattr(root / "a", "user.folder", b"yes")
    os.mkdir(root / "readonly")
    (root / "readonly/inside").write_bytes(b"locked away")
    os.chmod(root / "readonly/inside", 0)
    os.chmod(root / "readonly", 0o555)
    os.chmod(root, 0o751)
    for folder, _, _ in os.walk(top, topdown=False):
        os.utime(folder, ns=(NS, OLD - len(folder)))


def write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def tree(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that a restore has to bring back."""
    top = os.fsencode(root)
    inodes: dict[int, bytes] = {}
    return dict(described(path, top, inodes) for path in sorted(walk(top)))


def walk(top: bytes) -> Iterator[bytes]:
    yield top
    for folder, folders, files in os.walk(top):
        yield from (os.path.join(folder, name) for name in (*folders, *files))


def described(path: bytes, top: bytes, inodes: dict[int, bytes]) -> tuple[bytes, tuple[object, ...]]:
    name, info = os.path.relpath(path, top), os.lstat(path)
    content: object = None
    if stat.S_ISREG(info.st_mode):
        mode = stat.S_IMODE(info.st_mode)
        os.chmod(path, mode | 0o400) if not mode & 0o400 else None
        with open(path, "rb") as file:
            content = hashlib.sha256(file.read()).hexdigest(), inodes.setdefault(info.st_ino, name)
        os.chmod(path, mode)
    elif stat.S_ISLNK(info.st_mode):
        content = os.readlink(path)
    attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}
    return name, (oct(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns, content, str(attributes))


def assert_same(one: Path, other: Path) -> None:
    a, b = tree(one), tree(other)
    assert set(a) == set(b)
    assert {k: (a[k], b[k]) for k in a if a[k] != b[k]} == {}


def assert_clean(done: Restored) -> None:
    assert (done.problems, done.warnings, done.thaw) == ((), (), None)


# Whole


@however_stored
@pytest.mark.parametrize("threads", [1, 4])
def test_everything_comes_back(house: House, to: Path, threads: int) -> None:
    make_odd_tree(house.source)
    house.backup()
    house.forget_state()
    done = restore(replace(house, threads=threads), to=to)
    assert_clean(done)
    assert_same(house.source, to)
    assert os.stat(to / "sparse").st_blocks * 512 < 1 << 20
    assert done.summary.files_restored == len(ODD) + 6
    assert (done.summary.links, done.summary.special, done.summary.directories) == (4, 1, 7)


@however_stored
@pytest.mark.parametrize("overwrite", [False, True])
def test_again_changes_nothing(house: House, to: Path, overwrite: bool) -> None:
    make_odd_tree(house.source)
    house.backup()
    restore(house, to=to)
    before = {path: os.lstat(path).st_ino for path in walk(os.fsencode(to))}
    done = restore(house, to=to, overwrite=overwrite)
    assert_clean(done)
    assert (done.summary.files_restored, done.summary.files_kept) == (0, 0)
    assert {path: os.lstat(path).st_ino for path in walk(os.fsencode(to))} == before
    assert_same(house.source, to)


def test_the_same_content_is_fetched_once(house: House, to: Path) -> None:
    for name in ("a", "b", "c"):
        house.write(name, "the same")
    house.backup()
    steps = list(plan(house, to=str(to)).steps())
    assert [type(step) for step in steps if step.entry.path] == [PlaceFile, CopyFile, CopyFile]
    assert_clean(restore(house, to=to))
    assert_same(house.source, to)


@however_stored
def test_several_sources_lie_side_by_side_and_one_right_under_the_folder(house: House, to: Path) -> None:
    music = replace(house, source_name="music")
    house.write("a", "photo")
    music.write("b", "song")
    house.backup()
    music.backup()
    with house.job() as job, planned_restore(job, (), RestoreOptions(to=str(to))) as work:
        assert_clean(apply_restore(job, work))
    assert_same(house.source, to / SOURCE)
    assert_same(music.source, to / "music")
    restore(house, "music", to=to / "one")
    assert_same(music.source, to / "one")


@however_stored
def test_an_existing_empty_target_is_used(house: House, to: Path) -> None:
    make_odd_tree(house.source)
    house.backup()
    to.mkdir()
    assert_clean(restore(house, to=to))
    assert_same(house.source, to)


# Selections


@however_stored
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/x.txt", ["a/x.txt"]),
        ("/a/x.txt", ["a/x.txt"]),
        ("a", ["a/b/y.txt", "a/x.txt"]),
        ("a/", ["a/b/y.txt", "a/x.txt"]),
        ("*.txt", ["top.txt"]),
        ("**/*.txt", ["a/b/y.txt", "a/x.txt", "top.txt"]),
        ("?/b", ["a/b/y.txt"]),
        ("a/**", ["a/b/y.txt", "a/x.txt"]),
        ("[1]*", ["[1]*"]),
    ],
)
def test_selections(house: House, to: Path, pattern: str, expected: list[str]) -> None:
    for name in ("a/x.txt", "a/b/y.txt", "top.txt", "ab", "[1]*", "[1]-other"):
        house.write(name, name)
    os.utime(house.source / "a", ns=(NS, NS))
    os.chmod(house.source / "a", 0o710)
    house.backup()
    assert_clean(restore(house, f"{SOURCE}:{pattern}", to=to))
    files = sorted(str(p.relative_to(to)) for p in to.rglob("*") if p.is_file())
    assert files == expected
    if (to / "a").exists():
        assert (stat.S_IMODE((to / "a").stat().st_mode), (to / "a").stat().st_mtime_ns) == (0o710, NS)


def test_several_selections_of_one_source_are_one_source(house: House, to: Path) -> None:
    for name in ("a", "b", "c"):
        house.write(name, name)
    house.backup()
    restore(house, f"{SOURCE}:a", f"{SOURCE}:c", to=to)
    assert sorted(os.listdir(to)) == ["a", "c"]


@pytest.mark.parametrize("name", ["nothing", f"{SOURCE}:nothing", f"{SOURCE}:*.none", ":a", "..", "../x:y"])
def test_what_is_not_there_is_said(house: House, to: Path, name: str) -> None:
    house.write("a", "a")
    house.backup()
    with pytest.raises(UsageError) as caught:
        restore(house, name, to=to)
    assert caught.value.hint is not None
    assert not to.exists()


def test_matching() -> None:
    assert path_matcher(b"a/*", below=False)(b"a/b")
    assert not path_matcher(b"a/*", below=False)(b"a/b/c")
    assert path_matcher(b"a/*", below=True)(b"a/b/c")
    assert path_matcher(b"**/c", below=False)(b"c")
    assert path_matcher(b"a/**/c", below=False)(b"a/c")
    assert path_matcher(b"**", below=False)(b"a\nb/c")
    assert path_matcher(b"?", below=False)("ü".encode())
    assert path_matcher(b"?", below=False)(b"\xff")
    assert name_matcher(b"*.txt")(b"deep/in/x.txt")
    assert parse_selection("s:\udcff/").pattern == b"\xff"


# Times


@however_stored
def test_older_states(house: House, to: Path) -> None:
    house.write("a", "first")
    house.write("gone", "gone later")
    house.backup()
    first = tree(house.source)
    later = house.again(ahead=house.ahead + 100)
    later.write("a", "second")
    (house.source / "gone").unlink()
    later.backup()
    restore(house, to=to / "then", at=house.clock() + 50)
    restore(house, to=to / "now")
    assert tree(to / "then") == first
    assert_same(house.source, to / "now")
    with pytest.raises(UsageError, match="no backup yet"):
        restore(house, to=to / "never", at=1000.0)


# Existing files


def test_existing_files_are_kept(house: House, to: Path) -> None:
    for name in ("same", "mine", "folder/x", "link"):
        house.write(name, name)
    os.utime(house.source / "same", ns=(NS, NS))
    house.backup()
    to.mkdir()
    (to / "mine").write_text("do not touch")
    (to / "folder").mkdir()
    (to / "folder/mine").write_text("neither")
    os.chmod(to / "folder", 0o711)
    os.symlink("/etc/passwd", to / "link")
    done = restore(house, to=to)
    assert_clean(done)
    assert ((to / "mine").read_text(), os.readlink(to / "link")) == ("do not touch", "/etc/passwd")
    assert (to / "folder/x").read_text() == "folder/x"
    assert stat.S_IMODE((to / "folder").stat().st_mode) == 0o711
    assert (done.summary.files_restored, done.summary.files_kept) == (2, 2)


@however_stored
def test_existing_files_are_replaced_with_overwrite(house: House, to: Path) -> None:
    make_odd_tree(house.source)
    house.backup()
    restore(house, to=to)
    write(os.fsencode(to) + b"/plain", b"CONTENT 0")
    os.utime(to / "plain", ns=(NS, OLD))  # size and time do not tell
    os.chmod(to / "a/twin", 0o600)
    os.utime(to / "a/twin", ns=(1, 1))
    os.unlink(to / "zz-hard")
    (to / "zz-hard").write_bytes((to / "a/big").read_bytes())
    os.unlink(to / "dangling")
    os.mkdir(to / "dangling")
    os.unlink(to / "fifo")
    os.symlink("/etc", to / "fifo")
    os.rmdir(to / "a/b/c/empty")
    os.symlink("/etc", to / "a/b/c/empty")
    done = restore(house, to=to, overwrite=True)
    assert_clean(done)
    assert_same(house.source, to)
    assert done.summary.files_restored == 2


def test_something_in_the_way_is_reported_with_all_below(house: House, to: Path) -> None:
    house.write("folder/x", "x")
    house.write("y", "y")
    house.backup()
    to.mkdir()
    (to / "folder").write_text("a file")
    done = restore(house, to=to)
    assert sorted(problem.path for problem in done.problems) == [b"folder", b"folder/x"]
    assert ((to / "folder").read_text(), (to / "y").read_text()) == ("a file", "y")
    assert_clean(restore(house, to=to, overwrite=True))
    assert_same(house.source, to)


@however_stored
def test_in_place(house: House) -> None:
    make_odd_tree(house.source)
    house.backup()
    before = tree(house.source)
    os.unlink(house.source / "plain")
    os.utime(house.source, ns=(OLD - len(os.fsencode(house.source)),) * 2)
    assert_clean(restore(house))
    assert tree(house.source) == before
    with pytest.raises(UsageError, match="is not in"):
        restore(replace(house, source_name="other"))


# Interrupted


class Stops(Silent):
    """Asks to stop after so many files."""

    def __init__(self, house: House, after: int) -> None:
        self._house = house
        self._left = after

    def advance(self, files: int, bytes_: int) -> None:
        self._left -= bool(bytes_)
        if self._left <= 0:
            self._house.stop.set()


@however_stored
@pytest.mark.parametrize("after", [1, 3, 8])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_restore_goes_on(house: House, to: Path, after: int, overwrite: bool) -> None:
    make_odd_tree(house.source)
    house.backup()
    options = RestoreOptions(to=str(to), overwrite=overwrite)
    first = house.again(threads=3)
    with (
        first.job() as job,
        planned_restore(replace(job, progress=Stops(first, after)), [SOURCE], options) as work,
        pytest.raises(Interrupted),
    ):
        apply_restore(replace(job, progress=Stops(first, after)), work)
    assert stat.S_IMODE(to.stat().st_mode) == 0o700
    done = restore(house.again(), to=to, overwrite=overwrite)
    assert_clean(done)
    assert done.summary.files_unchanged >= 1
    assert_same(house.source, to)


# Damage


def object_of(house: House, content: bytes) -> Path:
    name = hashlib.sha256(content).hexdigest()
    (path,) = (house.folder / "repository/objects" / name[:2]).glob(f"{name}.*")
    return path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    rewrite(path, bytes(data))


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("what", ["flip", "cut", "longer", "exchange", "empty", "gone"])
def test_a_damaged_object_is_reported_and_the_rest_restored(house: House, to: Path, what: str, threads: int) -> None:
    for number in range(40):
        house.write(f"f{number:02}", f"content {number}")
    house.write("twin", "content 7")
    house.backup()
    victim, other = object_of(house, b"content 7"), object_of(house, b"content 8")
    match what:
        case "flip":
            flip(victim)
        case "cut":
            rewrite(victim, victim.read_bytes()[:-3])
        case "longer":
            rewrite(victim, victim.read_bytes() + b"x")
        case "exchange":
            rewrite(victim, other.read_bytes())
        case "empty":
            rewrite(victim, b"")
        case "gone":
            victim.unlink()
    done = restore(replace(house, threads=threads), to=to)
    assert sorted(problem.path for problem in done.problems) == [b"f07", b"twin"]
    for problem in done.problems:
        assert hashlib.sha256(b"content 7").hexdigest() in problem.message
        assert ("lost" if what == "gone" else "damaged") in problem.message
    names = sorted(os.listdir(to))
    assert names == sorted(set(os.listdir(house.source)) - {"f07", "twin"})
    assert done.summary.problems == 2


def test_with_overwrite_a_damaged_object_leaves_what_is_there(house: House, to: Path) -> None:
    house.write("a", "right")
    os.link(house.source / "a", house.source / "b")
    house.backup()
    flip(object_of(house, b"right"))
    to.mkdir()
    (to / "a").write_text("mine")
    done = restore(house, to=to, overwrite=True)
    assert len(done.problems) == 2
    assert ((to / "a").read_text(), os.listdir(to)) == ("mine", ["a"])


def test_what_was_stored_anew_elsewhere_is_found_by_the_index(house: House, to: Path) -> None:
    house.write("a", "moved")
    house.backup()
    path = object_of(house, b"moved")
    anew = path.with_name(f"{path.name.partition('.')[0]}.{'ab' * 8}")
    path.rename(anew)
    with house.repository() as repository:
        key = hashlib.sha256(b"moved").hexdigest()
        record: Any = repository.index.read([key])[key]
        write_ = Write(replace(record, rev=Rev(b"another rev."), location=ObjectAt("ab" * 8)), record.rev)
        assert repository.index.write([write_])[0].written
    assert_clean(restore(house, to=to))
    assert (to / "a").read_text() == "moved"


# Stores that do not give


class Reading:
    """A store of which reading a content is something else."""

    def __init__(self, store: ObjectStore, read: Callable[..., Iterator[bytes]]) -> None:
        self._store = store
        self.read = read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def failing(error: Callable[[], S3HashSyncError], *but: str) -> Callable[[ObjectStore, Index], tuple[Any, Index]]:
    def wrap(objects: ObjectStore, index: Index) -> tuple[Any, Index]:
        def read(stem: str, version: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
            if stem not in but:
                raise error()
            return objects.read(stem, version, start, length)

        return Reading(objects, read), index

    return wrap


def test_what_has_to_be_thawed_is_said_at_the_end(house: House, to: Path) -> None:
    for name in ("a", "b", "c"):
        house.write(name, f"content of {name}")
    house.write("twin", "content of b")
    house.backup()
    stem = f"objects/{hashlib.sha256(b'content of a').hexdigest()}"
    done = restore(replace(house, wrap=failing(lambda: Archived("archived"), stem)), to=to)
    assert os.listdir(to) == ["a"]
    assert done.problems == ()
    assert done.thaw is not None
    assert (len(done.thaw.objects), sorted(file.path for file in done.thaw.files)) == (2, [b"b", b"c", b"twin"])
    config = house.config()
    config = replace(config, repository=replace(config.repository, objects=S3Url("bucket", "some/prefix"), region="eu-north-1"))
    with house.repository() as repository:
        suffixed = done.thaw.error(config, repository.identity)
        versioned = done.thaw.error(config, replace(repository.identity, versions="store"))
    assert suffixed.exit_code is ExitCode.THAW_PENDING
    one = done.thaw.objects[0].at
    begin = f"aws s3api restore-object --bucket bucket --key some/prefix/{one.stem}"
    end = "--restore-request 'Days=14,GlacierJobParameters={Tier=Bulk}' --region eu-north-1"
    assert f"{begin}.{one.version} " in str(suffixed.hint)
    assert str(versioned.hint).endswith(f"{begin} --version-id {one.version} {end}")
    assert_clean(restore(house, to=to))
    assert_same(house.source, to)


@however_stored
def test_a_store_that_is_away_ends_the_restore(house: House, to: Path) -> None:
    for number in range(100):
        house.write(f"f{number}", f"content {number}")
    house.backup()
    with pytest.raises(Unreachable):
        restore(replace(house, wrap=failing(lambda: Unreachable("away"))), to=to)
    assert os.listdir(to) == []
    assert_clean(restore(house, to=to))
    assert_same(house.source, to)


# Logs that are forged, or not where the index says


def entry(path: bytes, kind: Kind = Kind.FILE, **more: Any) -> Entry:
    values: dict[str, Any] = {"size": 0, "mtime_ns": NS, "mode": 0o755, "uid": os.geteuid(), "gid": os.getegid(), **more}
    return Entry(path=path, kind=kind, ctime_ns=0, inode=0, device=0, **values)


def forge(house: House, lines: list[Line], source: str = SOURCE, **fields: Any) -> str:
    with house.repository() as repository:
        identity = repository.identity
        header = SegmentHeader(
            kind=CHANGES,
            repository=identity.id,
            incarnation=identity.incarnation,
            source=source,
            root="/",
            host="laptop",
            run="20990101T000000Z-ffffffff",
            number=1,
            previous="",
            time=house.clock(),
            scanned_ns=0,
        )
        header = replace(header, **fields)
        writer = SegmentWriter(repository.keys, source)
        for line in lines:
            writer.add(line)
        key = segment_key(source, header.run, header.number)
        store_segment(repository.objects, key, writer.finish(header))
        return key


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_forged_log_does_not_lead_outside(house: House, to: Path, tmp_path: Path, overwrite: bool) -> None:
    house.write("good", "good")
    house.backup()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    with house.repository() as repository:
        head = find_head(repository, SOURCE)
    bad = [b"../escaped", b"/" + os.fsencode(tmp_path) + b"/escaped", b"a/../../escaped", b"nul\0byte", b"..", b"x//y", b"./z"]
    lines: list[Line] = [Present(entry(path), None, None, None) for path in bad]
    lines += [Present(entry(b"out", Kind.SYMLINK, target=os.fsencode(outside)), None, None, None)]
    lines += [Present(entry(b"out/escaped"), None, None, None), Present(entry(b"out/sub", Kind.DIRECTORY), None, None, None)]
    lines += [Present(entry(b"out/precious", Kind.SYMLINK, target=b"gone"), None, None, None)]
    forge(house, lines, previous=head)
    done = restore(house, to=to, overwrite=overwrite)
    assert (to / "good").read_text() == "good"
    assert os.listdir(outside) == ["precious"]
    assert (outside / "precious").read_text() == "precious"
    assert not list(tmp_path.glob("**/*escaped")) or overwrite
    assert {problem.path for problem in done.problems} >= set(bad)
    assert set(os.listdir(tmp_path)) == {"house", "outside", "restored"}


def test_a_content_without_a_place_is_a_conflict(house: House, to: Path) -> None:
    house.write("good", "good")
    house.backup()
    with house.repository() as repository:
        head = find_head(repository, SOURCE)
    forge(house, [Present(entry(b"nowhere", size=5), hash_ := hashlib.sha256(b"12345").digest(), hash_, None)], previous=head)  # type: ignore[arg-type]
    steps = list(plan(house, to=str(to)).steps())
    assert [step.entry.path for step in steps if isinstance(step, Conflict)] == [b"nowhere"]
    assert [problem.path for problem in restore(house, to=to).problems] == [b"nowhere"]


def test_a_segment_stored_just_before_a_crash_counts(house: House, to: Path) -> None:
    house.write("a", "a")
    house.backup()
    with house.repository() as repository:
        head = find_head(repository, SOURCE)
    forge(house, [Present(entry(b"new"), None, None, None)], previous=head, run="20980101T000000Z-00000000")
    forge(house, [Present(entry(b"stray"), None, None, None)], previous="runs/photos/20970101T000000Z-00000000.000001")
    restore(house, to=to)
    assert sorted(os.listdir(to)) == ["a", "new"]


def test_a_log_of_another_source_is_not_believed(house: House, to: Path) -> None:
    house.write("a", "a")
    house.backup()
    with house.repository() as repository:
        head = find_head(repository, SOURCE)
    forge(house, [Present(entry(b"x"), None, None, None)], source="other", previous=head)
    with pytest.raises(S3HashSyncError, match="does not belong"):
        restore(house, "other", to=to)


def test_without_an_index_the_newest_log_counts(house: House, to: Path) -> None:
    for number in range(3):
        house.again(ahead=house.ahead + number * 100).write("a", f"content {number}")
        house.again(ahead=house.ahead + number * 100).backup()
    with house.repository() as repository:
        identity = repository.identity
    for path in (house.folder / "repository").glob("index.db*"):
        path.unlink()
    index = SqliteIndex(str(house.folder / "repository/index.db"), create=True)
    index.write([Write(control_item(identity, Rev(b"123456789012")), None)])
    index.close()
    assert_clean(restore(house, to=to))
    assert_same(house.source, to)
    with house.job() as job, planned_restore(job, (), RestoreOptions(to=str(to / "all"))) as work:
        assert [source.name for source in work.plan.sources] == [SOURCE]


def test_the_plan_says_what_it_costs(house: House, to: Path) -> None:
    for name in ("a", "b", "c"):
        house.write(name, name * 1000)
    house.write("twin", "a" * 1000)
    house.backup()
    totals = plan(house, to=str(to)).totals
    assert (totals.files, totals.bytes, totals.directories) == (4, 4000, 1)
    assert (totals.classes["STANDARD"].objects, totals.classes["STANDARD"].stored < 200) == (3, True)
    assert not to.exists()
