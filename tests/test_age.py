"""age files: the bindings on PyPI, the `age` program and the format's own test vectors are the oracles.

Other programs read ours and we read theirs; every changed, missing or added byte is noticed; one file has one spelling; no secret
shows.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3hashsync.codec.age import (
    CHUNK,
    HEADER_LIMIT,
    TAG,
    Identity,
    Passphrase,
    Payload,
    Seal,
    X25519Identity,
    X25519Recipient,
    decrypt,
    decrypt_stream,
    encrypt,
    new_seal,
    parse_header,
    parse_identities,
)
from s3hashsync.errors import Corrupt, S3HashSyncError, UsageError, WrongKey
from tests.harness import SLOW

MIB = 1 << 20
BLOCK = CHUNK + TAG
EDGES = (0, 1, 15, 16, 17, 65519, 65520, 65535, 65536, 65537, 65552, 131071, 131072, 131073, 196608, 16 * CHUNK, 16 * CHUNK + 1)
FACTOR = 2


def seeded(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


ALICE, BOB, EVE = (X25519Identity.generate(seeded(seed)) for seed in (1, 2, 3))
NOISE = random.Random(0).randbytes(EDGES[-1] + CHUNK)
SEAL = new_seal([ALICE.recipient], seeded(4))


def theirs(identity: X25519Identity) -> pyrage.x25519.Identity:
    return pyrage.x25519.Identity.from_str(identity.secret_text())


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def opened(data: bytes, identity: Identity = ALICE, size: int = 100_003) -> bytes:
    """Both ways to open it, which must agree: also in what they raise."""
    try:
        plain = decrypt(data, [identity])
    except S3HashSyncError as error:
        with pytest.raises(type(error)):
            list(decrypt_stream(cut(data, size), [identity]))
        raise
    assert b"".join(decrypt_stream(cut(data, size), [identity])) == plain
    return plain


class TestOthers:
    """What is written here, others read; what others write is read here."""

    @pytest.mark.parametrize("size", EDGES)
    def test_one_recipient(self, size: int) -> None:
        plain = NOISE[:size]
        ours = encrypt(plain, [ALICE.recipient], seeded(size))
        assert pyrage.decrypt(ours, [theirs(ALICE)]) == plain
        assert opened(ours) == plain
        assert opened(pyrage.encrypt(plain, [theirs(ALICE).to_public()])) == plain

    def test_several_recipients(self) -> None:
        ours = encrypt(NOISE[:100], [ALICE.recipient, BOB.recipient], seeded(1))
        their = pyrage.encrypt(NOISE[:100], [theirs(ALICE).to_public(), theirs(BOB).to_public()])
        for identity in (ALICE, BOB):
            assert pyrage.decrypt(ours, [theirs(identity)]) == opened(ours, identity) == opened(their, identity) == NOISE[:100]
        assert decrypt(ours, [EVE, BOB]) == NOISE[:100]
        with pytest.raises(WrongKey, match="somebody else"):
            opened(ours, EVE)

    @pytest.mark.parametrize("text", ["correct horse", "ünï 🐎", " spaces\t"])
    def test_passphrase(self, text: str) -> None:
        ours = encrypt(NOISE[:70_000], [Passphrase(text, FACTOR)], seeded(1))
        assert pyrage.passphrase.decrypt(ours, text) == opened(ours, Passphrase(text)) == NOISE[:70_000]
        with pytest.raises(WrongKey, match="the passphrase is wrong"):
            opened(ours, Passphrase(text + "!"))
        with pytest.raises(WrongKey, match="encrypted with a passphrase"):
            opened(ours, ALICE)

    @SLOW
    @pytest.mark.slow
    def test_their_passphrase(self) -> None:
        """They work hard on one, and cannot be told not to; among the test vectors there are cheap ones of other programs."""
        their = pyrage.passphrase.encrypt(b"secret", "correct horse")
        header = parse_header(their)
        assert header is not None
        assert header.needs_passphrase
        assert decrypt(their, [ALICE, Passphrase("correct horse")]) == b"secret"

    def test_keys_have_their_text(self) -> None:
        for identity in (ALICE, BOB, EVE):
            assert str(theirs(identity)) == identity.secret_text()
            assert str(theirs(identity).to_public()) == str(identity.recipient)
            assert X25519Identity.parse(identity.secret_text()) == identity
            assert X25519Recipient.parse(str(identity.recipient)) == identity.recipient

    def test_a_passphrase_is_the_bytes_that_the_environment_had(self) -> None:
        ours = encrypt(b"x", [Passphrase(os.fsdecode(b"\xff\xfe"), FACTOR)], seeded(1))
        assert opened(ours, Passphrase(os.fsdecode(b"\xff\xfe"))) == b"x"


@pytest.mark.skipif(shutil.which("age") is None, reason="needs the program age")
class TestProgram:
    @pytest.mark.parametrize("size", [0, 1, 65536, 65537, 200_000])
    def test_both_ways(self, tmp_path: Path, size: int) -> None:
        (tmp_path / "key").write_text(f"# comment\n\n{BOB.secret_text()}\n")
        (tmp_path / "plain").write_bytes(NOISE[:size])
        (tmp_path / "ours").write_bytes(encrypt(NOISE[:size], [ALICE.recipient, BOB.recipient], seeded(1)))
        ours = subprocess.run(["age", "-d", "-i", "key", "ours"], cwd=tmp_path, check=True, capture_output=True).stdout
        recipients = [part for identity in (ALICE, BOB) for part in ("-r", str(identity.recipient))]
        subprocess.run(["age", *recipients, "-o", "theirs", "plain"], cwd=tmp_path, check=True)
        assert ours == NOISE[:size]
        assert opened((tmp_path / "theirs").read_bytes()) == NOISE[:size]


@dataclass
class Vector:
    name: str
    expect: str
    keys: list[Identity] = field(default_factory=list)
    payload: str = ""
    file: bytes = b""


def vectors() -> list[Vector]:
    text = (Path(__file__).parent / "age_cases" / "cctv.txt").read_text("ascii")
    return [vector(block.splitlines()) for block in text.split("\n\n")[1:]]


def vector(lines: list[str]) -> Vector:
    found = Vector(lines[0].removeprefix("name: "), lines[1].removeprefix("expect: "))
    for line in lines[2:]:
        name, separator, value = line.partition(": ")
        if not separator:
            found.file += base64.b64decode(line)
        elif name == "payload":
            found.payload = value
        else:
            found.keys.append(Passphrase(value) if name == "passphrase" else X25519Identity.parse(value))
    return found


OUTCOMES = {
    "no match": (WrongKey, "."),
    "HMAC failure": (Corrupt, "its MAC is wrong"),
    "header failure": (Corrupt, r"header is malformed|not an age file|another version|too expensive|cut off before"),
    "payload failure": (Corrupt, "encrypted content"),
}


@pytest.mark.parametrize("case", vectors(), ids=lambda case: case.name)
def test_vector(case: Vector) -> None:
    if case.expect == "success":
        assert hashlib.sha256(decrypt(case.file, case.keys)).hexdigest() == case.payload
        assert hashlib.sha256(b"".join(decrypt_stream(cut(case.file, 1), case.keys))).hexdigest() == case.payload
        return
    error, message = OUTCOMES[case.expect]
    with pytest.raises(error, match=message):
        decrypt(case.file, case.keys)
    with pytest.raises(error, match=message):
        list(decrypt_stream(cut(case.file, 1), case.keys))


class TestDamage:
    @pytest.mark.parametrize(
        ("seal", "key"),
        [
            (SEAL, ALICE),
            (new_seal([BOB.recipient, ALICE.recipient], seeded(5)), ALICE),
            (new_seal([Passphrase("p", 1)], seeded(5)), Passphrase("p")),
        ],
        ids=["one", "two", "passphrase"],
    )
    def test_every_bit_byte_and_end_of_a_small_file(self, seal: Seal, key: Identity) -> None:
        file = seal.encrypt(b"some secret")
        assert decrypt(file, [key]) == b"some secret"
        for at in range(len(file) * 8):
            bad = bytearray(file)
            bad[at // 8] ^= 1 << at % 8
            with pytest.raises((Corrupt, WrongKey)):
                decrypt(bytes(bad), [key])
        for size in range(len(file)):
            with pytest.raises(Corrupt):
                decrypt(file[:size], [key])
        for byte in range(256):
            with pytest.raises(Corrupt):
                decrypt(file + bytes([byte]), [key])

    @pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5])
    def test_ends_at_chunk_edges(self, size: int) -> None:
        file = SEAL.encrypt(NOISE[:size])
        start = SEAL.payload().body_start
        edges = {start + chunk * BLOCK + more for chunk in range(5) for more in (-17, -16, -1, 0, 1, 15, 16, 17)}
        for end in sorted(edge for edge in edges | {len(file) - 1} if start - 17 <= edge < len(file)):
            with pytest.raises(Corrupt):
                opened(file[:end])
        for more in (b"\0", b"\0" * TAG, file[-TAG:], file[start : start + BLOCK], file):
            with pytest.raises(Corrupt):
                opened(file + more)

    def test_chunks_out_of_place(self) -> None:
        file = SEAL.encrypt(NOISE[: 4 * CHUNK])
        start = SEAL.payload().body_start
        head, (a, b, c, d) = file[:start], tuple(cut(file[start:], BLOCK))
        other = new_seal([ALICE.recipient], seeded(9))
        x = other.encrypt(NOISE[: 4 * CHUNK])[start : start + BLOCK]
        assert opened(head + a + b + c + d) == NOISE[: 4 * CHUNK]
        for body in (
            (b, a, c, d),
            (a, c, b, d),
            (a, b, d, c),
            (a, b, d),
            (a, d),
            (d,),
            (a, a, b, c, d),
            (a, b, c, d, d),
            (x, b, c, d),
        ):
            with pytest.raises(Corrupt):
                opened(head + b"".join(body))

    def test_an_empty_chunk_ends_an_empty_text_alone(self) -> None:
        """Sealed rightly by somebody who has the key: still no second spelling."""
        empty_last = SEAL.payload()._cipher.encrypt((1).to_bytes(11, "big") + b"\1", b"", None)
        full = SEAL.payload()._cipher.encrypt(bytes(12), NOISE[:CHUNK], None)
        for payload_bytes in (full + empty_last, full):
            with pytest.raises(Corrupt):
                opened(SEAL.header + SEAL.nonce + payload_bytes)
        with pytest.raises(Corrupt):
            SEAL.payload().decrypt_span(full + empty_last, 0, CHUNK + 1)

    def test_a_short_chunk_is_the_last(self) -> None:
        short = SEAL.payload()._cipher.encrypt(bytes(12), b"short", None)
        with pytest.raises(Corrupt):
            opened(SEAL.header + SEAL.nonce + short)
        with pytest.raises(Corrupt):
            SEAL.payload().decrypt_span(short, 0, 5)

    def test_what_comes_before_a_fault_is_authentic(self) -> None:
        file = bytearray(SEAL.encrypt(NOISE))
        file[-1] ^= 1
        seen = b""
        with pytest.raises(Corrupt):  # noqa: PT012
            for piece in decrypt_stream(cut(bytes(file), 999_999), [ALICE]):
                seen += piece
        assert seen
        assert NOISE.startswith(seen)


STANZA = b"-> X25519 " + b"A" * 43 + b"\n" + b"A" * 43 + b"\n"
SCRYPT = b"-> scrypt " + b"A" * 22 + b" 10\n" + b"A" * 43 + b"\n"
MAC = b"--- " + b"A" * 43 + b"\n"
VERSION = b"age-encryption.org/v1\n"

WELL_FORMED = {
    "X25519": STANZA,
    "scrypt": SCRYPT,
    "unknown": b"-> ~grease! 1 2 3\n\n" + STANZA,
    "unknown alone": b"-> x\n\n",
    "unknown with a full line and an empty one": b"-> x\n" + b"A" * 64 + b"\n\n",
    "unknown with two lines": b"-> x\n" + b"A" * 64 + b"\nAA\n",
}
MALFORMED = {
    "no stanza": b"",
    "no body": b"-> X25519 " + b"A" * 43 + b"\n",
    "no kind": b"-> \n\n",
    "no space": b"->x\n\n",
    "two spaces": b"->  x\n\n",
    "an empty argument": b"-> x  y\n\n",
    "a space at the end": b"-> x \n\n",
    "a control character": b"-> x\x7f\n\n",
    "not ASCII": b"-> \xc3\xa4\n\n",
    "a carriage return": b"-> x\r\n\r\n",
    "another arrow": b"=> x\n\n",
    "text between": STANZA + b"hello\n",
    "an empty line between": STANZA + b"\n" + STANZA,
    "padding": b"-> x\nAA==\n",
    "bits behind the end": b"-> x\nAB\n",
    "a lone letter": b"-> x\nAAAAA\n",
    "another alphabet": b"-> x\nA-_A\n",
    "a space in the body": b"-> x\nAAAA \n",
    "a line of 65": b"-> x\n" + b"A" * 65 + b"\n",
    "a full last line": b"-> x\n" + b"A" * 64 + b"\n",
    "short lines": b"-> x\nAAAA\nAAAA\n",
    "X25519: no share": b"-> X25519\n" + b"A" * 43 + b"\n",
    "X25519: an argument more": STANZA.replace(b"\n", b" x\n", 1),
    "X25519: a short share": b"-> X25519 AAAA\n" + b"A" * 43 + b"\n",
    "X25519: a share with bits behind its end": b"-> X25519 " + b"A" * 42 + b"B\n" + b"A" * 43 + b"\n",
    "X25519: a short body": b"-> X25519 " + b"A" * 43 + b"\n" + b"A" * 42 + b"\n",
    "X25519: a long body": b"-> X25519 " + b"A" * 43 + b"\n" + b"A" * 44 + b"\n",
    "scrypt: beside another": SCRYPT + STANZA,
    "scrypt: twice": SCRYPT + SCRYPT,
    "scrypt: beside an unknown one": b"-> x\n\n" + SCRYPT,
    "scrypt: no work factor": SCRYPT.replace(b" 10", b""),
    "scrypt: an argument more": SCRYPT.replace(b" 10", b" 10 10"),
    "scrypt: a short salt": SCRYPT.replace(b"A" * 22, b"A" * 20),
    **{
        f"scrypt: work factor {factor!r}": SCRYPT.replace(b"10", factor)
        for factor in (b"0", b"01", b"+1", b"-1", b"1x", b"0x1", b"23")
    },
    "scrypt: work factor of many digits": SCRYPT.replace(b"10", b"9" * 9000),
    "too long": b"-> x\n\n" * 20_000,
}
MALFORMED_MACS = {
    "short": b"--- " + b"A" * 42 + b"\n",
    "long": b"--- " + b"A" * 44 + b"\n",
    "padded": b"--- " + b"A" * 43 + b"=\n",
    "bits behind its end": b"--- " + b"A" * 42 + b"B\n",
    "no space": b"---" + b"A" * 43 + b"\n",
    "two spaces": b"---  " + b"A" * 43 + b"\n",
    "a space at the end": MAC[:-1] + b" \n",
    "a carriage return": MAC[:-1] + b"\r\n",
    "empty": b"---\n",
}


class TestHeader:
    @pytest.mark.parametrize("stanzas", WELL_FORMED.values(), ids=WELL_FORMED)
    def test_well_formed(self, stanzas: bytes) -> None:
        data = VERSION + stanzas + MAC
        for more in (b"", b"\n", b"\n--- more"):
            header = parse_header(data + more)
            assert header is not None
            assert header.size == len(data)
            assert header.needs_passphrase == (b"-> scrypt" in stanzas)
        for end in range(len(data)):
            assert parse_header(data[:end]) is None

    @pytest.mark.parametrize("stanzas", MALFORMED.values(), ids=MALFORMED)
    def test_malformed(self, stanzas: bytes) -> None:
        with pytest.raises(Corrupt, match=r"malformed|too expensive"):
            parse_header(VERSION + stanzas + MAC)

    @pytest.mark.parametrize("line", MALFORMED_MACS.values(), ids=MALFORMED_MACS)
    def test_malformed_mac(self, line: bytes) -> None:
        with pytest.raises(Corrupt, match="malformed"):
            parse_header(VERSION + STANZA + line + b"\0" * 100)

    def test_a_short_line_is_told_at_once(self) -> None:
        with pytest.raises(Corrupt, match="its MAC line"):
            parse_header(VERSION + STANZA + b"---\n")

    def test_a_nonce_that_is_cut_off(self) -> None:
        header = parse_header(SEAL.header)
        assert header is not None
        with pytest.raises(Corrupt, match="cut off"):
            header.unlock(SEAL.nonce[:-1], [ALICE])

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"hello", "not an age file"),
            (b"\x28\xb5\x2f\xfd", "not an age file"),
            (b"\xef\xbb\xbf" + VERSION, "not an age file"),
            (VERSION.replace(b"\n", b"\r\n"), "another version|not an age file"),
            (b"age-encryption.org/v2\n", "another version"),
            (b"-----BEGIN AGE ENCRYPTED FILE-----\n", "armor"),
        ],
    )
    def test_other_files(self, data: bytes, message: str) -> None:
        with pytest.raises(Corrupt, match=message):
            parse_header(data)

    def test_an_endless_header_is_given_up(self) -> None:
        assert parse_header((VERSION + STANZA * 1000)[: HEADER_LIMIT - 1]) is None
        fed = []

        def pieces() -> Iterator[bytes]:
            yield VERSION
            while True:
                fed.append(1)
                yield STANZA

        with pytest.raises(Corrupt, match="does not end"):
            list(decrypt_stream(pieces(), [ALICE]))
        assert len(fed) <= HEADER_LIMIT // len(STANZA) + 1

    def test_a_share_of_low_order(self) -> None:
        with pytest.raises(Corrupt, match="low order"):
            decrypt(VERSION + STANZA + MAC + bytes(32), [ALICE])

    def test_a_mac_of_another_header(self) -> None:
        other = new_seal([ALICE.recipient], seeded(8))
        mixed = SEAL.header[:-44] + other.header[-44:]
        with pytest.raises(Corrupt, match="MAC"):
            opened(mixed + SEAL.nonce + bytes(16))


class TestSeal:
    def test_is_repeatable(self) -> None:
        again = Seal(SEAL.header, SEAL.file_key, SEAL.nonce)
        assert new_seal([ALICE.recipient], seeded(4)) == again == SEAL
        assert b"".join(again.stream(cut(NOISE, 77_777))) == SEAL.encrypt(NOISE)

    @pytest.mark.parametrize("size", EDGES)
    def test_size(self, size: int) -> None:
        assert SEAL.size(size) == len(SEAL.encrypt(NOISE[:size]))

    @given(st.lists(st.sampled_from([0, 1, 16, 1000, CHUNK - 1, CHUNK, CHUNK + 1, BLOCK, 3 * CHUNK]), max_size=6))
    def test_pieces_of_any_sizes(self, sizes: list[int]) -> None:
        ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
        plain = NOISE[: sum(sizes)]
        file = b"".join(SEAL.stream(plain[end - size : end] for size, end in zip(sizes, ends, strict=True)))
        assert file == SEAL.encrypt(plain)
        body = file[SEAL.payload().body_start :]
        pieces = [body[end - size : end] for size, end in zip(sizes, ends, strict=True)] + [body[sum(sizes) :]]
        assert b"".join(SEAL.payload().decrypt(pieces)) == plain

    def test_a_reused_buffer(self) -> None:
        """A reader may fill the same buffer again: nothing of a piece is looked at after its turn."""

        def pieces() -> Iterator[memoryview]:
            buffer = bytearray(CHUNK)
            for piece in cut(NOISE, CHUNK):
                buffer[: len(piece)] = piece
                yield memoryview(buffer)[: len(piece)]
                buffer[:] = bytes(CHUNK)

        assert b"".join(SEAL.stream(pieces())) == SEAL.encrypt(NOISE)

    def test_pieces_are_large(self) -> None:
        sizes = [len(piece) for piece in SEAL.stream(cut(NOISE, 1000))]
        assert all(900_000 < size < 1_200_000 for size in sizes[:-1])

    def test_memory_is_bounded(self) -> None:
        def endless() -> Iterator[bytes]:
            for _ in range(64):
                yield bytes(MIB)

        tracemalloc.start()
        total = sum(map(len, decrypt_stream(SEAL.stream(endless()), [ALICE])))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == 64 * MIB
        assert peak < 10 * MIB

    @pytest.mark.parametrize("parts", [(b"", bytes(16), bytes(16)), (b"h", bytes(15), bytes(16)), (b"h", bytes(16), b"")])
    def test_what_is_none(self, parts: tuple[bytes, bytes, bytes]) -> None:
        with pytest.raises(ValueError, match="not a seal"):
            Seal(*parts)

    def test_recipients_that_cannot_be(self) -> None:
        with pytest.raises(UsageError, match="nobody"):
            new_seal([], seeded(1))
        with pytest.raises(UsageError, match="stand alone"):
            new_seal([Passphrase("p", 1), ALICE.recipient], seeded(1))


class TestSpan:
    PLAIN = NOISE[: 4 * CHUNK + 100]

    @staticmethod
    def payload(file: bytes) -> Payload:
        header = parse_header(file)
        assert header is not None
        return header.unlock(file[header.size : header.size + 16], [ALICE])

    near_an_edge = st.builds(lambda chunk, more: max(0, chunk * CHUNK + more), st.integers(0, 5), st.integers(-2, 2))
    positions = st.one_of(near_an_edge, st.integers(0, 5 * CHUNK))

    @settings(max_examples=300)
    @given(st.sampled_from([0, 1, 100, CHUNK, CHUNK + 1, 4 * CHUNK, 4 * CHUNK + 100]), positions, positions)
    def test_against_slicing(self, size: int, start: int, length: int) -> None:
        plain = self.PLAIN[:size]
        file = SEAL.encrypt(plain)
        payload = self.payload(file)
        offset, stored = payload.span(start, length)
        assert stored % BLOCK == 0
        read = file[offset : offset + stored]
        if start + length <= size or not length:
            assert payload.decrypt_span(read, start, length) == plain[start : start + length]
        else:
            with pytest.raises(Corrupt):
                payload.decrypt_span(read, start, length)

    @given(st.integers(0, 4 * CHUNK), st.integers(1, 2 * CHUNK), st.data())
    def test_damage(self, start: int, length: int, data: st.DataObject) -> None:
        file = SEAL.encrypt(self.PLAIN)
        payload = self.payload(file)
        length = min(length, len(self.PLAIN) - start)
        offset, stored = payload.span(start, length)
        read = file[offset : offset + stored]
        bad = bytearray(read)
        bad[data.draw(st.integers(0, len(read) - 1))] ^= data.draw(st.integers(1, 255))
        end = data.draw(st.integers(0, len(read) - 1))
        for wrong in (bytes(bad), read[:end], read + b"\0", read + bytes(BLOCK), file[offset - 1 : offset - 1 + len(read)]):
            with pytest.raises(Corrupt):
                payload.decrypt_span(wrong, start, length)

    def test_of_another_place(self) -> None:
        file = SEAL.encrypt(self.PLAIN)
        payload = self.payload(file)
        offset, stored = payload.span(0, CHUNK)
        with pytest.raises(Corrupt):
            payload.decrypt_span(file[offset : offset + stored], CHUNK, CHUNK)

    def test_more_than_was_asked_for(self) -> None:
        """Sound as it is, it says that the store did not do what it was asked."""
        file = SEAL.encrypt(self.PLAIN)
        payload = self.payload(file)
        with pytest.raises(Corrupt, match="asked for"):
            payload.decrypt_span(file[payload.body_start : payload.body_start + 2 * BLOCK], 0, CHUNK)

    def test_reads_no_more_than_it_needs(self) -> None:
        payload = SEAL.payload()
        start = payload.body_start
        assert payload.span(0, 1) == payload.span(CHUNK - 1, 1) == (start, BLOCK)
        assert payload.span(CHUNK - 1, 2) == (start, 2 * BLOCK)
        assert payload.span(CHUNK, CHUNK) == (start + BLOCK, BLOCK)
        assert payload.span(7, 0) == (start, 0)
        for wrong in ((-1, 1), (0, -1)):
            with pytest.raises(ValueError, match="range"):
                payload.span(*wrong)


SECRET = ALICE.secret_text()
PUBLIC = str(ALICE.recipient)
# The bytes 0 to 31, but for the last letter or two and the checksum.
COUNTED = "qqqsyqcyq5rqwzqfpg9scrgwpugpzysnzs23v9ccrydpk8qarc"


class TestKeyTexts:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (SECRET, "a secret key stands where a recipient belongs"),
            (SECRET.lower(), "a secret key stands where a recipient belongs"),
            (
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice",
                "SSH keys are not supported",
            ),
            (PUBLIC[:-1], "checksum is wrong"),
            (PUBLIC[:9] + PUBLIC[10:], "checksum is wrong"),
            (PUBLIC[:9] + PUBLIC[10] + PUBLIC[9] + PUBLIC[11:], "checksum is wrong"),
            (PUBLIC[:20] + "b" + PUBLIC[21:], "a letter that keys never have"),
            (PUBLIC.replace("a", "\N{CYRILLIC SMALL LETTER A}"), "a letter that keys never have"),
            (PUBLIC[:20] + PUBLIC[20:].upper(), "mixes upper and lower case"),
            (PUBLIC.upper(), "lower case"),
            (PUBLIC + " ", "a letter that keys never have"),
            ("", "does not begin"),
            ("age1", "too short"),
            ("alice@example.org", "does not begin"),
            ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "not an age recipient"),
            # Checksums are right from here on.
            (f"age1{COUNTED}03q6rzrf", "not those of whole bytes"),
            (f"age1{COUNTED}0sq47der8", "58 more letters"),
            (f"age1{COUNTED}0sqqes8gp6", "not those of whole bytes"),
            (f"age1{COUNTED[:-3]}n33xze", "58 more letters"),
            (f"age1yubikey1{COUNTED}0s9hkmc0", "recipients of the kind age1yubikey1… are not supported"),
            (f"age1pq1{COUNTED}0sq5eur9", "recipients of the kind age1pq1… are not supported"),
        ],
    )
    def test_no_recipient(self, text: str, message: str) -> None:
        with pytest.raises(UsageError) as raised:
            X25519Recipient.parse(text)
        assert message in f"{raised.value.message} {raised.value.hint}"
        assert SECRET[20:] not in shown(raised.value).upper()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (PUBLIC, "public key"),
            (SECRET[:-1], "checksum is wrong"),
            (SECRET[:-1] + "B", "a letter that keys never have"),
            (SECRET[:30] + SECRET[30:].lower(), "mixes upper and lower case"),
            (SECRET.lower(), "upper case"),
            ("AGE-PLUGIN-YUBIKEY-1QQQQQQ", "plugins"),
            ("AGE-SECRET-KEY-PQ-1QQQQQQ", "post-quantum"),
            ("", "does not begin"),
        ],
    )
    def test_no_identity(self, text: str, message: str) -> None:
        with pytest.raises(UsageError) as raised:
            X25519Identity.parse(text)
        assert message in f"{raised.value.message} {raised.value.hint}"
        assert not text[16:] or text[16:] not in shown(raised.value)

    def test_every_single_typing_mistake_is_noticed(self) -> None:
        for at in range(4, len(PUBLIC)):
            for letter in "qpzry9x8gf2tvdw0s3jn54khce6mua7l1":
                if letter != PUBLIC[at]:
                    with pytest.raises(UsageError):
                        X25519Recipient.parse(PUBLIC[:at] + letter + PUBLIC[at + 1 :])

    def test_a_recipient_that_nobody_can_open(self) -> None:
        with pytest.raises(UsageError, match="not a usable"):
            X25519Recipient.parse(str(X25519Recipient(bytes(32))))

    @given(st.binary(min_size=32, max_size=32))
    def test_round_trip(self, secret: bytes) -> None:
        identity = X25519Identity.generate(lambda _: secret)
        assert X25519Identity.parse(identity.secret_text()).secret_text() == identity.secret_text() == str(theirs(identity))

    def test_identity_files(self) -> None:
        text = f"# created: today\n# public key: {PUBLIC}\n{SECRET}\n\n  {BOB.secret_text()}\r\n"
        assert parse_identities(text) == [ALICE, BOB]
        for wrong, message in (("# nothing\n", "no identity"), (f"# one\n{SECRET}\n{SECRET[:-1]}\n", "line 3")):
            with pytest.raises(UsageError, match=message) as raised:
                parse_identities(wrong)
            assert SECRET[20:-6] not in shown(raised.value)


def shown(error: BaseException) -> str:
    """All that a log or a traceback would show of it."""
    texts = []
    current: BaseException | None = error
    while current is not None:
        texts.append(f"{current!r} {current} {getattr(current, 'hint', '')} {current.args}")
        current = current.__cause__ or current.__context__
    return " ".join(texts)


class TestSecrets:
    def test_do_not_show(self) -> None:
        header = parse_header(SEAL.header)
        things = (SEAL, ALICE, Passphrase("horse"), SEAL.payload(), header, [ALICE], {"seal": SEAL})
        text = " ".join(f"{thing!r} {thing} {thing:}" if not isinstance(thing, list | dict) else repr(thing) for thing in things)
        for secret in (SECRET[16:], "horse", repr(SEAL.file_key)[2:-1], SEAL.file_key.hex()):
            assert secret not in text
        assert PUBLIC in repr(ALICE)

    def test_a_passphrase_that_cannot_be_is_not_said(self) -> None:
        for text in ("", "hor\ud800se"):
            with pytest.raises(UsageError) as raised:
                Passphrase(text)
            assert "hor" not in shown(raised.value)
        with pytest.raises(ValueError, match="work factor"):
            Passphrase("p", 23)
