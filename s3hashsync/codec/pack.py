"""A pack: a tar of contents, cut into independent zstd frames.

Decides the tar header of a member, where a frame ends, and where a member lies. Whole frames in, whole frames out: knows
nothing of files, encryption or stores. `zstd -d | tar x` opens what is written here; a member alone needs its frame alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import zstandard

from s3hashsync.codec.zstd import LEVEL, compressor
from s3hashsync.core.model import ContentHash
from s3hashsync.core.value import value
from s3hashsync.errors import Corrupt

FRAME_BYTES = 1 << 20
"""A frame ends at the first member end at or after so many bytes of tar."""

BLOCK = 512
END = bytes(2 * BLOCK)
"""What ends a tar; in a frame of its own, the last one."""


@value
class Member:
    """A content's place in its frame: `offset` is where its own bytes begin; both in bytes of the decompressed frame."""

    hash: ContentHash
    offset: int
    size: int


class FrameBuilder:
    """Collects the members of a frame; then `take` it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._members: list[Member] = []
        self.size = 0

    def add(self, hash_: ContentHash, content: bytes) -> None:
        size = len(content)
        self._members.append(Member(hash_, self.size + BLOCK, size))
        self._parts.append(tar_header(hash_, size))
        self._parts.append(content)
        if rest := -size % BLOCK:
            self._parts.append(END[:rest])
        self.size += BLOCK + padded(size)

    def take(self) -> Uncompressed:
        """What was collected; the builder is empty afterwards."""
        taken = Uncompressed(b"".join(self._parts), tuple(self._members))
        self._parts, self._members, self.size = [], [], 0
        return taken


@value
class Uncompressed:
    """A frame's tar bytes with its members."""

    tar: bytes
    members: tuple[Member, ...]

    def compress(self) -> bytes:
        """The frame. May run in any thread."""
        return compressor(LEVEL).compress(self.tar)


def fills_frame(tar_size: int) -> bool:
    """Whether so many bytes of tar, up to the end of a member, are a frame."""
    return tar_size >= FRAME_BYTES


def end_frame() -> bytes:
    """The last frame of every pack."""
    return compressor(LEVEL).compress(END)


def padded(size: int) -> int:
    return size + -size % BLOCK


def decode_frame(frame: bytes, size: int) -> bytes:
    """The tar bytes of one whole frame, which must be `size` long; raises `Corrupt`."""
    try:
        tar = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)
    except zstandard.ZstdError as error:
        raise Corrupt(f"not an intact zstd frame ({error})") from None
    if len(tar) != size:
        raise Corrupt(f"the frame holds {len(tar)} bytes of tar, {size} were written")
    return tar


def tar_header(hash_: ContentHash, size: int) -> bytes:
    """POSIX ustar: a file of mode 0600 that is named by its hash; owner, times and everything else are zero."""
    name = hash_.hex().encode("ascii")
    digits = b"%011o" % size
    checksum = _FIXED_SUM + sum(name) + sum(digits)
    return b"".join((name, _BEFORE_SIZE, digits, _BEFORE_CHECKSUM, b"%06o\0 " % checksum, _AFTER_CHECKSUM))


_BEFORE_SIZE = bytes(36) + b"0000600\0" + b"0000000\0" + b"0000000\0"
_BEFORE_CHECKSUM = b"\0" + b"00000000000\0"
_AFTER_CHECKSUM = b"0" + bytes(100) + b"ustar\x0000" + bytes(BLOCK - 265)
# The checksum's own field counts as spaces.
_FIXED_SUM = sum(_BEFORE_SIZE) + sum(_BEFORE_CHECKSUM) + 8 * ord(" ") + sum(_AFTER_CHECKSUM)


def hashes_of(members: bytes) -> Sequence[ContentHash]:
    """The members that an index item of a pack lists."""
    if len(members) % 32:
        raise Corrupt("the index lists the members of a pack in a damaged form")
    return [ContentHash(members[at : at + 32]) for at in range(0, len(members), 32)]
