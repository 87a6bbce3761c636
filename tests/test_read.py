"""Stable reads: what holds still is read whole; what does not raises ChangedUnderfoot."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from s3hashsync.core.model import Entry, Kind
from s3hashsync.disk.read import CHUNK, Facts, hash_file, open_stable
from s3hashsync.errors import ChangedUnderfoot

ODD_NAMES = [b"plain", b"-rf", b"new\nline", b"\xff\xfe", b" ", b"x" * 255]


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path)


def write(path: bytes, content: bytes) -> Facts:
    with open(path, "wb") as file:
        file.write(content)
    return Facts.of(os.lstat(path))


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_hash_of_a_file_that_holds_still(folder: bytes, name: bytes, size: int) -> None:
    content = os.urandom(size)
    facts = write(folder + b"/" + name, content)
    assert hash_file(folder + b"/" + name, facts) == hashlib.sha256(content).digest()


def test_chunks_and_read_give_the_whole_file(folder: bytes) -> None:
    content = os.urandom(2 * CHUNK + 5)
    path = folder + b"/f"
    facts = write(path, content)
    with open_stable(path, facts) as file:
        assert [len(chunk) for chunk in file.chunks()] == [CHUNK, CHUNK, 5]
    with open_stable(path, facts) as file:
        assert file.read(10) + file.read() == content
        assert file.read(10) == b""


def test_relative_to_an_open_folder(folder: bytes) -> None:
    facts = write(folder + b"/f", b"content")
    fd = os.open(folder, os.O_RDONLY)
    try:
        assert hash_file(b"f", facts, dir_fd=fd) == hashlib.sha256(b"content").digest()
    finally:
        os.close(fd)


def test_facts_of_an_entry_are_those_of_the_file(folder: bytes) -> None:
    facts = write(folder + b"/f", b"abc")
    entry = Entry(b"f", Kind.FILE, facts.size, facts.mtime_ns, 0, facts.inode, 0, 0o600, 0, 0)
    assert Facts.of(entry) == facts


def _rewrite(path: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(b"!")


def _append(path: bytes) -> None:
    with open(path, "ab") as file:
        file.write(b"!")


def _append_and_hide(path: bytes) -> None:
    before = os.lstat(path)
    _append(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(path: bytes) -> None:
    """With the same size and times: only the inode tells."""
    before = os.lstat(path)
    with open(path, "rb") as file:
        content = file.read()
    with open(path + b".new", "wb") as file:
        file.write(content)
    os.utime(path + b".new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.rename(path + b".new", path)


def _to_symlink(path: bytes) -> None:
    os.rename(path, path + b".away")
    os.symlink(path + b".away", path)


def _to_fifo(path: bytes) -> None:
    os.unlink(path)
    os.mkfifo(path)


def _to_socket(path: bytes) -> None:
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def _to_folder(path: bytes) -> None:
    os.unlink(path)
    os.mkdir(path)


CHANGES: list[Callable[[bytes], None]] = [
    _rewrite,
    _append,
    _append_and_hide,
    lambda path: os.truncate(path, 1),
    lambda path: os.truncate(path, 0),
    os.unlink,
    _replace,
    _to_symlink,
    _to_fifo,
    _to_socket,
    _to_folder,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_between_the_plan_and_the_opening(
    folder: bytes, change: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(os.fsdecode(folder))  # a socket's path must be short
    facts = write(b"f", b"planned")
    os.utime(b"f", ns=(0, 1_000))
    facts = facts._replace(mtime_ns=1_000)
    change(b"f")
    with pytest.raises(ChangedUnderfoot, match="f changed while"):
        hash_file(b"f", facts)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["before the first chunk", "between chunks", "after the last"])
def test_changed_while_it_is_read(
    folder: bytes, change: Callable[[bytes], None], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(os.fsdecode(folder))
    write(b"f", b"x" * (2 * CHUNK))
    os.utime(b"f", ns=(0, 1_000))
    facts = Facts.of(os.lstat(b"f"))
    reads = ["before the first chunk", "between chunks", "after the last"].index(moment)

    def read_with_a_change() -> None:
        with open_stable(b"f", facts) as file:
            for _ in range(reads):
                file.read(CHUNK)
            change(b"f")
            for _ in file.chunks():
                pass

    with pytest.raises(ChangedUnderfoot):
        read_with_a_change()


def test_a_writer_at_work_never_yields_a_mixture(folder: bytes) -> None:
    """Whatever is returned without an error is one of the two contents, whole."""
    path = folder + b"/f"
    contents = [bytes([byte]) * (2 * CHUNK) for byte in (1, 2)]
    good = {hashlib.sha256(content).digest() for content in contents}
    write(path, contents[0])
    stop = threading.Event()

    def writer() -> None:
        for number in range(1, 10_000):
            with open(path, "r+b") as file:
                file.write(contents[number % 2])
            if stop.wait(0.03):
                return

    thread = threading.Thread(target=writer)
    thread.start()
    found = []
    changed = 0
    try:
        for attempt in range(60):
            facts = Facts.of(os.lstat(path))
            # Longer than the file system's clock tick: a write in the same tick is for the caller's "racy" rule.
            time.sleep(0.011 + 0.001 * (attempt % 7))
            try:
                found.append(hash_file(path, facts))
            except ChangedUnderfoot:
                changed += 1
    finally:
        stop.set()
        thread.join()
    assert changed
    assert set(found) <= good


def test_a_reading_that_stops_early_is_no_reading(folder: bytes) -> None:
    facts = write(folder + b"/f", b"x" * 10)
    with (
        pytest.raises(ChangedUnderfoot, match="not read to its end"),
        open_stable(folder + b"/f", facts) as file,
    ):
        file.read(3)


def test_an_error_of_the_reader_is_not_hidden(folder: bytes) -> None:
    facts = write(folder + b"/f", b"x" * 10)
    with pytest.raises(ZeroDivisionError), open_stable(folder + b"/f", facts):
        raise ZeroDivisionError


def test_no_descriptor_is_left_open(folder: bytes) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts the open files in /proc")
    facts = write(folder + b"/f", b"x" * 10)
    before = len(os.listdir("/proc/self/fd"))
    for wrong in (facts, facts._replace(size=3), facts._replace(inode=1)):
        try:
            hash_file(folder + b"/f", wrong)
        except ChangedUnderfoot:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


def test_reading_leaves_the_time_of_access_alone(folder: bytes) -> None:
    if not hasattr(os, "O_NOATIME"):
        pytest.skip("the system cannot leave it alone")
    write(folder + b"/f", b"x")
    os.utime(folder + b"/f", ns=(5, 1_000))
    hash_file(folder + b"/f", Facts.of(os.lstat(folder + b"/f")))
    assert os.lstat(folder + b"/f").st_atime_ns == 5


def test_what_may_not_be_read_is_an_os_error(folder: bytes) -> None:
    facts = write(folder + b"/f", b"x")
    os.chmod(folder + b"/f", 0)
    assert as_nobody(folder, lambda fd: _hash_in(fd, facts)) == "PermissionError"


def test_another_owners_readable_file_is_read_without_noatime(folder: bytes) -> None:
    facts = write(folder + b"/f", b"x")
    os.chmod(folder + b"/f", 0o644)
    assert as_nobody(folder, lambda fd: _hash_in(fd, facts)) == hashlib.sha256(b"x").hexdigest()


def _hash_in(fd: int, facts: Facts) -> str:
    return hash_file(b"f", facts, dir_fd=fd).hex()


def as_nobody(folder: bytes, work: Callable[[int], str]) -> str:
    """What `work` returns, or the name of its exception, in a process that is not root; it gets the open folder."""
    os.chmod(folder, 0o755)
    fd = os.open(folder, os.O_RDONLY)
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "nothing"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            answer = work(fd)
        except BaseException as error:
            answer = type(error).__name__
        finally:
            os.write(into, answer.encode())
            os._exit(0)
    os.close(into)
    os.close(fd)
    with open(out) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def test_without_inodes_another_inode_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    facts = Facts.of(path.stat(), inode=False)
    assert facts.inode is None
    assert hash_file(os.fsencode(path), facts) == hashlib.sha256(b"content").digest()
    with pytest.raises(ChangedUnderfoot):
        hash_file(os.fsencode(path), Facts(7, facts.mtime_ns, path.stat().st_ino + 1))
