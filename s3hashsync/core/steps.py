"""The steps of a plan: data that runs nothing, one closed union, which the executor, the renderer and the JSON codec each match
exhaustively.

Decides what a step says and which symbol a person sees. Knows neither stores nor terminals.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar, TypeAlias

from s3hashsync.core.model import ContentHash, Entry, Kind, Location, RecordState, Sha256
from s3hashsync.core.value import value


class Reason(Enum):
    """Why a step is in the plan."""

    NEW = "new"
    CHANGED = "content changed"
    REPLACED = "type changed"
    MOVED = "moved"
    COPIED = "copied"
    RETURNED = "back within its storage duration"
    METADATA = "metadata changed"
    DELETED = "deleted"
    EXCLUDED = "excluded"
    UNCONFIRMED = "left unconfirmed by an earlier run"
    TAKE_OVER = "written again for a new owner or a new index"


@value
class Expected:
    """What planning saw in the index: `state` None means no record. `planned`: an earlier step of the same plan stores it.
    `spill` is the prefix length of the record's overflow items (0: it has none)."""

    state: RecordState | None
    location: Location | None = None
    planned: bool = False
    spill: int = 0


@value
class StoreContent:
    """Upload the content of this path, then name it. `drops`: hashes that the path may be under and is removed from. `packed`: it
    travels in a pack with others."""

    source: str
    entry: Entry
    hash: ContentHash
    sha256: Sha256
    drops: tuple[ContentHash, ...]
    reason: Reason
    expects: Expected
    packed: bool = False

    @property
    def symbol(self) -> str:
        return "~" if self.reason in _CHANGES else "+"


@value
class AddName:
    """The content is stored already, or will be by an earlier step: an index write, no upload. `sha256` is unknown for a file
    that cannot be read, whose name is written again."""

    source: str
    entry: Entry
    hash: ContentHash
    sha256: Sha256 | None
    drops: tuple[ContentHash, ...]
    reason: Reason
    expects: Expected

    @property
    def symbol(self) -> str:
        return "~" if self.reason in _CHANGES else "="


@value
class Undelete:
    """The content is in the trash and comes back: an index write and a delete marker less, no upload."""

    source: str
    entry: Entry
    hash: ContentHash
    sha256: Sha256 | None
    drops: tuple[ContentHash, ...]
    reason: Reason
    expects: Expected
    symbol: ClassVar[str] = "^"


@value
class MoveName:
    """The same content under a new path: the new name first, the old name after the run log."""

    source: str
    entry: Entry
    origin: bytes
    hash: ContentHash
    sha256: Sha256 | None
    drops: tuple[ContentHash, ...]
    reason: Reason
    expects: Expected
    symbol: ClassVar[str] = ">"


@value
class NoteEntry:
    """What has no content of its own (folder, link, special file, empty file): the run log alone."""

    source: str
    entry: Entry
    drops: tuple[ContentHash, ...]
    reason: Reason

    @property
    def symbol(self) -> str:
        return "~" if self.reason in _CHANGES else "+"


@value
class UpdateMetadata:
    """Same content, other metadata: the run log alone."""

    source: str
    entry: Entry
    hash: ContentHash | None
    sha256: Sha256 | None
    reason: Reason
    symbol: ClassVar[str] = "m"


@value
class RemoveName:
    """The path is gone from the disk. `size` is the content's, in bytes."""

    source: str
    path: bytes
    kind: Kind
    size: int
    drops: tuple[ContentHash, ...]
    reason: Reason
    symbol: ClassVar[str] = "-"


@value
class ExcludeName:
    """The path is still on the disk, but a rule excludes it now."""

    source: str
    path: bytes
    kind: Kind
    size: int
    drops: tuple[ContentHash, ...]
    rule: str
    reason: Reason
    symbol: ClassVar[str] = "x"


ContentStep: TypeAlias = StoreContent | AddName | Undelete | MoveName
Step: TypeAlias = ContentStep | NoteEntry | UpdateMetadata | RemoveName | ExcludeName

_CHANGES = frozenset({Reason.CHANGED, Reason.REPLACED})


def path_of(step: Step) -> bytes:
    return step.path if isinstance(step, RemoveName | ExcludeName) else step.entry.path


def size_of(step: Step) -> int:
    return step.size if isinstance(step, RemoveName | ExcludeName) else step.entry.size


def drops_of(step: Step) -> tuple[ContentHash, ...]:
    """The hashes that lose a name by this step (for a move: the old path's)."""
    match step:
        case UpdateMetadata():
            return ()
        case MoveName():
            return (*step.drops, step.hash)
        case _:
            return step.drops
