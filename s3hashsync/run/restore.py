"""`restore`: gather what the run logs hold and what lies in the target, compile, and hand the steps to the placing.

Decides what a selection means and where each source goes. A dry run is a plan that is not applied. The local state is never used:
a restore works on a machine that never made a backup.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from s3hashsync.core.model import Content, Entry, Kind
from s3hashsync.core.plan import Problem
from s3hashsync.core.restore_plan import (
    Conflict,
    Existing,
    PlaceFile,
    RestoredSource,
    RestorePlan,
    RestoreRules,
    RestoreStep,
    rank,
    total_restore,
)
from s3hashsync.core.selection import Selection, parse_selection
from s3hashsync.disk.snapshot import Snapshot, WorkRow
from s3hashsync.disk.target import Target
from s3hashsync.errors import UsageError
from s3hashsync.run.backup import Job
from s3hashsync.run.contents import Contents
from s3hashsync.run.pack_reading import is_read_by_frames
from s3hashsync.run.placing import Part, Placing
from s3hashsync.run.snapshots import (
    NoStateError,
    Point,
    find_point,
    known_sources,
    opened_snapshot,
    selected,
)
from s3hashsync.run.tally import RestoreSummary, Tally
from s3hashsync.run.thaw import Thaw

_BATCH = 1000
_DEPENDENT = (1, 2)
"""The ranks of steps that depend on others."""


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """`to` None is in place: each source into its folder in `roots`, or in the configuration. `at` in epoch seconds."""

    to: str | None = None
    roots: Mapping[str, str] = field(default_factory=dict)
    at: float | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class PlannedRestore:
    """A plan with what it was made on; valid until the block that made it is left."""

    plan: RestorePlan
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of a restore. `problems`: files that were not restored; `warnings`: metadata that could not be put back (the
    first thousand, the summary counts them all); `thaw`: what has to be thawed before the rest can follow."""

    summary: RestoreSummary
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    thaw: Thaw | None


@contextmanager
def planned_restore(job: Job, selections: Sequence[str], options: RestoreOptions) -> Iterator[PlannedRestore]:
    """A plan of what is to be restored: these sources, paths and globs, everything when nothing is named."""
    wanted = _by_source(job, selections)
    rules = RestoreRules(overwrite=options.overwrite, owners=os.geteuid() == 0)
    with ExitStack() as stack:
        parts: list[Part] = []
        headers: list[RestoredSource] = []
        for source, patterns in wanted.items():
            job.stop.check()
            try:
                point = find_point(job.repository, source, options.at)
            except NoStateError as error:
                if selections:
                    raise
                job.progress.note(error.message)
                continue
            target = _target(job, options, point, alone=len(wanted) == 1 and bool(selections))
            snapshot = stack.enter_context(opened_snapshot(job.repository, point, job.progress))
            _choose(snapshot, source, patterns)
            part = Part(source, os.fsencode(target), snapshot, rules)
            entries = _look(job, part, snapshot.prepare())
            parts.append(part)
            headers.append(RestoredSource(source, target, point.header.time, point.head, entries))
        if not parts:
            raise UsageError("there is nothing to restore", "nothing was backed up " + ("by then" if options.at else "yet"))

        def steps() -> Iterator[RestoreStep]:
            return (step for part in parts for step in part_steps(part))

        problems: list[Problem] = []
        totals = total_restore(_noting((step for part in parts for step in _ordering(part)), problems))
        plan = RestorePlan(job.clock(), options.overwrite, tuple(headers), steps, totals, tuple(problems))
        yield PlannedRestore(plan, tuple(parts))


def apply_restore(job: Job, planned: PlannedRestore) -> Restored:
    """Take the steps. What cannot be restored is answered and the rest goes on; a full disk, a store that stays unreachable and
    an interruption are raised: the same restore, run again, goes on where this one stopped."""
    began = job.clock()
    totals = planned.plan.totals
    job.progress.phase("restoring", totals.files + totals.links, totals.bytes)
    tally = Tally(job.progress)
    contents = Contents(job.repository)
    for part in planned.parts:
        with Placing(job, part, contents, tally) as placing:
            placing.run(_steps(part, 0, packed=False))
            placing.run_packed()
            placing.run(step for now in _DEPENDENT for step in _steps(part, now))
            placing.finish(part.step(row) for row in part.snapshot.folders_backwards())
    summary = tally.summary
    summary.requests, summary.bytes_fetched = contents.requests, contents.bytes_fetched
    summary.duration = job.clock() - began
    summary.problems = len(tally.problems)
    return Restored(summary, tuple(tally.problems), tuple(tally.warnings), tally.archive.thaw(job.repository.index))


def part_steps(part: Part) -> Iterator[RestoreStep]:
    """The steps of one source; in the order in which they are to be taken, but for what comes out of packs: that is placed in the
    packs' order. May be read again and again: what they depend on was noted when the plan was made."""
    return (step for now in (0, *_DEPENDENT) for step in _steps(part, now))


def _steps(part: Part, now: int, *, packed: bool = True) -> Iterator[RestoreStep]:
    for row in part.snapshot.work(related=now > 0, packed=packed):
        step = part.step(row)
        if rank(step) == now:
            yield step


def _ordering(part: Part) -> Iterator[RestoreStep]:
    """All steps, once, while what comes out of packs is noted."""
    packed: list[tuple[bytes, Content]] = []
    for step in part_steps(part):
        if isinstance(step, PlaceFile) and step.content is not None and is_read_by_frames(step.content):
            packed.append((step.entry.path, step.content))
            if len(packed) == _BATCH:
                part.snapshot.note_packed(packed)
                packed.clear()
        yield step
    part.snapshot.note_packed(packed)
    part.snapshot.order_packed()


def _noting(steps: Iterable[RestoreStep], problems: list[Problem]) -> Iterator[RestoreStep]:
    for step in steps:
        if isinstance(step, Conflict):
            problems.append(Problem(step.source, step.entry.path, step.reason.value))
        yield step


# What is meant


def _by_source(job: Job, selections: Sequence[str]) -> dict[str, list[bytes]]:
    """The patterns of each source, in the order named."""
    parsed = [parse_selection(text) for text in selections]
    parsed = parsed or [Selection(name) for name in known_sources(job.repository)]
    out: dict[str, list[bytes]] = {}
    for selection in parsed:
        out.setdefault(selection.source, []).append(selection.pattern)
    return out


def _target(job: Job, options: RestoreOptions, point: Point, *, alone: bool) -> str:
    if options.to is not None:
        if not options.to:
            raise UsageError("the folder to restore to has no name", "--to DIR")
        return options.to if alone else os.path.join(options.to, point.source)
    configured = {source.name: source.path for source in job.config.sources}
    root = options.roots.get(point.source) or configured.get(point.source)
    if root is None:
        # The folder that a run log names is not enough: whoever may write to the bucket could choose it.
        raise UsageError(
            f"source {point.source} is not in {job.config.file}, so there is no place to restore it to",
            f"it was at {point.header.root!r} on {point.header.host}: say --to DIR, or add it to the configuration",
        )
    return root


def _choose(snapshot: Snapshot, source: str, patterns: Sequence[bytes]) -> None:
    if b"" in patterns:
        snapshot.choose_all()
        return
    for pattern in patterns:
        if next(selected(snapshot, pattern), None) is None:
            raise UsageError(
                f"nothing in source {source} is or matches {Selection(source, pattern)}",
                f"s3hashsync ls -R {source} lists what there is; a path begins below the source's root",
            )
        snapshot.choose(path for row in selected(snapshot, pattern) for path in _with_parents(row.entry.path))


def _with_parents(path: bytes) -> Iterator[bytes]:
    """The folders above are made with their metadata too."""
    yield path
    while path:
        path = path.rpartition(b"/")[0]
        yield path


# What is there


def _look(job: Job, part: Part, entries: int) -> int:
    with Target(part.target) as target:
        if not target.there:
            return entries
        job.progress.phase("looking at the target", entries, 0)
        looking = _Looking(part, target)
        for number, work in enumerate(part.snapshot.work()):
            looking.look(work)
            if number % _BATCH == 0:
                looking.flush()
                job.stop.check()
                job.progress.advance(_BATCH, 0)
        looking.flush()
    return entries


class _Looking:
    """Goes through the work in order, and notes what the target holds."""

    def __init__(self, part: Part, target: Target) -> None:
        self._part = part
        self._target = target
        self._blocked: bytes | None = None
        self._found: dict[bytes, tuple[bool, Existing | None]] = {}

    def look(self, work: WorkRow) -> None:
        entry = work.row.entry
        if self._blocked is not None and entry.path.startswith(self._blocked):
            self._found[entry.path] = True, None
            return
        there = self._target.look(entry.path)
        if there is None:
            return
        if entry.kind is Kind.DIRECTORY and there.entry.kind is not Kind.DIRECTORY and not self._part.rules.overwrite:
            # The keys of what is below follow this one immediately.
            self._blocked = entry.path + b"/"
        if self._part.rules.overwrite:
            there = self._closer(work, entry, there)
        self._found[entry.path] = False, there

    def _closer(self, work: WorkRow, entry: Entry, there: Existing) -> Existing:
        """With `overwrite` the bytes decide, and whether hard links hang together."""
        if entry.kind is not Kind.FILE or there.entry.kind is not Kind.FILE or entry.size != there.entry.size:
            return there
        if work.mate is not None:
            there = replace(there, linked=self._inode(work.mate) == (there.entry.device, there.entry.inode))
        return replace(there, sha256=self._target.sha256(entry.path) if entry.size else None)

    def _inode(self, path: bytes) -> tuple[int, int] | None:
        if path in self._found:
            there = self._found[path][1]
            return (there.entry.device, there.entry.inode) if there else None
        return self._part.snapshot.inode_found(path)

    def flush(self) -> None:
        self._part.snapshot.note_found((path, *found) for path, found in self._found.items())
        self._found.clear()
