"""Stable reads: the bytes of a file, or the news that it did not hold still.

Decides when a file counts as changed: size, mtime or inode differ from what was planned, before or after
reading, or another number of bytes came. Knows nothing of expected hashes or of where the bytes go.

What reads in vain raises ChangedUnderfoot; what must not be read (rights, a broken disk) stays an OSError.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat as stats
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

from s3hashsync.core.model import Entry, Sha256
from s3hashsync.errors import ChangedUnderfoot

CHUNK = 1 << 20

# O_NONBLOCK: a fifo that has taken the file's place must not hang the backup. It changes nothing for a file.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NOATIME: int = getattr(os, "O_NOATIME", 0)
_REPLACED = frozenset([errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.ESTALE])


class Facts(NamedTuple):
    """What a file was when it was planned. `inode` None: the file system gives a file another one each time (SMB, FAT, sshfs)."""

    size: int
    mtime_ns: int
    inode: int | None

    @staticmethod
    def of(found: os.stat_result | Entry, *, inode: bool = True) -> Facts:
        if isinstance(found, Entry):
            return Facts(found.size, found.mtime_ns, found.inode if inode else None)
        return Facts(found.st_size, found.st_mtime_ns, found.st_ino if inode else None)


class StableFile:
    """A file opened for one reading from beginning to end; a context manager.

    Leaving it without an exception means: these were the bytes of the file that was planned, all of them.
    """

    __slots__ = ("_dir_fd", "_expected", "_fd", "_path", "_position", "_verified")

    def __init__(self, path: bytes, expected: Facts, dir_fd: int | None = None) -> None:
        self._path = path
        self._expected = expected
        self._dir_fd = dir_fd
        self._position = 0
        self._verified = False
        self._fd = _opened(path, dir_fd)
        try:
            self._compare(os.fstat(self._fd))
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> StableFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.verify()
        finally:
            os.close(self._fd)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes (negative: all that remain); b"" at the end, and then the file is verified."""
        remaining = self._expected.size - self._position
        if size < 0:
            return b"".join(self.chunks())
        if remaining <= 0 or size == 0:
            if size:
                self.verify()
            return b""
        data = os.read(self._fd, min(size, remaining))
        if not data:
            raise self._changed("it became shorter")
        self._position += len(data)
        return data

    def chunks(self) -> Iterator[bytes]:
        """The rest of the file in pieces of at most 1 MiB."""
        while data := self.read(CHUNK):
            yield data

    def verify(self) -> None:
        """ChangedUnderfoot unless all was read and the file is still, under its name, what was planned."""
        if self._verified:
            return
        if self._position != self._expected.size:
            raise self._changed("it was not read to its end")
        self._compare(os.fstat(self._fd))
        try:
            now = os.stat(self._path, dir_fd=self._dir_fd, follow_symlinks=False)
        except OSError as error:
            raise self._changed(error.strerror or "it is gone") from None
        if self._expected.inode not in (None, now.st_ino):
            raise self._changed("it was replaced")
        self._verified = True

    def _compare(self, now: os.stat_result) -> None:
        expected = self._expected
        if not stats.S_ISREG(now.st_mode):
            raise self._changed("it is no regular file any more")
        if expected.inode not in (None, now.st_ino):
            raise self._changed("it was replaced")
        if now.st_size != expected.size:
            raise self._changed(f"its size is {now.st_size}, it was {expected.size}")
        if now.st_mtime_ns != expected.mtime_ns:
            raise self._changed("it was written to")

    def _changed(self, why: str) -> ChangedUnderfoot:
        return _changed(self._path, why)


def _opened(path: bytes, dir_fd: int | None) -> int:
    try:
        try:
            return os.open(path, _FLAGS | _NOATIME, dir_fd=dir_fd)
        except PermissionError:
            # Only the owner may ask for O_NOATIME; whether it may be read is another question.
            return os.open(path, _FLAGS, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in _REPLACED:
            raise _changed(path, error.strerror or "it was replaced") from None
        raise


def _changed(path: bytes, why: str) -> ChangedUnderfoot:
    message = f"{os.fsdecode(path)} changed while it was read: {why}"
    return ChangedUnderfoot(message, "it is left to the next run")


def open_stable(path: bytes, expected: Facts, *, dir_fd: int | None = None) -> StableFile:
    """Open a file that should still be as planned; `path` is absolute, or relative to `dir_fd`.

    Never follows a symlink at its end, never waits for the other side of a fifo, leaves the time of access
    alone where the system lets it.
    """
    return StableFile(path, expected, dir_fd)


def read_small(path: bytes, size: int, *, dir_fd: int | None = None) -> bytes:
    """All of a file that should have `size` bytes, for whoever compares its hash: that says more than anything else about the
    file, which is not looked at. ChangedUnderfoot when it has another size."""
    fd = _opened(path, dir_fd)
    try:
        # One more, to see that it has not grown. Only a file that shrinks, or a disk far away, gives less at once.
        data = os.read(fd, size + 1)
        while 0 < len(data) < size and (more := os.read(fd, size + 1 - len(data))):
            data += more
    finally:
        os.close(fd)
    if len(data) != size:
        raise _changed(path, f"it does not have {size} bytes any more")
    return data


def hash_file(path: bytes, expected: Facts, *, dir_fd: int | None = None) -> Sha256:
    """The SHA-256 of a file that holds still."""
    digest = hashlib.sha256()
    with StableFile(path, expected, dir_fd) as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return Sha256(digest.digest())
