"""One content out of the store, checked: its bytes, and the word that they are the right ones.

Decides what is believed of stored bytes: nothing until length, checksum and SHA-256 say so. Knows nothing of files; whoever
writes the bytes asks `verify` before it gives them a name. Where a content is now may differ from what an old run log says: then
the index is asked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import assert_never

from s3hashsync.codec.zstd import decode_part, decode_stream
from s3hashsync.core.model import Content, ObjectAt, PackAt, Sha256, object_stem, pack_stem
from s3hashsync.errors import Corrupt, Missing, StoreError, Unsupported, WrongKey
from s3hashsync.run.keyring import opened
from s3hashsync.run.pack_reading import Packs, Reads
from s3hashsync.run.repository import Repository
from s3hashsync.run.snapshots import locations
from s3hashsync.stores.base import IndexReader

Sink = Callable[[Iterator[bytes], Callable[[], None]], None]
"""Takes a content's chunks, then calls what verifies them; it may be called once more after it raised `Corrupt` or `Missing`."""


@dataclass(frozen=True, slots=True)
class StoredAt:
    """The object (or pack) and version that hold a content."""

    stem: str
    version: str

    def __str__(self) -> str:
        return f"{self.stem}, version {self.version}"


def stored_at(content: Content) -> StoredAt:
    match content.location:
        case ObjectAt(version):
            return StoredAt(object_stem(content.hash), version)
        case PackAt(pack, version):
            return StoredAt(pack_stem(pack), version)
        case _:
            assert_never(content.location)


def _named(content: Content) -> str:
    """For messages: also which member, where a pack holds many."""
    at = stored_at(content)
    return str(at) if isinstance(content.location, ObjectAt) else f"{at}, member {content.hash.hex()}"


class Contents:
    """Reads what one repository holds, for the time of one command. For many threads."""

    def __init__(self, repository: Repository) -> None:
        self._index = repository.index
        self.keys = repository.keys
        self.reads = _Counted(repository.objects)
        self.packs = Packs(self.reads, repository.keys)

    @property
    def requests(self) -> int:
        """How many times the store was asked for bytes; what it tried again on its own does not count."""
        return self.reads.requests

    @property
    def bytes_fetched(self) -> int:
        """As they are stored."""
        return self.reads.bytes

    def deliver(self, content: Content, sha256: Sha256 | None, sink: Sink) -> None:
        """Hand the content to `sink`. Where the version that the run log names is gone or damaged, and the index knows of another
        one, that one is tried; otherwise the first failure is raised."""
        try:
            self._hand_over(content, sha256, sink)
        except (Missing, Corrupt) as error:
            other = _elsewhere(self._index, content)
            if other is not None:
                self._hand_over(other, sha256, sink)
                return
            if isinstance(error, Missing):
                raise Missing(f"lost: {_named(content)} is not in the store any more", error.hint) from error
            raise

    def _hand_over(self, content: Content, sha256: Sha256 | None, sink: Sink) -> None:
        delivery = Delivery(self, content, sha256)
        sink(delivery.chunks(), delivery.verify)

    def is_right(self, found: Sha256, content: Content, sha256: Sha256 | None) -> bool:
        """Whether bytes with this SHA-256 are the content. `sha256` None: nobody knows it, as after a rebuild of the state from
        the index; then the content's own hash decides. May raise `WrongKey`."""
        return found == sha256 if sha256 is not None else self.keys.content_hash(found) == content.hash


class Delivery:
    """One content on its way, once: all `chunks`, then `verify`."""

    def __init__(self, contents: Contents, content: Content, sha256: Sha256 | None) -> None:
        self._contents = contents
        self._content = content
        self._expected = sha256
        self._digest = hashlib.sha256()
        self._size = 0
        # A member has no checksum of its own: its pack has one, which only a reader of the whole could check.
        self._check = _StoredCheck(content) if isinstance(content.location, ObjectAt) else None

    def chunks(self) -> Iterator[bytes]:
        """Raises `Corrupt`, `Missing`, `Archived`, `WrongKey` and whatever the store raises."""
        try:
            for chunk in self._plain():
                self._digest.update(chunk)
                self._size += len(chunk)
                yield chunk
        except Corrupt as error:
            raise self._damaged(error.message) from None
        except Unsupported as error:
            raise Unsupported(f"{_named(self._content)}: {error.message}", error.hint) from None

    def _plain(self) -> Iterator[bytes]:
        content, contents = self._content, self._contents
        if self._check is None:
            assert isinstance(content.location, PackAt)
            return decode_part(contents.packs.member_frame(content), content.location.offset, content.size)
        at = stored_at(content)
        stored = self._check.watch(contents.reads.read(at.stem, at.version))
        return decode_stream(_ours(opened(contents.keys, stored, content.encoding)), content.size)

    def verify(self) -> None:
        """Raises `Corrupt` unless these were the bytes, all of them."""
        problem = self._check.problem() if self._check is not None else ""
        if self._size != self._content.size:
            problem = f"it holds {self._size} bytes, {self._content.size} were stored"
        elif not self._contents.is_right(Sha256(self._digest.digest()), self._content, self._expected):
            problem = "its content has another SHA-256 than what was backed up"
        if problem:
            raise self._damaged(problem)

    def _damaged(self, problem: str) -> Corrupt:
        kind = "object" if isinstance(self._content.location, ObjectAt) else "pack"
        return Corrupt(f"the stored {kind} {_named(self._content)} is damaged: {problem}")


def _ours(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The right key does not open it: then somebody else put it there."""
    try:
        yield from chunks
    except WrongKey:
        raise Corrupt("it is encrypted to another key than the one that is recorded for it") from None


class _Counted:
    """What reading asks of the store, counted."""

    def __init__(self, objects: Reads) -> None:
        self._objects = objects
        self._lock = threading.Lock()
        self.requests = 0
        self.bytes = 0

    def read(self, stem: str, version: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        with self._lock:
            self.requests += 1
        for chunk in self._objects.read(stem, version, start, length):
            with self._lock:
                self.bytes += len(chunk)
            yield chunk


class _StoredCheck:
    """Length and checksum of the bytes as they are stored. A checksum of a kind unknown here says nothing; the SHA-256 of the
    content is checked in any case."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._algorithm, _, self._expected = content.checksum.partition(":")
        self._sha256 = hashlib.sha256() if self._algorithm == "sha256" else None
        self._crc32 = 0
        self._length = 0

    def watch(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._length += len(chunk)
            if self._sha256 is not None:
                self._sha256.update(chunk)
            elif self._algorithm == "crc32":
                self._crc32 = zlib.crc32(chunk, self._crc32)
            yield chunk

    def problem(self) -> str:
        if self._length != self._content.stored:
            return f"it is {self._length} bytes long, {self._content.stored} were stored"
        if self._sha256 is not None:
            found = self._sha256.digest()
        elif self._algorithm == "crc32":
            found = self._crc32.to_bytes(4, "big")
        else:
            return ""
        try:
            same = found == base64.b64decode(self._expected)
        except binascii.Error:
            same = False
        return "" if same else f"its {self._algorithm} is another than when it was stored"


def _elsewhere(index: IndexReader, content: Content) -> Content | None:
    try:
        now = locations(index, [content.hash]).get(content.hash)
    except StoreError:
        return None
    return now if now is not None and now.location != content.location else None
