"""Small secret files of this host: the host key file, and identity files.

Decides that they are readable by their owner alone, whole or absent, and durable before anybody relies on them. Knows nothing of
what stands in them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from s3hashsync.errors import S3HashSyncError

MAX_BYTES = 16 << 20
"""More than any of these files can be: a device or a film named by mistake is not read to its end."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class PrivateFile:
    """One file of mode 0600, in a folder that is made with mode 0700 where it is missing."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """None when it is not there."""
        try:
            with open(self.path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed("read", self.path, error) from error
        if len(data) > MAX_BYTES:
            raise S3HashSyncError(f"{self.path} is too large: that is no key")
        return data

    def mode(self) -> int | None:
        """The permission bits, None when it is not there."""
        try:
            return stat.S_IMODE(os.stat(self.path).st_mode)
        except OSError:
            return None

    def is_open_to_others(self) -> bool:
        mode = self.mode()
        return mode is not None and bool(mode & _OTHERS)

    def create(self, data: bytes) -> bool:
        """False, and nothing done, when something is there already."""
        return self._write(self.path, data, replace=False)

    def replace(self, data: bytes) -> None:
        # Where the path is a link, its target is what is meant.
        self._write(os.path.realpath(self.path), data, replace=True)

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time changes the file: who reads it within finds what will still be there when it writes."""
        path = f"{os.path.realpath(self.path)}.lock"
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _failed("write", self.path, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(self, path: str, data: bytes, *, replace: bool) -> bool:
        folder, name = os.path.split(os.path.abspath(path))
        beside = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            _write_durably(beside, data)
            try:
                if replace:
                    os.replace(beside, path)
                else:
                    _place(beside, path)
            except FileExistsError:
                return False
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(beside)
            _sync_folder(folder)
        except OSError as error:
            raise _failed("write", path, error) from error
        return True


def _write_durably(path: str, data: bytes) -> None:
    # What a dead process of the same number left.
    with suppress(FileNotFoundError):
        os.unlink(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def _place(beside: str, path: str) -> None:
    """Raises `FileExistsError` rather than taking something's place."""
    try:
        os.link(beside, path)
    except OSError as error:
        # A stick with FAT knows no links. There the look and the act are two.
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or os.path.lexists(path):
            raise
        os.rename(beside, path)


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _failed(doing: str, path: str, error: OSError) -> S3HashSyncError:
    return S3HashSyncError(f"cannot {doing} {path}: {error.strerror}", "check the path, its owner and its rights")


def files_in(folder: str) -> list[PrivateFile]:
    """The JSON files in a folder, none where there is no such folder."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _failed("read", folder, error) from error
    return [PrivateFile(os.path.join(folder, name)) for name in names if name.endswith(".json") and not name.startswith(".")]
