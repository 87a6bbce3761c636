"""Changing whom the repository's keys are encrypted to.

Decides the order of the writes. Wherever the process dies, everybody whom `keys/recipients.json` lists can open the repository:
who is new can open it before the list says so, who goes is off the list before the keys are closed to them. The list says which
key file it describes, and both files while one takes the other's place: a list of former days is not believed, so nobody who was
removed comes back with it. Before each write, and at the end, it is looked whether the documents are as they were left: of two
changes at once, one at least is told. Only small files under `keys/` are written anew: the keys of sources hang on the epoch's
key, and nothing else is touched. The old versions are deleted last, when what took their place has been opened again: those of
earlier changes, too. Running it again finishes what was cut short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from s3hashsync.codec import age
from s3hashsync.codec.age import Passphrase, Recipient, X25519Identity, X25519Recipient
from s3hashsync.codec.key_files import RECIPIENTS, RecipientList, digest_of, parse_recipients
from s3hashsync.config import Config, EncryptionSettings
from s3hashsync.errors import AlreadyThere, Corrupt, Denied, Incomplete, Missing, Refused, WrongKey
from s3hashsync.run.encoding import sealed_document
from s3hashsync.run.keyring import Keyring
from s3hashsync.run.keys import RepositoryKeys
from s3hashsync.run.unlock import PREFIX, Unlocked, epoch_files, forgotten_by_changes, main_key, passphrase_key, unlock
from s3hashsync.stores.base import ObjectReader


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
class Change:
    """A change, from the look at who is there to its end. `before` is whom the repository listed; None where the list was lost,
    was forged, or is not about the key file that is there (a list of former days, put back): then it is written anew. `known` are
    the documents as they were found or left (None: not there)."""

    keys: RepositoryKeys
    unlocked: Unlocked
    before: RecipientList | None
    known: dict[str, bytes | None]

    @property
    def newest(self) -> str:
        return main_key(self.unlocked.newest.epoch)

    def put(self, key: str, data: bytes) -> None:
        self.check_alone()
        self.keys.objects.replace_document(key, data)
        self.known[key] = data

    def check_alone(self) -> None:
        """Two people may change the keys at once, and the store knows no write that depends on what is there."""
        for key, data in self.known.items():
            if _read(self.keys.objects, key) != data:
                raise Refused(
                    f"somebody else has written {key} at this very moment",
                    "see who can open the repository now (s3hashsync key list), and run it again",
                )

    def sealed(self, recipients: tuple[str, ...]) -> dict[str, bytes]:
        """Every epoch's key file, encrypted to these."""
        to = tuple(X25519Recipient.parse(one) for one in recipients)
        epochs = self.unlocked.epochs.items()
        return {main_key(epoch): self._encrypted(key.text(), to) for epoch, key in epochs}

    def _encrypted(self, text: bytes, to: Sequence[Recipient]) -> bytes:
        return sealed_document(text, age.new_seal(to, self.keys.entropy))

    def list_these(self, listed: RecipientList, *described: tuple[bytes | None, tuple[str, ...]]) -> None:
        """Write the list, with the key files that it may stand beside, and whom each is to open for."""
        files = {digest_of(sealed): recipients for sealed, recipients in described if sealed is not None}
        self.put(RECIPIENTS, replace(listed, describes=files).render(self.unlocked.root))

    def put_all(self, files: Mapping[str, bytes]) -> None:
        for key, data in files.items():
            self.put(key, data)

    def add_passphrase(self, passphrase: Passphrase) -> None:
        for files in epoch_files(self.keys.objects):
            text = self.unlocked.epochs[files.epoch].text()
            if any(self._opens(key, passphrase, text) for key in files.passphrases):
                continue
            number = 1
            while passphrase_key(files.epoch, number) in files.passphrases:
                number += 1
            key, data = passphrase_key(files.epoch, number), self._encrypted(text, (passphrase,))
            self.check_alone()
            self._create(key, data)
            if not self._opens(key, passphrase, text):
                raise Corrupt(f"{key} is not what was written")

    def _create(self, key: str, data: bytes) -> None:
        try:
            self.keys.objects.create_document(key, data)
        except AlreadyThere:
            # An answer may have been lost: then these are our bytes.
            if _read(self.keys.objects, key) != data:
                raise Refused(f"somebody else has written {key} at this very moment", "run it again") from None
        self.known[key] = data

    def _opens(self, key: str, passphrase: Passphrase, text: bytes) -> bool:
        try:
            return age.decrypt(self.keys.objects.read_document(key), (passphrase,)) == text
        except (WrongKey, Corrupt):
            return False

    def drop_passphrases(self) -> None:
        for files in epoch_files(self.keys.objects):
            for key in files.passphrases:
                self.keys.objects.delete_document(key)
                self.known[key] = None

    def past(self) -> list[str]:
        """The key files that have old versions, which may open for somebody who was removed."""
        return forgotten_by_changes(self.keys.objects.past_documents(PREFIX), self.unlocked.epochs)


def begin_change(keys: RepositoryKeys) -> Change:
    """Needs the identity. What is wanted hangs on who is there now, so this is also what the change goes by later."""
    unlocked = keys.unlocked()
    known = {key: _read(keys.objects, key) for key in (RECIPIENTS, *map(main_key, unlocked.epochs))}
    return Change(keys, unlocked, _believed(unlocked, known[RECIPIENTS], known[main_key(unlocked.newest.epoch)]), known)


def _believed(unlocked: Unlocked, said: bytes | None, sealed: bytes | None) -> RecipientList | None:
    if said is None or sealed is None:
        return None
    try:
        listed = parse_recipients(said).check(unlocked.root)
    except (Corrupt, WrongKey):
        return None
    # A change that was cut short, or is under way, has got as far as its key file.
    return replace(listed, recipients=listed.describes[digest_of(sealed)]) if listed.is_about(sealed) else None


def change_recipients(change: Change, wanted: Wanted) -> RecipientList:
    """Make it so; answers the new list. Raises `Refused` when what is at hand would not open it any more, or when somebody else
    changes the keys, too, and `Incomplete` when old versions of the key files could not be deleted."""
    _check_wanted(change.unlocked, wanted)
    before = change.before
    there = before.recipients if before else ()
    everybody = tuple(dict.fromkeys((*there, *wanted.recipients)))
    first = change.sealed(everybody) if set(everybody) != set(there) else {}
    if first and before:
        change.list_these(before, (change.known[change.newest], there), (first[change.newest], everybody))
    change.put_all(first)
    if wanted.passphrase is not None:
        change.add_passphrase(wanted.passphrase)
    passphrases = 0 if wanted.drop_passphrases else len(epoch_files(change.keys.objects)[-1].passphrases)
    now = RecipientList(change.keys.about.id, change.unlocked.newest.epoch, wanted.recipients, passphrases)
    last = change.sealed(wanted.recipients) if not first or set(everybody) != set(wanted.recipients) else {}
    change.list_these(now, (change.known[change.newest], now.recipients), (last.get(change.newest), now.recipients))
    change.put_all(last)
    if wanted.drop_passphrases:
        change.drop_passphrases()
    if last:
        change.list_these(now, (last[change.newest], now.recipients))
    _verify(change)
    _forget(change)
    return now


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


def _verify(change: Change) -> None:
    """A passphrase opens the files of passphrases alone: of the others it can be said that they are what was written."""
    change.check_alone()
    again = unlock(change.keys.objects, change.keys.about, change.unlocked.opener)
    if again.epochs.keys() != change.unlocked.epochs.keys():
        raise Refused("the epochs of the repository's keys have changed at this very moment", "run it again")


def _forget(change: Change) -> None:
    """Whatever this change has written: an earlier one may have been cut short, or lacked the right, just here."""
    try:
        for key in change.past():
            change.keys.objects.forget_versions(key)
    except Denied as error:
        raise Incomplete(
            f"the recipients are changed, but old versions of the key files may still be there ({error.message}): with them,"
            " whoever was removed can still open the repository",
            "run s3hashsync key sync with credentials that may delete versions below keys/ (the role `keys` of s3hashsync init)",
        ) from error


def _read(objects: ObjectReader, key: str) -> bytes | None:
    try:
        return objects.read_document(key)
    except Missing:
        return None
