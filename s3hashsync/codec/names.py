"""How a path becomes a name in the index, and back.

Decides two forms. Plain: `<source>/` and the path, UTF-8 where the path is; every byte that is not, and the escape character
itself, is `%XX`. Sealed: `<source>/` and the unpadded base64url of AES-SIV over the path, bound to source and hash: the same path
under the same content is always the same name, and says nothing to whoever lacks the source's key. Knows nothing of records or
disks.
"""

from __future__ import annotations

import base64
import binascii
from typing import Protocol
from urllib.parse import unquote_to_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from s3hashsync.core.model import ContentHash, StoredName
from s3hashsync.errors import Corrupt

NAME_KEY_BYTES = 64
"""AES-256-SIV takes two keys of 256 bits."""


class Names(Protocol):
    """The names of one source."""

    source: str

    def of(self, path: bytes, hash_: ContentHash) -> StoredName:
        """What `file_names` holds for this path (bytes, relative to the source's root) under this content."""

    def path(self, name: StoredName, hash_: ContentHash) -> bytes:
        """The path that `of` was given; raises `Corrupt` for what is no name of this source under this content."""


class PlainNames:
    """`Names` that anybody can read."""

    def __init__(self, source: str) -> None:
        self.source = source

    def of(self, path: bytes, hash_: ContentHash) -> StoredName:
        return stored_name(self.source, path)

    def path(self, name: StoredName, hash_: ContentHash) -> bytes:
        source, path = parse_name(name)
        if source != self.source:
            raise Corrupt(f"{name!r} is not a name of source {self.source}")
        return path


class SealedNames:
    """`Names` under the source's own key of `NAME_KEY_BYTES`."""

    def __init__(self, source: str, key: bytes) -> None:
        self.source = source
        self._start = f"{source}/"
        self._bound = source.encode()
        self._siv = AESSIV(key)

    def of(self, path: bytes, hash_: ContentHash) -> StoredName:
        sealed = self._siv.encrypt(path, [self._bound, hash_])
        return StoredName(self._start + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii"))

    def path(self, name: StoredName, hash_: ContentHash) -> bytes:
        text = name.removeprefix(self._start)
        try:
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            return self._siv.decrypt(sealed, [self._bound, hash_])
        except (InvalidTag, binascii.Error, ValueError):
            raise Corrupt(f"{name!r} is not a name of source {self.source}", "was the index changed by somebody else?") from None


def source_of(name: StoredName) -> str:
    """The source whose name this is, sealed or not."""
    return name.partition("/")[0]


def stored_name(source: str, path: bytes) -> StoredName:
    """The name of `path` (bytes, relative to the root of `source`) as `file_names` holds it."""
    return StoredName(f"{source}/{escape(path)}")


def escape(path: bytes) -> str:
    """Text that is the path itself in the common case, reversible in every case."""
    try:
        return path.decode("utf-8").replace("%", "%25")
    except UnicodeDecodeError:
        text = path.replace(b"%", b"%25").decode("utf-8", "surrogateescape")
        return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)


def parse_name(name: StoredName) -> tuple[str, bytes]:
    """The source and the path that `stored_name` was given."""
    source, _, text = name.partition("/")
    return source, unquote_to_bytes(text) if "%" in text else text.encode("utf-8")


def display(path: bytes) -> str:
    """The path for a person: one line, nothing that moves the cursor, undecodable bytes as \\xNN."""
    text = path.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
