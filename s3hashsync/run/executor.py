"""Applies the steps of one source: the run around the write protocol, batch by batch.

The order is the crash-safety argument, and it is this:
1 every path of the batch is marked dirty in the local state, durably, with each hash it may be under;
2 contents are stored and names added (the ledger's ADD);
3 what was done goes into a run-log segment, which is stored;
4 only now names are removed (the ledger's REMOVE);
5 the rows are clean, and the state stands on the new segment.
Any prefix of this, abandoned, loses nothing, and the next plan converges. 3 to 5 are `run.acknowledge`'s, and go on beside 1 and
2 of the steps that follow: no path is in two steps, so neither undoes what the other has noted. Decides nothing about what should
be done: that is the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import assert_never

from s3hashsync.core.model import ContentHash, Sha256, StoredName
from s3hashsync.core.plan import (
    AddName,
    ContentStep,
    ExcludeName,
    MoveName,
    NoteEntry,
    Problem,
    RemoveName,
    Step,
    StoreContent,
    Undelete,
    UpdateMetadata,
    path_of,
)
from s3hashsync.disk.state_rows import key_of
from s3hashsync.run.acknowledge import Acknowledger, Answers
from s3hashsync.run.batches import Batch, ahead, batches, parts
from s3hashsync.run.candidates import Candidate
from s3hashsync.run.context import RunContext
from s3hashsync.run.packing import Pack


class SourceExecutor:
    """One source, one run."""

    def __init__(self, context: RunContext) -> None:
        self._c = context
        self._names = context.repository.keys.names(context.header.name)
        self._acknowledger = Acknowledger(context, self._report)
        self.problems: list[Problem] = []

    @property
    def done(self) -> int:
        """So many steps."""
        return self._acknowledger.done

    def run(self, steps: Iterable[Step]) -> None:
        """Take all steps. Per-file failures are in `problems`; an interruption leaves what was done acknowledged and raises
        `Interrupted`; anything else raises at once and leaves dirty rows."""
        packer = self._c.packer
        made = batches(steps, packer, self._c.uploader.packs.waiting, self._c.stop)
        with _Following() as following:
            for batch in made if packer is None else ahead(made, packer):
                if self._c.stop:
                    break
                self._batch(batch, following)
        self._acknowledger.close_segment()
        self._c.stop.check()
        # What dead processes have left in packs or begun to send, and no step has asked for, is not taken up any more.
        self._c.state.forget_hashes()
        self._c.state.forget_packs([pack.id for pack in self._c.state.open_packs()])
        self._c.uploader.give_up_unwanted()
        self._acknowledger.checkpoint_if_due()

    def _batch(self, batch: Batch, following: _Following) -> None:
        steps = batch.steps
        if self._c.strict:
            steps = [step for one in steps if (step := self._with_leftovers(one)) is not None]
        self._c.state.mark(mark for step in steps for mark in _marks(step))
        # It is stored meanwhile: what lies in it counts for nothing until it is named.
        pack = self._stored_pack(batch)
        for part in parts(steps):
            following.do(partial(self._acknowledger.take, part, self._add(part)))
        if pack is not None:
            following.do(partial(self._acknowledger.name_pack, pack.id))

    def _stored_pack(self, batch: Batch) -> Pack | None:
        if batch.pack is None or self._c.packer is None:
            return None
        with self._c.packer.awaited():
            return batch.pack.result()

    def _add(self, steps: list[Step]) -> Answers:
        wanted: dict[ContentHash, set[StoredName]] = {}
        candidates: dict[ContentHash, list[Candidate]] = {}
        for step in steps:
            if isinstance(step, StoreContent | AddName | Undelete | MoveName):
                wanted.setdefault(step.hash, set()).add(self._names.of(step.entry.path, step.hash))
                candidates.setdefault(step.hash, []).append(self._candidate(step))
        self._c.uploader.candidates = candidates
        names = {hash_: frozenset(each) for hash_, each in wanted.items()}
        absent = self._c.uploader.packs.new_among(wanted)
        return self._c.ledger.add(names, self._c.uploader, self._c.lease.guard, absent)

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

    def _report(self, step: Step, message: str) -> None:
        problem = Problem(step.source, path_of(step), message)
        self.problems.append(problem)
        self._c.progress.problem(problem)


class _Following:
    """One thing after the other, in a thread beside the one that asks; no more than one waits. The block is left when all is
    done, and what failed is raised there, or by the next `do`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="acknowledge")
        self._last: Future[None] | None = None

    def __enter__(self) -> _Following:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if failed is None and self._last is not None:
            self._last.result()

    def do(self, work: Callable[[], None]) -> None:
        if self._last is not None:
            self._last.result()
        self._last = self._pool.submit(work)


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
