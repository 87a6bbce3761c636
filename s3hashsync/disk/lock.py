"""One process at a time on one source of this host: a lock file that dies with its process.

Decides nothing about other hosts (that is the lease's). kill -9 leaves no stale lock, for the kernel drops it.
"""

from __future__ import annotations

import fcntl
import os

from s3hashsync.errors import Locked, S3HashSyncError


class HostLock:
    """Held from construction to `release`."""

    def __init__(self, path: str, source: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise S3HashSyncError(f"cannot open the lock {path}: {error.strerror}", "check the folder's rights") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            whose = f" (process {owner})" if owner else ""
            raise Locked(
                f"source {source} is being worked on by another s3hashsync on this host{whose}", "wait until it has finished"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._fd)
