"""Packs, read: which of their stored bytes are asked for, and what opens them.

Decides how many requests it costs: two small ones for one member (one where nothing is encrypted), one for a run of frames that
lie close together. Believes nothing: whoever asked checks each member against its hash. Knows nothing of files.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from s3hashsync.codec.age import CHUNK, HEADER_LIMIT, TAG, Payload, parse_header
from s3hashsync.core.model import Content, PackAt, pack_stem
from s3hashsync.disk.snapshot import PackFrame
from s3hashsync.errors import Archived, Corrupt, Missing, StoreError, WrongKey
from s3hashsync.run.keyring import Keyring, known_epoch

GAP = 1 << 20
"""Unwanted bytes between two frames that cost less than another request."""

RUN = 16 << 20
"""Stored bytes that one request asks for at most, unless one frame alone has more: so that several threads can read one pack."""

_HEADER = 1 << 10
"""Holds the header of an age file for one recipient, and the nonce behind it."""
_NONCE = 16
_PIECE = 16 * CHUNK
_UNLOCKED = 128
_FARTHEST = 1 << 50
_FRAME = 48 << 20
_ID = re.compile(r"[0-9a-f]{32}")


class Reads(Protocol):
    """The one thing that reading packs needs of a store: `ObjectReader.read`."""

    def read(self, stem: str, version: str, start: int = 0, length: int | None = None) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Pack:
    """One stored pack."""

    id: str
    version: str
    encoding: str


@dataclass(frozen=True, slots=True)
class Run:
    """Frames of one pack in their order, close enough to be read by one request."""

    pack: Pack
    frames: tuple[PackFrame, ...]


def is_read_by_frames(content: Content) -> bool:
    """Whether its frame may lie in memory as a whole. Others, and what is no place in a pack, are asked for one by one."""
    at = content.location
    return (
        isinstance(at, PackAt)
        and max(at.frame_length, at.offset + content.size) <= _FRAME
        and at.frame_offset <= _FARTHEST
        and at.pack.isascii()
        and at.version.isascii()
        and content.encoding.isascii()
    )


def runs(frames: Iterator[PackFrame]) -> Iterator[Run]:
    """`frames` come pack by pack, and in the order in which they lie there."""
    group: list[PackFrame] = []
    for frame in frames:
        if group and not _continues(group, frame):
            yield _run(group)
            group = []
        group.append(frame)
    if group:
        yield _run(group)


def _continues(group: list[PackFrame], frame: PackFrame) -> bool:
    first, last = group[0], group[-1]
    return (
        (first.pack, first.version, first.encoding) == (frame.pack, frame.version, frame.encoding)
        and frame.offset - (last.offset + last.length) < GAP
        and frame.offset + frame.length - first.offset <= RUN
    )


def _run(group: list[PackFrame]) -> Run:
    return Run(Pack(group[0].pack, group[0].version, group[0].encoding), tuple(group))


_Opened: TypeAlias = "Future[Payload]"


class Packs:
    """For many threads, for the time of one command: what opens a pack is found out once, and that it cannot be had."""

    def __init__(self, objects: Reads, keys: Keyring) -> None:
        self._objects = objects
        self._keys = keys
        self._lock = threading.Lock()
        self._opened: OrderedDict[Pack, _Opened] = OrderedDict()
        self._unreadable: dict[tuple[str, str], StoreError] = {}

    def member_frame(self, content: Content) -> Iterator[bytes]:
        """The stored frame that one member lies in, before encryption and in pieces. Raises `Corrupt`, `WrongKey`, `Unsupported`,
        `Archived`, `Missing` and whatever the store raises."""
        at = content.location
        assert isinstance(at, PackAt)
        pack = Pack(at.pack, at.version, content.encoding)
        if max(at.frame_offset, at.frame_length) > _FARTHEST:
            raise Corrupt("no pack is as long as that")
        payload = self._payload(pack)
        if payload is None:
            yield from self._read(pack, at.frame_offset, at.frame_length)
            return
        start, length = payload.span(at.frame_offset, at.frame_length)
        stored = _Stream(self._read(pack, start, length), start)
        position, end = at.frame_offset, at.frame_offset + at.frame_length
        while position < end:
            size = min(end, (position // _PIECE + 1) * _PIECE) - position
            yield payload.decrypt_span(stored.take(*payload.span(position, size)), position, size)
            position += size

    def frames(self, run: Run) -> Iterator[tuple[PackFrame, bytes]]:
        """Every frame of a run, before encryption, b"" for one that cannot be had: why not is found when its members are asked
        for one by one. One request, and one more for the pack's header where that does not lie close by."""
        left = iter(run.frames)
        with suppress(StoreError, Corrupt, WrongKey):
            for frame, data in self._frames(run):
                next(left)
                yield frame, data
        for frame in left:
            yield frame, b""

    def _frames(self, run: Run) -> Iterator[tuple[PackFrame, bytes]]:
        first, end = run.frames[0].offset, run.frames[-1].offset + run.frames[-1].length
        sealed = known_epoch(run.pack.encoding) is not None
        opened = self._claimed(run.pack) if sealed and first < GAP else None
        payload: Payload | None
        if opened is not None:
            stored = _Stream(self._read(run.pack, 0, _HEADER + -(-end // CHUNK) * (CHUNK + TAG)), 0)
            payload = self._unlocked(run.pack, opened, stored)
        else:
            payload = self._payload(run.pack)
            start, length = _span(payload, first, end - first)
            stored = _Stream(self._read(run.pack, start, length), start)
        for frame in run.frames:
            data = stored.take(*_span(payload, frame.offset, frame.length))
            yield frame, data if payload is None else _or_nothing(payload, data, frame)
        # So that the connection can be used again.
        stored.finish()

    def _read(self, pack: Pack, start: int, length: int) -> Iterator[bytes]:
        if _ID.fullmatch(pack.id) is None:
            raise Corrupt("no pack has such a name")
        known = self._unreadable.get((pack.id, pack.version))
        if known is not None:
            raise type(known)(known.message, known.hint)
        try:
            yield from self._objects.read(pack_stem(pack.id), pack.version, start, length)
        except (Missing, Archived) as error:
            self._unreadable[pack.id, pack.version] = error
            raise

    # What opens a pack

    def _payload(self, pack: Pack) -> Payload | None:
        """None where it is not encrypted."""
        if known_epoch(pack.encoding) is None:
            return None
        opened = self._claimed(pack)
        if opened is not None:
            return self._unlocked(pack, opened, _Stream(self._header_of(pack), 0))
        with self._lock:
            waiting = self._opened.get(pack)
        # It may have been dropped, or have failed, since: then once more.
        return waiting.result() if waiting is not None else self._payload(pack)

    def _header_of(self, pack: Pack) -> Iterator[bytes]:
        yield from self._read(pack, 0, _HEADER)
        yield from self._read(pack, _HEADER, HEADER_LIMIT)

    def _claimed(self, pack: Pack) -> _Opened | None:
        """For the first who asks, who then has to find it out."""
        with self._lock:
            if pack in self._opened:
                self._opened.move_to_end(pack)
                return None
            mine: _Opened = Future()
            self._opened[pack] = mine
            while len(self._opened) > _UNLOCKED:
                self._opened.popitem(last=False)
            return mine

    def _unlocked(self, pack: Pack, opened: _Opened, stored: _Stream) -> Payload:
        try:
            payload = self._unlock(pack, stored)
        except BaseException as error:
            with self._lock:
                self._opened.pop(pack, None)
            opened.set_exception(error)
            raise
        opened.set_result(payload)
        return payload

    def _unlock(self, pack: Pack, stored: _Stream) -> Payload:
        epoch = known_epoch(pack.encoding)
        assert epoch is not None
        identity = self._keys.identity(epoch)
        size = _HEADER
        while (header := parse_header(stored.peek(size))) is None:
            if stored.ended or size >= HEADER_LIMIT:
                raise Corrupt("it is no age file, or cut off in its header")
            size *= 2
        nonce = stored.take(header.size, _NONCE)
        if len(nonce) < _NONCE:
            raise Corrupt("it is cut off behind its header")
        try:
            return header.unlock(nonce, (identity,))
        except WrongKey:
            raise Corrupt("it is encrypted to another key than the one that is recorded for it") from None


def _span(payload: Payload | None, start: int, length: int) -> tuple[int, int]:
    return (start, length) if payload is None else payload.span(start, length)


def _or_nothing(payload: Payload, stored: bytes, frame: PackFrame) -> bytes:
    try:
        return payload.decrypt_span(stored, frame.offset, frame.length)
    except Corrupt:
        return b""


class _Stream:
    """Stored bytes that arrive in order, from `start` of the pack on; the last ones taken can be taken again."""

    def __init__(self, chunks: Iterator[bytes], start: int) -> None:
        self._chunks = chunks
        self._buffer = bytearray()
        self._start = start
        self.ended = False

    def peek(self, length: int) -> bytes:
        """So many bytes, or fewer where it ends before."""
        self._fill(self._start + length)
        return bytes(memoryview(self._buffer)[:length])

    def take(self, start: int, length: int) -> bytes:
        """As many of these bytes as there are. Two spans of encrypted bytes may share a chunk; further back nothing is kept."""
        self._drop(start)
        self._fill(start + length)
        self._drop(start)
        at = start - self._start
        taken = bytes(memoryview(self._buffer)[at : at + length]) if at >= 0 else b""
        self._drop(start + length - CHUNK - TAG)
        return taken

    def finish(self) -> None:
        for _ in self._chunks:
            pass

    def _fill(self, end: int) -> None:
        while not self.ended and self._start + len(self._buffer) < end:
            chunk = next(self._chunks, None)
            if chunk is None:
                self.ended = True
            else:
                self._buffer += chunk

    def _drop(self, before: int) -> None:
        if before > self._start:
            gone = min(before - self._start, len(self._buffer))
            del self._buffer[:gone]
            self._start += gone
