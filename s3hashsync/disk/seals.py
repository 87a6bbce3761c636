"""The secrets of encrypted uploads that are under way in parts: without them an interrupted one could not go on.

One file for each attempt, mode 0600, beside the local state; gone as soon as the upload is complete, because whoever has it
can open that one content. Its first line is the seal; a line for every part that may have been sent says which bytes those were:
the store is not asked for it, for it could keep silent, and get two texts under one key. Knows nothing of uploads.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from hashlib import sha256

from s3hashsync.codec.age import Seal
from s3hashsync.errors import S3HashSyncError

_PART = re.compile(rb"([1-9][0-9]{0,5}) ([0-9a-f]{64})")


class KeptSeal:
    """One that lies on the disk, with the SHA-256 of every part that may have been sent under it. For one thread."""

    def __init__(self, path: str, seal: Seal, parts: dict[int, str], end: int) -> None:
        self._path = path
        self.seal = seal
        self._parts = parts
        self._end = end

    def may_send(self, number: int, part: bytes) -> bool:
        """Whether nothing else was ever sent under that number. That this part may be is durable before it returns."""
        digest = sha256(part).hexdigest()
        if number in self._parts:
            return self._parts[number] == digest
        line = b"%d %s\n" % (number, digest.encode())
        try:
            with open(self._path, "r+b") as file:
                # What a crash left of a line goes: its part was not sent.
                file.truncate(self._end)
                file.seek(self._end)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        self._parts[number] = digest
        self._end += len(line)
        return True


class SealFiles:
    """Those of one source: `<start>.<attempt id>.seal`."""

    def __init__(self, start: str) -> None:
        self._start = start

    def _path(self, attempt_id: str) -> str:
        return f"{self._start}.{attempt_id}.seal"

    def keep(self, attempt_id: str, seal: Seal, encoder: str) -> KeptSeal:
        """Durable before it returns. `encoder` names what makes the bytes that are sealed: another one may make others of the
        same content, and those must not be sealed with the same key."""
        path = self._path(attempt_id)
        body = {"header": seal.header.hex(), "file_key": seal.file_key.hex(), "nonce": seal.nonce.hex(), "encoder": encoder}
        line = json.dumps(body).encode("ascii") + b"\n"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _cannot_write(path, error) from error
        return KeptSeal(path, seal, {}, len(line))

    def find(self, attempt_id: str, encoder: str) -> KeptSeal | None:
        """None when there is none, it was cut short by a crash, another encoder was at work, or it does not say for certain what
        was sent (a version before this one kept no parts, and no line feed): then the upload begins anew."""
        path = self._path(attempt_id)
        try:
            with open(path, "rb") as file:
                first, *lines = file.read().split(b"\n")
            body = json.loads(first)
            if not lines or body["encoder"] != encoder:
                return None
            seal = Seal(*(bytes.fromhex(body[name]) for name in ("header", "file_key", "nonce")))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # Behind the last line feed stands nothing, or a line that was not durable: then its part was not sent.
        parts = _parts(lines[:-1])
        end = len(first) + 1 + sum(len(line) + 1 for line in lines[:-1])
        return None if parts is None else KeptSeal(path, seal, parts, end)

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


def _parts(lines: list[bytes]) -> dict[int, str] | None:
    """None when one of them is damaged."""
    found = [_PART.fullmatch(line) for line in lines]
    parts = {int(match[1]): match[2].decode() for match in found if match is not None}
    return parts if len(parts) == len(lines) else None


def _cannot_write(path: str, error: OSError) -> S3HashSyncError:
    return S3HashSyncError(f"cannot write {path}: {error.strerror}", "check the state folder's rights and free space")
