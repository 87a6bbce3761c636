"""The walk, with real files: order, odd names, what is excluded, what cannot be read, what vanishes; and metadata."""

from __future__ import annotations

import os
import socket
import stat as stats
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3hashsync.core.ignore import Rules
from s3hashsync.core.model import Entry, Kind
from s3hashsync.disk.folder import CACHE_SIGNATURE
from s3hashsync.disk.metadata import entry_from, group_name, owner_name, same_metadata
from s3hashsync.disk.tree import (
    Excluded,
    Explanation,
    Item,
    Seen,
    Unreadable,
    WalkOptions,
    check_root,
    walk,
    why,
)
from s3hashsync.errors import ChangedUnderfoot, Refused

ODD_NAMES = [
    b"-rf",
    b"new\nline",
    b"\xff\xfe",
    b" ",
    b"x" * 255,
    b"\xc3\xa9",
    b"a\\b",
    b"\x01",
    b"*",
    b"\xf0\x9f\x98\x80",
]


@pytest.fixture
def root(tmp_path: Path) -> bytes:
    path = os.fsencode(tmp_path) + b"/root"
    os.mkdir(path)
    return path


def make(root: bytes, *paths: bytes, content: bytes = b"") -> None:
    """Files, and folders where the path ends with a slash."""
    for path in paths:
        full = os.path.join(root, path)
        os.makedirs(full if path.endswith(b"/") else os.path.dirname(full), exist_ok=True)
        if not path.endswith(b"/"):
            with open(full, "wb") as file:
                file.write(content)


def paths(root: bytes, options: WalkOptions | None = None) -> list[bytes]:
    return [item.path for item in walk(root, options or WalkOptions()) if isinstance(item, Seen)]


def as_nobody(root: bytes, work: Callable[[], str]) -> str:
    """What `work` returns in a process that is not root. It finds itself in the root's folder."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "nothing"
        try:
            os.chdir(root)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            answer = work()
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


def shown(items: Iterator[Item]) -> str:
    return " ".join(f"{type(item).__name__}:{os.fsdecode(item.path)}" for item in items)


def test_order_is_that_of_the_keys(root: bytes) -> None:
    make(
        root,
        b"a/x",
        b"a.txt",
        b"a/b/y",
        b"a b",
        b"a\x01",
        b"ab/",
        b"b",
        *ODD_NAMES,
        *[b"d/" + n for n in ODD_NAMES],
    )
    items = list(walk(root, WalkOptions()))
    assert all(isinstance(item, Seen) for item in items)
    keys = [item.key for item in items]
    assert keys == sorted(keys)
    assert all(item.key == item.path.replace(b"/", b"\0") for item in items)
    found = {item.path for item in items}
    expected = {b""}
    for folder, folders, files in os.walk(root):
        expected |= {os.path.relpath(os.path.join(folder, name), root) for name in folders + files}
    assert found == expected


def test_the_root_comes_first_and_may_be_a_symlink(root: bytes) -> None:
    make(root, b"f")
    os.symlink(root, root + b".link")
    first, second = walk(root + b".link", WalkOptions())
    assert isinstance(first, Seen)
    assert (first.path, second.path) == (b"", b"f")
    assert stats.S_ISDIR(first.stat.st_mode)


def test_symlinks_are_not_followed(root: bytes) -> None:
    make(root, b"folder/f")
    os.symlink(b"folder", root + b"/link")
    os.symlink(b"nowhere", root + b"/dangling")
    assert paths(root) == [b"", b"dangling", b"folder", b"folder/f", b"link"]


def test_paths_longer_than_the_system_takes(root: bytes) -> None:
    name = b"n" * 200
    fd = os.open(root, os.O_RDONLY)
    for _ in range(40):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open(b"leaf", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    found = paths(root)
    assert len(found) == 42
    assert len(found[-1]) == 40 * 201 + 4


def test_what_vanishes_was_not_there(root: bytes) -> None:
    make(root, b"a", b"b", b"c/d", b"e")
    walker = walk(root, WalkOptions())
    assert [next(walker).path, next(walker).path] == [b"", b"a"]
    os.unlink(root + b"/b")
    assert next(walker).path == b"c"
    os.unlink(root + b"/c/d")
    os.rmdir(root + b"/c")
    assert [item.path for item in walker] == [b"e"]


def test_a_folder_that_becomes_a_symlink_is_not_followed(root: bytes) -> None:
    make(root, b"c/d", b"e", b"../outside/secret")
    walker = walk(root, WalkOptions())
    assert [next(walker).path, next(walker).path] == [b"", b"c"]
    os.rename(root + b"/c", root + b"/../was")
    os.symlink(b"../outside", root + b"/c")
    assert shown(walker) == "Unreadable:c Seen:e"


def test_descriptors_are_closed_when_the_walk_is_abandoned(root: bytes) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts the open files in /proc")
    make(root, b"a/b/c/d/e")
    before = len(os.listdir("/proc/self/fd"))
    walker = walk(root, WalkOptions())
    for _ in range(5):
        next(walker)
    assert len(os.listdir("/proc/self/fd")) > before
    walker.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(list(walk(root, WalkOptions()))) == 6
    assert len(os.listdir("/proc/self/fd")) == before


def test_unreadable_folders_and_names(root: bytes) -> None:
    make(root, b"a", b"closed/x", b"listed/f", b"listed/sub/g", b"z")
    os.chmod(root, 0o755)
    os.chmod(root + b"/closed", 0)
    os.chmod(root + b"/listed", 0o444)
    if os.geteuid() != 0:
        pytest.skip("needs root, to have a folder of another owner")

    def work() -> str:
        items = list(walk(b".", WalkOptions()))
        kinds = [(item.path, item.is_dir) for item in items if isinstance(item, Unreadable)]
        return shown(iter(items)) + f" {kinds}"

    assert as_nobody(root, work) == (
        "Seen: Seen:a Seen:closed Unreadable:closed Seen:listed Unreadable:listed/f Unreadable:listed/sub Seen:z "
        "[(b'closed', True), (b'listed/f', False), (b'listed/sub', True)]"
    )


def test_an_unreadable_ignore_file_is_reported_and_everything_is_included(root: bytes) -> None:
    make(root, b".ignore", content=b"*\n")
    make(root, b"!", b"a")
    os.chmod(root, 0o755)
    os.chmod(root + b"/.ignore", 0)
    if os.geteuid() != 0:
        pytest.skip("needs root, to have a file of another owner")
    for rules in (Rules(), Rules([".ignore"])):
        options = WalkOptions(rules=rules, ignore_files=(b".ignore",))
        assert as_nobody(root, lambda: shown(walk(b".", options))) == "Seen: Undecided: Seen:! Unreadable:.ignore Seen:a"  # noqa: B023


def test_ignore_files_on_the_way(root: bytes) -> None:
    make(root, b".gitignore", content=b"*.o\n/only-here\n")
    make(root, b"sub/.gitignore", content=b"!keep.o\n")
    make(root, b"sub/.backupignore", content=b"*.big\n!x.big\n")
    make(
        root,
        b"a.o",
        b"only-here/x",
        b"sub/only-here",
        b"sub/keep.o",
        b"sub/b.o",
        b"sub/a.big",
        b"sub/x.big",
        b"a.big",
    )
    options = WalkOptions(ignore_files=(b".gitignore", b".backupignore"))
    assert paths(root, options) == [
        b"", b".gitignore", b"a.big", b"sub", b"sub/.backupignore", b"sub/.gitignore", b"sub/keep.o",
        b"sub/only-here", b"sub/x.big",
    ]  # fmt: skip


def test_an_ignore_file_that_is_no_regular_file_is_none(root: bytes) -> None:
    make(root, b"a", b"rules", b"sub/.ignore/x", b"f/a")
    with open(root + b"/rules", "wb") as file:
        file.write(b"a\n")
    os.symlink(b"rules", root + b"/.ignore")
    os.mkfifo(root + b"/f/.ignore")
    found = paths(root, WalkOptions(ignore_files=(b".ignore",)))
    assert found == [
        b"",
        b".ignore",
        b"a",
        b"f",
        b"f/.ignore",
        b"f/a",
        b"rules",
        b"sub",
        b"sub/.ignore",
        b"sub/.ignore/x",
    ]


def test_cache_folders_keep_themselves_and_the_tag(root: bytes) -> None:
    make(root, b"cache/CACHEDIR.TAG", content=CACHE_SIGNATURE + b"\n# more")
    make(root, b"nearly/CACHEDIR.TAG", content=CACHE_SIGNATURE[:-1] + b"x")
    make(root, b"short/CACHEDIR.TAG", content=CACHE_SIGNATURE[:-1])
    make(root, b"cache/a", b"cache/sub/b", b"nearly/a", b"short/a")
    os.mkdir(root + b"/link")
    make(root, b"link/a")
    os.symlink(b"../cache/CACHEDIR.TAG", root + b"/link/CACHEDIR.TAG")
    found = paths(root, WalkOptions(exclude_caches=True))
    assert found == [
        b"", b"cache", b"cache/CACHEDIR.TAG", b"link", b"link/CACHEDIR.TAG", b"link/a", b"nearly",
        b"nearly/CACHEDIR.TAG", b"nearly/a", b"short", b"short/CACHEDIR.TAG", b"short/a",
    ]  # fmt: skip
    assert len(paths(root)) == 15


def test_exclude_if_present_keeps_the_folder_and_the_marker(root: bytes) -> None:
    make(root, b"a/.nobackup", b"a/x", b"a/y/z", b"b/x", b"c/.skip/inside", b"c/x")
    found = paths(root, WalkOptions(exclude_if_present=(b".nobackup", b".skip")))
    assert found == [b"", b"a", b"a/.nobackup", b"b", b"b/x", b"c", b"c/.skip", b"c/.skip/inside"]


def test_exclude_larger_than_is_about_files(root: bytes) -> None:
    make(root, b"small", content=b"x" * 10)
    make(root, b"large", content=b"x" * 11)
    make(root, b"folder/")
    os.symlink(b"x" * 50, root + b"/link")
    assert paths(root, WalkOptions(exclude_larger_than=10)) == [b"", b"folder", b"link", b"small"]
    assert paths(root, WalkOptions(exclude_larger_than=0)) == [b"", b"folder", b"link"]


def test_what_is_left_out_is_named_on_request(root: bytes) -> None:
    make(root, b"cache/CACHEDIR.TAG", content=CACHE_SIGNATURE)
    make(root, b"large", content=b"x" * 100)
    make(root, b"cache/a/b", b"x.tmp/y", b"z~")
    options = WalkOptions(rules=Rules(["*.tmp"], ["~$"]), exclude_caches=True, exclude_larger_than=50, report_excluded=True)
    found = [item for item in walk(root, options) if isinstance(item, Excluded)]
    assert [(item.path, item.is_dir, item.reason) for item in found] == [
        (b"cache/a", True, "exclude_caches: CACHEDIR.TAG lies beside it"),
        (b"large", False, "exclude_larger_than: 50 bytes"),
        (b"x.tmp", True, "exclude:1: *.tmp"),
        (b"z~", False, "exclude_regex:1: ~$"),
    ]


def test_one_file_system(root: bytes) -> None:
    """/proc is mounted wherever there is one; its folder stays, its contents do not."""
    if not os.path.ismount("/proc"):
        pytest.skip("needs a mount point")
    for item in walk(b"/", WalkOptions(rules=Rules(["/*", "!/proc"]), one_file_system=True, report_excluded=True)):
        if item.path.startswith(b"proc"):
            assert isinstance(item, Seen | Excluded)
            assert item.path == b"proc"
    assert check_root(b"/proc").is_mount


def test_why(root: bytes) -> None:
    make(root, b".gitignore", content=b"*.o\n!keep.o\n")
    make(root, b"large", content=b"x" * 100)
    make(root, b"cache/CACHEDIR.TAG", content=CACHE_SIGNATURE)
    make(root, b"cache/a", b"a.o", b"keep.o", b"t.tmp/x/y", b"plain/f")
    rules = Rules(["*.tmp", "/gone/sub/"], ["~$"])
    options = WalkOptions(rules=rules, ignore_files=(b".gitignore",), exclude_caches=True, exclude_larger_than=50)

    def last(path: bytes) -> Explanation:
        return why(root, path, options)[-1]

    assert last(b"a.o") == Explanation(b"a.o", True, ".gitignore:1: *.o")
    assert why(root, b"keep.o", options) == [
        Explanation(b"keep.o", False, ".gitignore:2: !keep.o"),
        Explanation(b"keep.o", False, "not excluded"),
    ]
    assert last(b"t.tmp/x/y") == Explanation(b"t.tmp", True, "exclude:1: *.tmp")
    assert last(b"cache/a") == Explanation(b"cache/a", True, "exclude_caches: CACHEDIR.TAG lies beside it")
    assert last(b"cache/CACHEDIR.TAG") == Explanation(b"cache/CACHEDIR.TAG", False, "not excluded")
    assert last(b"large") == Explanation(b"large", True, "exclude_larger_than: 50 bytes")
    assert last(b"x~") == Explanation(b"x~", True, "exclude_regex:1: ~$")
    assert last(b"plain/f") == Explanation(b"plain/f", False, "not excluded")
    assert last(b"") == Explanation(b"", False, "not excluded")
    assert last(b"gone/plain/large") == Explanation(b"gone/plain/large", False, "not excluded")
    assert last(b"gone/sub/x") == Explanation(b"gone/sub", True, "exclude:2: /gone/sub/")
    assert last(b"gone/sub") == Explanation(b"gone/sub", False, "not excluded")
    assert last(b"gone/sub/") == Explanation(b"gone/sub", True, "exclude:2: /gone/sub/")


def test_why_agrees_with_the_walk(root: bytes) -> None:
    make(root, b".gitignore", content=b"*.o\n/b/\n!keep.o\n")
    make(root, b"a/.gitignore", content=b"!x.o\ny\n")
    make(root, b"a/x.o", b"a/y/z", b"b/c", b"c/keep.o", b"c/d.o", b"e", b"a/b/f")
    options = WalkOptions(ignore_files=(b".gitignore",))
    inside = set(paths(root, options))
    for path in paths(root):
        assert why(root, path, options)[-1].excluded is (path not in inside), path


@pytest.mark.parametrize(
    ("name", "says"),
    [(b"missing", "is missing"), (b"file", "is not a folder"), (b"file/x", "is not a folder")],
)
def test_a_root_that_is_none_is_refused(root: bytes, name: bytes, says: str) -> None:
    make(root, b"file")
    for look in (lambda path: check_root(path), lambda path: list(walk(path, WalkOptions()))):
        with pytest.raises(Refused, match=says) as caught:
            look(os.path.join(root, name))
        assert caught.value.hint


def test_facts_of_a_root(root: bytes) -> None:
    assert check_root(root).empty
    make(root, b".hidden")
    facts = check_root(root)
    assert (facts.empty, facts.is_mount, facts.device) == (False, False, os.stat(root).st_dev)


# Metadata


def entry(root: bytes, path: bytes) -> Entry:
    return entry_from(Seen(path.replace(b"/", b"\0"), path, os.lstat(os.path.join(root, path) if path else root)), root)


def test_entries_of_every_kind(root: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, b"file", content=b"content")
    os.chmod(root + b"/file", 0o4751)
    os.utime(root + b"/file", ns=(0, -1_500_000_001))
    os.link(root + b"/file", root + b"/hard")
    os.symlink(b"to\xff", root + b"/link")
    os.mkfifo(root + b"/fifo")
    os.makedirs(root + b"/dir/sub")
    monkeypatch.chdir(os.fsdecode(root))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    file = entry(root, b"file")
    assert (file.kind, file.size, file.mode, file.mtime_ns, file.links) == (
        Kind.FILE,
        7,
        0o4751,
        -1_500_000_001,
        2,
    )
    assert (file.uid, file.gid) == (os.geteuid(), os.lstat(root).st_gid)
    assert replace(entry(root, b"hard"), path=b"file") == file
    link = entry(root, b"link")
    assert (link.kind, link.target, link.size) == (Kind.SYMLINK, b"to\xff", 0)
    assert entry(root, b"fifo").kind is Kind.FIFO
    assert entry(root, b"socket").kind is Kind.SOCKET
    folder = entry(root, b"dir")
    assert (folder.kind, folder.size, folder.links) == (Kind.DIRECTORY, 0, 1)
    assert entry(root, b"").path == b""
    device = entry(b"/dev", b"null")
    assert (device.kind, device.rdev) == (Kind.CHARACTER_DEVICE, os.lstat("/dev/null").st_rdev)


def test_sparse_files_are_known_as_such(root: bytes) -> None:
    make(root, b"sparse", b"dense", content=b"x" * 10_000)
    os.truncate(root + b"/sparse", 10_000_000)
    for name in (b"sparse", b"dense"):
        fd = os.open(root + b"/" + name, os.O_RDWR)
        os.fsync(fd)
        os.close(fd)
    assert entry(root, b"sparse").sparse
    assert not entry(root, b"dense").sparse


def test_extended_attributes(root: bytes) -> None:
    make(root, b"f")
    try:
        os.setxattr(root + b"/f", "user.b", b"2\0")
        os.setxattr(root + b"/f", "user.a", b"1")
    except (AttributeError, OSError):
        pytest.skip("no extended attributes here")
    own = [pair for pair in entry(root, b"f").xattrs if pair[0].startswith(b"user.")]
    assert own == [(b"user.a", b"1"), (b"user.b", b"2\0")]


def test_a_symlink_that_is_gone_or_replaced_has_changed(root: bytes) -> None:
    os.symlink(b"x", root + b"/link")
    seen = Seen(b"link", b"link", os.lstat(root + b"/link"))
    os.unlink(root + b"/link")
    with pytest.raises(ChangedUnderfoot, match="link"):
        entry_from(seen, root)
    make(root, b"link")
    with pytest.raises(ChangedUnderfoot):
        entry_from(seen, root)


BASE = Entry(b"p", Kind.FILE, 1, 2, 3, 4, 5, 0o644, 7, 8)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (replace(BASE, ctime_ns=9, inode=9, device=9, sparse=True), True),
        (replace(BASE, size=9), False),
        (replace(BASE, mtime_ns=9), False),
        (replace(BASE, mode=0o600), False),
        (replace(BASE, uid=9), False),
        (replace(BASE, gid=9), False),
        (replace(BASE, kind=Kind.FIFO), False),
        (replace(BASE, links=2), False),
        (replace(BASE, xattrs=((b"user.a", b"1"),)), False),
        (replace(BASE, target=b"x"), False),
        (replace(BASE, rdev=1), False),
    ],
)
def test_same_metadata(other: Entry, same: bool) -> None:
    assert same_metadata(BASE, other) is same
    assert same_metadata(other, BASE) is same


def test_hard_links_are_told_apart_by_device_and_inode() -> None:
    linked = replace(BASE, links=2)
    assert same_metadata(linked, replace(linked, ctime_ns=9))
    assert not same_metadata(linked, replace(linked, device=9))
    assert not same_metadata(linked, replace(linked, inode=9))


def test_names_of_owners() -> None:
    assert owner_name(0) == "root"
    assert group_name(0)
    assert owner_name(3_999_999_999) == ""
