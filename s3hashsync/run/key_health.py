"""Whether what lies under `keys/` still opens the repository, as far as that shows without an identity.

Decides when nothing more may be written, for nobody could open it, and what else is said of the key files. A host sees that they
are there, that they are age files, and whether they are the ones that `keys/recipients.json` describes. It cannot open them:
proving that an identity does is `run.drill`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from s3hashsync.codec.age_header import parse_text
from s3hashsync.codec.age_keys import locks
from s3hashsync.codec.age_stream import NONCE, TAG
from s3hashsync.codec.key_files import RECIPIENTS, RecipientList
from s3hashsync.codec.names import display
from s3hashsync.errors import Corrupt, Denied, Missing, WrongKey
from s3hashsync.run.keyring import Keyring
from s3hashsync.run.keys import RepositoryKeys
from s3hashsync.run.unlock import LOST, PREFIX, EpochFiles, epoch_files, forgotten_by_changes, main_key
from s3hashsync.stores.base import ObjectReader

SYNC = "with the identity at hand: s3hashsync key sync"
_BY_PASSPHRASE = f"{LOST}; or, for the passphrase still opens the repository, run s3hashsync key sync with it"
_PASSPHRASES = "with the identity at hand: s3hashsync key remove --passphrase, then s3hashsync key add --passphrase"
_DRILL = "try each identity: s3hashsync key drill; where one opens it, s3hashsync key sync makes list and file agree"
_LISTING = "it takes the right to list versions below keys/ (s3:ListBucketVersions)"

_TEXT = 390
"""No key that is opened has fewer bytes."""


@dataclass(frozen=True, slots=True)
class KeyFault:
    """Something that is not as it should be, and what to do. `fatal`: nobody can open the repository."""

    what: str
    hint: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})"


def check_writable(keys: Keyring) -> tuple[KeyFault, ...]:
    """Before a plan is made: raises `WrongKey` on a host that could not write what it plans, `Corrupt` where nobody could open
    it. Answers what else shows in the two documents that are read where all is well."""
    if not isinstance(keys, RepositoryKeys):
        return ()
    objects, epoch = keys.objects, keys.enrolled().epoch
    main, wrong = _looked_at(objects, main_key(epoch))
    if wrong is None:
        return tuple(_mismatch(keys, main_key(epoch), main))
    if any(_looked_at(objects, key)[1] is None for key in _files(objects, epoch).passphrases):
        return (KeyFault(wrong, _BY_PASSPHRASE),)
    raise Corrupt(f"nobody could open what would be backed up: {wrong}", LOST)


def key_faults(keys: Keyring) -> Iterator[KeyFault]:
    """All that is wrong with the newest epoch's key files, and with the list of those who open them. Needs no identity."""
    if not isinstance(keys, RepositoryKeys):
        return
    objects = keys.objects
    files = _files(objects, keys.host.epoch if keys.host else None)
    damaged = {key: wrong for key in files.passphrases if (wrong := _looked_at(objects, key)[1]) is not None}
    main, wrong = _looked_at(objects, files.main)
    if wrong is not None:
        fatal = len(damaged) == len(files.passphrases)
        yield KeyFault(wrong, LOST if fatal else _BY_PASSPHRASE, fatal)
    yield from (KeyFault(one, _PASSPHRASES) for one in damaged.values())
    try:
        listed = keys.stated_recipients()
    except (Corrupt, WrongKey) as error:
        yield KeyFault(f"who can open the repository cannot be said: {error.message}", SYNC)
        return
    if listed is None:
        yield KeyFault(f"{RECIPIENTS} is not there: who can open the repository is not known", SYNC)
        return
    short = tuple(unlisted(objects, listed))
    yield from (KeyFault(f"{key} opens for somebody who is not listed: a change was cut short", SYNC) for key in short)
    if wrong is None and not short:
        yield from _mismatch(keys, files.main, main)


def _mismatch(keys: RepositoryKeys, key: str, main: bytes) -> Iterator[KeyFault]:
    """Either may be the one that is wrong, and somebody may be changing both right now: a backup goes on."""
    try:
        listed = keys.stated_recipients()
    except (Corrupt, WrongKey, Denied):
        return
    if listed is None or not listed.describes or listed.is_about(main):
        return
    # Or both were written anew between our two looks.
    if not listed.is_about(_looked_at(keys.objects, key)[0]):
        yield KeyFault(f"{key} is not the file that {RECIPIENTS} describes: one of them was changed or is damaged", _DRILL)


def unlisted(objects: ObjectReader, listed: RecipientList) -> Iterator[str]:
    """The key files that somebody not listed can open: a change that was cut short left them so. Needs no identity."""
    for files in epoch_files(objects):
        if _recipients(objects, files.main) > len(listed.recipients):
            yield files.main
        yield from files.passphrases[listed.passphrases :]


def old_versions(keys: Keyring) -> Iterator[KeyFault]:
    """Of key files: where the store keeps versions they stay until somebody deletes them for good, and no other listing shows
    them. Needs no identity, but the right to list versions."""
    if not isinstance(keys, RepositoryKeys):
        return
    try:
        past = list(keys.objects.past_documents(PREFIX))
    except Denied as error:
        yield KeyFault(f"whether old versions of the key files are stored cannot be seen: {error.message}", _LISTING)
        return
    ended = forgotten_by_changes(past, {one.epoch for one in epoch_files(keys.objects)}) if past else []
    others = [key for key in past if key not in ended]
    if ended:
        yield KeyFault(
            f"old versions of {_named(ended)} are still stored: a change was cut short, or had no right to delete them, and with"
            " those of key files whoever was removed can still open the repository",
            f"{SYNC}, or the same key remove again, deletes them; with the rights of the role `keys`",
        )
    if others:
        yield KeyFault(
            f"old versions of {_named(others)} are stored, and no command deletes them: they may be all that is left of it",
            "look what they are before you delete them by hand, for they may open what is stored",
        )


def _named(keys: Iterable[str]) -> str:
    """Whoever may write into the store has chosen them."""
    return ", ".join(display(key.encode("utf-8", "surrogateescape")) for key in keys)


def _files(objects: ObjectReader, epoch: int | None) -> EpochFiles:
    """Those of this epoch, None: of the newest."""
    there = epoch_files(objects)
    wanted = epoch or max((one.epoch for one in there), default=1)
    return next((one for one in there if one.epoch == wanted), EpochFiles(wanted))


def _looked_at(objects: ObjectReader, key: str) -> tuple[bytes, str | None]:
    """A key file, and what shows of its damage from outside (None: nothing)."""
    try:
        data = objects.read_document(key)
    except Missing:
        return b"", f"{key} is not there"
    try:
        header = parse_text(data)
        known = locks(header.stanzas) if header else ()
    except Corrupt as error:
        return data, f"{key} is damaged: {error.message}"
    if header is None or len(data) < header.size + NONCE + _TEXT + TAG:
        return data, f"{key} is damaged: it is cut off"
    return data, None if known else f"{key} is damaged: nobody is known who could open it"


def _recipients(objects: ObjectReader, key: str) -> int:
    try:
        header = parse_text(objects.read_document(key))
    except (Missing, Corrupt):
        return 0
    return sum(stanza.kind == b"X25519" for stanza in header.stanzas) if header else 0
