"""Cuts the steps of a plan into batches, and packs small contents on the way.

Decides which steps are taken together. All names of one content stay together, so that they go in one write. Steps whose
content is packed wait until their pack is closed; the others do not wait for them, because steps of different contents do not
depend on each other. Knows nothing of what a batch goes through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from s3hashsync.core.cost import NAMES_AT_ONCE
from s3hashsync.core.model import ContentHash
from s3hashsync.core.plan import AddName, MoveName, Step, StoreContent, Undelete
from s3hashsync.run.candidates import Candidate
from s3hashsync.run.packing import MEMBERS, Pack, Packer
from s3hashsync.run.progress import Stop

BATCH_STEPS = 4000
"""Each batch waits five times for the disk, whatever its size: fewer of them cost a third less on a folder."""

BATCH_BYTES = 256 << 20

PART_STEPS = 2000
"""So many steps of a batch with a pack are in work at once: no bytes wait for the disk there, and each takes memory."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Steps that are taken together, and the pack in which their small contents lie, as soon as it is stored. A file that did not
    hold still is not in it: the uploader knows the other paths of that content."""

    steps: list[Step]
    pack: Future[Pack] | None = None


@dataclass(slots=True)
class _Lane:
    """Steps that wait for their batch."""

    most: int
    steps: list[Step] = field(default_factory=list)
    size: int = 0

    def add(self, step: Step) -> None:
        self.steps.append(step)
        if isinstance(step, StoreContent):
            self.size += step.entry.size

    @property
    def full(self) -> bool:
        return len(self.steps) >= self.most

    def take(self, pack: Future[Pack] | None = None) -> Batch:
        taken = Batch(self.steps, pack)
        self.steps, self.size = [], 0
        return taken


def batches(steps: Iterable[Step], packer: Packer | None, stored: Iterable[ContentHash], stop: Stop) -> Iterator[Batch]:
    """All steps; none more once `stop` is set. `stored`: contents that need no packing, because a dead process did it."""
    plain, packed = _Lane(BATCH_STEPS), _Lane(MEMBERS)
    already = frozenset(stored)
    lane, last = plain, None
    for step in steps:
        if stop:
            return
        hash_ = content_of(step)
        begins = hash_ is None or hash_ != last
        if begins or len(lane.steps) >= NAMES_AT_ONCE:
            if plain.full or plain.size >= BATCH_BYTES:
                yield plain.take()
            if packed.steps and packer is not None and (packed.full or packer.full):
                yield packed.take(packer.close())
            lane = plain
        if begins and packer is not None and isinstance(step, StoreContent) and step.packed and step.hash not in already:
            packer.add(step.hash, Candidate(step.entry, step.sha256))
            lane = packed
        lane.add(step)
        last = hash_
    if plain.steps:
        yield plain.take()
    if packed.steps and packer is not None:
        yield packed.take(packer.close())


def parts(steps: list[Step]) -> Iterator[list[Step]]:
    """A batch with a pack has more steps than need to be in work at once; those of one content stay together. The list is used
    up: the next batch is being made, and takes the memory of what is done."""
    steps.reverse()
    while steps:
        part = [steps.pop()]
        while steps and (len(part) < PART_STEPS or _continues(part[-1], steps[-1])):
            part.append(steps.pop())
        yield part


def _continues(step: Step, following: Step) -> bool:
    hash_ = content_of(step)
    return hash_ is not None and hash_ == content_of(following)


def content_of(step: Step) -> ContentHash | None:
    """The content that gets a name by this step."""
    return step.hash if isinstance(step, StoreContent | AddName | Undelete | MoveName) else None


def ahead(made: Iterator[Batch], packer: Packer) -> Iterator[Batch]:
    """The next batch is made while the last one is applied: no more than these two are in memory."""
    with ThreadPoolExecutor(1, thread_name_prefix="batch") as pool:
        future = pool.submit(next, made, None)
        while True:
            with packer.awaited():
                batch = future.result()
            if batch is None:
                return
            future = pool.submit(next, made, None)
            yield batch
