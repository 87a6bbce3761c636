"""What makes an object store and an index one repository: `repository.json` and the item `repository`.

Decides when they belong together, and that nothing else runs when they do not: a mistyped table, a lost one or one restored to an
older point has another incarnation, and writing to it would hide what was stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from s3hashsync.core.model import Control, Rev
from s3hashsync.errors import AlreadyThere, Corrupt, Missing, NoRepository, Refused, StoreError, Unsupported, WrongKey
from s3hashsync.run.keyring import Keyring, NoKeys
from s3hashsync.stores.base import Index, IndexReader, ObjectReader, ObjectStore, Write

FORMAT = 1
DOCUMENT = "repository.json"
ITEM = "repository"
STORE, SUFFIX = "store", "suffix"
PLAIN, AGE = "off", "age"
_HASHES = {PLAIN: "sha256", AGE: "hmac-sha256"}
_ID = re.compile("[0-9A-Za-z-]{1,64}")
"""It becomes the name of files on this host."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What `repository.json` says. `incarnation` is the index's: it changes when the index is made anew. `versions` is who keeps
    versions apart: the store, or a suffix of the key; it is fixed at init, for a bucket whose versioning is switched on later
    still has the old keys. `fingerprint` tells the root key apart from others, "" without encryption."""

    id: str
    incarnation: str
    created: int
    hash: str = "sha256"
    encryption: str = PLAIN
    versions: str = STORE
    fingerprint: str = ""


class Segments:
    """Run-log segments that were read for their header, and will be read for their lines: the second time they are taken from
    here, if they are not too many. They never change, and are checked each time. One thread at a time."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}
        self._size = 0

    def read(self, objects: ObjectReader, key: str) -> bytes:
        if (kept := self._kept.pop(key, None)) is not None:
            self._size -= len(kept)
            return kept
        data = objects.read_document(key)
        if self._size + len(data) <= _SEGMENTS_KEPT:
            self._kept[key] = data
            self._size += len(data)
        return data


_SEGMENTS_KEPT = 16 << 20


@dataclass(frozen=True, slots=True)
class Repository:
    """An object store and an index that were found to belong together."""

    identity: Identity
    objects: ObjectStore
    index: Index
    keys: Keyring = field(default_factory=NoKeys)
    segments: Segments = field(default_factory=Segments, compare=False, repr=False)


def plain_keys(identity: Identity) -> Keyring:
    """For whoever deals with repositories without encryption alone."""
    if identity.encryption != PLAIN:
        raise WrongKey("the repository is encrypted, and there are no keys at hand")
    return NoKeys()


def open_repository(objects: ObjectStore, index: Index, keys: Callable[[Identity], Keyring] = plain_keys) -> Repository:
    """Raises `NoRepository`, or `Refused` when the two halves are not of one repository. `keys` may raise `WrongKey`; it is asked
    first, so that a repository which is not the one that this host knows is named as such."""
    identity = read_identity(objects)
    if identity is None:
        raise NoRepository("there is no repository yet", "s3hashsync init makes one")
    ring = keys(identity)
    check_incarnation(identity, index)
    return Repository(identity, objects, index, ring)


def check_incarnation(identity: Identity, index: IndexReader) -> None:
    item = index.read([ITEM]).get(ITEM)
    if item is None:
        raise Refused(
            "the index is empty, but the object store holds a repository",
            "is the index's address right? if the index is lost, make it anew from the run logs: s3hashsync rebuild --index",
        )
    if not isinstance(item, Control) or item.get("id") != identity.id:
        raise Refused(
            "the index belongs to another repository than the object store", "check objects: and index: in the configuration"
        )
    if item.get("incarnation") != identity.incarnation:
        raise Refused(
            "the index is not the one that this repository uses now (an older copy?)",
            "point index: at the present one, or make it anew from the run logs: s3hashsync rebuild --index",
        )


def read_identity(objects: ObjectReader) -> Identity | None:
    try:
        data = objects.read_document(DOCUMENT)
    except Missing:
        return None
    return _parse(data)


def initialise(objects: ObjectStore, index: Index, now: int, entropy: Callable[[int], bytes]) -> tuple[Identity, bool]:
    """Make the repository, or find that it is there; answers whether it is new. The item comes first, so that a process that
    dies in between is completed by the next `init`; an empty index is never made beside an existing `repository.json`."""
    identity = read_identity(objects)
    if identity is not None:
        check_incarnation(identity, index)
        return identity, False
    return publish(objects, replace(claim(index, now, entropy), versions=STORE if objects.versioned else SUFFIX))


def publish(objects: ObjectStore, identity: Identity) -> tuple[Identity, bool]:
    """Write `repository.json`, or find that it is there and says the same; answers whether it is new."""
    try:
        objects.create_document(DOCUMENT, _render(identity))
    except AlreadyThere:
        found = read_identity(objects)
        if found is None or (found.id, found.fingerprint) != (identity.id, identity.fingerprint):
            raise Refused("another init made a repository here at this very moment", "run init again") from None
        return found, False
    return identity, True


def claim(index: Index, now: int, entropy: Callable[[int], bytes]) -> Identity:
    """The repository that the index belongs to: the item is written where there is none. One that an init left which did not come
    to its end is taken over."""
    item = index.read([ITEM]).get(ITEM)
    if item is None:
        identity = Identity(entropy(16).hex(), entropy(8).hex(), now)
        write = Write(control_item(identity, Rev(entropy(12))), None)
        (outcome,) = index.write([write])
        if outcome.written:
            return identity
        item = outcome.found
    if not isinstance(item, Control) or not _ID.fullmatch(item.get("id")):
        raise Corrupt("the item `repository` of the index is damaged")
    return Identity(item.get("id"), item.get("incarnation"), int(item.get("created", "0")))


def control_item(identity: Identity, rev: Rev) -> Control:
    fields = (("id", identity.id), ("incarnation", identity.incarnation), ("created", str(identity.created)))
    return Control(ITEM, rev, (*fields, ("format", str(FORMAT))))


def _render(identity: Identity) -> bytes:
    body: dict[str, object] = {
        "s3hashsync": "repository",
        "format": FORMAT,
        "id": identity.id,
        "incarnation": identity.incarnation,
        "created": identity.created,
        "hash": identity.hash,
        "encryption": identity.encryption,
        "versions": identity.versions,
    }
    if identity.encryption != PLAIN:
        body["fingerprint"] = identity.fingerprint
    return json.dumps(body, indent=2).encode() + b"\n"


def _parse(data: bytes) -> Identity:
    try:
        body = json.loads(data)
        if body["s3hashsync"] != "repository":
            raise KeyError
        if int(body["format"]) > FORMAT:
            raise Corrupt(f"the repository has format {body['format']}, this program knows {FORMAT}", "use a newer s3hashsync")
        if not _ID.fullmatch(str(body["id"])) or body["versions"] not in (STORE, SUFFIX):
            raise KeyError
        if body["encryption"] not in (PLAIN, AGE):
            raise Unsupported("the repository is encrypted in a way that this version does not know", "use a newer s3hashsync")
        if body["hash"] != _HASHES[body["encryption"]]:
            raise Unsupported("contents are named in a way that this version does not know", "use a newer s3hashsync")
        return Identity(
            id=str(body["id"]),
            incarnation=str(body["incarnation"]),
            created=int(body["created"]),
            hash=str(body["hash"]),
            encryption=str(body["encryption"]),
            versions=str(body["versions"]),
            fingerprint=str(body["fingerprint"]) if body["encryption"] == AGE else "",
        )
    except (ValueError, KeyError, TypeError):
        raise Corrupt(f"{DOCUMENT} is damaged", "restore it from an older version of the object") from None


def losing_writes(objects: ObjectStore, index: Index, entropy: Callable[[int], bytes]) -> Iterator[StoreError]:
    """Why the object store, or the index, cannot be written. Each gets a write that must lose: a create-only one of what is there
    already, and one on a rev that the item does not have. So nothing changes, and the rights are those that a backup takes."""
    try:
        objects.create_document(DOCUMENT, objects.read_document(DOCUMENT))
    except AlreadyThere:
        pass
    except StoreError as error:
        yield error
    try:
        item = index.read([ITEM])[ITEM]
        index.write([Write(replace(item, rev=Rev(entropy(12))), Rev(entropy(12)))])
    except StoreError as error:
        yield error


def replace_identity(objects: ObjectStore, identity: Identity) -> None:
    """After the index was made anew under another incarnation."""
    objects.replace_document(DOCUMENT, _render(identity))
