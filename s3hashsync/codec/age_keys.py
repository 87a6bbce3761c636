"""Who can open an age file: X25519 recipients and identities, and passphrases.

Decides how a file key is wrapped for each, and what a person is told about a key that cannot be one. Knows nothing of headers'
grammar and payloads. No secret is ever in an error, a `repr` or a `str`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from s3hashsync.codec import bech32
from s3hashsync.codec.age_header import Stanza, from_base64, malformed, to_base64
from s3hashsync.errors import Corrupt, UsageError

FILE_KEY = 16
_TAG = 16
_KEY = 32
_X25519 = b"X25519"
_SCRYPT = b"scrypt"
_X25519_LABEL = b"age-encryption.org/v1/X25519"
_SCRYPT_LABEL = b"age-encryption.org/v1/scrypt"
_SALT = 16
# It takes 4 GiB of memory: whoever writes a file must not make this machine take more.
_WORK_LIMIT = 22
_WORK_FACTOR = re.compile(rb"[1-9][0-9]*")
# Halves of UTF-16 pairs, but for those that stand for a byte which is not UTF-8.
_NO_TEXT = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_RECIPIENT_PREFIX = "age"
_SECRET_PREFIX = "age-secret-key-"
# A wrapping key is used once, so the nonce may be constant.
_NONCE = bytes(12)


@dataclass(frozen=True, slots=True)
class X25519Lock:
    """A stanza that one X25519 identity opens."""

    share: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class ScryptLock:
    """The stanza that a passphrase opens."""

    salt: bytes
    work_factor: int
    body: bytes


Lock = X25519Lock | ScryptLock


@dataclass(frozen=True, slots=True)
class X25519Recipient:
    """`age1…`."""

    public: bytes
    _key: X25519PublicKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_key", X25519PublicKey.from_public_bytes(self.public))

    @classmethod
    def parse(cls, text: str) -> X25519Recipient:
        """Raises `UsageError`."""
        if text[: len(_SECRET_PREFIX)].lower() == _SECRET_PREFIX:
            raise UsageError(
                "a secret key stands where a recipient belongs",
                "take the public key that belongs to it, age1…: `age-keygen -y` prints it",
            )
        if text.startswith(("ssh-", "ecdsa-", "sk-")):
            raise UsageError("SSH keys are not supported as recipients", "make an age key: age-keygen -o key.txt")
        try:
            prefix, public = bech32.decode(text)
        except ValueError as error:
            raise UsageError(f"not an age recipient: {error}", "a recipient is age1 and 58 more letters and digits") from None
        if prefix != _RECIPIENT_PREFIX and prefix.startswith("age1"):
            raise UsageError(
                f"recipients of the kind {prefix}1… are not supported", "use an X25519 recipient, as age-keygen makes them"
            )
        if prefix != _RECIPIENT_PREFIX or len(public) != _KEY or text != text.lower():
            raise UsageError("not an age recipient", "a recipient is age1 and 58 more letters and digits, in lower case")
        recipient = cls(public)
        try:
            X25519PrivateKey.from_private_bytes(bytes(_KEY)).exchange(recipient._key)
        except ValueError:
            raise UsageError("not a usable age recipient: nobody can have the secret key to it") from None
        return recipient

    def __str__(self) -> str:
        return bech32.encode(_RECIPIENT_PREFIX, self.public)

    def __repr__(self) -> str:
        return f"X25519Recipient({self})"

    def wrap(self, file_key: bytes, entropy: Callable[[int], bytes]) -> Stanza:
        ephemeral = X25519PrivateKey.from_private_bytes(entropy(_KEY))
        share = ephemeral.public_key().public_bytes_raw()
        wrapping = _x25519_key(ephemeral.exchange(self._key), share, self.public)
        return Stanza(_X25519, (to_base64(share),), ChaCha20Poly1305(wrapping).encrypt(_NONCE, file_key, None))


@dataclass(frozen=True, slots=True)
class X25519Identity:
    """`AGE-SECRET-KEY-1…`. Two are equal when their recipients are."""

    _key: X25519PrivateKey = field(repr=False, compare=False)
    recipient: X25519Recipient = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipient", X25519Recipient(self._key.public_key().public_bytes_raw()))

    @classmethod
    def generate(cls, entropy: Callable[[int], bytes]) -> X25519Identity:
        return cls(X25519PrivateKey.from_private_bytes(entropy(_KEY)))

    @classmethod
    def parse(cls, text: str) -> X25519Identity:
        """Raises `UsageError`, which does not say the text."""
        hint = "an identity is AGE-SECRET-KEY-1 and 58 more letters and digits, in upper case"
        if text.startswith("age1"):
            raise UsageError("a recipient (public key) stands where an identity (secret key) belongs", hint)
        if text.startswith(("AGE-PLUGIN-", "AGE-SECRET-KEY-PQ-")):
            raise UsageError("identities of plugins and post-quantum ones are not supported", hint)
        try:
            prefix, secret = bech32.decode(text)
        except ValueError as error:
            raise UsageError(f"not an age identity: {error}", hint) from None
        if prefix != _SECRET_PREFIX or len(secret) != _KEY or text != text.upper():
            raise UsageError("not an age identity", hint)
        return cls(X25519PrivateKey.from_private_bytes(secret))

    def secret_text(self) -> str:
        """AGE-SECRET-KEY-1…; not `__str__`, so that it is never printed by accident."""
        return bech32.encode(_SECRET_PREFIX, self._key.private_bytes_raw()).upper()

    def unwrap(self, lock: Lock) -> bytes | None:
        """The file key; None when the lock is somebody else's. Raises `Corrupt`."""
        if not isinstance(lock, X25519Lock):
            return None
        try:
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(lock.share))
        except ValueError:
            raise malformed("an X25519 share of low order") from None
        return _opened(_x25519_key(shared, lock.share, self.recipient.public), lock.body)


@dataclass(frozen=True, slots=True)
class Passphrase:
    """scrypt; recipient and identity in one. Stands alone in a file. `work_factor` is log2(N) when encrypting; decryption refuses
    more than 22."""

    text: str = field(repr=False)
    work_factor: int = 18

    def __post_init__(self) -> None:
        if not self.text:
            raise UsageError("the passphrase is empty")
        # Not by trying to encode it: that error would hold the passphrase.
        if _NO_TEXT.search(self.text):
            raise UsageError("the passphrase is not valid text")
        if not 1 <= self.work_factor <= _WORK_LIMIT:
            raise ValueError(f"a work factor is 1 to {_WORK_LIMIT}")

    def wrap(self, file_key: bytes, entropy: Callable[[int], bytes]) -> Stanza:
        salt = entropy(_SALT)
        wrapping = _scrypt_key(self.text, salt, self.work_factor)
        body = ChaCha20Poly1305(wrapping).encrypt(_NONCE, file_key, None)
        return Stanza(_SCRYPT, (to_base64(salt), b"%d" % self.work_factor), body)

    def unwrap(self, lock: Lock) -> bytes | None:
        """The file key; None when it is another passphrase, or none."""
        if not isinstance(lock, ScryptLock):
            return None
        return _opened(_scrypt_key(self.text, lock.salt, lock.work_factor), lock.body)


Recipient = X25519Recipient | Passphrase
Identity = X25519Identity | Passphrase


def locks(stanzas: Sequence[Stanza]) -> tuple[Lock, ...]:
    """Those stanzas whose kind is known here; others may be anything. Raises `Corrupt`."""
    if len(stanzas) > 1 and any(stanza.kind == _SCRYPT for stanza in stanzas):
        raise malformed("a passphrase that does not stand alone")
    return tuple(_lock(stanza) for stanza in stanzas if stanza.kind in (_X25519, _SCRYPT))


def parse_identities(text: str) -> list[X25519Identity]:
    """Those of an identity file: one a line; empty lines and lines that begin with # say nothing. Raises `UsageError`, which
    names the line's number alone."""
    found: list[X25519Identity] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            found.append(X25519Identity.parse(stripped))
        except UsageError as error:
            raise UsageError(f"line {number} of the identity file: {error.message}", error.hint) from None
    if not found:
        raise UsageError("the identity file has no identity", "it needs a line AGE-SECRET-KEY-1…, as age-keygen writes it")
    return found


def _lock(stanza: Stanza) -> Lock:
    if len(stanza.body) != FILE_KEY + _TAG:
        raise malformed("a wrapped file key of another length")
    if stanza.kind == _X25519:
        if len(stanza.arguments) != 1 or len(share := from_base64(stanza.arguments[0])) != _KEY:
            raise malformed("an X25519 recipient")
        return X25519Lock(share, stanza.body)
    if len(stanza.arguments) != 2 or len(salt := from_base64(stanza.arguments[0])) != _SALT:
        raise malformed("a passphrase's salt")
    return ScryptLock(salt, _work_factor(stanza.arguments[1]), stanza.body)


def _work_factor(text: bytes) -> int:
    if not _WORK_FACTOR.fullmatch(text):
        raise malformed("a passphrase's work factor")
    # By length first: a number may have thousands of digits here.
    if len(text) > 2 or int(text) > _WORK_LIMIT:
        raise Corrupt(
            f"opening it with a passphrase is made too expensive (work factor above {_WORK_LIMIT})",
            "it was not written by s3hashsync, nor by age with its usual settings",
        )
    return int(text)


def _x25519_key(shared: bytes, share: bytes, public: bytes) -> bytes:
    return HKDF(SHA256(), _KEY, share + public, _X25519_LABEL).derive(shared)


def _scrypt_key(text: str, salt: bytes, work_factor: int) -> bytes:
    # As the environment gave it, also where that was not UTF-8.
    password = text.encode("utf-8", "surrogateescape")
    return Scrypt(_SCRYPT_LABEL + salt, _KEY, 1 << work_factor, 8, 1).derive(password)


def _opened(wrapping: bytes, body: bytes) -> bytes | None:
    try:
        return ChaCha20Poly1305(wrapping).decrypt(_NONCE, body, None)
    except InvalidTag:
        return None
