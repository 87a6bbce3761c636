"""Contents out of packs and age files: what comes back is right or named, and it takes few requests.

The packs here are made by hand, as the manual describes them: what is tested does not check itself.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import os
import random
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from s3hashsync.codec.age import Seal, X25519Identity, X25519Recipient, new_seal
from s3hashsync.codec.zstd import decode_head, decode_part, decode_stream
from s3hashsync.core.model import (
    ENCODING_ZSTD,
    Content,
    ContentHash,
    Control,
    Entry,
    Kind,
    ObjectAt,
    PackAt,
    Record,
    RecordState,
    Rev,
    Sha256,
    object_stem,
    pack_key,
    pack_stem,
    sealed_encoding,
)
from s3hashsync.disk.snapshot import PackFrame
from s3hashsync.errors import Archived, Corrupt, Interrupted, S3HashSyncError, Unsupported, WrongKey
from s3hashsync.run.contents import Contents, stored_at
from s3hashsync.run.history import CHECKPOINT, Present, SegmentHeader, SegmentWriter, segment_key, store_segment
from s3hashsync.run.keyring import Identity, Keyring, NoKeys
from s3hashsync.run.pack_reading import GAP, RUN, runs
from s3hashsync.run.progress import Silent
from s3hashsync.run.restore import Restored, RestoreOptions, apply_restore, planned_restore
from s3hashsync.stores.base import Attempt, Index, ObjectStore, Write
from tests.harness import SOURCE, House
from tests.program import Program

MIB = 1 << 20
NS = 1_500_000_000_123_456_789
OURS = X25519Identity.generate(random.Random(1).randbytes)
THEIRS = X25519Identity.generate(random.Random(2).randbytes)
FORMS = ["object", "object sealed", "pack", "pack sealed"]


class Locked(NoKeys):
    """All keys of an encrypted repository."""

    encrypted = True
    encoding = sealed_encoding(1)

    def content_hash(self, sha256: Sha256) -> ContentHash:
        return ContentHash(hmac.digest(b"a hash key", sha256, "sha256"))

    def log_key(self, source: str) -> bytes | None:
        return b"l" * 32

    def new_seal(self) -> Seal | None:
        return seal_to(OURS.recipient)

    def identity(self, epoch: int) -> Identity:
        if epoch != 1:
            raise WrongKey(f"the keys of epoch {epoch} are not there")
        return OURS

    def identities(self) -> tuple[Identity, ...]:
        return (OURS,)


class Hashless(Locked):
    """One that lacks the hash key."""

    def content_hash(self, sha256: Sha256) -> ContentHash:
        raise WrongKey("the hash key is not there")


def seal_to(recipient: X25519Recipient) -> Seal:
    return new_seal([recipient], os.urandom)


# Making what is read


@dataclass
class Pack:
    """Frames of a tar, as `body` stores them; `places`: frame offset, frame length and offset of each content."""

    id: str
    body: bytes
    places: dict[bytes, tuple[int, int, int]]


def packed(contents: Mapping[bytes, bytes], seal: Seal | None, frame_bytes: int = MIB) -> Pack:
    """`contents` by their hashes."""
    frames: list[bytes] = []
    places: dict[bytes, tuple[int, int, int]] = {}
    members: list[tuple[bytes, int]] = []
    tar = bytearray()
    compress = zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=True).compress

    def cut() -> None:
        start = sum(map(len, frames))
        frames.append(compress(bytes(tar)))
        places.update({hash_: (start, len(frames[-1]), offset) for hash_, offset in members})
        members.clear()
        tar.clear()

    for hash_, content in contents.items():
        info = tarfile.TarInfo(hash_.hex())
        info.mode, info.size = 0o600, len(content)
        members.append((hash_, len(tar) + 512))
        tar += info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
        if len(tar) >= frame_bytes:
            cut()
    if tar:
        cut()
    plain = b"".join(frames) + compress(bytes(1024))
    return Pack(os.urandom(16).hex(), plain if seal is None else seal.encrypt(plain), places)


@dataclass
class Shop:
    """A repository with one source, whose contents were stored in one of the forms."""

    house: House
    keys: Keyring
    in_pack: bool
    frame_bytes: int = MIB
    files: dict[bytes, bytes] = field(default_factory=dict)
    contents: dict[bytes, Content] = field(default_factory=dict)
    packs: list[Pack] = field(default_factory=list)
    without_sha256: frozenset[bytes] = frozenset()

    def hash(self, content: bytes) -> ContentHash:
        return self.keys.content_hash(Sha256(hashlib.sha256(content).digest()))

    def store(self, files: Mapping[bytes, bytes]) -> Shop:
        """One pack for each call, or an object for each content."""
        fresh: dict[bytes, bytes] = {self.hash(content): content for content in files.values() if content}
        with self.house.repository() as repository:
            if self.in_pack:
                places = self._store_pack(repository.objects, fresh)
            else:
                places = {hash_: self._store_object(repository.objects, hash_, content) for hash_, content in fresh.items()}
        self.files |= files
        self.contents |= places
        return self

    def _store_pack(self, objects: ObjectStore, fresh: Mapping[bytes, bytes]) -> dict[bytes, Content]:
        pack = packed(fresh, self.keys.new_seal(), self.frame_bytes)
        self.packs.append(pack)
        version = objects.put(pack_stem(pack.id), pack.body, attempt()).version
        return {
            hash_: self.content(hash_, fresh[hash_], PackAt(pack.id, version, *place), stored=place[1])
            for hash_, place in pack.places.items()
        }

    def _store_object(self, objects: ObjectStore, hash_: bytes, content: bytes) -> Content:
        seal = self.keys.new_seal()
        frame = zstandard.ZstdCompressor(level=3, write_checksum=True).compress(content)
        body = frame if seal is None else seal.encrypt(frame)
        version = objects.put(object_stem(ContentHash(hash_)), body, attempt()).version
        checksum = f"sha256:{base64.b64encode(hashlib.sha256(body).digest()).decode()}"
        return replace(self.content(hash_, content, ObjectAt(version), stored=len(body)), checksum=checksum)

    def content(self, hash_: bytes, content: bytes, at: ObjectAt | PackAt, *, stored: int) -> Content:
        return Content(ContentHash(hash_), len(content), stored, 1, "STANDARD", "", self.keys.encoding, at)

    def logged(self) -> Shop:
        """The source's run log says all of it."""
        with self.house.repository() as repository:
            writer = SegmentWriter(self.keys, SOURCE)
            for path, content in sorted(self.files.items()):
                writer.add(self._line(path, content))
            header = SegmentHeader(
                kind=CHECKPOINT,
                repository=repository.identity.id,
                incarnation=repository.identity.incarnation,
                source=SOURCE,
                root="/",
                host="laptop",
                run=f"20990101T{len(list(repository.objects.documents('runs/'))):06d}Z-ffffffff",
                number=1,
                previous="",
                time=self.house.clock(),
                scanned_ns=0,
            )
            store_segment(repository.objects, segment_key(SOURCE, header.run, 1), writer.finish(header))
        return self

    def _line(self, path: bytes, content: bytes) -> Present:
        entry = Entry(path, Kind.FILE, len(content), NS, 0, 0, 0, 0o640, os.geteuid(), os.getegid())
        if not content:
            return Present(entry, None, None, None)
        hash_ = self.hash(content)
        sha256 = None if path in self.without_sha256 else Sha256(hashlib.sha256(content).digest())
        return Present(entry, hash_, sha256, self.contents[hash_])

    def record(self, path: bytes, content: Content) -> None:
        """What the index says of it now."""
        record = Record(
            content.hash,
            RecordState.LIVE,
            Rev(os.urandom(12)),
            size=content.size,
            stored=content.stored,
            checksum=content.checksum,
            encoding=content.encoding,
            location=content.location,
        )
        with self.house.repository() as repository:
            assert repository.index.write([Write(record, None)])[0].written

    def restore(self, to: Path, *selections: str, **options: Any) -> Restored:
        with self.house.job() as job:
            job = replace(job, repository=replace(job.repository, keys=self.keys), progress=options.pop("progress", job.progress))
            chosen = [f"{SOURCE}:{selection}" for selection in selections] or [SOURCE]
            with planned_restore(job, chosen, RestoreOptions(to=str(to), **options)) as work:
                return apply_restore(job, work)

    def path_of(self, content: Content) -> Path:
        """The file in the store."""
        at = stored_at(content)
        folder, name = at.stem.split("/")
        return self.house.folder / "repository" / folder / name[:2] / f"{name}.{at.version}"

    def rewrite(self, content: Content, change: Callable[[bytes], bytes]) -> None:
        path = self.path_of(content)
        path.chmod(0o600)
        path.write_bytes(change(path.read_bytes()))

    def at(self, path: bytes) -> Content:
        return self.contents[self.hash(self.files[path])]

    def assert_came_back(self, to: Path, *but: bytes) -> None:
        """Each file as it was, and those that could not be had not at all."""
        assert {os.fsencode(name) for name in os.listdir(to)} == set(self.files) - set(but)
        for path in set(self.files) - set(but):
            assert (to / os.fsdecode(path)).read_bytes() == self.files[path]
            assert (to / os.fsdecode(path)).stat().st_mtime_ns == NS


def attempt() -> Attempt:
    return Attempt(os.urandom(8).hex(), "STANDARD")


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "restored"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Shop]:
    def made(form: str, *, threads: int = 2, frame_bytes: int = MIB, wrap: Any = None) -> Shop:
        house = House(tmp_path / "house", threads=threads).init()
        if wrap is not None:
            house = replace(house, wrap=wrap)
        return Shop(house, Locked() if "sealed" in form else NoKeys(), "pack" in form, frame_bytes)

    return made


SMALL = {b"a": b"one", b"b": b"two" * 40, b"c": noise(3, 90)}
MIXED = {
    **{b"f%03d" % number: noise(number, 100 + number * 37) for number in range(200)},
    **{b"g%02d" % number: b"text %d " % number * 20_000 for number in range(20)},
    b"big": noise(1000, 3 * MIB),
    b"empty": b"",
    b"twin": noise(7, 100 + 7 * 37),
}


class Counted:
    """What is read of contents, as it is asked for."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, int, int | None]] = []
        self.got: list[int] = []

    def wrap(self, objects: ObjectStore, index: Index) -> tuple[Any, Index]:
        counted = self

        class Store:
            def __getattr__(self, name: str) -> Any:
                return getattr(objects, name)

            def read(self, stem: str, version: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
                number = len(counted.reads)
                counted.reads.append((stem, start, length))
                counted.got.append(0)
                for chunk in objects.read(stem, version, start, length):
                    counted.got[number] += len(chunk)
                    yield chunk

        return Store(), index


# Everything comes back


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("form", FORMS)
def test_everything_comes_back(make: Callable[..., Shop], to: Path, form: str, threads: int) -> None:
    shop = make(form, threads=threads).store(MIXED).store({b"other": noise(5000, 5000), b"more": b"more" * 9999}).logged()
    done = shop.restore(to)
    assert (done.problems, done.warnings, done.thaw) == ((), (), None)
    shop.assert_came_back(to)
    assert done.summary.files_restored == len(shop.files)
    again = shop.restore(to)
    assert (again.summary.files_restored, again.summary.files_unchanged) == (0, len(shop.files))
    assert again.summary.requests == 0


@pytest.mark.parametrize("form", FORMS)
def test_what_only_its_own_hash_is_known_of_comes_back(make: Callable[..., Shop], to: Path, form: str) -> None:
    """As after a rebuild of the state from the index, with encryption: the SHA-256 was never seen."""
    shop = make(form)
    shop.without_sha256 = frozenset({b"a", b"twin"})
    shop.store(SMALL | {b"twin": SMALL[b"a"]}).logged()
    assert shop.restore(to).problems == ()
    shop.assert_came_back(to)


def test_without_the_hash_key_it_cannot_be_said_whether_it_is_right(make: Callable[..., Shop], to: Path) -> None:
    shop = make("pack sealed").store(SMALL)
    sha256 = Sha256(hashlib.sha256(SMALL[b"a"]).digest())
    with opened(shop, Hashless()) as contents:
        assert collected(contents, shop.at(b"a"), sha256) == SMALL[b"a"]
        with pytest.raises(WrongKey):
            collected(contents, shop.at(b"a"), None)


@pytest.mark.parametrize("form", ["pack", "pack sealed"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_there_is_not_fetched_again(make: Callable[..., Shop], to: Path, form: str, overwrite: bool) -> None:
    shop = make(form).store(MIXED).logged()
    shop.restore(to)
    (to / "f007").unlink()
    (to / "f008").write_bytes(b"mine")
    done = shop.restore(to, overwrite=overwrite)
    assert done.problems == ()
    assert done.summary.files_restored == (2 if overwrite else 1)
    assert (to / "f008").read_bytes() == (MIXED[b"f008"] if overwrite else b"mine")
    assert 1 <= done.summary.requests <= 3


class StopsSoon(Silent):
    """Asks to stop after so many files."""

    def __init__(self, house: House, after: int) -> None:
        self._house = house
        self._left = after

    def advance(self, files: int, bytes_: int) -> None:
        self._left -= bool(bytes_)
        if self._left <= 0:
            self._house.stop.set()


@pytest.mark.parametrize("threads", [1, 8])
def test_an_interrupted_restore_goes_on(make: Callable[..., Shop], to: Path, threads: int) -> None:
    shop = make("pack sealed", threads=threads, frame_bytes=64 << 10).store(MIXED).logged()
    with pytest.raises(Interrupted):
        shop.restore(to, progress=StopsSoon(shop.house, 50))
    there = len(os.listdir(to))
    assert 50 <= there < len(shop.files)
    shop.house = shop.house.again()
    done = shop.restore(to)
    assert (done.problems, done.summary.files_unchanged) == ((), there)
    shop.assert_came_back(to)


# Requests


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("form", ["pack", "pack sealed"])
def test_a_whole_pack_takes_one_request_for_eight_mebibytes(make: Callable[..., Shop], to: Path, form: str, threads: int) -> None:
    counted = Counted()
    shop = make(form, threads=threads, wrap=counted.wrap)
    for first in (0, 1000):
        shop.store({b"f%d" % number: noise(number, 301_000) for number in range(first, first + 60)})
    shop.logged()
    counted.reads.clear()
    done = shop.restore(to)
    shop.assert_came_back(to)
    assert len(counted.reads) == done.summary.requests
    assert len(counted.reads) <= sum(math.ceil(len(pack.body) / (8 * MIB)) for pack in shop.packs)
    stored = sum(len(pack.body) for pack in shop.packs)
    assert 0.99 * stored < done.summary.bytes_fetched < 1.02 * stored


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["f001", "f150", "g19", "big"])
def test_one_file_takes_three_small_requests_at_most(make: Callable[..., Shop], to: Path, form: str, name: str) -> None:
    counted = Counted()
    shop = make(form, wrap=counted.wrap).store(MIXED).logged()
    counted.reads.clear()
    counted.got.clear()
    assert shop.restore(to, name).problems == ()
    assert (to / name).read_bytes() == MIXED[name.encode()]
    assert 1 <= len(counted.reads) <= (2 if "pack" in form else 1)
    assert sum(counted.got) < shop.at(name.encode()).stored + GAP + 200_000


def test_far_frames_are_read_alone_and_near_ones_together(make: Callable[..., Shop], to: Path) -> None:
    counted = Counted()
    shop = make("pack sealed", wrap=counted.wrap).store({b"f%02d" % number: noise(number, MIB) for number in range(20)}).logged()
    counted.reads.clear()
    counted.got.clear()
    shop.restore(to, "f02", "f03", "f15", "f16")
    assert sorted(os.listdir(to)) == ["f02", "f03", "f15", "f16"]
    assert len(counted.reads) == 3  # the header, and two runs
    assert sum(counted.got) < 4.5 * MIB


def frame(offset: int, length: int, pack: str = "p") -> PackFrame:
    return PackFrame(0, pack, "v", ENCODING_ZSTD, offset, length, 1)


def test_runs() -> None:
    def cut(*frames: PackFrame) -> list[list[int]]:
        return [[one.offset for one in run.frames] for run in runs(iter(frames))]

    assert cut() == []
    assert cut(frame(0, 10), frame(10, 10), frame(20 + GAP - 1, 5)) == [[0, 10, 20 + GAP - 1]]
    assert cut(frame(0, 10), frame(10 + GAP, 10)) == [[0], [10 + GAP]]
    assert cut(frame(0, 10), frame(10, 10, "q")) == [[0], [10]]
    assert cut(frame(0, RUN + 5), frame(RUN + 5, 10), frame(RUN + 15, 10)) == [[0], [RUN + 5, RUN + 15]]
    assert cut(frame(0, RUN - 5), frame(RUN - 5, 5), frame(RUN, 5)) == [[0, RUN - 5], [RUN]]


def test_many_threads_open_a_pack_once(make: Callable[..., Shop]) -> None:
    counted = Counted()
    shop = make("pack sealed", wrap=counted.wrap).store(MIXED)
    with opened(shop) as contents:
        counted.reads.clear()
        wrong: list[bytes] = []

        def read(number: int) -> None:
            path = b"f%03d" % number
            if collected(contents, shop.at(path), None) != MIXED[path]:
                wrong.append(path)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(counted.reads) == 41


@pytest.mark.parametrize("form", ["pack", "pack sealed"])
def test_the_memory_stays_flat(make: Callable[..., Shop], to: Path, form: str) -> None:
    shop = make(form).store({b"f%02d" % number: noise(number, 500_000) for number in range(80)}).logged()
    shop.packs.clear()
    shop.restore(to / "warm", "f00")
    tracemalloc.start()
    try:
        shop.restore(to / "all")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB


# Damage


@contextmanager
def opened(shop: Shop, keys: Keyring | None = None) -> Iterator[Contents]:
    """The contents of a shop, as a restore sees them."""
    with opened_anew(shop, keys) as anew:
        yield anew()


@contextmanager
def opened_anew(shop: Shop, keys: Keyring | None = None) -> Iterator[Callable[[], Contents]]:
    """The same for each call, with nothing known of what was read before."""
    with shop.house.job() as job:
        repository = replace(job.repository, keys=keys or shop.keys)
        yield lambda: Contents(repository)


def collected(contents: Contents, content: Content, sha256: Sha256 | None) -> bytes:
    out: list[bytes] = []

    def sink(chunks: Iterator[bytes], verify: Callable[[], None]) -> None:
        out.clear()
        out.extend(chunks)
        verify()

    contents.deliver(content, sha256, sink)
    return b"".join(out)


def outcomes(shop: Shop, contents: Contents) -> dict[bytes, bytes | str]:
    """For every file its bytes, or the error's message: all of them by frames first, where they lie in a pack."""
    out: dict[bytes, bytes | str] = {}
    for path, content in shop.files.items():
        try:
            out[path] = collected(contents, shop.at(path), Sha256(hashlib.sha256(content).digest()))
        except S3HashSyncError as error:
            out[path] = error.message
    return out


def after_each(shop: Shop, victim: Content, damaged: Iterable[bytes]) -> Iterator[dict[bytes, bytes | str]]:
    """The outcomes with each of these in the victim's place."""
    shop.path_of(victim).chmod(0o600)
    with opened_anew(shop) as anew:
        for data in damaged:
            shop.path_of(victim).write_bytes(data)
            yield outcomes(shop, anew())


@pytest.mark.parametrize("form", FORMS)
def test_every_flipped_byte_is_noticed_or_harmless(make: Callable[..., Shop], form: str) -> None:
    shop = make(form).store(SMALL)
    victim = shop.at(b"b")
    right = shop.path_of(victim).read_bytes()
    flipped = (right[:n] + bytes([right[n] ^ 1 << n % 8]) + right[n + 1 :] for n in range(len(right)))
    for found in after_each(shop, victim, flipped):
        damaged = [path for path in SMALL if found[path] != SMALL[path]]
        for path in damaged:
            assert_named(shop, path, found[path])
        if form == "object" or form == "object sealed":
            assert damaged == [b"b"]
        elif form == "pack sealed":
            assert damaged == list(SMALL)


@pytest.mark.parametrize("form", FORMS)
def test_every_cut_is_noticed_or_harmless(make: Callable[..., Shop], form: str) -> None:
    shop = make(form).store(SMALL)
    victim = shop.at(b"b")
    right = shop.path_of(victim).read_bytes()
    for found in after_each(shop, victim, (right[:length] for length in range(len(right)))):
        damaged = [path for path in SMALL if found[path] != SMALL[path]]
        for path in damaged:
            assert_named(shop, path, found[path])
        assert (form == "pack") or b"b" in damaged


def assert_named(shop: Shop, path: bytes, message: bytes | str) -> None:
    content = shop.at(path)
    assert isinstance(message, str), f"{path!r} came out as {message!r}"
    at = stored_at(content)
    assert at.stem in message
    assert at.version in message
    assert content.hash.hex() in message


def other_pack(shop: Shop, recipient: X25519Recipient | None) -> bytes:
    """A whole and valid one that holds something else in the same places."""
    wrong: dict[bytes, bytes] = {shop.hash(content): bytes(len(content)) for content in shop.files.values()}
    return packed(wrong, seal_to(recipient) if recipient else None).body


CHANGES: dict[str, Callable[[Shop, bytes], bytes]] = {
    "scramble": lambda shop, data: data[: len(data) // 3] + bytes(byte ^ 85 for byte in data[len(data) // 3 :]),
    "cut": lambda shop, data: data[: len(data) // 3],
    "empty": lambda shop, data: b"",
    "other key": lambda shop, data: other_pack(shop, THEIRS.recipient),
    "other content": lambda shop, data: other_pack(shop, OURS.recipient if shop.keys.encrypted else None),
    "no age": lambda shop, data: b"no age file at all" * 1000,
    "header": lambda shop, data: b"age-encryption.org/v1\n-> X25519 " + b"x" * 70_000,
}


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", CHANGES)
def test_what_is_not_right_is_named_and_the_rest_restored(
    make: Callable[..., Shop], to: Path, form: str, what: str, threads: int
) -> None:
    shop = make(form, threads=threads).store(SMALL).store({b"good": noise(9, 9999)}).logged()
    shop.rewrite(shop.at(b"c"), lambda data: CHANGES[what](shop, data))
    done = shop.restore(to)
    named = {problem.path for problem in done.problems}
    assert named == ({b"c"} if "object" in form else named)
    assert b"c" in named
    assert b"good" not in named
    for problem in done.problems:
        assert_named(shop, problem.path, problem.message)
        assert "damaged" in problem.message
    shop.assert_came_back(to, *named)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_gone_is_lost_and_said_for_each_file(make: Callable[..., Shop], to: Path, form: str) -> None:
    shop = make(form).store(SMALL).store({b"good": noise(9, 9999)}).logged()
    shop.path_of(shop.at(b"c")).unlink()
    done = shop.restore(to)
    gone = [b"c"] if "object" in form else [b"a", b"b", b"c"]
    assert sorted(problem.path for problem in done.problems) == gone
    for problem in done.problems:
        assert_named(shop, problem.path, problem.message)
        assert "lost" in problem.message
    assert done.summary.requests <= 5
    shop.assert_came_back(to, *gone)


@pytest.mark.parametrize("form", ["object", "object sealed"])
def test_bytes_behind_an_object_are_refused(make: Callable[..., Shop], to: Path, form: str) -> None:
    shop = make(form).store(SMALL).logged()
    shop.rewrite(shop.at(b"c"), lambda data: data + b"x")
    assert [problem.path for problem in shop.restore(to).problems] == [b"c"]
    shop.assert_came_back(to, b"c")


@pytest.mark.parametrize("form", ["pack", "pack sealed"])
def test_bytes_behind_a_pack_do_nothing_wrong(make: Callable[..., Shop], to: Path, form: str) -> None:
    shop = make(form).store(SMALL).logged()
    shop.rewrite(shop.at(b"c"), lambda data: data + b"x" * 70_000)
    damaged = [problem.path for problem in shop.restore(to).problems]
    shop.assert_came_back(to, *damaged)


@pytest.mark.parametrize("form", ["pack", "pack sealed"])
def test_a_damaged_frame_harms_its_own_members_alone(make: Callable[..., Shop], to: Path, form: str) -> None:
    shop = make(form).store({b"f%02d" % number: noise(number, 700_000) for number in range(12)}).logged()
    at = shop.at(b"f06").location
    assert isinstance(at, PackAt)
    within = at.frame_offset + at.frame_length // 3
    shop.rewrite(shop.at(b"f06"), lambda data: data[:within] + bytes([data[within] ^ 1]) + data[within + 1 :])
    damaged = {problem.path for problem in shop.restore(to).problems}
    assert damaged
    assert damaged <= {b"f06", b"f07"}
    shop.assert_came_back(to, *damaged)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_stored_anew_elsewhere_is_found_by_the_index(make: Callable[..., Shop], to: Path, form: str) -> None:
    shop = make(form).store(SMALL).logged()
    before = dict(shop.contents)
    shop.in_pack = not shop.in_pack
    shop.store(SMALL)
    for path in SMALL:
        shop.record(path, shop.at(path))
    for content in before.values():
        shop.path_of(content).unlink(missing_ok=True)
    assert shop.restore(to).problems == ()
    shop.assert_came_back(to)


def test_what_is_sealed_to_lost_keys_is_named(make: Callable[..., Shop], to: Path) -> None:
    for form in ("object sealed", "pack sealed"):
        shop = make(form).store(SMALL)
        shop.contents = {hash_: replace(content, encoding=sealed_encoding(7)) for hash_, content in shop.contents.items()}
        done = shop.logged().restore(to)
        assert len(done.problems) == 3
        assert all("epoch 7" in problem.message for problem in done.problems)
        assert os.listdir(to) == []


# What a forged record may say


@pytest.mark.parametrize(
    "change",
    [
        {"pack": "../../outside"},
        {"pack": "A" * 32},
        {"frame_offset": 1 << 62},
        {"frame_offset": 1 << 80},
        {"frame_offset": 1},
        {"frame_length": 0},
        {"frame_length": 1 << 40},
        {"frame_length": 1 << 70},
        {"frame_length": 60},
        {"offset": 0},
        {"offset": 1 << 40},
        {"offset": 1 << 70},
        {"version": "ab" * 8},
        {"version": "ü"},
        {"pack": "ü"},
    ],
    ids=ascii,
)
@pytest.mark.parametrize("form", ["pack", "pack sealed"])
def test_a_place_that_is_not_one(make: Callable[..., Shop], to: Path, form: str, change: dict[str, Any]) -> None:
    shop = make(form).store(SMALL)
    right = shop.at(b"b")
    assert isinstance(right.location, PackAt)
    shop.contents[right.hash] = replace(right, location=replace(right.location, **change))
    damaged = [problem.path for problem in shop.logged().restore(to).problems]
    harmless = form == "pack" and change == {"frame_length": 1 << 40}  # the frame is there, however long it is said to be
    assert damaged == ([] if harmless else [b"b"])
    shop.assert_came_back(to, *damaged)


@pytest.mark.parametrize("encoding", ["lzma", "zstd+age:0", "zstd+age:x", ""])
@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_a_later_version_is_said(make: Callable[..., Shop], form: str, encoding: str) -> None:
    shop = make(form).store(SMALL)
    with opened(shop) as contents, pytest.raises(Unsupported, match=shop.at(b"a").hash.hex()) as caught:
        collected(contents, replace(shop.at(b"a"), encoding=encoding), None)
    assert caught.value.hint is not None


def bomb(size: int) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(bytes(size))


def test_a_bomb_stops_at_the_recorded_size() -> None:
    frame_ = bomb(1 << 30)
    tracemalloc.start()
    try:
        assert decode_head(frame_, 100_000) == bytes(100_000)
        assert b"".join(decode_part([frame_], 5, 100_000)) == bytes(100_000)
        with pytest.raises(Corrupt, match="longer"):
            list(decode_stream([frame_], 100_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 150 * MIB


def test_a_window_beyond_all_measure_is_refused() -> None:
    frame_ = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    ).compressobj()
    data = frame_.compress(noise(1, 100_000)) + frame_.flush()
    with pytest.raises(Corrupt):
        list(decode_stream([data], 100_000))
    assert decode_head(data, 100_000) == b""


def test_a_bomb_in_a_pack(make: Callable[..., Shop], to: Path) -> None:
    shop = make("pack").store(SMALL)
    frame_ = bomb(1 << 28)
    shop.rewrite(shop.at(b"b"), lambda data: frame_)
    for hash_, content in list(shop.contents.items()):
        assert isinstance(content.location, PackAt)
        shop.contents[hash_] = replace(content, location=replace(content.location, frame_length=len(frame_)))
    assert len(shop.logged().restore(to).problems) == 3
    assert os.listdir(to) == []


# Parts of a frame


def test_parts_of_a_frame() -> None:
    content = noise(1, 300_000) + bytes(3_000_000) + b"text" * 100_000
    whole = zstandard.ZstdCompressor(level=3, write_checksum=True).compress(content)
    pieces = [whole[:1], whole[1:70_000], b"", whole[70_000:]]
    for start, length in ((0, 1), (299_990, 20), (len(content) - 3, 3), (0, len(content)), (3_299_999, 2)):
        assert b"".join(decode_part(pieces, start, length)) == content[start : start + length]
        assert decode_head(whole, start + length) == content[: start + length]
    assert decode_head(whole, len(content) + 1) == content
    with pytest.raises(Corrupt, match="no more than"):
        list(decode_part([whole], len(content) - 2, 3))
    for end in (0, 5, 50_000, 200_000):
        assert content.startswith(decode_head(whole[:end], len(content)))
        with pytest.raises(Corrupt):
            list(decode_part([whole[:end]], 0, len(content)))


# Thawing


def test_packs_that_have_to_be_thawed_are_named_once(make: Callable[..., Shop], to: Path) -> None:
    away: set[str] = set()

    def wrap(objects: ObjectStore, index: Index) -> tuple[Any, Index]:
        class Store:
            def __getattr__(self, name: str) -> Any:
                return getattr(objects, name)

            def read(self, stem: str, version: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
                if stem in away:
                    raise Archived("archived")
                yield from objects.read(stem, version, start, length)

        return Store(), index

    shop = make("pack sealed", wrap=wrap)
    shop.store({b"a": b"a" * 999, b"b": b"b" * 999}).store({b"c": b"c" * 999, b"d": b"d" * 999}).store({b"e": b"e"}).logged()
    shop.files[b"twin"] = shop.files[b"a"]
    shop.logged()
    away |= {stored_at(shop.at(b"a")).stem, stored_at(shop.at(b"c")).stem}
    first, second = shop.packs[0], shop.packs[1]
    with shop.house.repository() as repository:
        item = Control(pack_key(first.id), Rev(b"r" * 12), (("members", "2"), ("stored", str(len(first.body)))))
        repository.index.write([Write(item, None)])
    done = shop.restore(to)
    assert os.listdir(to) == ["e"]
    assert done.problems == ()
    assert done.thaw is not None
    stored = {one.at.stem: one.stored for one in done.thaw.objects}
    shares = shop.at(b"c").stored + shop.at(b"d").stored
    assert stored == {pack_stem(first.id): len(first.body), pack_stem(second.id): shares}
    assert sorted(file.path for file in done.thaw.files) == [b"a", b"b", b"c", b"d", b"twin"]
    away.clear()
    assert shop.restore(to).problems == ()
    shop.assert_came_back(to)


def test_the_summary_says_what_was_fetched(tmp_path: Path) -> None:
    program = Program(tmp_path)
    for number in range(20):
        (program.docs / f"f{number}").write_text(f"content {number}")
    program("init", "--yes")
    program("apply", "--yes")
    (summary,) = [line for line in program.lines("restore", "docs", "--to", "one") if line["message_type"] == "summary"]
    (pack,) = (tmp_path / "repo" / "packs").rglob("*.*")
    assert summary["requests"] == 1
    assert 0 < int(str(summary["bytes_fetched"])) < pack.stat().st_size
    assert "in 1 request." in program("restore", "docs", "--to", "two").stdout
