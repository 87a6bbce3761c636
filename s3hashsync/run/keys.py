"""The keys of an encrypted repository: from the host key file what writing needs, from the user's identity what reading needs.

Decides which of the two a question takes, that nobody is asked for an identity before something has to be read, and that a host
key file which is damaged is in the way of writing alone. Opening the repository's key is `run.unlock`'s; whether the repository
is the one that this host knows, `run.pins`'s.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

from s3hashsync.codec import age
from s3hashsync.codec.age import Seal
from s3hashsync.codec.age import X25519Identity as AgeIdentity
from s3hashsync.codec.key_files import (
    KEY_BYTES,
    HostKey,
    HostSource,
    RecipientList,
    SourceKeys,
    fingerprint_text,
    parse_source,
    render_source,
)
from s3hashsync.codec.names import NAME_KEY_BYTES, Names, SealedNames
from s3hashsync.config import Config, EncryptionSettings
from s3hashsync.core.model import ContentHash, Sha256, sealed_encoding
from s3hashsync.disk.host_key import PrivateFile
from s3hashsync.errors import AlreadyThere, Corrupt, Missing, Refused, S3HashSyncError, WrongKey
from s3hashsync.run.pins import HostPlace, parsed
from s3hashsync.run.repository import PLAIN, Identity
from s3hashsync.run.unlock import HOW, LOST, FindOpener, Opener, Unlocked, epoch_files, source_key, stated_recipients, unlock
from s3hashsync.stores.base import ObjectStore

ENROLL = "with the identity at hand, once on this host: s3hashsync key enroll"


def check_setting(config: Config, about: Identity) -> None:
    """Whether a repository is encrypted is fixed at init. A configuration that says nothing of it takes it as it is."""
    if config.encryption == "off" and about.encryption != PLAIN:
        raise Refused(
            f"{config.file} says encryption: off, but the repository is encrypted, and stays so",
            "take that line out, or write encryption: {}; for another repository, name another place in objects:",
        )
    if isinstance(config.encryption, EncryptionSettings) and about.encryption == PLAIN:
        raise Refused(
            f"{config.file} wants encryption, but the repository was made without, and stays so",
            "write encryption: off, or make a new repository: another place in objects: and index:, then s3hashsync init",
        )


class RepositoryKeys:
    """`run.keyring.Keyring` of an encrypted repository. Used from many threads."""

    encrypted = True

    def __init__(
        self, objects: ObjectStore, about: Identity, place: HostPlace, find: FindOpener, entropy: Callable[[int], bytes]
    ) -> None:
        self.objects = objects
        self.about = about
        self._place = place
        self._find = find
        self.entropy = entropy
        self._lock = threading.RLock()
        self._file = place.file(about.id)
        self._damage: S3HashSyncError | None = None
        self._host = self._read_host()
        self._hash_key = self._host.hash_key if self._host else b""
        self._unlocked: Unlocked | None = None
        self._sources: dict[str, SourceKeys] = {}

    # What writing needs

    @property
    def host(self) -> HostKey | None:
        """What this host keeps; None when it is not enrolled, or its file is damaged."""
        return self._host

    @property
    def damage(self) -> S3HashSyncError | None:
        """Why the host key file cannot be read, where that is so: then this host cannot write, but reading goes on."""
        return self._damage

    @property
    def host_file(self) -> PrivateFile:
        return self._file

    def enrolled(self) -> HostKey:
        """Raises `WrongKey` on a host that is not."""
        if self._host is not None:
            return self._host
        if self._damage is not None:
            raise self._damage
        if self._founding():
            raise WrongKey("the init of this repository did not come to its end", "run it again: s3hashsync init")
        raise WrongKey(f"this host is not enrolled: there is no {self._file.path}", ENROLL)

    @property
    def encoding(self) -> str:
        return sealed_encoding(self.enrolled().epoch)

    def content_hash(self, sha256: Sha256) -> ContentHash:
        return ContentHash(hmac.digest(self._hash_key or self._unlocked_hash_key(), sha256, "sha256"))

    def new_seal(self) -> Seal:
        return age.new_seal((self.enrolled().recipient,), self.entropy)

    # What a source's host has, or the identity

    def names(self, source: str) -> Names:
        return SealedNames(source, self.source(source).name_key)

    def log_key(self, source: str) -> bytes:
        return self.source(source).log_key

    # What only the identity gives

    def identity(self, epoch: int) -> AgeIdentity:
        key = self.unlocked().epochs.get(epoch)
        if key is None:
            raise Corrupt(f"something is encrypted to epoch {epoch} of the keys, and keys/{epoch}.age is not there", LOST)
        return key.identity

    def identities(self) -> tuple[AgeIdentity, ...]:
        return self.unlocked().identities

    def unlocked(self) -> Unlocked:
        """Asks for the identity when it is first needed."""
        with self._lock:
            if self._unlocked is None:
                by_passphrase = any(one.passphrases for one in epoch_files(self.objects))
                opener = self._find(by_passphrase=by_passphrase)
                if opener is None:
                    raise WrongKey("the repository is encrypted, and nothing is at hand that opens it", HOW)
                self._unlocked = self._unlock(opener)
            return self._unlocked

    def _unlock(self, opener: Opener) -> Unlocked:
        if self._damage is not None:
            self._place.warn(
                f"{self._damage.message}, so nothing says which repository this host knows: compare the fingerprint"
                f" {fingerprint_text(self.about.fingerprint)} with your recovery sheet, and write the file anew:"
                " s3hashsync key enroll"
            )
        return unlock(self.objects, self.about, opener)

    def unlock_if_at_hand(self) -> bool:
        """Whether an identity was given that opens it; without one nobody minds."""
        with self._lock:
            if self._unlocked is None and (opener := self._find(by_passphrase=False)) is not None:
                self._unlocked = self._unlock(opener)
            return self._unlocked is not None

    def _unlocked_hash_key(self) -> bytes:
        with self._lock:
            self._hash_key = self.unlocked().root.hash_key
            return self._hash_key

    def stated_recipients(self) -> RecipientList | None:
        """Who the repository says can open it; checked where it has been opened. None when it does not say."""
        said = stated_recipients(self.objects)
        if said is None:
            return None
        return said.stated if self._unlocked is None else said.check(self._unlocked.root)

    # The keys of sources

    def source(self, source: str) -> SourceKeys:
        """As this host has them, otherwise as the repository has."""
        with self._lock:
            found = self._sources.get(source)
            if found is None:
                mine = self._host.sources.get(source) if self._host else None
                self._sources[source] = found = mine.keys if mine else self.stored_source(source)
            return found

    def stored_source(self, source: str) -> SourceKeys:
        """As the repository has them. Needs the identity."""
        key, unlocked = source_key(source), self.unlocked()
        try:
            sealed = self.objects.read_document(key)
        except Missing:
            raise Corrupt(f"the keys of source {source} ({key}) are not there", LOST) from None
        try:
            text = age.decrypt(sealed, unlocked.identities)
        except (WrongKey, Corrupt) as error:
            raise type(error)(f"{key}: {error.message}", "it was changed: restore it from an older version") from None
        return parse_source(text, self.about.id, source, unlocked.root.hash_key)

    def add_source(self, source: str) -> None:
        """On this host first, then in the repository: whoever dies in between still has the keys, and finds what is missing."""
        with self._lock:
            mine = self.enrolled().sources.get(source)
            if mine is not None and mine.sealed is None and self._is_stored(source):
                return
            with self._file.locked():
                host = self._current()
                mine = host.sources.get(source)
                new = mine is None
                if mine is None:
                    mine = self._drawn(source, host)
                    host = self._keep(host, source, mine)
                elif mine.sealed is None and not self._is_stored(source):
                    # It is gone from the store: without it nobody could read this source once this host is lost.
                    mine = self._sealed(source, mine.keys, host)
                    host = self._keep(host, source, mine)
                if mine.sealed is not None:
                    self._store(source, host, mine.sealed, new=new)
                    self._keep(host, source, HostSource(mine.keys))
            self._sources[source] = mine.keys

    def _drawn(self, source: str, host: HostKey) -> HostSource:
        return self._sealed(source, SourceKeys(self.entropy(NAME_KEY_BYTES), self.entropy(KEY_BYTES)), host)

    def _sealed(self, source: str, keys: SourceKeys, host: HostKey) -> HostSource:
        text = render_source(host.repository, source, keys, host.hash_key)
        return HostSource(keys, age.encrypt(text, (host.recipient,), self.entropy))

    def _store(self, source: str, host: HostKey, sealed: bytes, *, new: bool) -> None:
        """`new`: drawn a moment ago. With any others logs may have been written, which nobody could read without them."""
        key = source_key(source)
        try:
            self.objects.create_document(key, sealed)
        except AlreadyThere:
            # An answer may have been lost, or a process have died: then these are our bytes.
            if self.objects.read_document(key) == sealed:
                return
            if not new:
                raise WrongKey(
                    f"{key} was written by another host, and this one keeps keys of its own of source {source}",
                    f"has this host backed {source} up before? move that document away and run this again, which stores the keys"
                    " of this host; then enroll the other host again. Has it not, or is that document an older version of its"
                    " own, put back? " + ENROLL,
                ) from None
            self._keep(host, source, None)
            raise WrongKey(
                f"another host has made the keys of source {source}, and this one does not have them", ENROLL
            ) from None

    def _keep(self, host: HostKey, source: str, one: HostSource | None) -> HostKey:
        others = {name: kept for name, kept in host.sources.items() if name != source}
        self._host = replace(host, sources=others if one is None else others | {source: one})
        self._file.replace(self._host.render())
        return self._host

    # The host key file

    def enroll(self, sources: Iterable[str]) -> HostKey:
        """Write the host key file, with the keys of those of these sources that have some. Needs the identity. Raises `WrongKey`,
        and writes nothing, where this host keeps other keys of one than the repository: the only copy may be this host's."""
        unlocked = self.unlocked()
        newest = unlocked.newest
        with self._lock, self._file.locked():
            before = self._read_host()
            kept = dict(before.sources) if before else {}
            stored = {source: HostSource(self.stored_source(source)) for source in sources if self._is_stored(source)}
            if others := [source for source, one in stored.items() if source in kept and kept[source].keys != one.keys]:
                raise self._has_others(others)
            kept |= stored
            host = HostKey(
                repository=self.about.id,
                objects=self._place.url,
                fingerprint=unlocked.root.fingerprint,
                epoch=newest.epoch,
                recipient=newest.identity.recipient,
                hash_key=unlocked.root.hash_key,
                versions=self.about.versions,
                sources=kept,
            )
            self._file.replace(host.render())
            self._host, self._hash_key, self._damage = host, host.hash_key, None
            self._sources.clear()
        return host

    def _has_others(self, sources: list[str]) -> WrongKey:
        named, documents = ", ".join(sources), ", ".join(map(source_key, sources))
        return WrongKey(
            f"this host keeps other keys of source {named} than the repository ({documents}): each opens what was backed up with"
            " it, and nothing else",
            f"has this host backed it up before? then move {documents} away and run s3hashsync apply, which stores the keys of"
            " this host; enroll the other hosts again. If nothing of that is wanted any more, for the source was begun anew on"
            f" another host: move {self._file.path} away, and keep it; then s3hashsync key enroll",
        )

    def _is_stored(self, source: str) -> bool:
        try:
            self.objects.read_document(source_key(source))
        except Missing:
            return False
        return True

    def _current(self) -> HostKey:
        """Another process of this host may have added a source."""
        host = self._read_host()
        if host is None:
            raise self._damage or WrongKey(f"{self._file.path} is gone", ENROLL)
        return host

    def _read_host(self) -> HostKey | None:
        try:
            host, self._damage = parsed(self._file), None
        except S3HashSyncError as error:
            host, self._damage = None, error
        if host is None or host.founding:
            return None
        if (host.repository, host.fingerprint) != (self.about.id, self.about.fingerprint):
            # What would be encrypted with it nobody could open.
            theirs, ours = fingerprint_text(host.fingerprint), fingerprint_text(self.about.fingerprint)
            raise WrongKey(
                f"{self._file.path} is the key file of another repository: {host.repository[:8]}, fingerprint {theirs};"
                f" this one is {self.about.id[:8]}, {ours}",
                f"was a file copied from another host? move it away. {ENROLL}",
            )
        return host

    def _founding(self) -> bool:
        host = parsed(self._file)
        return host is not None and bool(host.founding)
