"""A plan: a header, steps that can be read again and again, and what one reading of them says: totals and outlines.

Decides what is counted. The steps themselves are `core.steps`. Knows neither stores nor terminals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from s3hashsync.core.cost import index_writes
from s3hashsync.core.model import ContentHash
from s3hashsync.core.outline import Outline
from s3hashsync.core.steps import (
    AddName,
    ContentStep,
    ExcludeName,
    Expected,
    MoveName,
    NoteEntry,
    Reason,
    RemoveName,
    Step,
    StoreContent,
    Undelete,
    UpdateMetadata,
    drops_of,
    path_of,
    size_of,
)


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
    """When and on what a plan was made. Times in epoch seconds; `pack_size`: what a pack holds, bytes (0: no packs)."""

    repository: str
    incarnation: str
    host: str
    made_at: float
    sources: tuple[SourceHeader, ...]
    unconfigured: tuple[str, ...] = ()
    pack_size: int = 0


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
    """What a plan will do. Entries by action, then effects: bytes before compression, requests, index items written. `packed` of
    the contents, with `bytes_packed`, go into `packs`; how many that will be is an estimate from above, since packs are closed by
    their stored size. `objects_put` counts the packs, too."""

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
    packed: int = 0
    bytes_packed: int = 0
    packs: int = 0

    @property
    def steps(self) -> int:
        return self.add + self.change + self.move + self.copy + self.remove + self.undelete + self.metadata


class Plan:
    """What `plan` shows and `apply` executes. Totals and outlines take one reading of all steps, once, when they are first asked
    for."""

    def __init__(self, header: PlanHeader, steps: StepReader, problems: Iterable[Problem] = ()) -> None:
        self.header = header
        self.steps = steps
        self.problems = tuple(problems)
        self._outlines: dict[str, Outline] = {}
        self._totals: Totals | None = None

    @property
    def is_totalled(self) -> bool:
        return self._totals is not None

    @property
    def totals(self) -> Totals:
        if self._totals is None:
            self._totals = total(self._outlined(), self.header.pack_size)
        return self._totals

    def outline(self, source: str) -> Outline:
        """In few lines; an empty one for a source without a step."""
        assert self.totals is not None
        return self._outlines.get(source) or Outline()

    def _outlined(self) -> Iterator[Step]:
        for step in self.steps():
            outline = self._outlines.get(step.source)
            if outline is None:
                outline = self._outlines[step.source] = Outline()
            outline.add(step)
            yield step


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


def total(steps: Iterable[Step], pack_size: int = 0) -> Totals:
    """Sum up; a pack holds `pack_size` bytes. Index writes are an estimate: how the names of one content spread over overflow
    items is known only afterwards."""
    totals, added, dropped = Totals(), _Group(), _Group()
    for step in steps:
        _count_action(totals, step)
        if isinstance(step, StoreContent):
            _count_upload(totals, step)
        if isinstance(step, StoreContent | AddName | Undelete | MoveName):
            totals.index_writes += added.count(step.hash, step.expects.spill)
        for hash_ in drops_of(step):
            totals.index_writes += dropped.count(hash_)
    totals.index_writes += added.writes() + dropped.writes()
    if totals.packed:
        totals.packs = max(1, -(-totals.bytes_packed // pack_size)) if pack_size else totals.packed
        totals.objects_put += totals.packs
        totals.index_writes += totals.packs
    return totals


def _count_upload(totals: Totals, step: StoreContent) -> None:
    totals.bytes_upload += step.entry.size
    if step.packed:
        totals.packed += 1
        totals.bytes_packed += step.entry.size
    else:
        totals.objects_put += 1


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


__all__ = [
    "AddName",
    "ContentStep",
    "ExcludeName",
    "Expected",
    "MoveName",
    "NoteEntry",
    "Plan",
    "PlanHeader",
    "Problem",
    "Reason",
    "RemoveName",
    "SourceHeader",
    "Step",
    "StepReader",
    "StoreContent",
    "Totals",
    "Undelete",
    "UpdateMetadata",
    "drops_of",
    "path_of",
    "size_of",
    "total",
]
