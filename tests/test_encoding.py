"""What is opened again before it counts, and that the same content always becomes the same bytes."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator

import pytest

from s3hashsync.codec.age import X25519Identity, new_seal
from s3hashsync.codec.zstd import encode, encode_stream
from s3hashsync.core.model import Sha256
from s3hashsync.errors import Corrupt
from s3hashsync.run import encoding
from s3hashsync.run.encoding import RunningCheck, check_opens, encoded

HELLO = Sha256(hashlib.sha256(b"hello").digest())


def in_pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = number = 0
    while at < len(data):
        size = sizes[min(number, len(sizes) - 1)]
        yield data[at : at + size]
        at, number = at + size, number + 1


@pytest.mark.parametrize("sizes", [[700_001], [4096], [1, 1 << 20], [200_000, 1 << 20]])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_stored_bytes_do_not_hang_on_how_much_one_read_brings(sizes: list[int], noisy: bool) -> None:
    """An upload in parts that goes on must send what it sent before."""
    text = b"".join(b"line %d of something %d\n" % (n, n * n % 977) for n in range(100_000))
    data = (random.Random(1).randbytes(1 << 20) if noisy else b"") + text
    whole = b"".join(encode_stream(in_pieces(data, [1 << 20]), len(data)))
    assert b"".join(encode_stream(in_pieces(data, sizes), len(data))) == whole


def test_what_does_not_open_is_found() -> None:
    check_opens(encode(b"hello"), None, 5, HELLO)
    for body, size in ((encode(b"jello"), 5), (encode(b"hello!"), 5), (encode(b"hello")[:-1], 5), (b"", 5)):
        with pytest.raises(Corrupt, match="does not open to what was read"):
            check_opens(body, None, size, HELLO)


def test_a_flipped_bit_is_found_wherever_it_is() -> None:
    entropy = random.Random(1).randbytes
    seal = new_seal([X25519Identity.generate(entropy).recipient], entropy)
    body = encoded(b"hello", seal)
    check_opens(body, seal, 5, HELLO)
    for at in range(len(body)):
        flipped = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        with pytest.raises(Corrupt, match="does not open to what was read"):
            check_opens(flipped, seal, 5, HELLO)
    for end in range(len(body)):
        with pytest.raises(Corrupt, match="does not open to what was read"):
            check_opens(body[:end], seal, 5, HELLO)


def out_of_memory(*_: object) -> Iterator[bytes]:
    raise MemoryError
    yield b""


def test_a_check_that_dies_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "decode_stream", out_of_memory)
    with RunningCheck(None, 5, HELLO) as check:
        check.feed(b"whatever")
        with pytest.raises(MemoryError):
            check.finish()


def test_a_check_that_dies_stops_nobody_who_feeds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "decode_stream", out_of_memory)
    fed = threading.Event()

    def feed() -> None:
        with RunningCheck(None, 5, HELLO) as check:
            for _ in range(20):
                check.feed(b"whatever")
        fed.set()

    threading.Thread(target=feed, daemon=True).start()
    assert fed.wait(10)
