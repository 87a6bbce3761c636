"""Changing whom the repository's keys are encrypted to.

Decides the order of the writes. Wherever the process dies, everybody whom `keys/recipients.json` lists can open the repository:
who is new can open it before the list says so, who goes is off the list before the keys are closed to them. Only small files
under `keys/` are written anew: the keys of sources hang on the epoch's key, and nothing else is touched. The old versions are
deleted last, when what took their place has been opened again. Running it again finishes what was cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from s3hashsync.codec import age
from s3hashsync.codec.age import Passphrase, X25519Identity, X25519Recipient
from s3hashsync.codec.age_header import parse_text
from s3hashsync.codec.key_files import RECIPIENTS, RecipientList
from s3hashsync.config import Config, EncryptionSettings
from s3hashsync.errors import Corrupt, Denied, Incomplete, Refused, WrongKey
from s3hashsync.run.keyring import Keyring
from s3hashsync.run.keys import RepositoryKeys
from s3hashsync.run.unlock import Unlocked, epoch_files, main_key, passphrase_key, unlock
from s3hashsync.stores.base import ObjectReader, ObjectStore


@dataclass(frozen=True, slots=True)
class Difference:
    """What the configuration wants, against what the repository says. `passphrase`: it has one, and the repository has none."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    passphrase: bool = False

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.passphrase)


def difference(settings: EncryptionSettings, listed: RecipientList | None) -> Difference:
    """None without recipients in the configuration: they are left to the repository. Passphrases are only ever added by it."""
    if not settings.recipients:
        return Difference()
    there = listed.recipients if listed else ()
    return Difference(
        tuple(one for one in settings.recipients if one not in there),
        tuple(one for one in there if one not in settings.recipients),
        settings.passphrase is not None and not (listed and listed.passphrases),
    )


def stated_difference(config: Config, keys: Keyring) -> Difference:
    """By the list as it stands in the store, for no identity is at hand where plans are made."""
    settings = config.encryption
    if not isinstance(keys, RepositoryKeys) or not isinstance(settings, EncryptionSettings) or not settings.recipients:
        return Difference()
    return difference(settings, keys.stated_recipients())


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who is to open the repository from now on. `passphrase` is one more; `drop_passphrases`: none of those that are there."""

    recipients: tuple[str, ...]
    passphrase: Passphrase | None = None
    drop_passphrases: bool = False


@dataclass(slots=True)
class _Change:
    objects: ObjectStore
    unlocked: Unlocked
    entropy: Callable[[int], bytes]
    touched: dict[str, bytes | None]
    """What was written, by its key; None: it was deleted."""

    def put(self, key: str, data: bytes) -> None:
        self.objects.replace_document(key, data)
        self.touched[key] = data

    def encrypt_to(self, recipients: tuple[str, ...]) -> None:
        """Every epoch's key, encrypted to these."""
        parsed = tuple(X25519Recipient.parse(one) for one in recipients)
        for epoch, key in self.unlocked.epochs.items():
            self.put(main_key(epoch), age.encrypt(key.text(), parsed, self.entropy))

    def add_passphrase(self, passphrase: Passphrase) -> None:
        for files in epoch_files(self.objects):
            text = self.unlocked.epochs[files.epoch].text()
            if any(self._opens(key, passphrase, text) for key in files.passphrases):
                continue
            number = 1
            while passphrase_key(files.epoch, number) in files.passphrases:
                number += 1
            key = passphrase_key(files.epoch, number)
            self.put(key, age.encrypt(text, (passphrase,), self.entropy))
            if not self._opens(key, passphrase, text):
                raise Corrupt(f"{key} is not what was written")

    def _opens(self, key: str, passphrase: Passphrase, text: bytes) -> bool:
        try:
            return age.decrypt(self.objects.read_document(key), (passphrase,)) == text
        except (WrongKey, Corrupt):
            return False

    def drop_passphrases(self) -> None:
        for files in epoch_files(self.objects):
            for key in files.passphrases:
                self.objects.delete_document(key)
                self.touched[key] = None


def change_recipients(keys: RepositoryKeys, wanted: Wanted) -> RecipientList:
    """Make it so; answers the new list. Needs the identity. Raises `Refused` when what is at hand would not open it any more, and
    `Incomplete` when old versions of the key files could not be deleted."""
    objects, unlocked = keys.objects, keys.unlocked()
    before = checked_list(keys)
    _check_wanted(unlocked, wanted)
    known = before.recipients if before else ()
    both = tuple(dict.fromkeys((*known, *wanted.recipients)))
    change = _Change(objects, unlocked, keys.entropy, {})
    if set(both) != set(known):
        change.encrypt_to(both)
    if wanted.passphrase is not None:
        change.add_passphrase(wanted.passphrase)
    passphrases = 0 if wanted.drop_passphrases else len(epoch_files(objects)[-1].passphrases)
    now = RecipientList(keys.about.id, unlocked.newest.epoch, wanted.recipients, passphrases)
    change.put(RECIPIENTS, now.render(unlocked.root))
    if set(both) == set(known) or set(both) != set(wanted.recipients):
        change.encrypt_to(wanted.recipients)
    if wanted.drop_passphrases:
        change.drop_passphrases()
    _verify(keys, change)
    _forget(objects, change)
    return now


def checked_list(keys: RepositoryKeys) -> RecipientList | None:
    """Whom the repository lists; None where the list is lost, or was forged: then it is written anew."""
    keys.unlocked()
    try:
        return keys.stated_recipients()
    except (Corrupt, WrongKey):
        return None


def _check_wanted(unlocked: Unlocked, wanted: Wanted) -> None:
    if not wanted.recipients:
        raise Refused("that would take away the last recipient", "add another one first: s3hashsync key add RECIPIENT")
    opener = unlocked.opener
    mine = [str(one.recipient) for one in opener.identities if isinstance(one, X25519Identity)]
    still = not wanted.drop_passphrases if opener.is_passphrase else any(one in wanted.recipients for one in mine)
    if not still:
        # What nobody has opened again is not to be relied on, and its predecessor is about to be deleted.
        raise Refused(
            f"what is at hand ({opener.label}) would not open the repository any more, so nobody could check what was written",
            "open it with an identity that stays",
        )


def _verify(keys: RepositoryKeys, change: _Change) -> None:
    """A passphrase opens the files of passphrases alone: of the others it can be said that they are what was written."""
    for key, data in change.touched.items():
        if data is not None and keys.objects.read_document(key) != data:
            raise Refused(f"somebody else has written {key} at this very moment", "run it again")
    again = unlock(keys.objects, keys.about, change.unlocked.opener)
    if again.epochs.keys() != change.unlocked.epochs.keys():
        raise Refused("the epochs of the repository's keys have changed at this very moment", "run it again")


def _forget(objects: ObjectStore, change: _Change) -> None:
    try:
        for key in change.touched:
            objects.forget_versions(key)
    except Denied as error:
        raise Incomplete(
            f"the recipients are changed, but old versions of the key files are still there ({error.message}): with them, whoever"
            " was removed can still open the repository",
            "run s3hashsync key sync with credentials that may delete versions below keys/ (the role `keys` of s3hashsync init)",
        ) from error


def unlisted(objects: ObjectReader, listed: RecipientList) -> Iterator[str]:
    """The key files that somebody not listed can open: a change that was cut short left them so. Needs no identity."""
    for files in epoch_files(objects):
        header = parse_text(objects.read_document(files.main))
        recipients = sum(stanza.kind == b"X25519" for stanza in header.stanzas) if header else 0
        if recipients > len(listed.recipients):
            yield files.main
        if len(files.passphrases) > listed.passphrases:
            yield from files.passphrases[listed.passphrases :]
