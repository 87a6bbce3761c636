"""Opening `keys/<epoch>.age`: with which identity or passphrase, and whether what comes out belongs to this repository.

Decides which files are opened and what has to agree before a key is believed. Where an identity comes from is `wiring`'s; what is
done with the keys is `run.keys`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from s3hashsync.codec import age
from s3hashsync.codec.age import X25519Identity
from s3hashsync.codec.key_files import (
    RECIPIENTS,
    EpochKey,
    RecipientList,
    RootKey,
    StatedRecipients,
    parse_epoch,
    parse_recipients,
)
from s3hashsync.errors import Corrupt, Missing, UsageError, WrongKey
from s3hashsync.run.repository import Identity
from s3hashsync.stores.base import ObjectReader

PREFIX = "keys/"
SOURCES = "keys/sources/"
_EPOCH = re.compile(r"keys/([1-9][0-9]{0,8})(?:\.([1-9][0-9]{0,8}))?\.age")
_AGE = b"age-encryption.org/"
_SSH = (b"ssh-", b"ecdsa-", b"sk-")
_ARMOR = b"-----BEGIN AGE ENCRYPTED FILE-----"
LOST = "restore it from an older version, or from the copy that is kept with the recovery kit"
HOW = "give its identity: --identity FILE, S3HASHSYNC_IDENTITY_FILE, S3HASHSYNC_IDENTITY or S3HASHSYNC_PASSPHRASE"


@dataclass(frozen=True, slots=True)
class Opener:
    """What a repository is opened with: identities, or one passphrase. `label` says where it comes from."""

    label: str
    identities: tuple[age.Identity, ...] = field(repr=False)

    @property
    def is_passphrase(self) -> bool:
        return any(isinstance(one, age.Passphrase) for one in self.identities)


class FindOpener(Protocol):
    """Looks for one when it is needed, and may ask a person."""

    def __call__(self, *, by_passphrase: bool) -> Opener | None:
        """Told whether a passphrase opens the repository; None when nothing is at hand."""


def opener_from(label: str, data: bytes, passphrase: Callable[[], str | None]) -> Opener:
    """The identities in an age identity file, which may itself be encrypted (`age -p`): then its passphrase is asked for."""
    if data.startswith(_ARMOR):
        raise UsageError(f"{label} is an armored age file", f"take the armor off: age -d, then age -p without -a ({label})")
    if data.startswith(_SSH) or b"PRIVATE KEY-----" in data[:100]:
        raise UsageError(
            f"{label} is an SSH key: these are not supported",
            "it takes an age identity, AGE-SECRET-KEY-1…: s3hashsync key generate makes one, s3hashsync key add lets it in",
        )
    if data.startswith(_AGE):
        data = _unprotected(label, data, passphrase())
    try:
        return Opener(label, tuple(age.parse_identities(data.decode("utf-8"))))
    except UnicodeDecodeError:
        raise UsageError(f"{label} is no age identity file", "it needs a line AGE-SECRET-KEY-1…") from None
    except UsageError as error:
        raise UsageError(f"{label}: {error.message}", error.hint) from None


def _unprotected(label: str, data: bytes, passphrase: str | None) -> bytes:
    if passphrase is None:
        raise WrongKey(f"{label} is protected by a passphrase, and there is nobody to ask for it", "set S3HASHSYNC_PASSPHRASE")
    try:
        return age.decrypt(data, (age.Passphrase(passphrase),))
    except WrongKey:
        raise WrongKey(
            f"this passphrase does not open {label}", "it is the one that the identity file was protected with"
        ) from None
    except Corrupt as error:
        raise Corrupt(f"{label}: {error.message}", error.hint) from None


# The files


@dataclass(frozen=True, slots=True)
class EpochFiles:
    """The files of one epoch: one for all recipients, one for each passphrase."""

    epoch: int
    passphrases: tuple[str, ...] = ()

    @property
    def main(self) -> str:
        return main_key(self.epoch)


def main_key(epoch: int) -> str:
    return f"{PREFIX}{epoch}.age"


def passphrase_key(epoch: int, number: int) -> str:
    return f"{PREFIX}{epoch}.{number}.age"


def epoch_of(key: str) -> int | None:
    """Whose epoch's file this is, for recipients or a passphrase; None for anything else."""
    match = _EPOCH.fullmatch(key)
    return int(match[1]) if match else None


def forgotten_by_changes(past: Iterable[str], epochs: Container[int]) -> list[str]:
    """Those of the keys with old versions (`past`) whose old versions go with the next change of the recipients. An epoch whose
    file is not there is left alone: its old versions may be all that is left of it."""
    return [key for key in past if key == RECIPIENTS or epoch_of(key) in epochs]


def source_key(source: str) -> str:
    return f"{SOURCES}{source}.age"


def epoch_files(objects: ObjectReader) -> tuple[EpochFiles, ...]:
    """Those in the repository, the newest epoch last."""
    found: dict[int, list[tuple[int, str]]] = {}
    for document in objects.documents(PREFIX):
        if document.key.startswith(SOURCES):
            break
        if match := _EPOCH.fullmatch(document.key):
            numbered = found.setdefault(int(match[1]), [])
            if match[2]:
                numbered.append((int(match[2]), document.key))
    return tuple(EpochFiles(epoch, tuple(key for _, key in sorted(numbered))) for epoch, numbered in sorted(found.items()))


def stated_recipients(objects: ObjectReader) -> StatedRecipients | None:
    """What `keys/recipients.json` says; None when it is not there. Not to be believed unchecked."""
    try:
        return parse_recipients(objects.read_document(RECIPIENTS))
    except Missing:
        return None


# Opening


@dataclass(frozen=True, slots=True)
class Unlocked:
    """The repository's keys, opened and checked."""

    opener: Opener
    epochs: Mapping[int, EpochKey]

    @property
    def newest(self) -> EpochKey:
        return self.epochs[max(self.epochs)]

    @property
    def root(self) -> RootKey:
        return self.newest.root

    @property
    def identities(self) -> tuple[X25519Identity, ...]:
        """The newest first, for most of what is read is encrypted to it."""
        return tuple(self.epochs[epoch].identity for epoch in sorted(self.epochs, reverse=True))


def unlock(objects: ObjectReader, about: Identity, opener: Opener) -> Unlocked:
    """Every epoch's key. An empty fingerprint in `about` (the repository is about to be made) is not compared."""
    files = epoch_files(objects)
    if not files:
        raise Corrupt("the repository is encrypted, but its key (keys/1.age) is not there", LOST)
    epochs = {}
    for one in files:
        epochs[one.epoch] = key = opened_epoch(objects, one, opener)
        expected = about.fingerprint or epochs[files[0].epoch].root.fingerprint
        _agree(one.main, "repository", key.repository, about.id)
        _agree(one.main, "epoch", str(key.epoch), str(one.epoch))
        _agree(one.main, "fingerprint", key.root.fingerprint, expected)
    return Unlocked(opener, epochs)


def opened_epoch(objects: ObjectReader, files: EpochFiles, opener: Opener) -> EpochKey:
    """Raises `WrongKey` when the opener opens none of the files."""
    damaged: Corrupt | None = None
    for key in files.passphrases if opener.is_passphrase else (files.main,):
        try:
            return parse_epoch(age.decrypt(objects.read_document(key), opener.identities), key)
        except WrongKey:
            continue
        except Missing:
            damaged = damaged or Corrupt(f"{key} is not there", LOST)
        except Corrupt as error:
            # Another passphrase may have a file that is whole.
            damaged = damaged or Corrupt(f"{key}: {error.message}", LOST)
    raise damaged or _does_not_open(objects, files, opener)


def _does_not_open(objects: ObjectReader, files: EpochFiles, opener: Opener) -> WrongKey:
    if opener.is_passphrase:
        if not files.passphrases:
            return WrongKey(f"no passphrase opens the repository ({opener.label})", _whom(objects) or HOW)
        return WrongKey(f"this passphrase does not open the repository ({opener.label})", _whom(objects))
    mine = ", ".join(str(one.recipient) for one in opener.identities if isinstance(one, X25519Identity))
    return WrongKey(f"this identity does not open the repository ({opener.label}, of {mine})", _whom(objects))


def _whom(objects: ObjectReader) -> str | None:
    try:
        said = stated_recipients(objects)
    except Corrupt:
        said = None
    return None if said is None else f"what opens it: {openers_text(said.stated)}"


def openers_text(listed: RecipientList) -> str:
    phrases = {0: (), 1: ("a passphrase",)}.get(listed.passphrases, (f"{listed.passphrases} passphrases",))
    return ", ".join((*(f"the identity of {one}" for one in listed.recipients), *phrases))


def _agree(where: str, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise WrongKey(
            f"{where} is not the key of this repository: its {what} is {found}, and should be {expected}",
            "was a file exchanged? restore keys/ and repository.json from older versions",
        )
