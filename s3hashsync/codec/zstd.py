"""The stored encoding of a content: one zstd frame with content checksum and, where it is known, the content's size.

Decides level and frame parameters. Bytes in, bytes out: knows neither files nor stores.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress

import zstandard

from s3hashsync.errors import Corrupt

LEVEL = 3
FASTEST = 1
ENCODER = f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}, levels {LEVEL} and {FASTEST}"
"""What makes the stored bytes: the same one makes the same bytes of the same content."""

_SAMPLE = 128 * 1024
_INCOMPRESSIBLE = 0.98
_CHUNK = 1 << 20
_STEP = 1 << 11
"""Bytes of input at a time: two thousand bytes can expand to 64 MiB, not more."""
_PIECE = 1 << 18
_MAX_WINDOW = 1 << 27

# Contexts cost 100 us to make and are not thread-safe: one set a thread.
_contexts = threading.local()


def compressor(level: int) -> zstandard.ZstdCompressor:
    name = f"level{level}"
    found: zstandard.ZstdCompressor | None = getattr(_contexts, name, None)
    if found is None:
        found = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        setattr(_contexts, name, found)
    return found


def level_for(sample: bytes) -> int:
    """Incompressible content gets the fastest level; a quick try on its beginning tells (zstd itself then stores raw blocks).
    For a small content the try would cost as much as the wrong level."""
    if len(sample) <= 2 * _SAMPLE:
        return LEVEL
    head = sample[:_SAMPLE]
    return FASTEST if len(compressor(FASTEST).compress(head)) > len(head) * _INCOMPRESSIBLE else LEVEL


def encode(content: bytes) -> bytes:
    """The whole content as one frame."""
    return compressor(level_for(content)).compress(content)


def encode_stream(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """One frame from a content of `size` bytes that arrives in chunks; the same bytes for the same content, so that an upload in
    parts can be resumed. Raises `Corrupt` when the chunks do not add up to `size`."""
    iterator = iter(chunks)
    first = next(iterator, b"")
    # The level must not hang on how much one read has brought.
    while len(first) <= 2 * _SAMPLE and (more := next(iterator, b"")):
        first += more
    # A context of its own: the cached ones must not be left in the middle of a frame when a reader gives up.
    compressor = zstandard.ZstdCompressor(level=level_for(first), write_checksum=True).compressobj(size=size)
    try:
        if encoded := compressor.compress(first):
            yield encoded
        for chunk in iterator:
            if encoded := compressor.compress(chunk):
                yield encoded
        yield compressor.flush()
    except zstandard.ZstdError as error:
        raise Corrupt(f"the content is not the {size} bytes it was announced as ({error})") from None


def decode_stream(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """The content of one frame. Raises `Corrupt` for damaged, cut or trailing bytes, and for more than `limit` bytes of content
    (a bomb stops there)."""
    decompressor = _decompressor().decompressobj(write_size=_CHUNK)
    produced = 0
    for content in _steps(decompressor, chunks):
        produced += len(content)
        if produced > limit:
            raise Corrupt(f"the content is longer than the {limit} bytes that are recorded for it")
        yield content
    if not decompressor.eof:
        raise Corrupt("the zstd frame is cut off")
    if decompressor.unused_data:
        raise Corrupt("there are bytes behind the end of the zstd frame")


def decode_part(chunks: Iterable[bytes], start: int, length: int) -> Iterator[bytes]:
    """`length` bytes of a frame's content from `start` on. What comes behind them is neither read nor checked; raises `Corrupt`
    where the frame is damaged or over before."""
    position, end = 0, start + length
    for content in _steps(_decompressor().decompressobj(write_size=_CHUNK), chunks):
        wanted = content[max(0, start - position) : max(0, end - position)]
        position += len(content)
        if wanted:
            yield wanted
        if position >= end:
            return
    raise Corrupt(f"the zstd frame holds no more than {position} bytes, {end} are needed")


def decode_head(frame: bytes, length: int) -> bytes:
    """The first `length` bytes of a frame's content, and nothing beyond. Fewer where it is damaged or over before."""
    decompressor: zstandard.ZstdDecompressor | None = getattr(_contexts, "decompressor", None)
    if decompressor is None:
        decompressor = _contexts.decompressor = _decompressor()
    try:
        return bytes(decompressor.stream_reader(frame).read(length))
    except zstandard.ZstdError:
        return b"".join(_until_damage(decompressor.stream_reader(frame), length))


def _until_damage(reader: zstandard.ZstdDecompressionReader, length: int) -> Iterator[bytes]:
    with suppress(zstandard.ZstdError):
        while length and (content := reader.read(min(length, _STEP))):
            length -= len(content)
            yield content


def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)


def _steps(decompressor: zstandard.ZstdDecompressionObj, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The content as it comes. Small input steps bound what one step can expand to; small pieces are joined again."""
    ready: list[bytes] = []
    size = 0
    try:
        for chunk in chunks:
            if decompressor.eof and chunk:
                raise Corrupt("there are bytes behind the end of the zstd frame")
            view = memoryview(chunk)
            for start in range(0, len(chunk), _STEP):
                if content := decompressor.decompress(view[start : start + _STEP]):
                    ready.append(content)
                    size += len(content)
                if size >= _PIECE:
                    yield b"".join(ready)
                    ready, size = [], 0
    except zstandard.ZstdError as error:
        raise Corrupt(f"not an intact zstd frame ({error})") from None
    if ready:
        yield b"".join(ready)


def decode(encoded: bytes, limit: int) -> bytes:
    """As `decode_stream`, whole."""
    return b"".join(decode_stream((encoded,), limit))
