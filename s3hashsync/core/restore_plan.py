"""A restore as a plan: one step for every path, and how a path becomes its step.

Compiling is pure: what the snapshot holds and what lies in the target go in, a step comes out. Decides what is kept, replaced, or
in the way; knows neither stores nor disks. Steps are taken in the order of paths, but hard links and copies after everything
else, and the metadata of folders last of all, the deepest first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Protocol, TypeAlias, assert_never

from s3hashsync.core.model import Content, Entry, Kind, PackAt, Sha256
from s3hashsync.core.plan import Problem
from s3hashsync.core.value import value

_UNSAFE = re.compile(rb"(?:\A|/)\.{0,2}(?:/|\Z)|\0")
"""An empty part, `.` or `..`, or a NUL byte."""

OWNER_ONLY = 0o700
"""The mode that a folder has while a restore works in it."""


class RestoreReason(Enum):
    """Why a step is what it is."""

    NEW = "not there"
    CHANGED = "there, but another"
    METADATA = "there, with other metadata"
    EXISTS = "there already"
    SAME = "there already, the same"
    IN_THE_WAY = "something else is in its place"
    BELOW = "the folder it belongs into cannot be made"
    UNSAFE = "no path that can be restored: the run log may be forged"
    UNLOCATED = "the repository does not say where its content is"


@value
class MakeDirectory:
    """A folder is made, and gets its metadata at the end."""

    source: str
    entry: Entry
    reason: RestoreReason

    @property
    def symbol(self) -> str:
        return "+" if self.reason is RestoreReason.NEW else "~"


@value
class UseDirectory:
    """A folder is there. `finish`: it gets the snapshot's metadata at the end; otherwise it stays as it is. `claim`: until then
    only its owner may enter, as with a new one."""

    source: str
    entry: Entry
    reason: RestoreReason
    finish: bool
    claim: bool = False

    @property
    def symbol(self) -> str:
        return "m" if self.reason is RestoreReason.METADATA else " "


@value
class PlaceFile:
    """Fetch a content and place it. `content` None: the file is empty. `sha256` None: not known; the content's hash tells."""

    source: str
    entry: Entry
    reason: RestoreReason
    sha256: Sha256 | None
    content: Content | None

    @property
    def symbol(self) -> str:
        return "+" if self.reason is RestoreReason.NEW else "~"


@value
class CopyFile:
    """The content is on the disk already, at `origin` (a path of the same source, maybe this one): it is copied and checked, and
    fetched where it is not what it should be."""

    source: str
    entry: Entry
    reason: RestoreReason
    sha256: Sha256 | None
    content: Content
    origin: bytes

    @property
    def symbol(self) -> str:
        return "m" if self.reason is RestoreReason.METADATA else "="


@value
class LinkFile:
    """Another name for the file at `to`; a file of its own where that one could not be restored."""

    source: str
    entry: Entry
    reason: RestoreReason
    sha256: Sha256 | None
    content: Content | None
    to: bytes
    symbol: ClassVar[str] = "&"


@value
class PlaceSymlink:
    source: str
    entry: Entry
    reason: RestoreReason

    @property
    def symbol(self) -> str:
        return "+" if self.reason is RestoreReason.NEW else "~"


@value
class PlaceSpecial:
    """A fifo, a socket or a device."""

    source: str
    entry: Entry
    reason: RestoreReason

    @property
    def symbol(self) -> str:
        return "+" if self.reason is RestoreReason.NEW else "~"


@value
class Keep:
    """Something of that name is there and stays: without `overwrite` nothing is replaced."""

    source: str
    entry: Entry
    reason: RestoreReason
    symbol: ClassVar[str] = "."


@value
class Unchanged:
    """There already as it was: an interrupted restore goes on behind it."""

    source: str
    entry: Entry
    reason: RestoreReason
    symbol: ClassVar[str] = " "


@value
class Conflict:
    """This path cannot be restored."""

    source: str
    entry: Entry
    reason: RestoreReason
    symbol: ClassVar[str] = "!"


FileStep: TypeAlias = PlaceFile | CopyFile | LinkFile
RestoreStep: TypeAlias = MakeDirectory | UseDirectory | FileStep | PlaceSymlink | PlaceSpecial | Keep | Unchanged | Conflict


@value
class Wanted:
    """One path of the snapshot. `mate`: the first of the paths that are hard links of one file, `twin`: the first of the paths
    with the same content, None when it is this one. `blocked`: what it lies in cannot be made."""

    source: str
    entry: Entry
    sha256: Sha256 | None
    content: Content | None
    mate: bytes | None = None
    twin: bytes | None = None
    blocked: bool = False


@value
class Existing:
    """What lies in the target at that path. `sha256` is known only where it was worth reading the file; `empty`: a folder with
    nothing in it; `linked`: it is the same file as the one at the mate's path."""

    entry: Entry
    sha256: Sha256 | None = None
    empty: bool = False
    linked: bool = False


@dataclass(frozen=True, slots=True)
class RestoreRules:
    """`owners`: this user may give files away, so owners count."""

    overwrite: bool
    owners: bool


def is_safe(path: bytes) -> bool:
    """Whether a path of the snapshot leads to a place below the target (b"" is the target itself)."""
    return not path or _UNSAFE.search(path) is None


def compile_restore(wanted: Wanted, there: Existing | None, rules: RestoreRules) -> RestoreStep:
    source, entry = wanted.source, wanted.entry
    if not is_safe(entry.path) or (not entry.path and entry.kind is not Kind.DIRECTORY):
        return Conflict(source, entry, RestoreReason.UNSAFE)
    if wanted.blocked:
        return Conflict(source, entry, RestoreReason.BELOW)
    if entry.kind is Kind.DIRECTORY:
        return _directory(wanted, there, rules)
    if there is not None:
        if not rules.overwrite:
            same = _same_content_by_stat(entry, there.entry)
            return Unchanged(source, entry, RestoreReason.SAME) if same else Keep(source, entry, RestoreReason.EXISTS)
        if there.entry.kind is Kind.DIRECTORY and not there.empty:
            return Conflict(source, entry, RestoreReason.IN_THE_WAY)
    if entry.kind is Kind.FILE:
        return _file(wanted, there, rules)
    if there is not None and _same_thing(entry, there.entry) and _same_metadata(entry, there.entry, rules):
        return Unchanged(source, entry, RestoreReason.SAME)
    reason = RestoreReason.NEW if there is None else RestoreReason.CHANGED
    if entry.kind is Kind.SYMLINK:
        return PlaceSymlink(source, entry, reason)
    return PlaceSpecial(source, entry, reason)


def _directory(wanted: Wanted, there: Existing | None, rules: RestoreRules) -> RestoreStep:
    source, entry = wanted.source, wanted.entry
    if there is None:
        return MakeDirectory(source, entry, RestoreReason.NEW)
    if there.entry.kind is not Kind.DIRECTORY:
        if rules.overwrite:
            return MakeDirectory(source, entry, RestoreReason.CHANGED)
        return Conflict(source, entry, RestoreReason.IN_THE_WAY)
    mode = there.entry.mode
    claim = there.empty or mode == OWNER_ONLY or mode & OWNER_ONLY != OWNER_ONLY
    if _same_metadata(entry, there.entry, rules):
        return UseDirectory(source, entry, RestoreReason.SAME, finish=True, claim=claim)
    # Without overwrite a folder in use keeps what its owner gave it. But one that is empty, or that only its owner may enter (as
    # an interrupted restore leaves it), or that differs in its times alone, is the restore's own to finish.
    own = there.empty or mode == OWNER_ONLY or _same_rights(entry, there.entry, rules)
    if rules.overwrite or own:
        return UseDirectory(source, entry, RestoreReason.METADATA, finish=True, claim=claim)
    return UseDirectory(source, entry, RestoreReason.EXISTS, finish=False)


def _file(wanted: Wanted, there: Existing | None, rules: RestoreRules) -> RestoreStep:
    """A file of which nothing is there, or something that may be replaced."""
    source, entry = wanted.source, wanted.entry
    if there is None:
        return _placed(wanted, RestoreReason.NEW)
    same = (
        there.entry.kind is Kind.FILE
        and there.entry.size == entry.size
        and (entry.size == 0 or (there.sha256 is not None and there.sha256 == wanted.sha256))
    )
    apart = there.linked if wanted.mate is not None else entry.links > 1 or there.entry.links == 1
    if same and apart and _same_metadata(entry, there.entry, rules):
        return Unchanged(source, entry, RestoreReason.SAME)
    if same and wanted.mate is None and wanted.content is not None:
        return CopyFile(source, entry, RestoreReason.METADATA, wanted.sha256, wanted.content, entry.path)
    return _placed(wanted, RestoreReason.CHANGED)


def _placed(wanted: Wanted, reason: RestoreReason) -> RestoreStep:
    source, entry, content = wanted.source, wanted.entry, wanted.content
    if entry.size and content is None:
        return Conflict(source, entry, RestoreReason.UNLOCATED)
    if wanted.mate is not None:
        return LinkFile(source, entry, reason, wanted.sha256, content, wanted.mate)
    if wanted.twin is not None and content is not None and entry.size:
        return CopyFile(source, entry, reason, wanted.sha256, content, wanted.twin)
    return PlaceFile(source, entry, reason, wanted.sha256, content if entry.size else None)


def _same_content_by_stat(entry: Entry, there: Entry) -> bool:
    """What an interrupted restore has placed is known by size and time, as rsync knows it."""
    return _same_thing(entry, there) and entry.size == there.size and entry.mtime_ns == there.mtime_ns


def _same_thing(entry: Entry, there: Entry) -> bool:
    return entry.kind is there.kind and entry.target == there.target and entry.rdev == there.rdev


def _same_rights(entry: Entry, there: Entry, rules: RestoreRules) -> bool:
    owners = not rules.owners or (entry.uid, entry.gid) == (there.uid, there.gid)
    return owners and (entry.kind is Kind.SYMLINK or entry.mode == there.mode)


def _same_metadata(entry: Entry, there: Entry, rules: RestoreRules) -> bool:
    return _same_rights(entry, there, rules) and entry.mtime_ns == there.mtime_ns and entry.xattrs == there.xattrs


def rank(step: RestoreStep) -> int:
    """Steps of a lower rank come first: a copy needs its origin, a hard link may be one to a copy."""
    if isinstance(step, LinkFile):
        return 2
    return 1 if isinstance(step, CopyFile) else 0


class RestoreStepReader(Protocol):
    """Steps that can be read again and again."""

    def __call__(self) -> Iterator[RestoreStep]: ...


@dataclass(slots=True)
class ClassTotal:
    """What is fetched out of one storage class: objects (a pack is one), and bytes as they are stored. Of a pack whole frames
    are fetched, each once."""

    objects: int = 0
    stored: int = 0
    packs: set[str] = field(default_factory=set)
    frames: set[tuple[str, int]] = field(default_factory=set)


@dataclass(slots=True)
class RestoreTotals:
    """What a plan will do. `files` and `bytes` are what gets placed, `classes` what has to come out of the store for it."""

    files: int = 0
    bytes: int = 0
    replaced: int = 0
    directories: int = 0
    links: int = 0
    special: int = 0
    metadata: int = 0
    kept: int = 0
    unchanged: int = 0
    conflicts: int = 0
    classes: dict[str, ClassTotal] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return self.files + self.directories + self.links + self.special + self.metadata


@dataclass(frozen=True, slots=True)
class RestoredSource:
    """Which state of a source goes where. `time` (epoch seconds) and `head` are of its newest segment."""

    name: str
    target: str
    time: float
    head: str
    entries: int


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore shows and then does."""

    made_at: float
    overwrite: bool
    sources: tuple[RestoredSource, ...]
    steps: RestoreStepReader
    totals: RestoreTotals
    problems: tuple[Problem, ...] = ()


def total_restore(steps: Iterable[RestoreStep]) -> RestoreTotals:
    totals = RestoreTotals()
    for step in steps:
        _count(totals, step)
    return totals


def _count(totals: RestoreTotals, step: RestoreStep) -> None:
    totals.replaced += not isinstance(step, Conflict) and step.reason is RestoreReason.CHANGED
    match step:
        case MakeDirectory():
            totals.directories += 1
        case UseDirectory():
            totals.metadata += step.reason is RestoreReason.METADATA
        case PlaceFile() | CopyFile():
            totals.files += 1
            totals.bytes += step.entry.size
            _count_fetch(totals, step)
        case LinkFile() | PlaceSymlink():
            totals.links += 1
        case PlaceSpecial():
            totals.special += 1
        case Keep():
            totals.kept += 1
        case Unchanged():
            totals.unchanged += 1
        case Conflict():
            totals.conflicts += 1
        case _:
            assert_never(step)


def _count_fetch(totals: RestoreTotals, step: PlaceFile | CopyFile) -> None:
    if isinstance(step, PlaceFile) and step.content is not None:
        one = totals.classes.setdefault(step.content.storage_class, ClassTotal())
        at = step.content.location
        if not isinstance(at, PackAt):
            one.objects += 1
            one.stored += step.content.stored
            return
        one.objects += at.pack not in one.packs
        one.packs.add(at.pack)
        one.stored += at.frame_length if (at.pack, at.frame_offset) not in one.frames else 0
        one.frames.add((at.pack, at.frame_offset))
