"""age v1 (age-encryption.org/v1): files that the `age` program opens, and the other way round.

Decides how header and payload make a file: the header's grammar is in `age_header`, keys in `age_keys`, the payload in
`age_stream`. Binary files only, no armor. Knows neither stores nor where randomness comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from s3hashsync.codec.age_header import HEADER_LIMIT, HeaderText, header_text, parse_text
from s3hashsync.codec.age_keys import (
    FILE_KEY,
    Identity,
    Lock,
    Passphrase,
    Recipient,
    ScryptLock,
    X25519Identity,
    X25519Recipient,
    locks,
    parse_identities,
)
from s3hashsync.codec.age_stream import CHUNK, NONCE, TAG, Bytes, Payload, Writer, sealed_size, together, whole
from s3hashsync.errors import Corrupt, UsageError, WrongKey


@dataclass(frozen=True, slots=True)
class Seal:
    """One age file about to be written, with everything that makes writing it repeatable: the same plain bytes give the same
    file. Whoever has `file_key` can open that one file. Used again for the very same bytes alone: two different plain texts under
    one seal would give each other away."""

    header: bytes  # up to and including the line feed after the MAC
    file_key: bytes = field(repr=False)  # secret
    nonce: bytes

    def __post_init__(self) -> None:
        if len(self.file_key) != FILE_KEY or len(self.nonce) != NONCE or not self.header:
            raise ValueError("not a seal")

    def size(self, plain: int) -> int:
        """Bytes of the whole file for so many plain bytes."""
        return len(self.header) + NONCE + sealed_size(plain)

    def encrypt(self, plain: Bytes) -> bytes:
        """The whole file."""
        return whole(self._chunks((plain,)))

    def stream(self, chunks: Iterable[Bytes]) -> Iterator[bytes]:
        """The whole file, in pieces of about 1 MiB, from plain pieces of any sizes."""
        return together(self._chunks(chunks))

    def payload(self) -> Payload:
        """To open again what this seal wrote."""
        return Payload(self.file_key, self.nonce, len(self.header) + NONCE)

    def _chunks(self, pieces: Iterable[Bytes]) -> Iterator[bytes]:
        return chain((self.header, self.nonce), Writer(self.file_key, self.nonce).chunks(pieces))


def new_seal(recipients: Sequence[Recipient], entropy: Callable[[int], bytes]) -> Seal:
    """For one file that all recipients can open. Raises `UsageError` for none, and for a passphrase beside others."""
    if not recipients:
        raise UsageError("nothing can be encrypted to nobody", "name at least one recipient")
    if len(recipients) > 1 and any(isinstance(recipient, Passphrase) for recipient in recipients):
        raise UsageError("a passphrase must stand alone in an age file", "encrypt to it in a file of its own")
    file_key = entropy(FILE_KEY)
    header = header_text([recipient.wrap(file_key, entropy) for recipient in recipients], file_key)
    return Seal(header, file_key, entropy(NONCE))


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header. `size`: its length in bytes."""

    size: int
    _text: HeaderText = field(repr=False)
    _locks: tuple[Lock, ...] = field(repr=False)

    @property
    def needs_passphrase(self) -> bool:
        """A passphrase opens it, and nothing else does."""
        return any(isinstance(lock, ScryptLock) for lock in self._locks)

    def unlock(self, nonce: bytes, identities: Sequence[Identity]) -> Payload:
        """`nonce`: the 16 bytes behind the header. `WrongKey` when none of the identities fits, `Corrupt` when the header's MAC
        is wrong."""
        if len(nonce) != NONCE:
            raise _cut()
        for lock in self._locks:
            for identity in identities:
                file_key = identity.unwrap(lock)
                if file_key is not None:
                    self._text.check_mac(file_key)
                    return Payload(file_key, nonce, self.size + NONCE)
        raise self._wrong_key(identities)

    def _wrong_key(self, identities: Sequence[Identity]) -> WrongKey:
        if not self.needs_passphrase:
            return WrongKey(
                "it is encrypted to somebody else", "it takes the identity (AGE-SECRET-KEY-1…) of one of its recipients"
            )
        if any(isinstance(identity, Passphrase) for identity in identities):
            return WrongKey("the passphrase is wrong", "it takes the passphrase that it was encrypted with")
        return WrongKey("it is encrypted with a passphrase", "it takes that passphrase; an identity does not open it")


def parse_header(data: bytes) -> Header | None:
    """The header at the beginning of `data`, None when `data` ends before it does. `Corrupt` for what is no age file (strict)."""
    text = parse_text(data)
    return None if text is None else Header(text.size, text, locks(text.stanzas))


def encrypt(plain: bytes, recipients: Sequence[Recipient], entropy: Callable[[int], bytes]) -> bytes:
    return new_seal(recipients, entropy).encrypt(plain)


def decrypt(data: bytes, identities: Sequence[Identity]) -> bytes:
    """Raises `WrongKey` and `Corrupt`."""
    return whole(_chunks((data,), identities))


def decrypt_stream(chunks: Iterable[bytes], identities: Sequence[Identity]) -> Iterator[bytes]:
    """The plain text of a whole file that arrives in pieces of any sizes. Raises `WrongKey` before the first piece, `Corrupt` at
    the place of a fault: what came before it is authentic, but only the end says that nothing is missing."""
    return together(_chunks(chunks, identities))


def _chunks(chunks: Iterable[bytes], identities: Sequence[Identity]) -> Iterator[bytes]:
    pieces = iter(chunks)
    data = b""
    for piece in pieces:
        data = data + piece if data else bytes(piece)
        header = parse_header(data)
        if header is not None and len(data) >= header.size + NONCE:
            break
    else:
        raise _cut()
    payload = header.unlock(data[header.size : header.size + NONCE], identities)
    yield from payload.chunks(chain((memoryview(data)[payload.body_start :],), pieces))


def _cut() -> Corrupt:
    return Corrupt("the age file is cut off before its content begins")


__all__ = [
    "CHUNK",
    "HEADER_LIMIT",
    "TAG",
    "Header",
    "Identity",
    "Passphrase",
    "Payload",
    "Recipient",
    "Seal",
    "X25519Identity",
    "X25519Recipient",
    "decrypt",
    "decrypt_stream",
    "encrypt",
    "new_seal",
    "parse_header",
    "parse_identities",
]
