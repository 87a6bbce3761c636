"""Placing restored paths: nothing outside the target, nothing half done under its name, everything put back."""

from __future__ import annotations

import os
import stat as stats
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3hashsync.core.model import Entry, Kind
from s3hashsync.disk.metadata import entry_from
from s3hashsync.disk.place import TEMPORARY_PREFIX, Outcome, Placer
from s3hashsync.disk.tree import Seen
from s3hashsync.errors import ChangedUnderfoot, Corrupt, Refused, S3HashSyncError

ODD_NAMES = [b"plain", b"-rf", b"new\nline", b"\xff\xfe", b" ", b"x" * 255, b"*", b"..."]
NS = 1_500_000_000_123_456_789


@pytest.fixture
def target(tmp_path: Path) -> bytes:
    path = os.fsencode(tmp_path) + b"/target"
    os.mkdir(path)
    return path


@pytest.fixture
def outside(tmp_path: Path) -> bytes:
    path = os.fsencode(tmp_path) + b"/outside"
    os.mkdir(path)
    write(path + b"/precious", b"precious")
    return path


def write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def read(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def an(kind: Kind = Kind.FILE, size: int = 0, **more: object) -> Entry:
    values = {"mtime_ns": NS, "mode": 0o644, "uid": os.geteuid(), "gid": os.getegid(), **more}
    return Entry(path=b"p", kind=kind, size=size, ctime_ns=0, inode=0, device=0, **values)  # type: ignore[arg-type]


def nothing() -> None:
    pass


def place(placer: Placer, path: bytes, content: bytes, **more: object) -> Outcome:
    return placer.place_file(path, an(size=len(content), **more), [content] if content else [], nothing)


def names(folder: bytes) -> list[bytes]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ODD_NAMES)
def test_files_with_odd_names(target: bytes, name: bytes, overwrite: bool) -> None:
    with Placer(target, overwrite=overwrite) as placer:
        for path in (name, b"d/" + name, name + b".d"[: 255 - len(name)] if len(name) < 200 else b"other"):
            assert place(placer, path, b"content", mode=0o640) is Outcome.PLACED
            assert read(os.path.join(target, path)) == b"content"
            found = os.lstat(os.path.join(target, path))
            assert (stats.S_IMODE(found.st_mode), found.st_mtime_ns, found.st_nlink) == (0o640, NS, 1)
        assert placer.problems == []
        placer.sync()
    assert not [name for name in names(target) if name.startswith(TEMPORARY_PREFIX)]


def test_the_target_is_made(target: bytes) -> None:
    with Placer(target + b"/new/deep", overwrite=False) as placer:
        place(placer, b"f", b"x")
    assert read(target + b"/new/deep/f") == b"x"


def test_a_tree_with_read_only_folders_and_times(target: bytes) -> None:
    folders = {b"": 0o755, b"a": 0o500, b"a/b": 0o555}
    with Placer(target, overwrite=False) as placer:
        for path in folders:
            placer.make_dir(path)
        assert stats.S_IMODE(os.lstat(target + b"/a").st_mode) == 0o700
        place(placer, b"a/b/f", b"x")
        for path in sorted(folders, reverse=True):
            placer.finish_dir(path, an(Kind.DIRECTORY, mode=folders[path], mtime_ns=-NS))
        assert placer.problems == []
    for path, mode in folders.items():
        found = os.lstat(os.path.join(target, path))
        assert (stats.S_IMODE(found.st_mode), found.st_mtime_ns) == (mode, -NS)


def test_every_kind_comes_back_as_it_was(target: bytes) -> None:
    """What is placed, looked at again, is what was asked for."""
    xattrs = ((b"user.a", b"1"), (b"user.b", b"\0"))
    entries = {
        b"file": an(size=3, mode=0o4711, mtime_ns=-1),
        b"link": an(Kind.SYMLINK, target=b"../no\xffwhere", mode=0o777),
        b"fifo": an(Kind.FIFO, mode=0o620),
        b"socket": an(Kind.SOCKET, mode=0o600),
    }
    if os.geteuid() == 0:
        entries[b"device"] = an(Kind.CHARACTER_DEVICE, rdev=os.makedev(1, 3), mode=0o666)
        entries[b"owned"] = an(size=3, uid=1234, gid=4321, mode=0o6755)
        entries[b"owned-link"] = an(Kind.SYMLINK, target=b"x", uid=1234, gid=4321, mode=0o777)
    if hasattr(os, "setxattr"):
        entries[b"attributes"] = an(size=3, xattrs=xattrs, mode=0o400)
    with Placer(target, overwrite=False) as placer:
        for path, entry in entries.items():
            if entry.kind is Kind.FILE:
                placer.place_file(path, entry, [b"a", b"bc"], nothing)
            elif entry.kind is Kind.SYMLINK:
                placer.place_symlink(path, entry)
            else:
                placer.place_special(path, entry)
        assert placer.problems == []
    for path, entry in entries.items():
        found = entry_from(Seen(path, path, os.lstat(target + b"/" + path)), target)
        own = tuple(pair for pair in found.xattrs if pair[0].startswith(b"user."))
        assert (found.kind, found.size, found.mode, found.mtime_ns, found.uid, found.gid, found.rdev) == (
            entry.kind, entry.size, entry.mode, entry.mtime_ns, entry.uid, entry.gid, entry.rdev,
        )  # fmt: skip
        assert (found.target, own, found.links) == (entry.target, entry.xattrs, 1)


def test_hard_links(target: bytes) -> None:
    with Placer(target, overwrite=False) as placer:
        place(placer, b"a/first", b"content")
        assert placer.place_hardlink(b"b/second", b"a/first") is Outcome.PLACED
        assert placer.place_hardlink(b"b/second", b"a/first") is Outcome.KEPT
        placer.place_symlink(b"link", an(Kind.SYMLINK, target=b"a/first"))
        with pytest.raises(Refused, match="hard link"):
            placer.place_hardlink(b"third", b"link")
        with pytest.raises(S3HashSyncError):
            placer.place_hardlink(b"third", b"missing/first")
    assert os.path.samefile(target + b"/a/first", target + b"/b/second")
    with Placer(target, overwrite=True) as placer:
        assert placer.place_hardlink(b"b/second", b"a/first") is Outcome.PLACED
    assert names(target + b"/b") == [b"second"]
    assert os.lstat(target + b"/a/first").st_nlink == 2


@pytest.mark.parametrize("step", [1, 1000, 4096, 5000, 1 << 20])
@pytest.mark.parametrize(
    "parts",
    [
        [(0, 1 << 18)],
        [(1, 100), (0, 100_000), (1, 5000)],
        [(0, 5000), (1, 1)],
        [(1, 1), (0, 9000)],
        [],
        [(1, 12288)],
    ],
)
def test_sparse_files(target: bytes, parts: list[tuple[int, int]], step: int) -> None:
    content = b"".join(bytes([byte]) * length for byte, length in parts)
    if step == 1:
        content = content[:20_000]
    chunks = [content[at : at + step] for at in range(0, len(content), step)]
    with Placer(target, overwrite=False) as placer:
        placer.place_file(b"f", an(size=len(content), sparse=True), chunks, nothing)
    assert read(target + b"/f") == content
    if content == bytes(1 << 18) and step >= 4096:
        assert os.lstat(target + b"/f").st_blocks * 512 < len(content)


@pytest.mark.parametrize("path", [b"../x", b"a/../../x", b"/etc/x", b"a//x", b"", b".", b"a/", b"a/./x", b"x\0y", b".."])
def test_paths_that_lead_out_are_refused(target: bytes, outside: bytes, path: bytes) -> None:
    with Placer(target, overwrite=True) as placer:
        for attempt in _every_way(placer, path):
            with pytest.raises(Refused, match="no path"):
                attempt()
    assert names(os.path.dirname(target)) == [b"outside", b"target"]
    assert names(target) == []


def _every_way(placer: Placer, path: bytes) -> Iterator[Callable[[], object]]:
    yield lambda: place(placer, path, b"evil")
    yield lambda: placer.place_symlink(path, an(Kind.SYMLINK, target=b"x"))
    yield lambda: placer.place_special(path, an(Kind.FIFO))
    yield lambda: placer.place_hardlink(path, b"x")
    yield lambda: placer.place_hardlink(b"hard", path)
    if path:
        yield lambda: placer.make_dir(path)
        yield lambda: placer.finish_dir(path, an(Kind.DIRECTORY))


def test_a_symlink_among_the_folders_is_never_followed(target: bytes, outside: bytes) -> None:
    os.symlink(outside, target + b"/a")
    with Placer(target, overwrite=False) as placer:
        for path in (b"a/x", b"a/b/x", b"a/precious"):
            with pytest.raises(Refused, match="no folder"):
                place(placer, path, b"evil")
        with pytest.raises(Refused):
            placer.make_dir(b"a")
        for attempt in (
            lambda: placer.finish_dir(b"a", an(Kind.DIRECTORY, mode=0)),
            lambda: placer.place_hardlink(b"hard", b"a/precious"),
        ):
            with pytest.raises(S3HashSyncError):
                attempt()
    assert names(outside) == [b"precious"]
    assert os.path.islink(target + b"/a")
    with Placer(target, overwrite=True) as placer:
        place(placer, b"a/precious", b"mine")
    assert read(outside + b"/precious") == b"precious"
    assert read(target + b"/a/precious") == b"mine"
    assert not os.path.islink(target + b"/a")


def test_a_symlink_that_the_snapshot_itself_brings_is_never_followed(target: bytes, outside: bytes) -> None:
    with Placer(target, overwrite=False) as placer:
        place(placer, b"a/first", b"x")
        placer.place_symlink(b"b", an(Kind.SYMLINK, target=outside))
        placer.place_symlink(b"f", an(Kind.SYMLINK, target=outside + b"/precious"))
        with pytest.raises(Refused):
            place(placer, b"b/precious", b"evil")
        assert place(placer, b"f", b"evil") is Outcome.KEPT
    with Placer(target, overwrite=True) as placer:
        place(placer, b"f", b"mine", mode=0o600)
        placer.make_dir(b"b")
    assert read(outside + b"/precious") == b"precious"
    assert read(target + b"/f") == b"mine"
    assert not os.path.islink(target + b"/b")


def test_without_overwrite_what_is_there_stays(target: bytes) -> None:
    write(target + b"/f", b"old")
    os.mkdir(target + b"/d")
    os.symlink(b"nowhere", target + b"/l")

    def never() -> Iterator[bytes]:
        raise AssertionError("nobody should ask for the content")
        yield b""

    with Placer(target, overwrite=False) as placer:
        for name in (b"f", b"d", b"l"):
            assert placer.place_file(name, an(size=1), never(), nothing) is Outcome.KEPT
            assert placer.place_symlink(name, an(Kind.SYMLINK, target=b"x")) is Outcome.KEPT
            assert placer.place_special(name, an(Kind.FIFO)) is Outcome.KEPT
        assert placer.make_dir(b"d") is Outcome.KEPT
        with pytest.raises(Refused) as caught:
            placer.make_dir(b"f")
        assert "--overwrite" in str(caught.value.hint)
    assert read(target + b"/f") == b"old"
    assert names(target) == [b"d", b"f", b"l"]


def test_what_appears_while_a_file_is_written_stays(target: bytes) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"ours"
        write(target + b"/f", b"theirs")

    with Placer(target, overwrite=False) as placer:
        assert placer.place_file(b"f", an(size=4), chunks(), nothing) is Outcome.KEPT
    assert read(target + b"/f") == b"theirs"
    assert names(target) == [b"f"]


def test_with_overwrite_everything_is_replaced(target: bytes) -> None:
    write(target + b"/f", b"old")
    write(target + b"/was-file", b"old")
    os.mkdir(target + b"/empty")
    os.makedirs(target + b"/full/x")
    os.symlink(b"nowhere", target + b"/l")
    with Placer(target, overwrite=True) as placer:
        for name in (b"f", b"empty", b"l"):
            assert place(placer, name, b"new") is Outcome.PLACED
            assert read(target + b"/" + name) == b"new"
        with pytest.raises(S3HashSyncError, match="full"):
            place(placer, b"full", b"new")
        assert placer.make_dir(b"was-file") is Outcome.PLACED
        place(placer, b"f/inside", b"a file became a folder")
    assert read(target + b"/f/inside") == b"a file became a folder"
    assert names(target) == [b"empty", b"f", b"full", b"l", b"was-file"]


class _Crash(BaseException):
    pass


@pytest.mark.parametrize("error", [Corrupt, ChangedUnderfoot, _Crash])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_file_that_is_not_right_gets_no_name(target: bytes, error: type[BaseException], old: bytes | None) -> None:
    if old is not None:
        write(target + b"/f", old)

    def wrong() -> None:
        assert [stats.S_IMODE(os.lstat(target + b"/" + name).st_mode) for name in names(target) if name != b"f"] == [0o600]
        raise error("wrong")

    with Placer(target, overwrite=True) as placer, pytest.raises(error):
        placer.place_file(b"f", an(size=1, mode=0o666), [b"x"], wrong)
    assert names(target) == ([] if old is None else [b"f"])
    assert old is None or read(target + b"/f") == old


@pytest.mark.parametrize("chunks", [[b"123"], [b"12345"], [b"1234", b"5"], []])
@pytest.mark.parametrize("sparse", [False, True])
def test_another_size_than_expected_is_corrupt(target: bytes, chunks: list[bytes], sparse: bool) -> None:
    with Placer(target, overwrite=False) as placer, pytest.raises(Corrupt, match="4 bytes"):
        placer.place_file(b"f", an(size=4, sparse=sparse), chunks, nothing)
    assert names(target) == []


def test_a_file_that_unfolds_without_end_is_stopped(target: bytes) -> None:
    written = 0

    def endless() -> Iterator[bytes]:
        nonlocal written
        while True:
            written += 1
            yield b"x" * 1000

    with Placer(target, overwrite=False) as placer, pytest.raises(Corrupt):
        placer.place_file(b"f", an(size=2500), endless(), nothing)
    assert written == 3


def test_temporary_names_of_a_crash_are_not_touched(target: bytes) -> None:
    for number in range(3):
        write(target + b"/%b%d-%d" % (TEMPORARY_PREFIX, os.getpid(), number), b"left")
    with Placer(target, overwrite=False) as placer:
        assert place(placer, b"f", b"x") is Outcome.PLACED
    assert read(target + b"/f") == b"x"
    assert len(names(target)) == 4


def test_no_descriptor_is_left_open(target: bytes) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts the open files in /proc")
    before = len(os.listdir("/proc/self/fd"))
    os.symlink(b"x", target + b"/l")
    with Placer(target, overwrite=False) as placer:
        for path in (b"a/b/c", b"a/d", b"l/x", b"../x"):
            try:
                place(placer, path, b"x")
                placer.place_hardlink(path + b".hard", path)
            except Refused:
                continue
    assert len(os.listdir("/proc/self/fd")) == before


def as_nobody(target: bytes, work: Callable[[Placer], object], *, overwrite: bool = False) -> str:
    """What `work` returns, or its exception, in a process that is not root and owns the target."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "nothing"
        try:
            os.chdir(target)
            if os.geteuid() == 0:
                os.chown(target, 65534, 65534)
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            with Placer(b".", overwrite=overwrite) as placer:
                answer = f"{work(placer)} {[str(problem) for problem in placer.problems]}"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(into, answer.encode())
            os._exit(0)
    os.close(into)
    with open(out) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root")
def test_whoever_is_not_root_gets_the_files_as_his_own(target: bytes) -> None:
    def work(placer: Placer) -> str:
        place(placer, b"mine", b"x", uid=65534, gid=65534, mode=0o4755)
        place(placer, b"roots", b"x", uid=0, gid=0, mode=0o640)
        place(placer, b"setuid", b"x", uid=0, gid=0, mode=0o4755)
        placer.place_symlink(b"link", an(Kind.SYMLINK, target=b"x", uid=0, gid=0))
        return "done"

    answer = as_nobody(target, work)
    assert answer.startswith("done ["), answer
    assert (answer.count("setuid and setgid"), answer.count("p:")) == (1, 1), answer
    found = {name: os.lstat(target + b"/" + name) for name in names(target)}
    assert {name: stat.st_uid for name, stat in found.items()} == dict.fromkeys(found, 65534)
    modes = {name: stats.S_IMODE(stat.st_mode) for name, stat in found.items() if name != b"link"}
    assert modes == {b"mine": 0o4755, b"roots": 0o640, b"setuid": 0o755}


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root")
def test_read_only_folders_without_being_root_twice(target: bytes) -> None:
    def work(placer: Placer) -> str:
        placer.make_dir(b"closed")
        place(placer, b"closed/f", b"x", uid=65534, gid=65534, mode=0o400, xattrs=((b"user.a", b"1"),))
        placer.finish_dir(b"closed", an(Kind.DIRECTORY, mode=0o500, uid=65534, gid=65534))
        return "done"

    assert as_nobody(target, work) == "done []"
    assert as_nobody(target, work, overwrite=True) == "done []"
    assert stats.S_IMODE(os.lstat(target + b"/closed").st_mode) == 0o500
    assert read(target + b"/closed/f") == b"x"


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root")
def test_what_only_root_may_do_is_an_error_with_the_path(target: bytes) -> None:
    device = an(Kind.BLOCK_DEVICE, rdev=os.makedev(8, 0))
    answer = as_nobody(target, lambda placer: placer.place_special(b"d/sda", device))
    assert answer == "S3HashSyncError: ./d/sda could not be restored: Operation not permitted"
    assert names(target + b"/d") == []


def test_metadata_that_cannot_be_put_back_is_a_problem_with_a_name(target: bytes) -> None:
    if not hasattr(os, "setxattr"):
        pytest.skip("no extended attributes here")
    with Placer(target, overwrite=False) as placer:
        assert place(placer, b"f", b"x", xattrs=((b"nonsense.a", b"1"),)) is Outcome.PLACED
        assert len(placer.problems) == 1
        assert str(placer.problems[0]).startswith("p: extended attribute nonsense.a could not be restored: ")
    assert read(target + b"/f") == b"x"
