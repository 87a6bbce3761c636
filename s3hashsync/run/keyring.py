"""The repository's keys as far as this process has them, and what is done with them.

Decides what a command may ask for: hashing and naming need what every backup host keeps; reading what is stored needs the
repository's identity. `NoKeys` is a repository without encryption: the same questions, plain answers. Where keys come from
is `run.keys`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from s3hashsync.codec.age import Payload, Seal, decrypt_stream
from s3hashsync.codec.age import X25519Identity as Identity
from s3hashsync.codec.names import Names, PlainNames
from s3hashsync.core.model import ENCODING_ZSTD, ContentHash, Sha256, epoch_of
from s3hashsync.errors import Unsupported


class Keyring(Protocol):
    """Every method may raise `WrongKey` (exit 12), which says what is missing and how to get it."""

    @property
    def encrypted(self) -> bool: ...

    @property
    def encoding(self) -> str:
        """What new contents and packs are stored as: `Content.encoding`."""

    def content_hash(self, sha256: Sha256) -> ContentHash:
        """Needs what a backup host keeps."""

    def names(self, source: str) -> Names:
        """Needs the source's keys: this host's own, or the identity."""

    def log_key(self, source: str) -> bytes | None:
        """The key of the source's run-log HMAC, None where logs have none. Needs the source's keys."""

    def new_seal(self) -> Seal | None:
        """For one object, pack or segment that is about to be stored; None: it is stored as it is. Needs the recipient."""

    def identity(self, epoch: int) -> Identity:
        """Opens what was sealed in this epoch. Needs the user's identity (or passphrase)."""

    def identities(self) -> tuple[Identity, ...]:
        """Those of all epochs; () where nothing is encrypted. Needs the user's identity (or passphrase)."""

    def add_source(self, source: str) -> None:
        """Before the first name of a source is written: its keys are there, on this host and in the repository."""


class NoKeys:
    """A repository without encryption."""

    encrypted = False
    encoding = ENCODING_ZSTD

    def content_hash(self, sha256: Sha256) -> ContentHash:
        return ContentHash(sha256)

    def names(self, source: str) -> Names:
        return PlainNames(source)

    def log_key(self, source: str) -> bytes | None:
        return None

    def new_seal(self) -> Seal | None:
        return None

    def identity(self, epoch: int) -> Identity:
        raise Unsupported("something in this repository is encrypted, but the repository itself says that nothing is")

    def identities(self) -> tuple[Identity, ...]:
        return ()

    def add_source(self, source: str) -> None:
        """Nothing: there are no keys."""


def opened(keys: Keyring, chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """The bytes before encryption of a whole stored object, pack or segment that arrives in chunks. Raises `Corrupt`, `WrongKey`,
    and `Unsupported` for an encoding of a later version."""
    epoch = known_epoch(encoding)
    return chunks if epoch is None else decrypt_stream(chunks, (keys.identity(epoch),))


def known_epoch(encoding: str) -> int | None:
    """`core.model.epoch_of`, with an error for people."""
    try:
        return epoch_of(encoding)
    except ValueError:
        raise Unsupported(
            f"it is stored in a form that this version cannot read ({encoding})", "use a newer version of s3hashsync"
        ) from None


__all__ = ["Identity", "Keyring", "NoKeys", "Payload", "Seal", "known_epoch", "opened"]
