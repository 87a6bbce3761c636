"""`init` of an encrypted repository.

Decides the order of its writes, and what a second `init` makes of what a first one left. No repository may come into being whose
key nobody has: then every backup into it would be lost without a sign. So:

1. The item `repository` of the index: all who make this repository agree on its id.
2. The host key file, create-only, with the finished documents of step 3 in it (`founding`): what is secret in them is encrypted
   to the user, so it opens nothing here either. From now on this host makes exactly these documents, however often it dies. As
   long as they stand in the file it is good for nothing else: no host writes to a repository that is not finished.
3. `keys/1.age`, then `keys/1.1.age` for a passphrase, then `keys/recipients.json`, each create-only. Whoever finds other bytes
   under `keys/1.age` has lost a race: it makes nothing, and forgets its own key. No key file is replaced before step 4.
4. `repository.json`, create-only, last: it names the fingerprint of the key in `keys/1.age`, which is there, and is ours.
5. All of them are read again and compared, for a server that does not know create-only writes would let two hosts win.
6. The documents are taken out of the host key file: it is enrolled.

Dead after 1: the next `init` begins anew under the same id. After 2, 3 or 4: the next one on this host goes on from the file (or,
if none of it is stored yet and the configuration says other recipients by now, begins anew);
on another host it is refused in 3, unless it is given the identity: then it opens what is there and goes on with that. After 5:
only step 6 is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from s3hashsync.codec import age
from s3hashsync.codec.age import Passphrase, X25519Identity, X25519Recipient
from s3hashsync.codec.key_files import (
    KEY_BYTES,
    RECIPIENTS,
    EpochKey,
    HostKey,
    RecipientList,
    RootKey,
    digest_of,
    parse_host_key,
    parse_recipients,
)
from s3hashsync.disk.host_key import PrivateFile
from s3hashsync.errors import AlreadyThere, Missing, Refused, UsageError, WrongKey
from s3hashsync.run.pins import HostPlace, check_new, check_pins
from s3hashsync.run.repository import AGE, STORE, SUFFIX, Identity, check_incarnation, claim, publish, read_identity
from s3hashsync.run.unlock import LOST, Opener, main_key, passphrase_key, unlock
from s3hashsync.stores.base import Index, ObjectStore

FIRST = 1
_GO_ON = "go on with its identity: s3hashsync init --identity FILE"


@dataclass(frozen=True, slots=True)
class Openers:
    """Whom a new repository is encrypted to."""

    recipients: tuple[str, ...]
    passphrase: Passphrase | None = None


@dataclass(frozen=True, slots=True)
class Founder:
    """What making a repository takes. `opener` is an identity to go on with what another host left, None for none."""

    objects: ObjectStore
    index: Index
    place: HostPlace
    openers: Openers
    now: int
    entropy: Callable[[int], bytes]
    opener: Opener | None = None


def found_encrypted(founder: Founder) -> tuple[Identity, bool]:
    """Make the repository, or find that it is there; answers whether it is new."""
    about = read_identity(founder.objects)
    if about is not None:
        check_pins(founder.place, about)
        check_incarnation(about, founder.index)
        with founder.place.file(about.id).locked():
            _finish(founder, about)
        return about, False
    claimed = claim(founder.index, founder.now, founder.entropy)
    versions = STORE if founder.objects.versioned else SUFFIX
    about = replace(claimed, versions=versions, hash="hmac-sha256", encryption=AGE)
    check_new(founder.place, about.id)
    file = founder.place.file(about.id)
    with file.locked():
        host = _host(founder, about, file)
        about, new = _published(founder, replace(about, fingerprint=host.fingerprint), host, file)
        file.replace(replace(host, founding={}, versions=about.versions).render())
    return about, new


def _published(founder: Founder, about: Identity, host: HostKey, file: PrivateFile) -> tuple[Identity, bool]:
    try:
        _create(founder.objects, host.founding)
        about, new = publish(founder.objects, about)
        if not _stands(founder.objects, about, host):
            raise _raced()
    except Refused:
        # Somebody else's key has won: with ours nothing must ever be written.
        if host.founding:
            file.remove()
        raise
    return about, new


def _finish(founder: Founder, about: Identity) -> None:
    """What an `init` of this host left when it died near its end."""
    file = founder.place.file(about.id)
    host = _known(file, about)
    if host is None or not host.founding:
        return
    if _stands(founder.objects, about, host):
        file.replace(replace(host, founding={}, versions=about.versions).render())
    else:
        # Another host's key has won, or the key files were written anew since: `key enroll` finds out with the identity.
        file.remove()


def _stands(objects: ObjectStore, about: Identity, host: HostKey) -> bool:
    """Whether the repository is what this host made of it, or, where it made nothing, knows it to be."""
    found = read_identity(objects)
    if found is None or (found.id, found.fingerprint) != (about.id, host.fingerprint):
        return False
    return all(_read(objects, key) == data for key, data in host.founding.items())


def _host(founder: Founder, about: Identity, file: PrivateFile) -> HostKey:
    """What this host goes on with: what it has, what the identity opens, or a new key."""
    known = _known(file, about)
    if known is not None and not known.founding:
        if _read(founder.objects, main_key(known.epoch)) is None:
            raise Refused(f"the repository's key ({main_key(known.epoch)}) is not there, nor is repository.json", LOST)
        return known
    if known is not None:
        if _read(founder.objects, main_key(FIRST)) == known.founding.get(main_key(FIRST)):
            _check_passphrase(known, founder.openers)
            return known
        if _fits(known, founder.openers):
            return known
        # Nothing of it is stored, so the configuration of today counts.
        file.remove()
    made = _drawn(founder, about) if _read(founder.objects, main_key(FIRST)) is None else _adopted(founder, about)
    file.create(made.render())
    return made


def no_recipients() -> UsageError:
    return UsageError(
        "a new repository is to be encrypted, and the configuration names nobody who can open it",
        "write encryption: {recipients: [age1…, age1…]}; s3hashsync key generate makes an identity",
    )


def is_begun(place: HostPlace) -> bool:
    """Whether an `init` on this host has left a repository at that address half made."""
    return any(key.objects == place.url for _, key in place.unfinished())


def _fits(host: HostKey, openers: Openers) -> bool:
    """Whether documents of which nothing is stored yet are still what is wanted; without recipients anything is."""
    if not openers.recipients:
        return True
    stated = parse_recipients(host.founding[RECIPIENTS]).stated
    return stated.recipients == openers.recipients and not stated.passphrases and openers.passphrase is None


def _check_passphrase(host: HostKey, openers: Openers) -> None:
    """A passphrase that somebody relies on from now on, and that opens nothing, would be found out too late."""
    sealed = host.founding.get(passphrase_key(FIRST, 1))
    if sealed is None or openers.passphrase is None:
        return
    try:
        age.decrypt(sealed, (openers.passphrase,))
    except WrongKey:
        raise Refused(
            "this repository was begun with another passphrase than this one",
            "finish init with that one; then change it: s3hashsync key remove --passphrase, key add --passphrase",
        ) from None


def _known(file: PrivateFile, about: Identity) -> HostKey | None:
    data = file.read()
    host = None if data is None else parse_host_key(data, file.path)
    if host is not None and host.repository != about.id:
        raise WrongKey(
            f"{file.path} belongs to another repository ({host.repository[:8]})",
            "name another file in encryption.host_key, or delete this one if that repository is gone for good",
        )
    return host


def _drawn(founder: Founder, about: Identity) -> HostKey:
    """A new root key, which is forgotten here: it is in the documents."""
    entropy, openers = founder.entropy, founder.openers
    if not openers.recipients:
        raise no_recipients()
    root, identity = RootKey(entropy(KEY_BYTES)), X25519Identity.generate(entropy)
    text = EpochKey(about.id, FIRST, founder.now, root, identity).text()
    recipients = tuple(X25519Recipient.parse(one) for one in openers.recipients)
    founding = {main_key(FIRST): age.encrypt(text, recipients, entropy)}
    if openers.passphrase is not None:
        founding[passphrase_key(FIRST, 1)] = age.encrypt(text, (openers.passphrase,), entropy)
    described = {digest_of(founding[main_key(FIRST)]): openers.recipients}
    listed = RecipientList(about.id, FIRST, openers.recipients, int(openers.passphrase is not None), described)
    founding[RECIPIENTS] = listed.render(root)
    return HostKey(
        repository=about.id,
        objects=founder.place.url,
        fingerprint=root.fingerprint,
        epoch=FIRST,
        recipient=identity.recipient,
        hash_key=root.hash_key,
        founding=founding,
    )


def _adopted(founder: Founder, about: Identity) -> HostKey:
    """There are keys, but this host does not know them: another one left them, or `repository.json` was lost."""
    if founder.opener is None:
        if next(iter(founder.objects.documents("runs/")), None) is not None:
            raise Refused(
                "repository.json is lost, and the repository was in use", f"restore it from an older version, or {_GO_ON}"
            )
        raise Refused(
            "an init that did not come to its end, on another host perhaps, left keys here",
            f"run it again on that host, or {_GO_ON}; where no other init is at work, keys/ can also be deleted, to begin anew",
        )
    opened = unlock(founder.objects, about, founder.opener)
    return HostKey(
        repository=about.id,
        objects=founder.place.url,
        fingerprint=opened.root.fingerprint,
        epoch=opened.newest.epoch,
        recipient=opened.newest.identity.recipient,
        hash_key=opened.root.hash_key,
    )


def _create(objects: ObjectStore, founding: Mapping[str, bytes]) -> None:
    """The key that decides a race first, the list of recipients last."""
    for key in sorted(founding, key=lambda key: (key != main_key(FIRST), key)):
        try:
            objects.create_document(key, founding[key])
        except AlreadyThere:
            if objects.read_document(key) != founding[key]:
                raise _raced() from None


def _raced() -> Refused:
    return Refused("another init made a repository here at this very moment", "run init again")


def _read(objects: ObjectStore, key: str) -> bytes | None:
    try:
        return objects.read_document(key)
    except Missing:
        return None
