"""A run-log segment as bytes: lines in zstd frames, with encryption sealed by age and closed by an HMAC.

Decides the frames, what the HMAC covers, that no line is handed out of a segment whose HMAC is not right (age says nothing of
the sender, and whoever may write to the store could write a log), and that no segment is stored which does not open to the lines
that were added: a history that cannot be read is found out about too late. Knows no JSON and no store: lines are bytes here.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import chain

import zstandard

from s3hashsync.codec.age import decrypt
from s3hashsync.codec.zstd import FASTEST
from s3hashsync.errors import Corrupt, WrongKey
from s3hashsync.run.encoding import opened_again
from s3hashsync.run.keyring import Keyring, Seal

LONGEST_LINE = 16 << 20
_BUFFER = 1 << 19
_STEP = 1 << 11
"""Bytes of input at a time: so many expand to 64 MiB at most, and a bomb stops at the first line that is too long."""
_SLICE = 1 << 20
"""Bytes of output that are split at a time: a line in a list takes far more memory than the line feed that may be all of it."""
_MAX_WINDOW = 1 << 27


class LineWriter:
    """Lines (without their line feeds) go in, compressed, so that memory holds the compressed segment and a few lines alone."""

    def __init__(self, keys: Keyring, source: str) -> None:
        self._keys = keys
        self._log_key = keys.log_key(source)
        # Lines full of hashes: the fastest level also makes the smallest frames.
        self._compressor = zstandard.ZstdCompressor(level=FASTEST, write_checksum=True).compressobj()
        self._parts: list[bytes] = []
        self._buffer = bytearray()
        self._digest = sha256()

    def add(self, line: bytes) -> None:
        self._buffer += line
        self._buffer += b"\n"
        # Handing over a line costs more than compressing it, and lets another thread take the interpreter's lock.
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def finish(self, header: bytes) -> bytes:
        """The bytes to store. The header is known only at the end, so it is a frame of its own in front: zstd frames
        concatenate."""
        self._flush()
        header += b"\n"
        if self._log_key is not None:
            self.add(_mac_line(self._log_key, sha256(header).digest(), self._digest.digest()))
            self._flush()
        self._parts.append(self._compressor.flush())
        head = zstandard.ZstdCompressor(level=FASTEST, write_checksum=True).compress(header)
        seal = self._keys.new_seal()
        frames = chain((head,), self._parts)
        body = b"".join(frames if seal is None else seal.stream(frames))
        try:
            self._check_opens(body, seal, header)
        except Corrupt as error:
            raise Corrupt(
                "the run log that was written a moment ago does not open to what was put into it: it was not stored",
                "does this machine's memory fail? test it before you trust any backup of it",
            ) from error
        return body

    def _check_opens(self, body: bytes, seal: Seal | None, header: bytes) -> None:
        pieces = (body[at : at + _BUFFER] for at in range(0, len(body), _BUFFER))
        digest, left = sha256(), header
        for text in _decompressed("itself", opened_again(pieces, seal)):
            here = left[: len(text)]
            if not text.startswith(here):
                raise Corrupt("its header is another one")
            left = left[len(here) :]
            digest.update(text[len(here) :])
        if left or digest.digest() != self._digest.digest():
            raise Corrupt("other lines come out of it")

    def _flush(self) -> None:
        self._digest.update(self._buffer)
        if data := self._compressor.compress(self._buffer):
            self._parts.append(data)
        self._buffer.clear()


def _mac_line(log_key: bytes, header: bytes, rest: bytes) -> bytes:
    """The last line, from the digests of the header line and of all further lines, each with their line feeds."""
    return b'{"hmac":"%s"}' % hmac.digest(log_key, header + rest, "sha256").hex().encode()


def believed_lines(keys: Keyring, source: str, key: str, data: bytes) -> Iterator[bytes]:
    """The lines of the segment that was read under `key`, without the HMAC: header, what changed, footer. With encryption this
    raises `Corrupt` before the first of them when the segment was not written by whoever has the source's keys, and `WrongKey`
    where this process cannot open it. The bytes are gone through twice, so that memory holds them alone, never all lines."""
    if not keys.encrypted:
        return _lines(key, data)
    frames = _opened(keys, key, data)
    log_key = keys.log_key(source)
    assert log_key is not None, "a repository with encryption has log keys"
    _check(key, frames, log_key)
    return _all_but_last(_lines(key, frames))


def _opened(keys: Keyring, key: str, data: bytes) -> bytes:
    # First: where there is no identity at hand, that is what has to be said.
    identities = keys.identities()
    try:
        return decrypt(data, identities)
    except Corrupt as error:
        raise Corrupt(f"the run-log segment {key} is damaged, or was not written by this repository: {error.message}") from None
    except WrongKey:
        raise Corrupt(f"the run-log segment {key} is encrypted to a key that is none of this repository's") from None


def _check(key: str, frames: bytes, log_key: bytes) -> None:
    header, rest = b"", sha256()
    last: bytes | None = None
    for line in _lines(key, frames):
        if last is not None and not header:
            header = sha256(last + b"\n").digest()
        elif last is not None:
            rest.update(last)
            rest.update(b"\n")
        last = line
    if not header or last is None or not last.startswith(b'{"hmac":'):
        raise Corrupt(f"the run-log segment {key} is cut off, or was written by somebody else: it has no HMAC")
    if not hmac.compare_digest(last, _mac_line(log_key, header, rest.digest())):
        raise Corrupt(f"the run-log segment {key} was written by somebody else: its HMAC is wrong")


def _all_but_last(lines: Iterator[bytes]) -> Iterator[bytes]:
    held = next(lines)
    for line in lines:
        yield held
        held = line


def _lines(key: str, frames: bytes) -> Iterator[bytes]:
    rest: list[bytes] = []
    length = 0
    for piece in _decompressed(key, (frames,)):
        *whole, end = piece.split(b"\n")
        if whole:
            whole[0] = b"".join((*rest, whole[0]))
            rest, length = [], 0
        rest.append(end)
        length += len(end)
        if length > LONGEST_LINE or _longest(whole) > LONGEST_LINE:
            raise Corrupt(f"the run-log segment {key} has a line of more than {LONGEST_LINE:,} bytes")
        yield from whole
    if length:
        raise Corrupt(f"the run-log segment {key} is cut off")


def _longest(lines: Iterable[bytes]) -> int:
    return max(map(len, lines), default=0)


def _decompressed(key: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    decompressor = None
    try:
        for piece in _in_steps(pieces):
            rest = piece
            while rest:
                if decompressor is None or decompressor.eof:
                    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj(write_size=1 << 18)
                text = decompressor.decompress(rest)
                for start in range(0, len(text), _SLICE):
                    yield text[start : start + _SLICE]
                rest = decompressor.unused_data if decompressor.eof else b""
    except zstandard.ZstdError as error:
        raise Corrupt(f"the run-log segment {key} is damaged ({error})") from None
    if decompressor is not None and not decompressor.eof:
        raise Corrupt(f"the run-log segment {key} is cut off")


def _in_steps(pieces: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    for piece in pieces:
        view = memoryview(piece)
        for at in range(0, len(view), _STEP):
            yield view[at : at + _STEP]
