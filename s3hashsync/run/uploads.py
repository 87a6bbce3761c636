"""Storing contents: in packs, in one put, or in parts; and finding again what a dead process had put.

Decides how a content travels and what is believed of an earlier attempt. An attempt is written down durably before it is
made, with the rev that its record had: so a version that was stored just before a crash is named by the next run as the dead
process would have done, on that very rev, and is not stored twice. A pack's index item is written before the pack, and after
the members' revs were read. Names nothing itself; that is the ledger's.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace

from s3hashsync.codec.names import display
from s3hashsync.codec.zstd import ENCODER, decode_stream
from s3hashsync.core.model import (
    ContentHash,
    Control,
    ObjectAt,
    Record,
    RecordState,
    Rev,
    object_stem,
    pack_key,
    pack_stem,
)
from s3hashsync.core.value import value
from s3hashsync.disk.seals import KeptSeal, SealFiles
from s3hashsync.disk.state import OpenAttempt, OpenPack, State
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
from s3hashsync.run.candidates import Candidate, SourceFiles
from s3hashsync.run.encoding import RunningCheck, check_opens, encoded, encoded_stream
from s3hashsync.run.frames import failing
from s3hashsync.run.keyring import Seal
from s3hashsync.run.ledger import REV_BYTES, Supply
from s3hashsync.run.packing import Pack, PackedContent
from s3hashsync.run.progress import Progress, Stop
from s3hashsync.run.repository import Repository
from s3hashsync.stores.base import Attempt, Stored, Upload, Write

WHOLE_LIMIT = 4 << 20
"""Contents up to this size are read and encoded in one piece; larger ones in a stream."""

MEMORY = 192 << 20
"""What encoded contents on their way may take together, bytes."""

SMALL = 64 << 10
"""Contents up to this size are stored one after the other where the store is a disk."""

ATTEMPT_BYTES = 8
MEMBERS_IN_ITEM = 10_000
"""An index item holds 400 KB at most, and each member takes 32 bytes."""


@dataclass(slots=True)
class UploadTally:
    objects: int = 0
    packs: int = 0
    bytes_stored: int = 0
    bytes_read: int = 0
    adopted: int = 0
    index_writes: int = 0
    index_units: int = 0


class Uploader:
    """A ledger's supplier for one source. Its paths are set batch by batch; packs are put before their members are asked for."""

    def __init__(
        self,
        repository: Repository,
        state: State,
        files: SourceFiles,
        settings: UploadSettings,
        progress: Progress,
        stop: Stop,
    ) -> None:
        self._objects = repository.objects
        self._index = repository.index
        self._keys = repository.keys
        self._state = state
        self._files = files
        self._settings = settings
        self._progress = progress
        self._stop = stop
        self._tally_lock = threading.Lock()
        self._pack_lock = threading.Lock()
        self._budget = _Budget(MEMORY)
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="upload")
        self._ready: dict[ContentHash, _Ready] = {}
        self._look_for_packs()
        settings.seals.drop_all_but(state.resumable())
        self.candidates: Mapping[ContentHash, Sequence[Candidate]] = {}
        self.tally = UploadTally()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def stored_already(self) -> Mapping[ContentHash, object]:
        """What lies in packs and waits to be named: it need not be packed again."""
        return self._ready

    def ready_and_new(self, hashes: Iterable[ContentHash]) -> set[ContentHash]:
        """Those of them that lie in a pack of this run, and had no record before it was put."""
        found = ((hash_, self._ready.get(hash_)) for hash_ in hashes)
        return {hash_ for hash_, one in found if one is not None and one.expects is None and not one.pack.adopted}

    def __call__(self, needed: Mapping[ContentHash, Rev | None]) -> Mapping[ContentHash, Supply | S3HashSyncError]:
        out: dict[ContentHash, Supply | S3HashSyncError] = {}
        attempts: dict[ContentHash, OpenAttempt] = {}
        for hash_, rev in needed.items():
            if not any(candidate.allowed for candidate in self.candidates[hash_]):
                out[hash_] = Incomplete(
                    "its content is no longer stored, and the plan did not say that it would be uploaded", "plan again"
                )
                continue
            # Once, and on the rev that was read before the pack was put: after a refused write its bytes must not be used again.
            if (ready := self._ready.pop(hash_, None)) is not None and ready.expects == rev:
                self.tally.adopted += ready.pack.adopted
                out[hash_] = ready.pack.supply(ready.place)
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

    # Packs

    def put_pack(self, pack: Pack) -> None:
        """Store it, so that its members are ready for the ledger. Their revs are read first; then come attempt, item, pack. For
        any thread; one pack is on its way at a time."""
        with self._pack_lock:
            items = self._index.read([hash_.hex() for hash_ in pack.contents])
            records = {item.hash: item for item in items.values() if isinstance(item, Record)}
            needed = {h: records[h].rev if h in records else None for h in pack.contents if not _is_stored(records.get(h))}
            if needed:
                self._put_pack(pack, needed)

    def _put_pack(self, pack: Pack, needed: Mapping[ContentHash, Rev | None]) -> None:
        attempt = self._settings.entropy(ATTEMPT_BYTES).hex()
        now = self._settings.now()
        self._state.mark_pack(OpenPack(pack.id, attempt, pack.checksum, pack.encoding, now, _members(pack, needed)))
        self._write_item(pack, attempt)
        stored = self._objects.put(pack_stem(pack.id), pack.body, Attempt(attempt, self._settings.storage_class))
        if stored.checksum.startswith("sha256:") and stored.checksum != pack.checksum:
            # It was read once more for this, and not as it was when it was opened again.
            self._state.forget_packs([pack.id])
            raise failing("what was stored is another one, which nobody will use")
        self._objects.barrier()
        with self._tally_lock:
            self.tally.objects += 1
            self.tally.packs += 1
            self.tally.bytes_stored += stored.size
            self.tally.bytes_read += sum(pack.contents[hash_].size for hash_ in needed)
        put = _StoredPack(pack.id, stored.version, pack.encoding, now)
        # In one step: the ledger may be taking those of the pack before.
        self._ready.update({hash_: _Ready(rev, pack.contents[hash_], put) for hash_, rev in needed.items()})

    def _write_item(self, pack: Pack, attempt: str) -> None:
        """The list of members, in as many items as it takes; the one that says how many there are comes last."""
        members = b"".join(pack.contents)
        step = 32 * MEMBERS_IN_ITEM
        pages = [members[at : at + step] for at in range(0, len(members), step)]
        fields = (
            ("members", str(len(pack.contents))),
            ("stored", str(pack.body.size)),
            ("checksum", pack.checksum),
            ("attempt", attempt),
            ("parts", str(len(pages))),
        )
        items = [Control(f"{pack_key(pack.id)}.{n}", self._rev(), (), page) for n, page in enumerate(pages) if n]
        for item in (*items, Control(pack_key(pack.id), self._rev(), fields, pages[0])):
            (outcome,) = self._index.write([Write(item, None)])
            if not outcome.written:
                raise Corrupt(f"the index has an item {item.key} already", "is this machine's source of randomness broken?")
            self.tally.index_writes += 1
            self.tally.index_units += self._index.write_units(item)

    def _rev(self) -> Rev:
        return Rev(self._settings.entropy(REV_BYTES))

    def _look_for_packs(self) -> None:
        """What a dead process had put into packs and may not have named. A pack counts when it is whole: its checksum was written
        down before it was put; and when this index lists its members: otherwise nobody would ask them before it is purged."""
        gone = []
        packs = self._state.open_packs()
        listed = self._index.read([pack_key(pack.id) for pack in packs]) if packs else {}
        for pack in packs:
            stored = self._found(pack_stem(pack.id), pack.attempt) if pack_key(pack.id) in listed else None
            if stored is None or stored.checksum != pack.checksum:
                gone.append(pack.id)
                continue
            left = _StoredPack(pack.id, stored.version, pack.encoding, pack.stored_at, adopted=True)
            self._ready |= {hash_: _Ready(rev, place, left) for hash_, rev, place in _parse_members(pack.members)}
        if gone:
            self._state.forget_packs(gone)

    def _found(self, stem: str, attempt: str) -> Stored | None:
        """What a dead process left under this attempt. What cannot be read is not there: it is stored anew."""
        try:
            return self._objects.find(stem, attempt)
        except StoreError as error:
            if error.transient or isinstance(error, Denied):
                raise
            return None

    # Objects

    def _adopt(self, earlier: OpenAttempt) -> Supply | None:
        """What an earlier process stored under this attempt, read back before it is believed: after a power failure a file may
        be there with holes. What lies in an archive class, or is encrypted to somebody else, cannot be read, but was checked by
        the store when it came."""
        found = self._found(object_stem(earlier.hash), earlier.id)
        if found is None:
            return None
        candidate = self.candidates[earlier.hash][0]
        if not self._keys.encrypted and not self._is_content(earlier.hash, found, candidate):
            return None
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
                put = Attempt(attempt.id, self._settings.storage_class)
                upload = self._objects.resume(object_stem(attempt.hash), put, attempt.token)
                if upload is not None:
                    upload.abort()
        self._state.forget_attempts([attempt.hash for attempt in unwanted])
        self._settings.seals.drop_all_but(self._state.resumable())

    def _begun(self, attempt: OpenAttempt, candidate: Candidate) -> tuple[Upload, Seal | None, KeptSeal | None]:
        """The upload that a dead process had begun, where it can go on; otherwise a new one. Its seal, and that once more where
        it is kept for another process."""
        stem = object_stem(attempt.hash)
        put = Attempt(attempt.id, self._settings.storage_class)
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


@value
class UploadSettings:
    """How contents are stored. `now` in whole epoch seconds; `verify`: everything is opened again before it is sent; `seals`:
    where the secrets of unfinished uploads lie."""

    storage_class: str
    threads: int
    now: Callable[[], int]
    entropy: Callable[[int], bytes]
    seals: SealFiles
    verify: bool = True


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


@value
class _StoredPack:
    """A pack that lies in the store. `adopted`: a process that is dead now has put it there."""

    id: str
    version: str
    encoding: str
    stored_at: int
    adopted: bool = False

    def supply(self, place: PackedContent) -> Supply:
        location = place.location(self.id, self.version)
        return Supply(location, self.encoding, place.stored, "", place.size, self.stored_at)


@value
class _Ready:
    """A content in a stored pack, and the rev on which it may be named."""

    expects: Rev | None
    place: PackedContent
    pack: _StoredPack


def _is_stored(record: Record | None) -> bool:
    return record is not None and record.state in (RecordState.LIVE, RecordState.TRASH)


_MEMBER = struct.Struct("<32s?12s5Q")


def _members(pack: Pack, needed: Mapping[ContentHash, Rev | None]) -> bytes:
    """Each content with the rev that its record had, and its place."""
    out = []
    for hash_, rev in needed.items():
        p = pack.contents[hash_]
        out.append(_MEMBER.pack(hash_, rev is not None, rev or b"", p.frame_offset, p.frame_length, p.offset, p.size, p.stored))
    return b"".join(out)


def _parse_members(members: bytes) -> Iterator[tuple[ContentHash, Rev | None, PackedContent]]:
    for hash_, has_rev, rev, *place in _MEMBER.iter_unpack(members):
        yield ContentHash(hash_), Rev(rev) if has_rev else None, PackedContent(*place)
