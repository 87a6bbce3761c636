"""The header of an age v1 file as text: its grammar and its MAC.

Decides what is a header at all, as strictly as the format's specification asks: one header has one spelling. Knows no kind of
key.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64encode
from binascii import Error, a2b_base64
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from s3hashsync.errors import Corrupt

HEADER_LIMIT = 64 << 10
_VERSION = b"age-encryption.org/v1\n"
_ARMOR = b"-----BEGIN AGE"
_ARGUMENTS = re.compile(rb"->((?: [!-~]+)+)")
_MAC_LINE = re.compile(rb"--- ([A-Za-z0-9+/]{43})\n")
_MAC_LENGTH = 48
_COLUMNS = 64


@dataclass(frozen=True, slots=True)
class Stanza:
    """The file key, wrapped for one recipient."""

    kind: bytes
    arguments: tuple[bytes, ...]
    body: bytes

    def text(self) -> bytes:
        body = to_base64(self.body)
        # A last line of 64 columns is followed by an empty one: a body ends with a line that is shorter.
        lines = [body[at : at + _COLUMNS] for at in range(0, len(body) + 1, _COLUMNS)]
        return b"\n".join((b" ".join((b"->", self.kind, *self.arguments)), *lines, b""))


@dataclass(frozen=True, slots=True)
class HeaderText:
    """A header in its parts. `signed` is what the MAC is over."""

    stanzas: tuple[Stanza, ...]
    signed: bytes
    mac: bytes
    size: int

    def check_mac(self, file_key: bytes) -> None:
        """Raises `Corrupt` when the header was changed."""
        if not hmac.compare_digest(_mac(file_key, self.signed), self.mac):
            raise Corrupt("the age header is damaged (its MAC is wrong)")


def header_text(stanzas: Iterable[Stanza], file_key: bytes) -> bytes:
    """A whole header, up to and including the line feed after its MAC."""
    signed = b"".join((_VERSION, *(stanza.text() for stanza in stanzas), b"---"))
    return signed + b" " + to_base64(_mac(file_key, signed)) + b"\n"


def parse_text(data: bytes) -> HeaderText | None:
    """The header at the beginning of `data`, None when `data` ends before it does. Raises `Corrupt`."""
    if not data.startswith(_VERSION[: len(data)]):
        raise _not_age(data)
    mac_at = data.find(b"\n---", len(_VERSION) - 1, HEADER_LIMIT) + 1
    line = data[mac_at : mac_at + _MAC_LENGTH] if mac_at else b""
    found = _MAC_LINE.fullmatch(line)
    if found is None:
        if b"\n" in line or len(line) == _MAC_LENGTH:
            raise malformed("its MAC line")
        if len(data) >= HEADER_LIMIT:
            raise malformed(f"it does not end within {HEADER_LIMIT} bytes")
        return None
    signed = data[: mac_at + 3]
    return HeaderText(_stanzas(data[len(_VERSION) : mac_at]), signed, from_base64(found[1]), mac_at + _MAC_LENGTH)


def to_base64(raw: bytes) -> bytes:
    """Without padding."""
    return b64encode(raw).rstrip(b"=")


def from_base64(text: bytes) -> bytes:
    """Raises `Corrupt` for everything that `to_base64` would not have written."""
    try:
        raw = a2b_base64(text + b"=" * (-len(text) % 4))
    except Error:
        raise malformed("its base64") from None
    if to_base64(raw) != text:
        raise malformed("its base64")
    return raw


def malformed(what: str) -> Corrupt:
    return Corrupt(f"the age header is malformed: {what}")


def _stanzas(text: bytes) -> tuple[Stanza, ...]:
    if not text:
        raise malformed("it has no recipient")
    # Every line ends with a line feed, so the last part is empty.
    lines = iter(text.split(b"\n")[:-1])
    return tuple(_stanza(line, lines) for line in lines)


def _stanza(first: bytes, lines: Iterable[bytes]) -> Stanza:
    found = _ARGUMENTS.fullmatch(first)
    if found is None:
        raise malformed("a line that should begin a recipient")
    kind, *arguments = found[1][1:].split(b" ")
    body = bytearray()
    for line in lines:
        if len(line) > _COLUMNS:
            raise malformed("a line that is too long")
        body += line
        if len(line) < _COLUMNS:
            return Stanza(kind, tuple(arguments), from_base64(bytes(body)))
    raise malformed("a recipient that ends too early")


def _mac(file_key: bytes, signed: bytes) -> bytes:
    key = HKDF(SHA256(), 32, None, b"header").derive(file_key)
    return hmac.digest(key, signed, "sha256")


def _not_age(data: bytes) -> Corrupt:
    if data.startswith(_ARMOR):
        return Corrupt("it is an age file in armor (text)", "only binary age files are read: write it without `-a`")
    if data.startswith(_VERSION[:-2]):
        return Corrupt("it is an age file of another version", "age-encryption.org/v1 alone is read")
    return Corrupt("it is not an age file")
