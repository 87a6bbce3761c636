"""Storing contents: read, hash again, encode, put; and finding again what a dead process had put.

Decides how a content travels (in one put, or in parts) and what is believed of an earlier attempt. An attempt is written down
durably before it is made, with the rev that its record had: so a version that was stored just before a crash is named by the
next run as the dead process would have done, on that very rev, and is not stored twice. Names nothing itself; that is the
ledger's.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from s3hashsync.codec.zstd import decode_stream, encode, encode_stream
from s3hashsync.core.model import ContentHash, Entry, Rev, Sha256, object_stem
from s3hashsync.disk.read import Facts, StableFile, open_stable
from s3hashsync.disk.state import OpenAttempt, State
from s3hashsync.errors import Archived, ChangedUnderfoot, Corrupt, Incomplete, Interrupted, Missing, S3HashSyncError
from s3hashsync.run.ledger import Supply
from s3hashsync.run.progress import Progress, Stop
from s3hashsync.stores.base import Attempt, ObjectStore, Stored, Upload

WHOLE_LIMIT = 4 << 20
"""Contents up to this size are read and encoded in one piece; larger ones in a stream."""

MEMORY = 192 << 20
"""What encoded contents on their way may take together, bytes."""

SMALL = 64 << 10
"""Contents up to this size are stored one after the other where the store is a disk."""

ATTEMPT_BYTES = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A path that holds (or held, when it was scanned) a content; `allowed`: the plan said that it may be uploaded."""

    entry: Entry
    sha256: Sha256
    allowed: bool = True


@dataclass(slots=True)
class UploadTally:
    objects: int = 0
    bytes_stored: int = 0
    bytes_read: int = 0
    adopted: int = 0


class Uploader:
    """A ledger's supplier for one source. Its paths are set batch by batch."""

    def __init__(
        self,
        objects: ObjectStore,
        state: State,
        root: int,
        settings: UploadSettings,
        progress: Progress,
        stop: Stop,
    ) -> None:
        self._objects = objects
        self._state = state
        self._root = root
        self._settings = settings
        self._progress = progress
        self._stop = stop
        self._state_lock = threading.Lock()
        self._tally_lock = threading.Lock()
        self._budget = _Budget(MEMORY)
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="upload")
        self.candidates: Mapping[ContentHash, Sequence[Candidate]] = {}
        self.tally = UploadTally()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, needed: Mapping[ContentHash, Rev | None]) -> Mapping[ContentHash, Supply | S3HashSyncError]:
        out: dict[ContentHash, Supply | S3HashSyncError] = {}
        attempts: dict[ContentHash, OpenAttempt] = {}
        for hash_, rev in needed.items():
            if not any(candidate.allowed for candidate in self.candidates[hash_]):
                out[hash_] = Incomplete(
                    "its content is no longer stored, and the plan did not say that it would be uploaded", "plan again"
                )
                continue
            earlier = self._state.attempt(hash_)
            if earlier is not None and earlier.expects == rev:
                supply = self._adopt(earlier)
                if supply is not None:
                    out[hash_] = supply
                    continue
                if earlier.token:
                    attempts[hash_] = earlier
                    continue
            attempts[hash_] = OpenAttempt(hash_, self._settings.entropy(ATTEMPT_BYTES).hex(), rev)
        if attempts:
            self._state.mark((), attempts.values())
            out |= self._store_all(list(attempts.values()))
        # Also for what was adopted: a dead process had no barrier.
        self._objects.barrier()
        return out

    def _adopt(self, earlier: OpenAttempt) -> Supply | None:
        """What an earlier process stored under this attempt, read back before it is believed: after a power failure a file may
        be there with holes. What lies in an archive class cannot be read, but was checked by the store when it came."""
        found = self._objects.find(object_stem(earlier.hash), earlier.id)
        if found is None:
            return None
        candidate = self.candidates[earlier.hash][0]
        try:
            chunks = self._objects.read(object_stem(earlier.hash), found.version)
            digest = hashlib.sha256()
            for chunk in decode_stream(chunks, candidate.entry.size):
                digest.update(chunk)
            if digest.digest() != candidate.sha256:
                return None
        except Archived:
            pass
        except (Corrupt, Missing):
            return None
        self.tally.adopted += 1
        return Supply(found, candidate.entry.size, self._settings.now())

    def _store_all(self, attempts: list[OpenAttempt]) -> dict[ContentHash, Supply | S3HashSyncError]:
        here, away = [], attempts
        if self._settings.threads <= 2:
            # Against a network each put waits by itself. On a disk two threads with small files take the interpreter's lock from
            # each other at every call of the system, and need a third more time than one.
            here = [attempt for attempt in attempts if self._size(attempt) <= SMALL]
            away = [attempt for attempt in attempts if self._size(attempt) > SMALL]
        answers = self._pool.map(self._store_one, away)
        out = {attempt.hash: self._store_one(attempt) for attempt in here}
        return out | {attempt.hash: answer for attempt, answer in zip(away, answers, strict=True)}

    def _size(self, attempt: OpenAttempt) -> int:
        return self.candidates[attempt.hash][0].entry.size

    def _store_one(self, attempt: OpenAttempt) -> Supply | S3HashSyncError:
        """From the first path that still holds the content."""
        problem: S3HashSyncError = Incomplete("no path holds this content any more")
        for candidate in self.candidates[attempt.hash]:
            if self._stop:
                return Interrupted("interrupted")
            try:
                stored = self._store(attempt, candidate)
            except (ChangedUnderfoot, Corrupt) as error:
                problem = error
                continue
            except Interrupted as error:
                return error
            except OSError as error:
                problem = Incomplete(f"cannot be read: {error.strerror or error}")
                continue
            self._count(stored, candidate)
            self._progress.advance(1, candidate.entry.size)
            return Supply(stored, candidate.entry.size, self._settings.now())
        return problem

    def _count(self, stored: Stored, candidate: Candidate) -> None:
        """From many threads: an addition to an attribute is no single step."""
        with self._tally_lock:
            self.tally.objects += 1
            self.tally.bytes_stored += stored.size
            self.tally.bytes_read += candidate.entry.size

    def _store(self, attempt: OpenAttempt, candidate: Candidate) -> Stored:
        size = candidate.entry.size
        if size > self._objects.single_put_limit:
            return self._store_in_parts(attempt, candidate)
        put = Attempt(attempt.id, self._settings.storage_class)
        # Raw and encoded bytes are held together only below WHOLE_LIMIT.
        with self._budget.take(2 * size if size <= WHOLE_LIMIT else size + WHOLE_LIMIT):
            body = self._encoded(candidate)
            return self._objects.put(object_stem(attempt.hash), body, put)

    def _encoded(self, candidate: Candidate) -> bytes:
        if candidate.entry.size > WHOLE_LIMIT:
            with self._hashing(candidate) as chunks:
                return b"".join(encode_stream(chunks, candidate.entry.size))
        with self._open(candidate) as file:
            content = file.read()
        if hashlib.sha256(content).digest() != candidate.sha256:
            raise _changed(candidate)
        return encode(content)

    def _open(self, candidate: Candidate) -> StableFile:
        return open_stable(candidate.entry.path, Facts.of(candidate.entry, inode=self._settings.inodes), dir_fd=self._root)

    @contextmanager
    def _hashing(self, candidate: Candidate) -> Iterator[Iterator[bytes]]:
        """The file's chunks; leaving the block raises `ChangedUnderfoot` when they were not the content that was planned."""
        digest = hashlib.sha256()

        def chunks() -> Iterator[bytes]:
            with self._open(candidate) as file:
                for chunk in file.chunks():
                    digest.update(chunk)
                    yield chunk

        iterator = chunks()
        try:
            yield iterator
            if digest.digest() != candidate.sha256:
                raise _changed(candidate)
        finally:
            iterator.close()  # type: ignore[attr-defined]

    def _store_in_parts(self, attempt: OpenAttempt, candidate: Candidate) -> Stored:
        stem = object_stem(attempt.hash)
        put = Attempt(attempt.id, self._settings.storage_class)
        upload = self._objects.resume(stem, put, attempt.token) if attempt.token else None
        if upload is None:
            upload = self._objects.begin(stem, put, candidate.entry.size)
            if upload.token:
                with self._state_lock:
                    self._state.mark((), [OpenAttempt(attempt.hash, attempt.id, attempt.expects, upload.token)])
        try:
            with self._budget.take(2 * upload.part_size), self._hashing(candidate) as chunks:
                self._write_parts(upload, encode_stream(chunks, candidate.entry.size))
        except (ChangedUnderfoot, Corrupt):
            upload.abort()
            raise
        return upload.complete()

    def _write_parts(self, upload: Upload, encoded: Iterator[bytes]) -> None:
        buffer = bytearray()
        number = 0
        for chunk in encoded:
            buffer += chunk
            while len(buffer) >= upload.part_size:
                # What was stored stays with the store: the next run goes on after these parts.
                self._stop.check()
                number += 1
                upload.write_part(number, bytes(memoryview(buffer)[: upload.part_size]))
                del buffer[: upload.part_size]
        if buffer or not number:
            upload.write_part(number + 1, bytes(buffer))


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """How contents are stored. `now` in whole epoch seconds; `inodes`: whether the source's inodes mean anything."""

    storage_class: str
    threads: int
    now: Callable[[], int]
    entropy: Callable[[int], bytes]
    inodes: bool = True


class _Budget:
    """Bounds the bytes in memory: whoever wants more than is left waits; one that wants more than there is goes alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = size
        self._changed = threading.Condition()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        amount = min(amount, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


def _changed(candidate: Candidate) -> ChangedUnderfoot:
    return ChangedUnderfoot(f"{os.fsdecode(candidate.entry.path)} changed while it was read", "it is left to the next run")
