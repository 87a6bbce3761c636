"""Putting a restored tree on the disk, below one folder and never outside it.

Decides how a path comes to its place: under a temporary name first, then whole, with its metadata, under its
own. Knows nothing of where the bytes come from or whether they are right; whoever knows says so by `verify`.

1 Every component of a path is opened from the one above and never through a symlink, whatever names the
snapshot holds and whatever lies in the target already. 2 Without `overwrite` what is there stays, also when
it appears during the restore. 3 A crash leaves nothing but names that begin with `.s3hashsync-`, and folders
that only their owner may enter. 4 A folder can be written to until `finish_dir` gives it its own mode and
times, which the caller does from the deepest to the root.
"""

from __future__ import annotations

import errno
import os
import stat as stats
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from itertools import count
from types import TracebackType
from typing import TypeAlias

from s3hashsync.core.model import Entry, Kind
from s3hashsync.core.restore_plan import is_safe
from s3hashsync.disk.metadata import MetadataProblem, apply_to_name, apply_to_open, chmod_name
from s3hashsync.errors import Corrupt, NoSpace, Refused, S3HashSyncError

TEMPORARY_PREFIX = b".s3hashsync-"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = frozenset([errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS])
_IN_THE_WAY = frozenset([errno.ELOOP, errno.ENOTDIR, errno.EMLINK])
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT])
_BLOCK = 4096
_ZEROS = bytes(_BLOCK)
_SPECIAL = {
    Kind.FIFO: stats.S_IFIFO,
    Kind.SOCKET: stats.S_IFSOCK,
    Kind.CHARACTER_DEVICE: stats.S_IFCHR,
    Kind.BLOCK_DEVICE: stats.S_IFBLK,
}


Bytes: TypeAlias = bytes | memoryview

# One for the process: several placers, each in a thread of its own, may work in one folder.
_numbers = count()


class Outcome(Enum):
    PLACED = "placed"
    KEPT = "kept"
    """Something of that name was there already and was left as it is."""


class Placer:
    """Places paths below `target`, which is made where it is missing. A context manager, for one thread.

    Metadata that could not be put back is collected in `problems`; every other failure is an exception that
    names the path.
    """

    def __init__(self, target: bytes, *, overwrite: bool) -> None:
        self.problems: list[MetadataProblem] = []
        self._target = target
        self._overwrite = overwrite
        with self._named(b""):
            os.makedirs(target, exist_ok=True)
            # The user named the target; a symlink there is meant.
            self._root = os.open(target, _FOLDER & ~os.O_NOFOLLOW)
        self._near: tuple[bytes, int] | None = None

    def __enter__(self) -> Placer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._forget_near()
        os.close(self._root)

    def sync(self) -> None:
        """Everything placed so far survives a power cut. Once, at the end: not for each file."""
        os.sync()

    def make_dir(self, path: bytes, *, claim: bool = False) -> Outcome:
        """A folder that only its owner may enter until `finish_dir`. One that is there is used as it is, and
        closed to others like a new one with `claim`."""
        if not path:
            if claim:
                with suppress(PermissionError):
                    os.fchmod(self._root, 0o700)
            return Outcome.KEPT
        with self._named(path):
            folder, name = self._place_of(path)
            there = _lstat(folder, name)
            if there is not None and stats.S_ISDIR(there.st_mode):
                if claim:
                    with suppress(PermissionError):
                        chmod_name(folder, name, 0o700)
                else:
                    self._make_writable(folder, name, there)
                return Outcome.KEPT
            if there is not None:
                self._clear_way(folder, name, path)
            os.mkdir(name, 0o700, dir_fd=folder)
            return Outcome.PLACED

    def finish_dir(self, path: bytes, entry: Entry) -> None:
        """Give a folder its own metadata, once all in it has been placed."""
        with self._named(path):
            fd = self._open_folder(path, create=False)
            try:
                self.problems += apply_to_open(fd, entry)
            finally:
                os.close(fd)

    def place_file(self, path: bytes, entry: Entry, chunks: Iterable[Bytes], verify: Callable[[], None]) -> Outcome:
        """Write a file of `entry.size` bytes. `verify` comes after the last byte and before the name; if it
        raises, nothing of the file remains. `chunks` is not touched when the name is taken and kept."""
        # Once for every file: no context managers here, which cost as much as the system's calls.
        try:
            folder, name = self._place_of(path)
            if self._keeps(folder, name):
                return Outcome.KEPT
            fd, temporary = _new_file(folder)
            try:
                try:
                    _write(fd, entry, chunks)
                    verify()
                    self.problems += apply_to_open(fd, entry)
                finally:
                    os.close(fd)
                return self._give_name(folder, temporary, name)
            finally:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
        except OSError as error:
            raise self._failure(path, error) from error

    def place_symlink(self, path: bytes, entry: Entry) -> Outcome:
        """The link as it was, wherever it points: it is written, never followed."""
        return self._place_other(path, entry, lambda folder, name: os.symlink(entry.target or b"", name, dir_fd=folder))

    def place_special(self, path: bytes, entry: Entry) -> Outcome:
        """A fifo, a socket or a device (for which one has to be root)."""
        mode = _SPECIAL[entry.kind] | 0o600
        return self._place_other(path, entry, lambda folder, name: os.mknod(name, mode, entry.rdev, dir_fd=folder))

    def place_hardlink(self, path: bytes, to_path: bytes) -> Outcome:
        """Another name for a file that was placed before."""
        _components(path)
        *to_above, to_name = _components(to_path)
        with self._named(path):
            to_folder = self._open_folder(b"/".join(to_above), create=False)
            try:
                there = _lstat(to_folder, to_name)
                if there is None or not stats.S_ISREG(there.st_mode):
                    raise Refused(f"{self._shown(path)} is a hard link to {os.fsdecode(to_path)}, which is no file")
                folder, name = self._place_of(path)
                if self._keeps(folder, name):
                    return Outcome.KEPT
                with self._temporary(folder) as temporary:
                    os.link(to_name, temporary, src_dir_fd=to_folder, dst_dir_fd=folder, follow_symlinks=False)
                    return self._give_name(folder, temporary, name)
            finally:
                os.close(to_folder)

    def _place_other(self, path: bytes, entry: Entry, make: Callable[[int, bytes], None]) -> Outcome:
        with self._named(path):
            folder, name = self._place_of(path)
            if self._keeps(folder, name):
                return Outcome.KEPT
            with self._temporary(folder) as temporary:
                make(folder, temporary)
                self.problems += apply_to_name(folder, temporary, entry)
                return self._give_name(folder, temporary, name)

    def _place_of(self, path: bytes) -> tuple[int, bytes]:
        """The open folder and the name in it. The folder stays open until the next call: siblings follow."""
        if not path or not is_safe(path):
            raise _no_path(path)
        parent, _, name = path.rpartition(b"/")
        if self._near is None or self._near[0] != parent:
            self._forget_near()
            self._near = parent, self._open_folder(parent, create=True)
        return self._near[1], name

    def _forget_near(self) -> None:
        if self._near is not None:
            os.close(self._near[1])
            self._near = None

    def _open_folder(self, path: bytes, *, create: bool) -> int:
        fd = os.dup(self._root)
        for name in _components(path) if path else ():
            try:
                below = self._open_below(fd, name, path, create=create)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _open_below(self, fd: int, name: bytes, path: bytes, *, create: bool) -> int:
        try:
            return os.open(name, _FOLDER, dir_fd=fd)
        except FileNotFoundError:
            if not create:
                raise
        except OSError as error:
            if error.errno not in _IN_THE_WAY or not create:
                raise
            self._clear_way(fd, name, path)
        os.mkdir(name, 0o700, dir_fd=fd)
        return os.open(name, _FOLDER, dir_fd=fd)

    def _clear_way(self, folder: int, name: bytes, path: bytes) -> None:
        """Remove what stands where a folder has to be; not what it points to, if it is a symlink."""
        if not self._overwrite:
            raise Refused(
                f"{self._shown(path)}: {os.fsdecode(name)} is there already and is no folder",
                "restore with --overwrite to replace it, or into another folder",
            )
        os.unlink(name, dir_fd=folder)

    def _make_writable(self, folder: int, name: bytes, there: os.stat_result) -> None:
        """A second restore over a read-only folder of its own would fail; `finish_dir` takes this back."""
        if self._overwrite and there.st_uid == os.geteuid() and there.st_mode & 0o700 != 0o700:
            chmod_name(folder, name, stats.S_IMODE(there.st_mode) | 0o700)

    def _keeps(self, folder: int, name: bytes) -> bool:
        return not self._overwrite and _lstat(folder, name) is not None

    @contextmanager
    def _temporary(self, folder: int) -> Iterator[bytes]:
        """A free name, which is gone again afterwards."""
        name = _temporary_name()
        while _lstat(folder, name) is not None:
            name = _temporary_name()
        try:
            yield name
        finally:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)

    def _give_name(self, folder: int, temporary: bytes, name: bytes) -> Outcome:
        if self._overwrite:
            there = _lstat(folder, name)
            if there is not None and stats.S_ISDIR(there.st_mode):
                os.rmdir(name, dir_fd=folder)  # fails, and says so, when there is something in it
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            return Outcome.PLACED
        try:
            # Unlike a rename, a link never replaces what another program has put there meanwhile.
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            return Outcome.KEPT
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if _lstat(folder, name) is not None:
                return Outcome.KEPT
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        return Outcome.PLACED

    def _shown(self, path: bytes) -> str:
        return os.fsdecode(os.path.join(self._target, path) if path else self._target)

    @contextmanager
    def _named(self, path: bytes) -> Iterator[None]:
        """System errors with the path they are about."""
        try:
            yield
        except OSError as error:
            raise self._failure(path, error) from error

    def _failure(self, path: bytes, error: OSError) -> S3HashSyncError:
        message = f"{self._shown(path)} could not be restored: {error.strerror}"
        if error.errno in _FULL:
            return NoSpace(message, "make room and restore again: what is there already is kept")
        return S3HashSyncError(message)


def _components(path: bytes) -> list[bytes]:
    if not path or not is_safe(path):
        raise _no_path(path)
    return path.split(b"/")


def _no_path(path: bytes) -> Refused:
    return Refused(f"{os.fsdecode(path)!r} is no path that can be restored", "the snapshot may be forged")


def _new_file(folder: int) -> tuple[int, bytes]:
    """An open file under a free name."""
    while True:
        name = _temporary_name()
        try:
            return os.open(name, _NEW_FILE, 0o600, dir_fd=folder), name
        except FileExistsError:
            continue


def _temporary_name() -> bytes:
    return b"%b%d-%d" % (TEMPORARY_PREFIX, os.getpid(), next(_numbers))


def _lstat(folder: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _write(fd: int, entry: Entry, chunks: Iterable[Bytes]) -> None:
    position = 0
    for chunk in chunks:
        view = memoryview(chunk)
        # Before they are written: what a forged or broken object unfolds to must not fill the disk.
        if position + len(view) > entry.size:
            break
        for start, end in _runs(view, position) if entry.sparse else [(0, len(view))]:
            _write_at(fd, view[start:end], position + start)
        position += len(view)
    else:
        if position == entry.size:
            if entry.sparse:
                os.ftruncate(fd, position)  # there may be a hole at the end
            return
    raise Corrupt(f"{os.fsdecode(entry.path)}: the content has another size than the {entry.size} bytes expected")


def _write_at(fd: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        data, position = data[written:], position + written


def _runs(chunk: memoryview, position: int) -> Iterator[tuple[int, int]]:
    """The parts of a chunk that are not whole blocks of zeros, as (start, end); the rest stays a hole."""
    start = at = 0
    while at < len(chunk):
        end = min(at + _BLOCK - (position + at) % _BLOCK, len(chunk))
        if chunk[at:end] == _ZEROS[: end - at]:
            if start < at:
                yield start, at
            start = end
        at = end
    if start < at:
        yield start, at
