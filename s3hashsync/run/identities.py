"""Where the identity comes from that opens a repository.

Decides the order in which it is looked for, and when a person is asked. Reads no environment by itself: it is given one. What is
opened with it is `run.unlock`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from s3hashsync.codec import age
from s3hashsync.codec.age import Passphrase, X25519Identity
from s3hashsync.config import Config, EncryptionSettings, Secret
from s3hashsync.disk.host_key import PrivateFile
from s3hashsync.errors import S3HashSyncError, UsageError
from s3hashsync.run.unlock import FindOpener, Opener, opener_from

_VARIABLES = ("S3HASHSYNC_IDENTITY_FILE", "S3HASHSYNC_IDENTITY", "S3HASHSYNC_PASSPHRASE")


class Ask(Protocol):
    """Asks the person at the terminal."""

    def __call__(self, question: str, *, hidden: bool) -> str:
        """`hidden`: what is typed is not shown."""


def _unheard(text: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Unlocking:
    """What the command line adds to opening an encrypted repository: `--identity`, a person to ask (None: nobody is there), and
    somebody who hears warnings."""

    identity_file: str | None = None
    ask: Ask | None = None
    warn: Callable[[str], None] = _unheard


def generate_identity(path: str, entropy: Callable[[int], bytes], protection: Passphrase | None = None) -> str:
    """Write a new identity to a file that is not there yet; answers its recipient. `protection`: the file takes a passphrase."""
    identity = X25519Identity.generate(entropy)
    text = f"# public key: {identity.recipient}\n{identity.secret_text()}\n".encode()
    data = text if protection is None else age.encrypt(text, (protection,), entropy)
    if not PrivateFile(path).create(data):
        raise UsageError(f"{path} is there already", "name another file: an identity is never overwritten")
    return str(identity.recipient)


def opener_finder(config: Config, environ: Mapping[str, str], unlocking: Unlocking) -> FindOpener:
    """The first identity or passphrase that is there, in the order that the manual says."""

    def find(*, by_passphrase: bool) -> Opener | None:
        settings = config.encryption if isinstance(config.encryption, EncryptionSettings) else EncryptionSettings()
        if path := unlocking.identity_file or environ.get("S3HASHSYNC_IDENTITY_FILE"):
            return _opener_of_file(path, environ, unlocking)
        if text := environ.get("S3HASHSYNC_IDENTITY"):
            return opener_from("S3HASHSYNC_IDENTITY", text.encode("utf-8", "surrogateescape"), passphrase)
        if text := environ.get("S3HASHSYNC_PASSPHRASE"):
            return Opener("S3HASHSYNC_PASSPHRASE", (Passphrase(text),))
        if (secret := settings.identity) and is_there(secret, environ):
            text = secret.reveal(environ)
            return opener_from(f"encryption.identity in {config.file}", text.encode("utf-8", "surrogateescape"), passphrase)
        if (secret := settings.passphrase) and is_there(secret, environ):
            return Opener(f"encryption.passphrase in {config.file}", (Passphrase(secret.reveal(environ)),))
        if unlocking.ask is None:
            return None
        if by_passphrase:
            return Opener("typed in", (Passphrase(unlocking.ask("Passphrase of the repository", hidden=True)),))
        return _opener_of_file(unlocking.ask("Identity file", hidden=False), environ, unlocking)

    def passphrase() -> str | None:
        return _file_passphrase("the identity", environ, unlocking)

    return find


def is_named(environ: Mapping[str, str], unlocking: Unlocking) -> bool:
    """Whether this very command was given an identity or a passphrase: then it is not to make do without."""
    return bool(unlocking.identity_file) or any(environ.get(name) for name in _VARIABLES)


def is_there(secret: Secret, environ: Mapping[str, str]) -> bool:
    """A variable that is not set on this host is no secret that is there."""
    return secret.kind != "env" or bool(environ.get(secret.words[0]))


def _opener_of_file(path: str, environ: Mapping[str, str], unlocking: Unlocking) -> Opener:
    file = PrivateFile(os.path.expanduser(path))
    try:
        data = file.read()
    except S3HashSyncError as error:
        raise UsageError(f"the identity file {path}: {error.message}", "name the file itself, one that you can read") from None
    if data is None:
        raise UsageError(f"there is no identity file {path}", "is the path right, and the disk that holds it there?")
    if file.is_open_to_others():
        unlocking.warn(f"others can read the identity file {path}: chmod 600 {path}")
    return opener_from(f"the identity file {path}", data, lambda: _file_passphrase(path, environ, unlocking))


def _file_passphrase(what: str, environ: Mapping[str, str], unlocking: Unlocking) -> str | None:
    if text := environ.get("S3HASHSYNC_PASSPHRASE"):
        return text
    return None if unlocking.ask is None else unlocking.ask(f"Passphrase of {what}", hidden=True)
