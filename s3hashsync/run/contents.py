"""One content out of the store, checked: its bytes, and the word that they are the right ones.

Decides what is believed of stored bytes: nothing until length, checksum and SHA-256 say so. Knows nothing of files; whoever
writes the bytes asks `verify` before it gives them a name. Where a content is now may differ from what an old run log says: then
the index is asked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import assert_never

from s3hashsync.codec.zstd import decode_stream
from s3hashsync.core.model import ENCODING_ZSTD, Content, ObjectAt, PackAt, Sha256, object_stem
from s3hashsync.errors import Corrupt, Missing, StoreError, Unsupported
from s3hashsync.run.snapshots import locations
from s3hashsync.stores.base import IndexReader, ObjectReader

Sink = Callable[[Iterator[bytes], Callable[[], None]], None]
"""Takes a content's chunks, then calls what verifies them; it may be called once more after it raised `Corrupt` or `Missing`."""


@dataclass(frozen=True, slots=True)
class StoredAt:
    """The object and version that hold a content."""

    stem: str
    version: str

    def __str__(self) -> str:
        return f"{self.stem}, version {self.version}"


def stored_at(content: Content) -> StoredAt:
    match content.location:
        case ObjectAt(version):
            return StoredAt(object_stem(content.hash), version)
        case PackAt(pack, version):
            return StoredAt(f"packs/{pack}", version)
        case _:
            assert_never(content.location)


class Delivery:
    """One content on its way, once: all `chunks`, then `verify`."""

    def __init__(self, objects: ObjectReader, content: Content, sha256: Sha256) -> None:
        self._objects = objects
        self._content = content
        self._expected = sha256
        self._at = stored_at(content)
        self._digest = hashlib.sha256()
        self._size = 0
        self._check = _StoredCheck(content)

    def chunks(self) -> Iterator[bytes]:
        """Raises `Corrupt`, `Missing`, `Archived` and whatever the store raises."""
        content = self._content
        if isinstance(content.location, PackAt) or content.encoding != ENCODING_ZSTD:
            raise Unsupported(
                f"{self._at} is stored in a form that this version cannot read ({content.encoding})",
                "restore with a newer version of s3hashsync",
            )
        try:
            stored = self._check.watch(self._objects.read(self._at.stem, self._at.version))
            for chunk in decode_stream(stored, content.size):
                self._digest.update(chunk)
                self._size += len(chunk)
                yield chunk
        except Corrupt as error:
            raise Corrupt(f"the stored object {self._at} is damaged: {error.message}") from None

    def verify(self) -> None:
        """Raises `Corrupt` unless these were the bytes, all of them."""
        problem = self._check.problem()
        if self._size != self._content.size:
            problem = f"it holds {self._size} bytes, {self._content.size} were stored"
        elif self._digest.digest() != self._expected:
            problem = "its content has another SHA-256 than what was backed up"
        if problem:
            raise Corrupt(f"the stored object {self._at} is damaged: {problem}")


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


def deliver(objects: ObjectReader, index: IndexReader, content: Content, sha256: Sha256, sink: Sink) -> None:
    """Hand the content to `sink`. Where the version that the run log names is gone or damaged, and the index knows of another
    one, that one is tried; otherwise the first failure is raised."""
    try:
        _hand_over(objects, content, sha256, sink)
    except (Missing, Corrupt) as error:
        other = _elsewhere(index, content)
        if other is not None:
            _hand_over(objects, other, sha256, sink)
            return
        if isinstance(error, Missing):
            raise Missing(f"lost: {stored_at(content)} is not in the store any more", error.hint) from error
        raise


def _hand_over(objects: ObjectReader, content: Content, sha256: Sha256, sink: Sink) -> None:
    delivery = Delivery(objects, content, sha256)
    sink(delivery.chunks(), delivery.verify)


def _elsewhere(index: IndexReader, content: Content) -> Content | None:
    try:
        now = locations(index, [content.hash]).get(content.hash)
    except StoreError:
        return None
    return now if now is not None and now.location != content.location else None
