"""A content on its way into a folder in parts: a temporary file that gets its name when it is complete.

Decides when an upload is whole. Knows nothing of the layout: it is told its final path.
"""

from __future__ import annotations

import base64
import hashlib
import os

from s3hashsync import errors
from s3hashsync.stores.base import Stored
from s3hashsync.stores.folder import Folder, write_all

PART_SIZE = 8 << 20


class LocalUpload:
    """`stores.base.Upload`. It cannot be resumed: `token` is empty."""

    token = ""
    part_size = PART_SIZE

    def __init__(self, folder: Folder, path: str, attempt_id: str) -> None:
        self._folder = folder
        self._path = path
        self._attempt_id = attempt_id
        self._hasher = hashlib.sha256()
        self._in_order = True
        self._lengths: dict[int, int] = {}
        self._fd, self._temporary = folder.temporary(os.path.dirname(path))

    def write_part(self, number: int, data: bytes) -> None:
        if number < 1 or len(data) > self.part_size:
            raise ValueError(f"part {number} of {len(data)} bytes: parts count from 1, and hold {self.part_size} at most")
        try:
            with self._folder.translating(f"write {self._path}"):
                write_all(self._fd, data, (number - 1) * self.part_size)
        except errors.StoreError as error:
            if not error.transient:
                # Nobody goes on with it, and the disk may be full of it.
                self._close()
            raise
        # Hashed on its way while parts come in order; one that is sent again, or early, is left to a second
        # look.
        self._in_order = self._in_order and number == len(self._lengths) + 1
        if self._in_order:
            self._hasher.update(data)
        self._lengths[number] = len(data)

    def holds_other(self, number: int, data: bytes) -> bool:
        """Never: a local upload is not resumed."""
        return False

    def complete(self) -> Stored:
        with self._folder.translating(f"write {self._path}"):
            try:
                size, digest = self._finish()
                placed = self._folder.place(self._temporary, self._path)
            finally:
                self._close()
            if not placed:
                raise errors.AlreadyThere(f"{self._path} is there already", "run again: every attempt gets a name of its own")
            self._folder.note(os.path.dirname(self._path))
        return Stored(self._attempt_id, size, f"sha256:{base64.b64encode(digest).decode()}")

    def _finish(self) -> tuple[int, bytes]:
        count = len(self._lengths)
        if set(self._lengths) != set(range(1, count + 1)):
            raise ValueError(f"{self._path}: a part is missing")
        if any(self._lengths[number] != self.part_size for number in range(1, count)):
            raise ValueError(f"{self._path}: only the last part may be short")
        size, digest = sum(self._lengths.values()), self._hasher.digest()
        os.truncate(self._fd, size)  # a last part that was sent again may have become shorter
        if not self._in_order:
            size, digest = self._folder.digest(self._fd)
        self._folder.seal(self._fd, digest)
        return size, digest

    def abort(self) -> None:
        with self._folder.translating(f"remove {self._temporary}"):
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._folder.remove(self._temporary)
