"""What a file system can be asked: whole files under free names, durable batches, and errors that say what
to do.

Decides how bytes become a file that is whole or absent, and when it is durable. Knows nothing of versions,
documents or layout. All paths are relative to one open folder, so that a disk that is mounted over it, or
taken away, is noticed and never mistaken for an empty one.

Durability has two modes. `batch`: files are written and renamed, and one syncfs(2) makes all of them
durable. That is believed only where it is known to report write-back errors (Linux 5.8, a local file
system), and where a file can carry a mark by which a file torn by a power failure is told from a whole one.
Elsewhere each file is synced before it gets its name, and the batch syncs the folders.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator

from s3hashsync import errors
from s3hashsync.stores.filesystem import file_system_kind, translated

TEMPORARY = ".tmp-"
MARK = "user.s3hs"
"""Extended attribute of a file: the first 8 bytes of its SHA-256. It tells torn from whole; it protects
from nobody."""

_BATCH_KINDS = frozenset(["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "overlay", "tmpfs"])
_NO_SUCH_CALL = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
_RENAME_NOREPLACE = 1


def _libc_call(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


_renameat2 = _libc_call("renameat2")
_syncfs = _libc_call("syncfs")


def write_all(fd: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """All of `data`: the system may take less at once. At `offset`, or where the file stands."""
    done = os.write(fd, data) if offset is None else os.pwrite(fd, data, offset)
    while done < len(data):
        rest = memoryview(data)[done:]
        done += os.write(fd, rest) if offset is None else os.pwrite(fd, rest, offset + done)


def sync_file(fd: int) -> None:
    """To the platter: on macOS fsync(2) stops at the disk's cache."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


class Folder:
    """One open folder and what is below it. Safe for many threads."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        self.path = os.path.abspath(path)
        try:
            if create:
                os.makedirs(self.path, mode=0o700, exist_ok=True)
            self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise errors.Missing(f"{self.path}: no such folder", "is the disk mounted? `init` makes a new repository") from error
        except OSError as error:
            raise translated(error, f"cannot open {self.path}", self.path) from error
        self.batch = self._can_batch()
        self._known: set[str] = {""}
        self._temporaries: set[str] = set()
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._unsynced = False
        self._unsynced_folders: set[str] = set()
        self._failed: errors.StoreError | None = None

    def close(self) -> None:
        """What never got its name goes with it: a full disk may need the room."""
        if self.fd >= 0:
            for name in list(self._temporaries):
                with contextlib.suppress(OSError):
                    self.remove(name)
            os.close(self.fd)
            self.fd = -1

    def _can_batch(self) -> bool:
        if _syncfs is None or file_system_kind(self.path) not in _BATCH_KINDS:
            return False
        version = os.uname().release.split(".")
        if tuple(int("".join(filter(str.isdigit, part[:3])) or 0) for part in version[:2]) < (5, 8):
            return False
        try:  # a look, not a write: the folder may be read-only
            os.getxattr(self.fd, MARK)
        except OSError as error:
            return error.errno == errno.ENODATA
        return True

    @contextlib.contextmanager
    def translating(self, what: str) -> Iterator[None]:
        """For writing and listing: every OSError becomes a StoreError."""
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self.must_be_there()
            raise translated(error, f"cannot {what}", self.path) from error

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """For reading one file: its absence is `Missing`, and is proven while the folder itself is there."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            self.must_be_there()
            raise errors.Missing(f"{self.path}: there is no {path}") from error
        except OSError as error:
            raise translated(error, f"cannot read {path}", self.path) from error

    def must_be_there(self) -> None:
        """A file that is not found proves something only while the folder itself is still linked into its
        disk."""
        try:
            gone = os.fstat(self.fd).st_nlink == 0
        except OSError as error:
            raise translated(error, f"cannot look at {self.path}", self.path) from error
        if gone:
            raise errors.Unreachable(f"{self.path} was removed while it was in use", "put it back, or run `init` again")

    # files

    def room(self, folder: str) -> None:
        """Make `folder` (relative) and those above it, once."""
        if folder in self._known:
            return
        above = os.path.dirname(folder)
        self.room(above)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700, dir_fd=self.fd)
        # Also when it was there: whoever made it may have died before syncing it.
        self.note(above)
        self._known.add(folder)

    def temporary(self, folder: str) -> tuple[int, str]:
        """A new file beside its future place: a rename within one folder works on every file system. It has to stay open until it
        has its name: the lock on it tells it from what a dead process left."""
        name = f"{folder}/{TEMPORARY}{os.urandom(8).hex()}" if folder else f"{TEMPORARY}{os.urandom(8).hex()}"
        self.room(folder)
        while True:
            fd = self._created(name, folder)
            self._temporaries.add(name)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return fd, name
            os.close(fd)  # somebody tidied up in that very moment

    def _created(self, name: str, folder: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(name, flags, 0o600, dir_fd=self.fd)
        except FileNotFoundError:
            self.must_be_there()
            self._known = {""}  # somebody took an empty folder away
            self.room(folder)
            return os.open(name, flags, 0o600, dir_fd=self.fd)

    def seal(self, fd: int, digest: bytes) -> None:
        """The last thing before a file gets its name."""
        if self.batch:
            os.setxattr(fd, MARK, digest[:8])
        else:
            sync_file(fd)

    def is_whole(self, fd: int, digest: bytes) -> bool:
        """Whether a file with this SHA-256 is as it was when it got its name."""
        if not hasattr(os, "getxattr"):
            return True
        try:
            return os.getxattr(fd, MARK) == digest[:8]
        except OSError:
            return not self.batch  # without a mark: synced before it got its name, where that is the mode

    def place(self, temporary: str, name: str) -> bool:
        """Give a temporary file its name, if that is free; otherwise drop it."""
        if _renameat2 is not None:
            if _renameat2(self.fd, temporary.encode(), self.fd, name.encode(), _RENAME_NOREPLACE) == 0:
                self._temporaries.discard(temporary)
                return True
            code = ctypes.get_errno()
            if code == errno.EEXIST:
                self.remove(temporary)
                return False
            if code not in _NO_SUCH_CALL:
                raise OSError(code, os.strerror(code))
        try:
            os.link(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in _NO_SUCH_CALL | {errno.EPERM, errno.EMLINK}:
                raise errors.Unsupported(
                    f"{self.path}: this file system can neither link nor rename without replacing",
                    "keep the repository on a local disk, or on NFS, SMB or sshfs",
                ) from error
            raise
        finally:
            self.remove(temporary)
        return True

    def replace(self, temporary: str, name: str) -> None:
        """Give a temporary file its name, whatever has it now."""
        os.replace(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        self._temporaries.discard(temporary)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(name, dir_fd=self.fd)
        self._temporaries.discard(name)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes could be written, as far as the disk says."""
        free = os.fstatvfs(self.fd)
        return free.f_bavail * free.f_frsize >= size

    def names(self, folder: str) -> list[str]:
        """What lies in `folder`, in no order; nothing when there is no such folder."""
        try:
            fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        except (FileNotFoundError, NotADirectoryError):
            self.must_be_there()
            return []
        try:
            found = os.listdir(fd)
        finally:
            os.close(fd)
        self.must_be_there()  # a removed folder that is still open lists as empty
        return found

    def stat(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            self.must_be_there()
            return None

    def is_folder(self, name: str) -> bool:
        found = self.stat(name)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def is_on_disk(self, fd: int) -> bool:
        """Whether all of an open file can be written, so that what is read next comes from the disk: after a failed write the
        system goes on showing the bytes that were meant, until it forgets them."""
        try:
            sync_file(fd)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            return False
        return True

    def digest(self, fd: int) -> tuple[int, bytes]:
        """Size and SHA-256 of an open file."""
        hasher, size = hashlib.sha256(), 0
        while chunk := os.pread(fd, 1 << 20, size):
            hasher.update(chunk)
            size += len(chunk)
        return size, hasher.digest()

    # durability

    def note(self, folder: str) -> None:
        """Something in `folder` changed: the next barrier makes it durable."""
        if not self.batch:
            with self._lock:
                self._unsynced_folders.add(folder)
        # Last: a barrier of another thread takes back the flag first, and then the folders.
        self._unsynced = True

    def sync_folders(self, folders: set[str]) -> None:
        """Make the names in `folders`, and the folders themselves, durable now."""
        closure = {""}
        for folder in folders:
            while folder:
                closure.add(folder)
                folder = os.path.dirname(folder)
        for folder in sorted(closure, reverse=True):
            try:
                fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
            except FileNotFoundError:
                continue  # taken away since, with all that was in it
            try:
                os.fsync(fd)
            except OSError as error:
                # Some network file systems cannot sync a folder; what it names is on the server already.
                if error.errno not in _NO_SUCH_CALL:
                    raise
            finally:
                os.close(fd)

    def barrier(self) -> None:
        """All that was noted so far is durable when this returns. A barrier that failed once fails for
        ever: the system drops pages that it could not write, and would report success next time."""
        with self._syncing:
            if self._failed is not None:
                raise self._failed
            if not self._unsynced:
                return
            self._unsynced = False
            try:
                self._sync()
            except OSError as error:
                cause = translated(error, f"cannot make {self.path} durable", self.path)
                # Never transient: only a new run, which looks at the files anew, may try again.
                self._failed = cause if not cause.transient else errors.StoreError(cause.message, cause.hint)
                raise self._failed from error

    def _sync(self) -> None:
        if self.batch and _syncfs is not None:
            if _syncfs(self.fd) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            return
        with self._lock:
            folders, self._unsynced_folders = self._unsynced_folders, set()
        self.sync_folders(folders)
