"""Makes packs: frame by frame read, compressed, sealed, put on the disk, and opened again before the pack is stored.

Decides when a pack is closed (by its stored size) and that a content which did not hold still is left out. How it is stored is
`run.stored_packs`'. All of this goes on in threads of its own, and frames may be made in another process (`run.frames`);
whoever adds members only waits when too many frames do.
"""

from __future__ import annotations

import base64
import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

from s3hashsync.codec.pack import BLOCK, end_frame, fills_frame, padded
from s3hashsync.core.model import ContentHash, PackAt
from s3hashsync.core.value import value
from s3hashsync.disk.spool import Spool
from s3hashsync.errors import Corrupt, Interrupted
from s3hashsync.run.candidates import Candidate
from s3hashsync.run.encoding import opened_again
from s3hashsync.run.frames import DoesNotOpen, Frame, FrameMaker, Wanted, failing
from s3hashsync.run.keyring import Keyring, Seal
from s3hashsync.run.progress import Progress

PACK_ID_BYTES = 16
MEMBERS = 40_000
"""A pack holds no more: each costs 32 bytes in the index, however small it is."""

_WAITING = 6
"""So many frames may wait to be made: more would only let the plan run ahead of what is stored."""


@value
class PackedContent:
    """A content's place in a pack, before encryption; bytes. `stored` is its share of the stored bytes."""

    frame_offset: int
    frame_length: int
    offset: int
    size: int
    stored: int

    def location(self, pack: str, version: str) -> PackAt:
        return PackAt(pack, version, self.frame_offset, self.frame_length, self.offset)


@dataclass(frozen=True, slots=True)
class Pack:
    """What is sent as one object. `contents` in the order in which they lie in it; `checksum` over the body, in the form of
    `stores.base.Stored`. The body is there until the pack is stored."""

    id: str
    body: Spool = field(repr=False)
    encoding: str
    checksum: str
    contents: Mapping[ContentHash, PackedContent]


@value
class PackLimits:
    """`size`: a pack is closed when so many bytes are stored in it; `folder`: where it waits until it is sent; `verify`: it is
    opened again before that."""

    size: int
    folder: str
    verify: bool = True


@value
class PackPorts:
    """What packing works with. `store` puts a pack that was made and opened again; it may be called from several threads. `idle`
    is set by whoever waits for packs, for `run.frames`."""

    frames: FrameMaker
    keys: Keyring
    entropy: Callable[[int], bytes]
    progress: Progress
    store: Callable[[Pack], None]
    idle: threading.Event


class Packer:
    """One pack after the other, by one thread at a time. `close` ends a pack; the next `add` begins another."""

    def __init__(self, ports: PackPorts, limits: PackLimits) -> None:
        self._ports = ports
        self._limits = limits
        # One pack is made while the one before is opened again and stored.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="pack")
        self._wanted: list[Wanted] = []
        self._tar = 0
        self._members = 0
        self._making: _Making | None = None
        self._dropped = threading.Event()
        # Stored bytes, and the bytes of tar that they came from: a guess, until some are known.
        self._ratio = (1, 2)

    def stop(self) -> None:
        """A pack that is not being stored by now is dropped."""
        self._dropped.set()
        if self._making is not None:
            # Its failure has been said, or nobody wants it any more.
            with suppress(Exception):
                self._making.end()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ports.frames.close()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """While this process waits for packs it may help to make them."""
        self._ports.idle.set()
        try:
            yield
        finally:
            self._ports.idle.clear()

    @property
    def full(self) -> bool:
        stored = self._making.expected if self._making is not None else 0
        return stored >= self._limits.size or self._members >= MEMBERS

    def add(self, hash_: ContentHash, candidate: Candidate) -> None:
        """A file that does not hold still, or cannot be read, will not be in the pack."""
        entry = candidate.entry
        self._wanted.append((hash_, candidate.sha256, entry.path, entry.size))
        self._members += 1
        self._tar += BLOCK + padded(entry.size)
        if fills_frame(self._tar):
            self._hand_over()

    def _hand_over(self) -> None:
        if self._making is None:
            self._making = _Making(self._ports, self._limits, self._dropped, self._ratio)
            self._making.start(self._pool)
        self._making.feed(self._wanted, self._tar)
        self._wanted, self._tar = [], 0
        if self._dropped.is_set():
            # Whoever dropped it may have looked a moment before it was begun.
            self._making.end()

    def close(self) -> Future[Pack]:
        """The pack, as soon as it is stored. `DoesNotOpen` when what was made is not what was read: then this machine fails."""
        if self._wanted or self._making is None:
            self._hand_over()
        making, self._making, self._members = self._making, None, 0
        assert making is not None
        self._ratio = making.ratio
        return making.end()


@value
class _Shape:
    """What a frame must turn out to be again: see `run.frames.Frame`."""

    length: int
    tar_size: int
    members: list[tuple[ContentHash, int, int]]
    digest: bytes


class _Making:
    """One pack in the making, by a thread of its own."""

    def __init__(self, ports: PackPorts, limits: PackLimits, dropped: threading.Event, before: tuple[int, int]) -> None:
        self._before = before
        self._ports = ports
        self._limits = limits
        self._dropped = dropped
        self._seal = ports.keys.new_seal()
        self._id = ports.entropy(PACK_ID_BYTES).hex()
        self._shapes: list[_Shape] = []
        self._given = 0
        self._compressed = 0
        self._stored = 0
        self._waiting: queue.Queue[Future[Frame] | None] = queue.Queue(_WAITING)
        self._pack: Future[Pack] = Future()

    def start(self, pool: ThreadPoolExecutor) -> None:
        self._pack = pool.submit(self._make)

    @property
    def expected(self) -> int:
        """What will be stored of what was given; for frames that wait, by the ratio of the others."""
        stored, compressed = self.ratio
        return self._given * stored // compressed

    @property
    def ratio(self) -> tuple[int, int]:
        """Stored bytes, and the bytes of tar that they came from; of the pack before while there are none."""
        return (self._stored, self._compressed) if self._compressed else self._before

    def feed(self, wanted: list[Wanted], tar_size: int) -> None:
        self._given += tar_size
        self._put(self._ports.frames.make(wanted))

    def end(self) -> Future[Pack]:
        self._put(None)
        return self._pack

    def _put(self, frame: Future[Frame] | None) -> None:
        while not self._pack.done():
            try:
                self._waiting.put(frame, timeout=1)
                return
            except queue.Full:
                continue
        # It has failed, and nobody would ever take the frame: say why.
        self._pack.result()

    def _make(self) -> Pack:
        with closing(Spool(self._limits.folder)) as body:
            checksum = self._filled(body)
            pack = Pack(self._id, body, self._ports.keys.encoding, checksum, dict(_places(self._shapes)))
            if self._dropped.is_set():
                raise Interrupted("interrupted")
            self._ports.store(pack)
        return pack

    def _filled(self, body: Spool) -> str:
        """The checksum of the body. It is opened again piece by piece, as it comes back from the disk."""
        digest = hashlib.sha256()
        frames = self._frames()
        pieces = _written(body, frames if self._seal is None else self._seal.stream(frames), digest)
        if self._limits.verify:
            _verify(pieces, self._seal, self._shapes)
        for _ in pieces:
            pass
        return f"sha256:{base64.b64encode(digest.digest()).decode()}"

    def _frames(self) -> Iterator[bytes]:
        while (future := self._waiting.get()) is not None:
            data, tar_size, members, digest = future.result()
            if not members:
                continue
            self._shapes.append(_Shape(len(data), tar_size, members, digest))
            self._stored += len(data)
            self._compressed += tar_size
            self._ports.progress.advance(len(members), sum(size for _, _, size in members))
            yield data
        yield end_frame()


def _places(shapes: list[_Shape]) -> Iterator[tuple[ContentHash, PackedContent]]:
    start = 0
    for shape in shapes:
        length, tar_size = shape.length, shape.tar_size
        for hash_, offset, size in shape.members:
            # What it takes of the stored bytes, in proportion.
            share = max(1, length * (BLOCK + padded(size)) // tar_size)
            yield hash_, PackedContent(start, length, offset, size, share)
        start += length


def _written(body: Spool, pieces: Iterable[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    for piece in pieces:
        body.append(piece)
        back = body[len(body) - 1]
        digest.update(back)
        yield back


def _verify(body: Iterator[bytes], seal: Seal | None, shapes: list[_Shape]) -> None:
    """Open the pack as a restore would: every frame must be the one that its maker has opened and compared. More shapes come
    while the body does."""
    rest = bytearray()
    checked = 0
    try:
        for data in opened_again(body, seal):
            rest += data
            while checked < len(shapes) and len(rest) >= shapes[checked].length:
                shape = shapes[checked]
                if hashlib.sha256(memoryview(rest)[: shape.length]).digest() != shape.digest:
                    raise Corrupt("a frame comes out of it as another one")
                del rest[: shape.length]
                checked += 1
        if checked < len(shapes) or rest != end_frame():
            raise Corrupt("it does not end as it should")
    except DoesNotOpen:
        # Said by whoever made the frame.
        raise
    except Corrupt as error:
        raise failing(error.message) from error
