"""A content on its way into the store: compressed, sealed, and opened again before it counts.

Decides that nothing is sent, or completed, which does not open to what was read. Knows nothing of stores and files. What is
opened here is opened with the file's own key: the host that stores a content cannot read it later.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Iterable, Iterator

from s3hashsync.codec.zstd import decode_stream, encode, encode_stream
from s3hashsync.core.model import Sha256
from s3hashsync.errors import Corrupt
from s3hashsync.run.keyring import Seal

_WAITING = 4
_PIECE = 1 << 20


def encoded(content: bytes, seal: Seal | None) -> bytes:
    """The whole stored form."""
    frame = encode(content)
    return frame if seal is None else seal.encrypt(frame)


def encoded_stream(chunks: Iterable[bytes], size: int, seal: Seal | None) -> Iterator[bytes]:
    """The stored form of a content of `size` bytes; the same bytes each time for the same content and seal."""
    frames = encode_stream(chunks, size)
    return frames if seal is None else seal.stream(frames)


def check_opens(body: bytes, seal: Seal | None, size: int, sha256: Sha256) -> None:
    """Raises `Corrupt` unless these stored bytes open to that content."""
    check = _Opening(seal, size, sha256)
    check.run(body[at : at + _PIECE] for at in range(0, len(body), _PIECE))


def sealed_document(text: bytes, seal: Seal) -> bytes:
    """A small document under its seal. It may take the place of the only one that there is, so it, too, is opened again first."""
    data = seal.encrypt(text)
    try:
        again = b"".join(opened_again(iter((data,)), seal))
    except Corrupt as error:
        raise _failing(error.message, "encrypted") from error
    if again != text:
        raise _failing("another text comes out of it", "encrypted")
    return data


class RunningCheck:
    """The same while the stored bytes are still being made: a thread opens what `feed` is given; `finish` says whether it was
    that content. A context manager, so that the thread ends in any case."""

    def __init__(self, seal: Seal | None, size: int, sha256: Sha256) -> None:
        self._opening = _Opening(seal, size, sha256)
        self._pieces: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="check", daemon=True)

    def __enter__(self) -> RunningCheck:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._pieces.put(None)
            self._thread.join()

    def feed(self, piece: bytes) -> None:
        """The next stored bytes."""
        self._pieces.put(piece)

    def finish(self) -> None:
        """After the last piece; raises `Corrupt`."""
        self._pieces.put(None)
        self._thread.join()
        if self._problem is not None:
            raise self._problem

    def _run(self) -> None:
        pieces = iter(self._pieces.get, None)
        try:
            self._opening.run(pieces)
        except BaseException as error:  # noqa: BLE001
            # Whatever ends the check (memory, too) must not pass for a check that was passed.
            self._problem = error
            # Whoever feeds must not wait for a thread that has given up.
            for _ in pieces:
                pass


class _Opening:
    """Opens one stored content."""

    def __init__(self, seal: Seal | None, size: int, sha256: Sha256) -> None:
        self._seal = seal
        self._size = size
        self._sha256 = sha256

    def run(self, pieces: Iterator[bytes]) -> None:
        digest = hashlib.sha256()
        try:
            for chunk in decode_stream(opened_again(pieces, self._seal), self._size):
                digest.update(chunk)
        except Corrupt as error:
            raise _failing(error.message) from error
        if digest.digest() != self._sha256:
            raise _failing("another content comes out of it")


def opened_again(pieces: Iterator[bytes], seal: Seal | None) -> Iterator[bytes]:
    """What was sealed, out of the stored bytes. The key is the seal's own, and not taken out of the header: which, then,
    must be the seal's to the byte, for nobody else could open the file without it."""
    if seal is None:
        return pieces
    head = seal.header + seal.nonce

    def body() -> Iterator[bytes]:
        left = head
        for piece in pieces:
            if left:
                here = left[: len(piece)]
                if not piece.startswith(here):
                    raise Corrupt("its header is another one")
                left, piece = left[len(here) :], piece[len(here) :]
            if piece:
                yield piece

    return seal.payload().decrypt(body())


def _failing(what: str, done: str = "compressed") -> Corrupt:
    return Corrupt(
        f"what was {done} a moment ago does not open to what was read ({what}): it was not stored",
        "does this machine's memory fail? test it before you trust any backup of it",
    )
