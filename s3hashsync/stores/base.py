"""What a store promises: two small protocols with numbered clauses.

The conformance suite's tests carry the clauses' numbers. Stores are used from many threads at once. Every method may raise
`errors.StoreError`; none lets a vendor's error through. A store does not retry: `stores.retrying` wraps it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol, TypeAlias

from s3hashsync.core.model import Item, Rev
from s3hashsync.core.value import value
from s3hashsync.errors import Corrupt


@value
class Stored:
    """What a finished put left: the version to pin, the stored size in bytes, the checksum as `<algorithm>:<base64>`."""

    version: str
    size: int
    checksum: str


@value
class Attempt:
    """How one put is to be done. `id` is random hex, fresh for every attempt at storing one content: it is how a process that
    died between put and record finds its own version again (see O9)."""

    id: str
    storage_class: str


@value
class Version:
    """One stored version (or delete marker) as a listing shows it. `modified` is the store's clock, epoch seconds."""

    stem: str
    version: str
    size: int
    modified: float
    is_marker: bool
    is_latest: bool
    storage_class: str = ""


@value
class Document:
    """A small piece of metadata as a listing shows it."""

    key: str
    size: int
    modified: float


Body: TypeAlias = bytes | Sequence[bytes]
"""What is put: the bytes, or the pieces that they are in, so that a large body needs not be in memory twice."""


def pieces_of(body: Body) -> Sequence[bytes]:
    return (body,) if isinstance(body, bytes) else body


class Upload(Protocol):
    """One content on its way in parts: nothing is visible before `complete`. Used by one thread at a time.

    `token` is what `resume` needs after a crash (opaque text, "" when this store cannot resume). `part_size` is how many
    bytes every part but the last must have. A part may be sent again; a resumed upload may skip sending a part that the store
    holds already with the same bytes (`write_part` finds that out by checksum; the caller always calls it for every part).
    """

    token: str
    part_size: int

    def write_part(self, number: int, data: bytes) -> None: ...

    def holds_other(self, number: int, data: bytes) -> bool:
        """Whether the store holds another part than this one under the number, from before the upload was resumed."""

    def complete(self) -> Stored:
        """Verified by the store with a checksum over the whole object."""

    def abort(self) -> None:
        """Best effort: an upload that cannot be aborted is left to the lifecycle rule."""


SMALL_DOCUMENT = 4 << 20


def check_size(key: str, size: int) -> None:
    """For a document that is about to be read into memory. None but a run-log segment is large."""
    if size > SMALL_DOCUMENT and not key.startswith("runs/"):
        raise Corrupt(f"{key} has {size:,} bytes: nobody here wrote that", "restore an older version of it")


class ObjectReader(Protocol):
    """Reads versions and documents."""

    def read(self, stem: str, version: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """O4 The bytes of exactly this version, from `start`, in chunks; `Missing` when that version is not there, `Archived`
        when it has to be thawed first. Errors are raised at the first `next` at the latest, or while reading."""

    def versions(self, prefix: str) -> Iterator[Version]:
        """O5 Every version and marker whose stem starts with `prefix`, sorted by stem, nothing left out."""

    def find(self, stem: str, attempt_id: str) -> Stored | None:
        """O9 The version that a put or upload with this attempt id left at `stem`, or None when it left none."""

    def read_document(self, key: str) -> bytes:
        """O6 The whole document; `Missing` when there is none, `Corrupt` when it is larger than any document of its kind."""

    def documents(self, prefix: str, after: str = "") -> Iterator[Document]:
        """O7 The documents whose key starts with `prefix` and sorts after `after`, in the order of their keys."""


class ObjectStore(ObjectReader, Protocol):
    """A bucket with a prefix, or a folder.

    Contents have a stem (`objects/<hash>`) and versions: a version is never overwritten, by anybody. Where the store has no
    versions of its own the key is `<stem>.<attempt id>` and the suffix is the version. Documents (`repository.json`, `runs/…`)
    have one state and no versions.
    """

    @property
    def versioned(self) -> bool:
        """Whether the store keeps versions itself and knows delete markers."""

    @property
    def single_put_limit(self) -> int:
        """Contents above this size, in bytes, go by `begin`."""

    def put(self, stem: str, body: Body, attempt: Attempt) -> Stored:
        """O1 Atomic: the version is whole or absent. O2 Readable as soon as put has returned. O3 Verified by the store with a
        checksum. A second put with the same attempt id never changes what the first one stored: on a store without versions it
        returns the first one's version; on a store with versions it may make another version."""

    def begin(self, stem: str, attempt: Attempt, size_hint: int) -> Upload:
        """Start an upload in parts, for contents of about `size_hint` bytes and more than `single_put_limit`."""

    def resume(self, stem: str, attempt: Attempt, token: str) -> Upload | None:
        """The upload that an earlier process began, or None when the store knows it no longer."""

    def delete(self, stem: str, version: str) -> None:
        """O8 Deletes exactly this version, for good; an absent one is fine."""

    def mark(self, stem: str) -> None:
        """O10 Put a delete marker on top, unless one is on top already; nothing on a store without versions. No version is
        lost."""

    def unmark(self, stem: str) -> None:
        """O11 Remove the delete markers of this stem; no version is lost."""

    def barrier(self) -> None:
        """O12 When it has returned, everything put so far survives a power failure."""

    def create_document(self, key: str, body: bytes) -> None:
        """O13 Atomic and create-only: `AlreadyThere` when the key is taken (also by an earlier try of the same call). Durable."""

    def replace_document(self, key: str, body: bytes) -> None:
        """O14 Atomic replacement (or creation). Durable."""

    def delete_document(self, key: str) -> None:
        """O15 An absent one is fine."""

    def forget_versions(self, key: str) -> None:
        """O16 Deletes for good what a replaced or deleted document was before: all but its present state. Where the store keeps
        no versions there is nothing to do. `Denied` where the right is missing."""

    def past_documents(self, prefix: str) -> Iterator[str]:
        """O17 The keys, in their order, that start with `prefix` and of which `forget_versions` would delete something: those of
        deleted documents, too, which no other listing shows. None where the store keeps no versions."""


@value
class Write:
    """One conditional write of a whole item: `expects` is the rev the item must have now, None: it must be absent.
    `item.rev` is fresh, drawn before the first try and kept over retries."""

    item: Item
    expects: Rev | None


@value
class Outcome:
    """`written` is whether the item now holds, or has held, this write. When not, `found` is the item that stood in the way."""

    written: bool
    found: Item | None = None


class IndexReader(Protocol):
    """Reads items."""

    def read(self, keys: Collection[str]) -> dict[str, Item]:
        """I1 Consistent. I2 A key that is not in the answer is proven absent (one that could not be read raises)."""

    def scan(self) -> Iterator[Item]:
        """I3 Every item that was there when the scan began and still is, at least once each; never a partial list: it raises."""


class Index(IndexReader, Protocol):
    """A table of items under string keys. Items are never deleted.

    Keys: 64 hexadecimal digits for a record, `<hash>#<prefix>` for an overflow item, anything else for a control item.
    """

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        """I4 Each write is applied if and only if its condition holds, atomically with the check, independently of the others.
        I5 A write whose own rev is found in the item counts as written (its answer was lost). I6 Durable when it has returned.
        I7 No two writes of one call may have the same key (`ValueError`). I8 One outcome a write, in order; an error means that
        each of them may or may not have been applied. I9 An item within the limits (400,000 bytes) round-trips exactly."""

    def write_units(self, item: Item) -> int:
        """I10 What one write of this item is billed (DynamoDB: 1 per started KB of the item; 0 where nothing is billed)."""
