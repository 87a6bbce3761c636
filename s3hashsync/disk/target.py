"""What lies in a restore's target already: looked at, hashed, read, and never changed.

Decides that nothing is seen through a symlink: what only a symlink leads to is not there. Knows nothing of what a restore wants.
"""

from __future__ import annotations

import hashlib
import os
import stat as stats
from collections.abc import Iterator

from s3hashsync.core.model import Kind, Sha256
from s3hashsync.core.restore_plan import Existing, is_safe
from s3hashsync.disk.metadata import entry_from
from s3hashsync.disk.tree import Seen
from s3hashsync.errors import ChangedUnderfoot, S3HashSyncError

_CHUNK = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# To pass through a folder one needs not be allowed to list it.
_THROUGH = _FOLDER | getattr(os, "O_PATH", 0)
# O_NONBLOCK: a fifo that has taken the file's place must not hang the restore.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Target:
    """One folder, which may not be there yet. A context manager, for one thread."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._near: tuple[bytes, int | None] | None = None
        try:
            # The user named the target; a symlink there is meant.
            self._fd: int | None = os.open(root, _THROUGH & ~os.O_NOFOLLOW)
        except FileNotFoundError:
            self._fd = None
        except OSError as error:
            raise S3HashSyncError(
                f"cannot restore to {os.fsdecode(root)}: {error.strerror}", "name a folder, or one that is not there yet"
            ) from error

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_near()
        if self._fd is not None:
            os.close(self._fd)

    @property
    def there(self) -> bool:
        return self._fd is not None

    def look(self, path: bytes) -> Existing | None:
        """What is at this path, without its hash."""
        if not is_safe(path):
            return None
        folder, name = self._place_of(path)
        if folder is None:
            return None
        try:
            stat = os.stat(name, dir_fd=folder, follow_symlinks=False) if path else os.fstat(folder)
            entry = entry_from(Seen(path.replace(b"/", b"\0"), path, stat), self._root)
            empty = entry.kind is Kind.DIRECTORY and self._is_empty(folder, name)
        except (FileNotFoundError, ChangedUnderfoot):
            return None
        except OSError as error:
            shown = os.fsdecode(os.path.join(self._root, path))
            raise S3HashSyncError(f"{shown} cannot be looked at: {error.strerror}") from error
        return Existing(entry, empty=empty)

    def sha256(self, path: bytes) -> Sha256 | None:
        """Of a regular file; None where it cannot be read."""
        digest = hashlib.sha256()
        try:
            for chunk in self.chunks(path):
                digest.update(chunk)
        except OSError:
            return None
        return Sha256(digest.digest())

    def chunks(self, path: bytes) -> Iterator[bytes]:
        """The bytes of a regular file; raises OSError."""
        folder, name = self._place_of(path) if is_safe(path) else (None, b"")
        if folder is None:
            raise FileNotFoundError(os.fsdecode(path))
        fd = os.open(name, _FILE, dir_fd=folder)
        try:
            if not stats.S_ISREG(os.fstat(fd).st_mode):
                raise FileNotFoundError(os.fsdecode(path))
            while chunk := os.read(fd, _CHUNK):
                yield chunk
        finally:
            os.close(fd)

    def _is_empty(self, folder: int, name: bytes) -> bool:
        try:
            fd = os.open(name or b".", _FOLDER, dir_fd=folder)
        except PermissionError:
            return False
        try:
            with os.scandir(fd) as names:
                return next(names, None) is None
        finally:
            os.close(fd)

    def _place_of(self, path: bytes) -> tuple[int | None, bytes]:
        if not path:
            return self._fd, b""
        parent, _, name = path.rpartition(b"/")
        # A folder that is not there is not remembered: it may be made meanwhile.
        if self._near is None or self._near[0] != parent or self._near[1] is None:
            self._forget_near()
            self._near = parent, self._open_folder(parent)
        return self._near[1], name

    def _open_folder(self, path: bytes) -> int | None:
        if self._fd is None:
            return None
        fd = os.dup(self._fd)
        for name in path.split(b"/") if path else ():
            try:
                below = os.open(name, _THROUGH, dir_fd=fd)
            except OSError:
                return None
            finally:
                os.close(fd)
            fd = below
        return fd

    def _forget_near(self) -> None:
        if self._near is not None and self._near[1] is not None:
            os.close(self._near[1])
        self._near = None
