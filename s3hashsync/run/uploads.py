"""Storing contents: by a pack that lies there already, in one put, or in parts; and finding again what a dead process had put.

Decides how a content travels and what is believed of an earlier attempt. An attempt is written down durably before it is
made, with the rev that its record had: so a version that was stored just before a crash is named by the next run as the dead
process would have done, on that very rev, and is not stored twice. Packs are `run.stored_packs`'. Names nothing itself; that is
the ledger's.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace

from s3hashsync.codec.names import display
from s3hashsync.codec.zstd import ENCODER, decode_stream
from s3hashsync.core.model import (
    ContentHash,
    ObjectAt,
    Rev,
    object_stem,
)
from s3hashsync.disk.seals import KeptSeal
from s3hashsync.disk.state import OpenAttempt
from s3hashsync.errors import (
    Archived,
    ChangedUnderfoot,
    Corrupt,
    Denied,
    Incomplete,
    Interrupted,
    S3HashSyncError,
    StoreError,
)
from s3hashsync.run.attempts import UploadPorts
from s3hashsync.run.candidates import Candidate, SourceFiles
from s3hashsync.run.encoding import RunningCheck, check_opens, encoded, encoded_stream
from s3hashsync.run.keyring import Seal
from s3hashsync.run.ledger import Supply
from s3hashsync.run.progress import Progress, Stop
from s3hashsync.run.stored_packs import StoredPacks
from s3hashsync.stores.base import Stored, Upload

WHOLE_LIMIT = 4 << 20
"""Contents up to this size are read and encoded in one piece; larger ones in a stream."""

MEMORY = 192 << 20
"""What encoded contents on their way may take together, bytes."""

SMALL = 64 << 10
"""Contents up to this size are stored one after the other where the store is a disk."""


class Uploader:
    """A ledger's supplier for one source. Its paths are set batch by batch; packs are put before their members are asked for."""

    def __init__(self, ports: UploadPorts, packs: StoredPacks, files: SourceFiles, progress: Progress, stop: Stop) -> None:
        self._ports = ports
        self._objects = ports.repository.objects
        self._keys = ports.repository.keys
        self._state = ports.state
        self._settings = ports.settings
        self._files = files
        self._progress = progress
        self._stop = stop
        self._budget = _Budget(MEMORY)
        self._pool = ThreadPoolExecutor(ports.settings.threads, thread_name_prefix="upload")
        ports.settings.seals.drop_all_but(ports.state.resumable())
        self.packs = packs
        self.candidates: Mapping[ContentHash, Sequence[Candidate]] = {}
        self.tally = ports.tally

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
            if (packed := self.packs.take(hash_, rev)) is not None:
                out[hash_] = packed
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
            attempts[hash_] = OpenAttempt(hash_, self._ports.new_id(), rev)
        if attempts:
            self._state.mark((), attempts.values())
            out |= self._store_all(list(attempts.values()))
        # Also for what was adopted: a dead process had no barrier.
        self._objects.barrier()
        return out

    def _adopt(self, earlier: OpenAttempt) -> Supply | None:
        """What an earlier process stored under this attempt, read back before it is believed: after a power failure a file may
        be there with holes. What lies in an archive class, or is encrypted to somebody else, cannot be read, but was checked by
        the store when it came."""
        found = self._ports.found(object_stem(earlier.hash), earlier.id)
        if found is None:
            return None
        candidate = self.candidates[earlier.hash][0]
        if not self._keys.encrypted and not self._is_content(earlier.hash, found, candidate):
            return None
        with self.tally.lock:
            self.tally.adopted += 1
        # It may have come in parts, by a process that died before it dropped the seal.
        self._settings.seals.drop(earlier.id)
        return self._supply(found, candidate)

    def _is_content(self, hash_: ContentHash, found: Stored, candidate: Candidate) -> bool:
        try:
            chunks = self._objects.read(object_stem(hash_), found.version)
            digest = hashlib.sha256()
            for chunk in decode_stream(chunks, candidate.entry.size):
                digest.update(chunk)
        except Archived:
            return True
        except (Corrupt, StoreError) as error:
            if error.transient or isinstance(error, Denied):
                raise
            return False
        return digest.digest() == candidate.sha256

    def _supply(self, stored: Stored, candidate: Candidate) -> Supply:
        location = ObjectAt(stored.version)
        size, now = candidate.entry.size, self._settings.now()
        return Supply(location, self._keys.encoding, stored.size, stored.checksum, size, now)

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
            return self._supply(stored, candidate)
        return problem

    def _count(self, stored: Stored, candidate: Candidate) -> None:
        with self.tally.lock:
            self.tally.objects += 1
            self.tally.bytes_stored += stored.size
            self.tally.bytes_read += candidate.entry.size

    def _store(self, attempt: OpenAttempt, candidate: Candidate) -> Stored:
        size = candidate.entry.size
        if size > self._objects.single_put_limit:
            return self._store_in_parts(attempt, candidate)
        put = self._ports.attempt(attempt.id)
        # Raw and encoded bytes are held together only below WHOLE_LIMIT.
        with self._budget.take(2 * size if size <= WHOLE_LIMIT else size + WHOLE_LIMIT):
            seal = self._keys.new_seal()
            body = self._encoded(candidate, seal)
            if self._settings.verify:
                check_opens(body, seal, size, candidate.sha256)
            return self._objects.put(object_stem(attempt.hash), body, put)

    def _encoded(self, candidate: Candidate, seal: Seal | None) -> bytes:
        if candidate.entry.size <= WHOLE_LIMIT:
            return encoded(self._files.content(candidate), seal)
        with self._files.chunks(candidate) as chunks:
            return b"".join(encoded_stream(chunks, candidate.entry.size, seal))

    # In parts

    def _store_in_parts(self, attempt: OpenAttempt, candidate: Candidate) -> Stored:
        upload, seal, kept = self._begun(attempt, candidate)
        check = RunningCheck(seal, candidate.entry.size, candidate.sha256) if self._settings.verify else None
        try:
            with (
                self._budget.take(2 * upload.part_size),
                check or nullcontext(),
                self._files.chunks(candidate) as chunks,
            ):
                self._write_parts(upload, encoded_stream(chunks, candidate.entry.size, seal), kept, check)
                if check is not None:
                    check.finish()
        except _SealSpent:
            upload.abort()
            self._settings.seals.drop(attempt.id)
            return self._store_in_parts(replace(attempt, token=""), candidate)
        except (ChangedUnderfoot, Corrupt):
            upload.abort()
            self._settings.seals.drop(attempt.id)
            raise
        stored = upload.complete()
        self._settings.seals.drop(attempt.id)
        return stored

    def give_up_unwanted(self) -> None:
        """At the end of a whole run: what dead processes had begun to send in parts, and no path needs any more, is aborted, and
        no seal is left of it."""
        unwanted = self._state.unwanted_uploads()
        for attempt in unwanted:
            # Best effort, as every abort: what stays is left to the bucket's rule, and nobody could go on with it.
            with suppress(StoreError):
                put = self._ports.attempt(attempt.id)
                upload = self._objects.resume(object_stem(attempt.hash), put, attempt.token)
                if upload is not None:
                    upload.abort()
        self._state.forget_attempts([attempt.hash for attempt in unwanted])
        self._settings.seals.drop_all_but(self._state.resumable())

    def _begun(self, attempt: OpenAttempt, candidate: Candidate) -> tuple[Upload, Seal | None, KeptSeal | None]:
        """The upload that a dead process had begun, where it can go on; otherwise a new one. Its seal, and that once more where
        it is kept for another process."""
        stem = object_stem(attempt.hash)
        put = self._ports.attempt(attempt.id)
        if attempt.token:
            upload = self._objects.resume(stem, put, attempt.token)
            kept = self._settings.seals.find(attempt.id, ENCODER) if self._keys.encrypted else None
            if upload is not None and (kept is not None or not self._keys.encrypted):
                self._check_same(candidate, kept)
                return upload, kept.seal if kept else None, kept
            if upload is not None:
                upload.abort()
            self._progress.note(f"an interrupted upload cannot be continued, it starts again: {display(candidate.entry.path)}")
        seal, kept = self._keys.new_seal(), None
        upload = self._objects.begin(stem, put, candidate.entry.size)
        if upload.token:
            if seal is not None:
                kept = self._settings.seals.keep(attempt.id, seal, ENCODER)
            self._state.mark((), [OpenAttempt(attempt.hash, attempt.id, attempt.expects, upload.token)])
        return upload, seal, kept

    def _check_same(self, candidate: Candidate, kept: KeptSeal | None) -> None:
        """Two different contents must never be sealed with one key: whoever saw both parts could tell them apart. So before a
        seal is used again the whole file is read; `ChangedUnderfoot` when it is another one by now. What is written to it after
        that shows part by part, before each is sent."""
        if kept is not None:
            with self._files.chunks(candidate) as chunks:
                for _ in chunks:
                    self._stop.check()

    def _write_parts(self, upload: Upload, stored: Iterator[bytes], kept: KeptSeal | None, check: RunningCheck | None) -> None:
        def write(number: int, part: bytes) -> None:
            if kept is not None and (upload.holds_other(number, part) or not kept.may_send(number, part)):
                raise _SealSpent
            upload.write_part(number, part)

        buffer = bytearray()
        number = 0
        for chunk in stored:
            buffer += chunk
            if check is not None:
                check.feed(chunk)
            while len(buffer) >= upload.part_size:
                # What was stored stays with the store: the next run goes on after these parts.
                self._stop.check()
                number += 1
                write(number, bytes(memoryview(buffer)[: upload.part_size]))
                del buffer[: upload.part_size]
        if buffer or not number:
            write(number + 1, bytes(buffer))


class _SealSpent(Exception):
    """What was sent before under this seal is not what would be sent now: it must not be used for both."""


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
