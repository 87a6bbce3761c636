"""Bytes that wait to be sent, on the disk instead of in memory.

Decides that they lie in a file without a name, which is gone with the process. Knows nothing of what they are.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from typing import overload

from s3hashsync.errors import NoSpace, S3HashSyncError


class Spool(Sequence[bytes]):
    """Pieces that are read when they are asked for, by any thread; `append`ed by one."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._ends = [0]
        # In the folder of the states, which is private, and on no file system in memory.
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _translated(error, folder) from error

    def append(self, piece: bytes) -> None:
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _translated(error, self._folder) from error
        self._ends.append(self._ends[-1] + len(piece))

    def close(self) -> None:
        """The bytes are given up."""
        self._file.close()

    @property
    def size(self) -> int:
        return self._ends[-1]

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> bytes: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[bytes]: ...

    def __getitem__(self, number: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        start, end = self._ends[number : number + 2]
        try:
            return os.pread(self._file.fileno(), end - start, start)
        except OSError as error:
            raise S3HashSyncError(
                f"cannot read a temporary file in {self._folder}: {error.strerror}", "is that disk healthy?"
            ) from error


def _translated(error: OSError, folder: str) -> S3HashSyncError:
    kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else S3HashSyncError
    return kind(f"cannot write a temporary file in {folder}: {error.strerror}", "packs wait there to be sent: free some space")
