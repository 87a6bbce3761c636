"""Applies the steps of one source: the run around the write protocol, batch by batch.

The order is the crash-safety argument, and it is this:
1 every path of the batch is marked dirty in the local state, durably, with each hash it may be under;
2 contents are stored and names added (the ledger's ADD);
3 what was done goes into a run-log segment, which is stored;
4 only now names are removed (the ledger's REMOVE);
5 the rows are clean, and the state stands on the new segment.
Any prefix of this, abandoned, loses nothing, and the next plan converges. Decides nothing about what should be done: that is
the plan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import assert_never

from s3hashsync.core.compare import is_racy
from s3hashsync.core.model import Content, ContentHash, Record, Sha256, StoredName
from s3hashsync.core.plan import (
    AddName,
    ContentStep,
    ExcludeName,
    MoveName,
    NoteEntry,
    Problem,
    RemoveName,
    SourceHeader,
    Step,
    StoreContent,
    Undelete,
    UpdateMetadata,
    path_of,
)
from s3hashsync.disk.state import Anchor, State
from s3hashsync.disk.state_rows import Known, key_of
from s3hashsync.errors import Interrupted, S3HashSyncError
from s3hashsync.run.batches import Batch, ahead, batches, parts
from s3hashsync.run.candidates import Candidate
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
from s3hashsync.run.lease import Lease
from s3hashsync.run.ledger import Ledger
from s3hashsync.run.packing import Pack, Packer
from s3hashsync.run.progress import Progress, Stop
from s3hashsync.run.repository import Repository
from s3hashsync.run.uploads import Uploader

SEGMENT_STEPS = 5_000
"""What waits for its segment lies in memory, about 1 KB a step."""

CHECKPOINT_FLOOR = 1000


@dataclass(frozen=True, slots=True)
class RunContext:
    """What the executor of one source works with. `packer` None: every content becomes an object. `strict`: a saved plan,
    which may not do more than it says."""

    repository: Repository
    header: SourceHeader
    host: str
    state: State
    lease: Lease
    ledger: Ledger
    uploader: Uploader
    packer: Packer | None
    progress: Progress
    stop: Stop
    now: Callable[[], float]
    log_interval: float
    strict: bool = False


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


class SourceExecutor:
    """One source, one run."""

    def __init__(self, context: RunContext) -> None:
        self._c = context
        self._number = 0
        self._names = context.repository.keys.names(context.header.name)
        self._pending = self._nothing_pending()
        # Packs all of whose contents were asked for: settled with the next segment.
        self._named_packs: list[str] = []
        self.problems: list[Problem] = []
        self.done = 0

    def run(self, steps: Iterable[Step]) -> None:
        """Take all steps. Per-file failures are in `problems`; an interruption leaves what was done acknowledged and raises
        `Interrupted`; anything else raises at once and leaves dirty rows."""
        packer = self._c.packer
        made = batches(steps, packer, self._c.uploader.stored_already, self._c.stop)
        for batch in made if packer is None else ahead(made, packer):
            if self._c.stop:
                break
            self._batch(batch)
        self._close_segment()
        self._c.stop.check()
        # What dead processes have left in packs or begun to send, and no step has asked for, is not taken up any more.
        self._c.state.forget_hashes()
        self._c.state.forget_packs([pack.id for pack in self._c.state.open_packs()])
        self._c.uploader.give_up_unwanted()
        self._checkpoint_if_due()

    def _new_writer(self) -> SegmentWriter:
        return SegmentWriter(self._c.repository.keys, self._c.header.name)

    def _nothing_pending(self) -> _Pending:
        return _Pending(self._new_writer(), since=self._c.now())

    # Steps 1 and 2

    def _batch(self, batch: Batch) -> None:
        steps = batch.steps
        if self._c.strict:
            steps = [step for one in steps if (step := self._with_leftovers(one)) is not None]
        self._c.state.mark(mark for step in steps for mark in _marks(step))
        # It is stored meanwhile: what lies in it counts for nothing until it is named.
        pack = self._stored_pack(batch)
        for part in parts(steps):
            self._add(part)
            due = self._c.now() - self._pending.since >= self._c.log_interval
            if due or self._pending.steps >= SEGMENT_STEPS:
                self._close_segment()
        if pack is not None:
            self._named_packs.append(pack.id)

    def _stored_pack(self, batch: Batch) -> Pack | None:
        if batch.pack is None or self._c.packer is None:
            return None
        with self._c.packer.awaited():
            return batch.pack.result()

    def _add(self, steps: list[Step]) -> None:
        wanted: dict[ContentHash, set[StoredName]] = {}
        candidates: dict[ContentHash, list[Candidate]] = {}
        for step in steps:
            if isinstance(step, StoreContent | AddName | Undelete | MoveName):
                wanted.setdefault(step.hash, set()).add(self._names.of(step.entry.path, step.hash))
                candidates.setdefault(step.hash, []).append(self._candidate(step))
        self._c.uploader.candidates = candidates
        names = {hash_: frozenset(each) for hash_, each in wanted.items()}
        absent = self._c.uploader.ready_and_new(wanted)
        answers = self._c.ledger.add(names, self._c.uploader, self._c.lease.guard, absent)
        for step in steps:
            self._note(step, answers)

    def _with_leftovers(self, step: Step) -> Step | None:
        """A saved plan does not know under which hashes a run that died since has left a path. Once the row is clean nobody
        would look there again, so they are dropped with the rest; a step that drops nothing is left to the next plan."""
        path = step.origin if isinstance(step, MoveName) else path_of(step)
        own = None if isinstance(step, NoteEntry | RemoveName | ExcludeName) else step.hash
        left = tuple(h for h in self._c.state.dirty_hashes(key_of(path)) if h != own)
        if isinstance(step, UpdateMetadata | MoveName):
            if left:
                self._report(step, "an interrupted run has left it unconfirmed since the plan was made: plan again")
            return None if left else step
        return replace(step, drops=(*step.drops, *(h for h in left if h not in step.drops)))

    def _candidate(self, step: ContentStep) -> Candidate:
        allowed = isinstance(step, StoreContent) or step.expects.planned or not self._c.strict
        return Candidate(step.entry, step.sha256 or Sha256(b""), allowed and step.sha256 is not None)

    def _note(self, step: Step, answers: dict[ContentHash, Record | S3HashSyncError]) -> None:
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

    def _report(self, step: Step, message: str) -> None:
        problem = Problem(step.source, path_of(step), message)
        self.problems.append(problem)
        self._c.progress.problem(problem)

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

    # Steps 3 to 5

    def _close_segment(self) -> None:
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

    def _checkpoint_if_due(self) -> None:
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


def _marks(step: Step) -> Iterator[tuple[bytes, tuple[ContentHash, ...]]]:
    """The paths (keys) that a step touches, each with every hash it may be under."""
    match step:
        case StoreContent() | AddName() | Undelete():
            yield key_of(step.entry.path), (step.hash, *step.drops)
        case MoveName():
            yield key_of(step.entry.path), (step.hash, *step.drops)
            yield key_of(step.origin), (step.hash,)
        case NoteEntry() | RemoveName() | ExcludeName():
            yield key_of(path_of(step)), step.drops
        case UpdateMetadata():
            yield key_of(step.entry.path), (step.hash,) if step.hash else ()
        case _:
            assert_never(step)


def _on_disk(root: str, path: bytes) -> bool:
    try:
        os.lstat(os.path.join(os.fsencode(root), path))
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True
