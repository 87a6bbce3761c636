"""The second half of applying: what was added goes into the run log, old names go, and the state is clean.

Decides when a segment is full, and the order within one: it is stored before names are removed, and the state stands on it last.
What it takes has its new names already; that is `run.executor`'s. It may work beside it, in one thread of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, assert_never

from s3hashsync.core.compare import is_racy
from s3hashsync.core.model import Content, ContentHash, Record, StoredName
from s3hashsync.core.plan import (
    AddName,
    ContentStep,
    ExcludeName,
    MoveName,
    NoteEntry,
    RemoveName,
    Step,
    StoreContent,
    Undelete,
    UpdateMetadata,
)
from s3hashsync.disk.state import Anchor
from s3hashsync.disk.state_rows import Known, key_of
from s3hashsync.errors import Interrupted, S3HashSyncError
from s3hashsync.run.context import RunContext
from s3hashsync.run.history import (
    CHANGES,
    CHECKPOINT,
    Present,
    Removed,
    SegmentHeader,
    SegmentWriter,
    segment_key,
    store_segment,
)

SEGMENT_STEPS = 5_000
"""What waits for its segment lies in memory, about 1 KB a step."""

CHECKPOINT_FLOOR = 1000

Answers: TypeAlias = Mapping[ContentHash, Record | S3HashSyncError]
"""What became of each content that was to get a name."""


@dataclass(slots=True)
class _Pending:
    """What has been added since the last segment, and waits for the next one."""

    writer: SegmentWriter
    present: list[tuple[Known, Content | None]] = field(default_factory=list)
    absent: list[bytes] = field(default_factory=list)
    drops: dict[ContentHash, set[StoredName]] = field(default_factory=dict)
    since: float = 0.0

    @property
    def steps(self) -> int:
        return len(self.present) + len(self.absent)


class Acknowledger:
    """One source, one run. `report` is told of what failed."""

    def __init__(self, context: RunContext, report: Callable[[Step, str], None]) -> None:
        self._c = context
        self._report = report
        self._number = 0
        self._names = context.repository.keys.names(context.header.name)
        self._pending = self._nothing_pending()
        # Packs all of whose contents were asked for: settled with the next segment.
        self._named_packs: list[str] = []
        self.done = 0

    def take(self, steps: list[Step], answers: Answers) -> None:
        """These have been added. The segment is closed when it is due."""
        for step in steps:
            self._note(step, answers)
        if self._pending.steps >= SEGMENT_STEPS or self._c.now() - self._pending.since >= self._c.log_interval:
            self.close_segment()

    def name_pack(self, pack: str) -> None:
        """All that lies in it has been taken."""
        self._named_packs.append(pack)

    def _new_writer(self) -> SegmentWriter:
        return SegmentWriter(self._c.repository.keys, self._c.header.name)

    def _nothing_pending(self) -> _Pending:
        return _Pending(self._new_writer(), since=self._c.now())

    # What was done

    def _note(self, step: Step, answers: Answers) -> None:
        match step:
            case StoreContent() | AddName() | Undelete() | MoveName():
                answer = answers[step.hash]
                if isinstance(answer, S3HashSyncError):
                    self._failed(step, answer)
                    return
                known = Known(step.entry, step.hash, step.sha256, self._racy(step))
                self._present(known, answer.content, step.drops)
                if isinstance(step, MoveName):
                    self._absent(step.origin, (step.hash,))
            case NoteEntry():
                self._present(Known(step.entry, None, None, self._racy(step)), None, step.drops)
            case UpdateMetadata():
                content = self._c.state.content(step.hash) if step.hash is not None else None
                self._present(Known(step.entry, step.hash, step.sha256, self._racy(step)), content, ())
            case RemoveName() | ExcludeName():
                self._absent(step.path, step.drops)
            case _:
                assert_never(step)
        self.done += 1

    def _failed(self, step: ContentStep, error: S3HashSyncError) -> None:
        if isinstance(error, Interrupted):
            return
        if _on_disk(self._c.header.root, step.entry.path):
            self._report(step, error.message)
        elif self._c.strict:
            self._report(step, "is gone since the plan was made")
        # Otherwise it was deleted a moment after it was scanned: nothing to report, the next run finds it gone.

    def _racy(self, step: ContentStep | NoteEntry | UpdateMetadata) -> bool:
        return is_racy(step.entry.mtime_ns, step.entry.ctime_ns, self._c.header.scanned_ns)

    def _present(self, known: Known, content: Content | None, drops: tuple[ContentHash, ...]) -> None:
        self._pending.writer.add(Present(known.entry, known.hash, known.sha256, content, drops))
        self._pending.present.append((known, content))
        self._drop(known.entry.path, drops)

    def _absent(self, path: bytes, drops: tuple[ContentHash, ...]) -> None:
        self._pending.writer.add(Removed(path, drops))
        self._pending.absent.append(key_of(path))
        self._drop(path, drops)

    def _drop(self, path: bytes, hashes: tuple[ContentHash, ...]) -> None:
        for hash_ in hashes:
            self._pending.drops.setdefault(hash_, set()).add(self._names.of(path, hash_))

    # The segment, the removals, the state

    def close_segment(self) -> None:
        pending = self._pending
        if not pending.steps:
            pending.since = self._c.now()
            return
        anchor = self._store(pending.writer, CHANGES)
        self._c.ledger.remove({h: frozenset(names) for h, names in pending.drops.items()}, self._c.lease.guard)
        self._c.state.settle(pending.present, pending.absent, anchor, self._named_packs)
        self._named_packs = []
        logged = int(self._c.state.note("logged") or 0) + pending.steps
        self._c.state.set_note("logged", str(logged))
        self._pending = self._nothing_pending()

    def _store(self, writer: SegmentWriter, kind: str) -> Anchor:
        """Put the segment and move the head to it; answers the anchor that the state has once it is settled."""
        c = self._c
        facts = c.lease.facts
        self._number += 1
        key = segment_key(c.header.name, facts.run, self._number)
        identity = c.repository.identity
        previous = c.state.anchor().head
        header = SegmentHeader(
            kind=kind,
            repository=identity.id,
            incarnation=identity.incarnation,
            source=c.header.name,
            root=c.header.root,
            host=c.host,
            run=facts.run,
            number=self._number,
            previous=previous,
            time=c.now(),
            scanned_ns=c.header.scanned_ns,
        )
        body = writer.finish(header)
        before = Anchor(identity.id, identity.incarnation, previous, key)
        c.state.set_anchor(before)
        c.lease.guard()
        store_segment(c.repository.objects, key, body)
        rewrite = facts.rewrite and kind != CHECKPOINT
        c.lease.advance(
            replace(facts, head=key, updated=int(c.now()), files=c.header.files, size=c.header.files_bytes, rewrite=rewrite)
        )
        return replace(before, head=key, pending="")

    def checkpoint_if_due(self) -> None:
        """When more was logged than the source has entries, reading the log from the last checkpoint costs more than a new
        one."""
        state = self._c.state
        forced = state.note("checkpoint") == "1" or state.note("rewrite") == "1" or self._c.lease.facts.rewrite
        logged = int(state.note("logged") or 0)
        if not forced and logged <= max(2 * state.count(), CHECKPOINT_FLOOR):
            return
        writer = self._new_writer()
        for known, content in state.all_known():
            writer.add(Present(known.entry, known.hash, known.sha256, content))
        anchor = self._store(writer, CHECKPOINT)
        state.settle((), (), anchor)
        for name, value in (("logged", "0"), ("checkpoint", "0"), ("rewrite", "0")):
            state.set_note(name, value)


def _on_disk(root: str, path: bytes) -> bool:
    try:
        os.lstat(os.path.join(os.fsencode(root), path))
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True
