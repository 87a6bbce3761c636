"""From what changed to what is to be done: pure, one change at a time.

Decides which step a change becomes. A change carries everything that the decision needs (the joins by hash, the record that the
index held); nothing is read here, nothing is written, no clock is asked.
"""

from __future__ import annotations

from enum import Enum

from s3hashsync.core.model import ContentHash, Entry, Kind, Location, RecordState, Sha256
from s3hashsync.core.plan import (
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
)
from s3hashsync.core.value import value


class Verdict(Enum):
    """What comparing disk and state said of one path."""

    NEW = "new"
    CHANGED = "changed"
    METADATA = "metadata"
    GONE = "gone"
    EXCLUDED = "excluded"
    UNCONFIRMED = "unconfirmed"
    REWRITE = "rewrite"


@value
class Known:
    """What the index held for a hash when the plan was made."""

    state: RecordState
    location: Location | None
    spill: int = 0


@value
class Before:
    """What the state held for a path: `hashes` is every hash the path may be under (more than one after a crash)."""

    kind: Kind
    size: int
    hashes: tuple[ContentHash, ...]


@value
class Change:
    """One path that differs. `entry` and the hashes are what the disk has now (None when it has nothing, or no content).

    `first`: no earlier change of this plan brings the same content. `origin`: the path that this one was moved from.
    `moved_away`: another change of the plan says where this one went.
    """

    source: str
    path: bytes
    verdict: Verdict
    entry: Entry | None = None
    hash: ContentHash | None = None
    sha256: Sha256 | None = None
    before: Before | None = None
    known: Known | None = None
    first: bool = True
    origin: bytes | None = None
    moved_away: bool = False
    rule: str = ""


def compile_change(change: Change, pack_below: int = 0) -> Step | None:
    """The step for this change, or None when another step covers it. Contents of less than `pack_below` bytes go into packs."""
    if change.entry is None:
        return None if change.moved_away else _removal(change)
    if change.verdict is Verdict.METADATA:
        return UpdateMetadata(change.source, change.entry, change.hash, change.sha256, Reason.METADATA)
    drops = _drops(change)
    if change.hash is None:
        return NoteEntry(change.source, change.entry, drops, _reason(change, change.entry))
    return _content_step(change, change.entry, change.hash, packed=change.entry.size < pack_below)


def _drops(change: Change) -> tuple[ContentHash, ...]:
    return tuple(h for h in change.before.hashes if h != change.hash) if change.before else ()


def _removal(change: Change) -> Step | None:
    if change.before is None:
        return None
    kind, size, hashes = change.before.kind, change.before.size, change.before.hashes
    if change.verdict is Verdict.EXCLUDED:
        return ExcludeName(change.source, change.path, kind, size, hashes, change.rule, Reason.EXCLUDED)
    return RemoveName(change.source, change.path, kind, size, hashes, Reason.DELETED)


def _content_step(change: Change, entry: Entry, hash_: ContentHash, *, packed: bool) -> ContentStep:
    expects = _expected(change)
    reason = _reason(change, entry)
    drops = _drops(change)
    sha256 = change.sha256
    common = (hash_, sha256, drops)
    if change.origin is not None and expects.state is RecordState.LIVE:
        return MoveName(change.source, entry, change.origin, *common, Reason.MOVED, expects)
    if expects.planned or expects.state is RecordState.LIVE:
        return AddName(change.source, entry, *common, Reason.COPIED if reason is Reason.NEW else reason, expects)
    if expects.state is RecordState.TRASH:
        return Undelete(change.source, entry, *common, Reason.RETURNED if reason is Reason.NEW else reason, expects)
    if sha256 is None:
        # It could not be read now, so it cannot be uploaded: its name is written if the content is still there.
        return AddName(change.source, entry, *common, reason, expects)
    return StoreContent(change.source, entry, hash_, sha256, drops, reason, expects, packed)


def _expected(change: Change) -> Expected:
    known = change.known
    if known is not None and known.state is RecordState.LIVE:
        return Expected(known.state, known.location, spill=known.spill)
    if not change.first:
        return Expected(RecordState.LIVE, planned=True)
    return Expected(known.state, known.location) if known else Expected(None)


def _reason(change: Change, entry: Entry) -> Reason:
    match change.verdict:
        case Verdict.UNCONFIRMED:
            return Reason.UNCONFIRMED
        case Verdict.REWRITE:
            return Reason.TAKE_OVER
        case _ if change.before is None:
            return Reason.NEW
        case _ if change.before.kind is not entry.kind:
            return Reason.REPLACED
        case _:
            return Reason.CHANGED
