"""The secrets of encrypted uploads that are under way in parts: without them an interrupted one could not go on.

One file for each attempt, mode 0600, beside the local state; gone as soon as the upload is complete, because whoever has it
can open that one content. Knows nothing of uploads.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from s3hashsync.codec.age import Seal
from s3hashsync.errors import S3HashSyncError


class SealFiles:
    """Those of one source: `<start>.<attempt id>.seal`."""

    def __init__(self, start: str) -> None:
        self._start = start

    def _path(self, attempt_id: str) -> str:
        return f"{self._start}.{attempt_id}.seal"

    def keep(self, attempt_id: str, seal: Seal, encoder: str) -> None:
        """Durable before it returns. `encoder` names what makes the bytes that are sealed: another one may make others of the
        same content, and those must not be sealed with the same key."""
        path = self._path(attempt_id)
        body = {"header": seal.header.hex(), "file_key": seal.file_key.hex(), "nonce": seal.nonce.hex(), "encoder": encoder}
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="ascii") as file:
                json.dump(body, file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise S3HashSyncError(
                f"cannot write {path}: {error.strerror}", "check the state folder's rights and free space"
            ) from error

    def find(self, attempt_id: str, encoder: str) -> Seal | None:
        """None when there is none, it was cut short by a crash, or another encoder was at work: then the upload begins anew."""
        try:
            with open(self._path(attempt_id), encoding="ascii") as file:
                body = json.load(file)
            if body["encoder"] != encoder:
                return None
            return Seal(*(bytes.fromhex(body[name]) for name in ("header", "file_key", "nonce")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def drop(self, attempt_id: str) -> None:
        """An absent one is fine."""
        with suppress(FileNotFoundError):
            os.unlink(self._path(attempt_id))

    def drop_all_but(self, attempt_ids: set[str]) -> None:
        """What crashes left of attempts that nobody will take up again."""
        folder, start = os.path.split(f"{self._start}.")
        for name in os.listdir(folder or os.curdir):
            middle = name.removeprefix(start).removesuffix(".seal")
            # A dot: it is of another source, whose name goes on after a dot.
            if name == f"{start}{middle}.seal" and "." not in middle and middle not in attempt_ids:
                self.drop(middle)
