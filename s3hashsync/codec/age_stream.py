"""The payload of an age v1 file: chunks of 64 KiB, each sealed with its number and whether it is the last (STREAM).

Decides that nothing is given out which is not authentic and in its place, and that no end is believed which is not marked as one.
Knows neither headers nor recipients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from s3hashsync.errors import Corrupt

CHUNK = 64 << 10
TAG = 16
NONCE = 16
_BLOCK = CHUNK + TAG
_MORE, _LAST = b"\0", b"\1"
# Chunks that are given out together: 1 MiB.
_TOGETHER = 16

Bytes = bytes | bytearray | memoryview


def sealed_size(plain: int) -> int:
    """Bytes of the chunks for so many plain bytes."""
    return plain + TAG * max(1, -(-plain // CHUNK))


class Writer:
    """Seals one payload. Two different plain texts must never be sealed with the same file key and nonce."""

    __slots__ = ("_cipher",)

    def __init__(self, file_key: bytes, nonce: bytes) -> None:
        self._cipher = _payload_cipher(file_key, nonce)

    def chunks(self, pieces: Iterable[Bytes]) -> Iterator[bytes]:
        """Each sealed chunk, from plain pieces of any sizes."""
        for number, chunk, end in _blocks(pieces, CHUNK):
            yield self._cipher.encrypt(_nonce(number, end), chunk, None)


class Payload:
    """The body of one age file, unlocked; positions in bytes. `body_start`: where the first chunk begins in the file."""

    __slots__ = ("_cipher", "body_start")

    def __init__(self, file_key: bytes, nonce: bytes, body_start: int) -> None:
        self._cipher = _payload_cipher(file_key, nonce)
        self.body_start = body_start

    def span(self, start: int, length: int) -> tuple[int, int]:
        """(offset in the file, length): the stored chunks that cover plain bytes [start, start + length). At the end of the file
        there may be less."""
        if start < 0 or length < 0:
            raise ValueError("a range begins at 0 or later and is not negative")
        first, behind = start // CHUNK, -(-(start + length) // CHUNK)
        return self.body_start + first * _BLOCK, (behind - first) * _BLOCK if length else 0

    def decrypt_span(self, stored: Bytes, start: int, length: int) -> bytes:
        """plain[start : start + length], no less, out of what `span` asked for. Raises `Corrupt` when that is damaged or too
        short."""
        _, expected = self.span(start, length)
        if len(stored) > expected:
            raise Corrupt(f"{len(stored)} encrypted bytes were read where {expected} were asked for")
        if not length:
            return b""
        first, skip = divmod(start, CHUNK)
        parts = [self._open_inner(first + number, block, end) for number, block, end in _blocks((stored,), _BLOCK) if block]
        surplus = sum(map(len, parts)) - skip - length
        if surplus < 0:
            raise Corrupt(f"the encrypted content ends before byte {start + length}")
        parts[0] = parts[0][skip:]
        parts[-1] = parts[-1][: len(parts[-1]) - surplus]
        return b"".join(parts)

    def decrypt(self, chunks: Iterable[Bytes]) -> Iterator[bytes]:
        """The whole plain text from the body's chunks (from `body_start` on), any sizes; raises `Corrupt` for damage, a cut end,
        added bytes."""
        return together(self.chunks(chunks))

    def chunks(self, pieces: Iterable[Bytes]) -> Iterator[bytes]:
        """As `decrypt`, chunk by chunk."""
        for number, block, end in _blocks(pieces, _BLOCK):
            yield self._open(number, block, end)

    def _open(self, number: int, block: Bytes, end: bytes) -> bytes:
        # An empty last chunk would be a second way to write a text that ends with a full one.
        if len(block) > TAG or (len(block) == TAG and number == 0):
            try:
                return self._cipher.decrypt(_nonce(number, end), block, None)
            except InvalidTag:
                pass
        raise Corrupt(f"the encrypted content is damaged or cut off (chunk {number + 1})")

    def _open_inner(self, number: int, block: Bytes, end: bytes) -> bytes:
        """A full block at the end of a range may or may not be the last of the file."""
        if end == _LAST and len(block) == _BLOCK:
            try:
                return self._cipher.decrypt(_nonce(number, _MORE), block, None)
            except InvalidTag:
                pass
        return self._open(number, block, end)


def whole(chunks: Iterable[bytes]) -> bytes:
    """All in one: half as much memory as `join` takes, which keeps every chunk until the end."""
    out = BytesIO()
    out.writelines(chunks)
    return out.getvalue()


def together(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in fewer pieces."""
    held: list[bytes] = []
    for chunk in chunks:
        held.append(chunk)
        if len(held) == _TOGETHER:
            yield b"".join(held)
            held.clear()
    if rest := b"".join(held):
        yield rest


def _blocks(pieces: Iterable[Bytes], size: int) -> Iterator[tuple[int, Bytes, bytes]]:
    """(number, block, end): all bytes in blocks of `size`. The last one is 1 to `size` bytes long, empty only when all is."""
    number = 0
    # What may be the last block waits for the next piece; a copy, so that no piece is held longer than its turn.
    waiting = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        at = 0
        if waiting:
            at = size - len(waiting)
            waiting += view[:at]
            if len(view) <= at:
                continue
            yield number, waiting, _MORE
            number += 1
        while len(view) - at > size:
            yield number, view[at : at + size], _MORE
            number += 1
            at += size
        waiting = bytearray(view[at:])
    yield number, waiting, _LAST


def _nonce(number: int, end: bytes) -> bytes:
    return number.to_bytes(11, "big") + end


def _payload_cipher(file_key: bytes, nonce: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(HKDF(SHA256(), 32, nonce, b"payload").derive(file_key))
