"""The nouns of the program: entries on disk, records of the index, locations of contents.

Decides what each of them holds. Knows neither where they come from nor how they are stored or printed.
"""

from __future__ import annotations

from enum import Enum
from typing import NewType, TypeAlias

from s3hashsync.core.value import value

ContentHash = NewType("ContentHash", bytes)
"""32 bytes: the identity of a content (SHA-256 of its bytes; a keyed hash once encryption is on)."""

Sha256 = NewType("Sha256", bytes)
"""32 bytes: the plain SHA-256 of a content."""

Rev = NewType("Rev", bytes)
"""12 random bytes, fresh on every write of an item: whoever finds its own rev knows that its write succeeded."""

StoredName = NewType("StoredName", str)
"""What `file_names` holds: `<source>/<relative path>` in the encoding of `codec.names`."""


class Kind(Enum):
    """What the scan finds at one path. The value is what formats store."""

    FILE = "file"
    DIRECTORY = "dir"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER_DEVICE = "chardev"
    BLOCK_DEVICE = "blockdev"


@value
class Entry:
    """One path of a source with all its metadata.

    `path` is relative to the source's root, bytes, without leading or trailing slash; b"" is the root itself.
    Times are nanoseconds since 1970 (negative before); `mode` is the twelve permission bits. Two FILE entries with
    `links` > 1 and the same (device, inode) are hard links of each other. `size` is 0 for what is not a FILE.
    """

    path: bytes
    kind: Kind
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    mode: int
    uid: int
    gid: int
    links: int = 1
    rdev: int = 0
    target: bytes | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    sparse: bool = False


class RecordState(Enum):
    """The states of a record (section 5 of the design). The value is what the index stores."""

    LIVE = "live"
    TRASH = "trash"
    PURGING = "purging"
    GONE = "gone"


@value
class ObjectAt:
    """A content that has an object of its own: `objects/<hash>`, in exactly this version."""

    version: str


@value
class PackAt:
    """A content inside a pack. `frame_offset` and `frame_length` are the zstd frame's place in the pack before encryption,
    `offset` is where the content's own bytes begin (behind the tar header) in the decompressed frame; all in bytes."""

    pack: str
    version: str
    frame_offset: int
    frame_length: int
    offset: int


Location: TypeAlias = ObjectAt | PackAt

ENCODING_ZSTD = "zstd"
"""One zstd frame with content checksum; in a pack, frames of a tar."""

_SEALED = "zstd+age:"


def sealed_encoding(epoch: int) -> str:
    """The same inside an age file to the recipient of this epoch of the repository's keys (1, 2, …)."""
    return f"{_SEALED}{epoch}"


def epoch_of(encoding: str) -> int | None:
    """The epoch whose identity opens bytes of this encoding, None for bytes that are not encrypted. `ValueError` for an
    encoding that this version does not know."""
    if encoding == ENCODING_ZSTD:
        return None
    number = encoding.removeprefix(_SEALED)
    if number != encoding and number.isascii() and number.isdigit() and number[0] != "0":
        return int(number)
    raise ValueError(f"unknown encoding {encoding!r}")


@value
class Content:
    """Everything that is needed to fetch a content and to check it. Sizes in bytes, `stored_at` in epoch seconds;
    `checksum` is `<algorithm>:<base64>` over the stored bytes, as the object store verified it."""

    hash: ContentHash
    size: int
    stored: int
    stored_at: int
    storage_class: str
    checksum: str
    encoding: str
    location: Location


@value
class Record:
    """The index item of one hash.

    A GONE record is a tombstone: hash, state and rev, nothing else counts. `names` are the names in the record itself;
    further names lie in overflow items: `buckets` are the hexadecimal prefixes of those that count, `spill` is the prefix
    length that new overflow names use (0: none yet). Sizes in bytes, `expiration` and `stored_at` in epoch seconds;
    `checksum` is `<algorithm>:<base64>` over the stored bytes, as the object store verified it.
    """

    hash: ContentHash
    state: RecordState
    rev: Rev
    names: frozenset[StoredName] = frozenset()
    expiration: int = 0
    size: int = 0
    stored: int = 0
    stored_at: int = 0
    storage_class: str = ""
    checksum: str = ""
    encoding: str = ENCODING_ZSTD
    location: Location | None = None
    spill: int = 0
    buckets: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        return self.hash.hex()

    @property
    def content(self) -> Content:
        """Where the bytes are; only a record with a location has it."""
        if self.location is None:
            raise ValueError(f"record {self.key} has no location")
        return Content(
            self.hash,
            self.size,
            self.stored,
            self.stored_at,
            self.storage_class,
            self.checksum,
            self.encoding,
            self.location,
        )


@value
class Overflow:
    """Names of one hash that no longer fit into its record. Holds names only: no state, no location."""

    hash: ContentHash
    prefix: str
    rev: Rev
    names: frozenset[StoredName] = frozenset()

    @property
    def key(self) -> str:
        return overflow_key(self.hash, self.prefix)


@value
class Control:
    """An item that is no record: `repository`, `source:<name>`, `pack:<id>`. Fields are plain strings; `data` is what would
    be too long as text (the members of a pack: 32 bytes each)."""

    key: str
    rev: Rev
    fields: tuple[tuple[str, str], ...] = ()
    data: bytes = b""

    def get(self, name: str, default: str = "") -> str:
        return next((value for key, value in self.fields if key == name), default)


Item: TypeAlias = Record | Overflow | Control


def overflow_key(hash_: ContentHash, prefix: str) -> str:
    return f"{hash_.hex()}#{prefix}"


def object_stem(hash_: ContentHash) -> str:
    """The object's key in the store, before a store without versions adds its suffix."""
    return f"objects/{hash_.hex()}"


def pack_stem(pack: str) -> str:
    """The pack's key in the store, before a store without versions adds its suffix."""
    return f"packs/{pack}"


def pack_key(pack: str) -> str:
    """The key of the index item that lists the pack's members."""
    return f"pack:{pack}"
