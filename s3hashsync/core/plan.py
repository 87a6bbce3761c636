"""A plan: a header, steps that can be read again and again, and totals derived from them.

A step is data and runs nothing: one closed union, which the executor, the renderer and the JSON codec each match exhaustively.
Decides what a step says and which symbol a person sees. Knows neither stores nor terminals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol, TypeAlias

from s3hashsync.core.cost import index_writes
from s3hashsync.core.model import ContentHash, Entry, Kind, Location, RecordState, Sha256


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


@dataclass(frozen=True, slots=True)
class Expected:
    """What planning saw in the index: `state` None means no record. `planned`: an earlier step of the same plan stores it.
    `spill` is the prefix length of the record's overflow items (0: it has none)."""

    state: RecordState | None
    location: Location | None = None
    planned: bool = False
    spill: int = 0


@dataclass(frozen=True, slots=True)
class StoreContent:
    """Upload the content of this path, then name it. `drops`: hashes that the path may be under and is removed from."""

    source: str
    entry: Entry
    hash: ContentHash
    sha256: Sha256
    drops: tuple[ContentHash, ...]
    reason: Reason
    expects: Expected

    @property
    def symbol(self) -> str:
        return "~" if self.reason in _CHANGES else "+"


@dataclass(frozen=True, slots=True)
class AddName:
    """The content is stored already, or will be by an earlier step: an index write, no upload."""

    source: str
    entry: Entry
    hash: ContentHash
    sha256: Sha256
    drops: tuple[ContentHash, ...]
    reason: Reason
    expects: Expected

    @property
    def symbol(self) -> str:
        return "~" if self.reason in _CHANGES else "="


@dataclass(frozen=True, slots=True)
class Undelete:
    """The content is in the trash and comes back: an index write and a delete marker less, no upload."""

    source: str
    entry: Entry
    hash: ContentHash
    sha256: Sha256
    drops: tuple[ContentHash, ...]
    reason: Reason
    expects: Expected
    symbol: ClassVar[str] = "^"


@dataclass(frozen=True, slots=True)
class MoveName:
    """The same content under a new path: the new name first, the old name after the run log."""

    source: str
    entry: Entry
    origin: bytes
    hash: ContentHash
    sha256: Sha256
    drops: tuple[ContentHash, ...]
    reason: Reason
    expects: Expected
    symbol: ClassVar[str] = ">"


@dataclass(frozen=True, slots=True)
class NoteEntry:
    """What has no content of its own (folder, link, special file, empty file): the run log alone."""

    source: str
    entry: Entry
    drops: tuple[ContentHash, ...]
    reason: Reason

    @property
    def symbol(self) -> str:
        return "~" if self.reason in _CHANGES else "+"


@dataclass(frozen=True, slots=True)
class UpdateMetadata:
    """Same content, other metadata: the run log alone."""

    source: str
    entry: Entry
    hash: ContentHash | None
    sha256: Sha256 | None
    reason: Reason
    symbol: ClassVar[str] = "m"


@dataclass(frozen=True, slots=True)
class RemoveName:
    """The path is gone from the disk. `size` is the content's, in bytes."""

    source: str
    path: bytes
    kind: Kind
    size: int
    drops: tuple[ContentHash, ...]
    reason: Reason
    symbol: ClassVar[str] = "-"


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class SourceHeader:
    """What the plan knows of one source: on which state it was made, and what it looked at.

    `head` is the key of the newest run-log segment the state stood on, `scanned_ns` the moment the scan began.
    """

    name: str
    root: str
    head: str
    scanned_ns: int
    entries: int
    files: int
    files_bytes: int
    files_hashed: int
    bytes_hashed: int
    excluded: int


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """When and on what a plan was made. Times in epoch seconds."""

    repository: str
    incarnation: str
    host: str
    made_at: float
    sources: tuple[SourceHeader, ...]
    unconfigured: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that could not be done, and why."""

    source: str
    path: bytes
    message: str


class StepReader(Protocol):
    """Steps that can be read again and again, in the order in which they are to be taken."""

    def __call__(self) -> Iterator[Step]: ...


@dataclass(slots=True)
class Totals:
    """What a plan will do. Entries by action, then effects: bytes before compression, requests, index items written."""

    add: int = 0
    change: int = 0
    move: int = 0
    copy: int = 0
    remove: int = 0
    undelete: int = 0
    metadata: int = 0
    excluded: int = 0
    bytes_upload: int = 0
    objects_put: int = 0
    index_writes: int = 0

    @property
    def steps(self) -> int:
        return self.add + self.change + self.move + self.copy + self.remove + self.undelete + self.metadata


@dataclass(frozen=True, slots=True)
class Plan:
    """What `plan` shows and `apply` executes."""

    header: PlanHeader
    steps: StepReader
    totals: Totals
    problems: tuple[Problem, ...] = ()


@dataclass(slots=True)
class _Group:
    """The names counted last in one direction. Steps of one content stand together, and its names travel in few writes: so what
    is remembered is one group, not every hash."""

    hash: ContentHash | None = None
    names: int = 0
    spill: int = 0

    def count(self, hash_: ContentHash, spill: int = 0) -> int:
        """One more name of this content: the writes of the group that is complete by that."""
        if hash_ == self.hash:
            self.names += 1
            return 0
        writes = self.writes()
        self.hash, self.names, self.spill = hash_, 1, spill
        return writes

    def writes(self) -> int:
        return index_writes(self.names, self.spill) if self.names else 0


def total(steps: Iterable[Step]) -> Totals:
    """Sum up. Index writes are an estimate: how the names of one content spread over overflow items is known only afterwards."""
    totals, added, dropped = Totals(), _Group(), _Group()
    for step in steps:
        _count_action(totals, step)
        if isinstance(step, StoreContent):
            totals.objects_put += 1
            totals.bytes_upload += step.entry.size
        if isinstance(step, StoreContent | AddName | Undelete | MoveName):
            totals.index_writes += added.count(step.hash, step.expects.spill)
        for hash_ in drops_of(step):
            totals.index_writes += dropped.count(hash_)
    totals.index_writes += added.writes() + dropped.writes()
    return totals


def _count_action(totals: Totals, step: Step) -> None:
    match step.symbol:
        case "+":
            totals.add += 1
        case "~":
            totals.change += 1
        case "=":
            totals.copy += 1
        case ">":
            totals.move += 1
        case "^":
            totals.undelete += 1
        case "m":
            totals.metadata += 1
        case "x":
            totals.remove += 1
            totals.excluded += 1
        case _:
            totals.remove += 1


def drops_of(step: Step) -> tuple[ContentHash, ...]:
    """The hashes that lose a name by this step (for a move: the old path's)."""
    match step:
        case UpdateMetadata():
            return ()
        case MoveName():
            return (*step.drops, step.hash)
        case _:
            return step.drops
