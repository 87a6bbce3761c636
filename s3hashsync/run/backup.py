"""`plan` and `apply`: gather, compile, and hand the steps to the executor.

Decides which guards stand before a plan is applied, and when a saved plan is too old. A dry run is not a flag here: it is a
plan that is not applied.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby

from s3hashsync.config import Config, SourceSettings
from s3hashsync.core.compile import compile_change
from s3hashsync.core.plan import Plan, PlanHeader, Problem, SourceHeader, Step, Totals
from s3hashsync.disk.scratch import Scratch
from s3hashsync.disk.seals import SealFiles
from s3hashsync.disk.state import State
from s3hashsync.errors import Locked, Refused, S3HashSyncError, UsageError
from s3hashsync.run.attempts import UploadPorts, UploadSettings
from s3hashsync.run.candidates import SourceFiles
from s3hashsync.run.context import RunContext
from s3hashsync.run.executor import SourceExecutor
from s3hashsync.run.frames import FrameMaker, SharedFrames, ThreadFrames
from s3hashsync.run.gather import gather, look_up
from s3hashsync.run.gathering import Gathering
from s3hashsync.run.guards import remember_mounts
from s3hashsync.run.helper import WORTH_IT, Helper, HelperFrames, folder_of
from s3hashsync.run.history import new_run_id, newest_key
from s3hashsync.run.lease import Lease, SourceFacts, acquire, all_sources
from s3hashsync.run.ledger import Ledger, Terms
from s3hashsync.run.packing import Packer, PackLimits, PackPorts
from s3hashsync.run.progress import Progress, Stop
from s3hashsync.run.repository import Repository
from s3hashsync.run.session import Session, open_session
from s3hashsync.run.stored_packs import StoredPacks
from s3hashsync.run.uploads import Uploader


@dataclass(frozen=True, slots=True)
class Job:
    """What every command works with: made in `wiring`, which alone knows clock, randomness and environment. `clock` in epoch
    seconds, `clock_ns` in nanoseconds; `threads` is how many uploads go on at once;
    `own` what belongs to the program itself and is never backed up; `helper`: another process that reads files, where there is
    more than one core."""

    config: Config
    repository: Repository
    state_folder: str
    progress: Progress
    stop: Stop
    clock: Callable[[], float]
    clock_ns: Callable[[], int]
    entropy: Callable[[int], bytes]
    threads: int
    own: tuple[str, ...] = ()
    helper: Helper | None = None


@dataclass(frozen=True, slots=True)
class MassChange:
    """A source that would lose more than its share and number of files."""

    source: str
    removed: int
    files: int


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan with what it was made on; valid while the sources are held open."""

    plan: Plan
    sessions: dict[str, Session]
    mass_changes: tuple[MassChange, ...]


@dataclass(slots=True)
class Summary:
    """What an apply has done. Sizes in bytes; `bytes_uploaded` before, `bytes_stored` after compression."""

    plan: Plan
    files: int = 0
    files_bytes: int = 0
    files_hashed: int = 0
    bytes_hashed: int = 0
    bytes_uploaded: int = 0
    bytes_stored: int = 0
    objects_put: int = 0
    packs: int = 0
    adopted: int = 0
    index_writes: int = 0
    index_units: int = 0
    steps_done: int = 0
    duration: float = 0.0
    runs: tuple[str, ...] = ()


def chosen_sources(config: Config, names: Sequence[str]) -> tuple[SourceSettings, ...]:
    """The sources with these names, all when none is named; raises `UsageError`-like faults for unknown ones."""
    if not names:
        return config.sources
    by_name = {source.name: source for source in config.sources}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise UsageError(f"no source {unknown[0]!r} in {config.file}", f"the sources are: {', '.join(sorted(by_name))}")
    return tuple(by_name[name] for name in dict.fromkeys(names))


@contextmanager
def planned(job: Job, names: Sequence[str] = (), *, fleeting: bool = False) -> Iterator[Planned]:
    """A fresh plan of these sources. They stay locked on this host until the block is left. `fleeting`: it is applied at once."""
    with ExitStack() as stack:
        scratch = Scratch()
        stack.callback(scratch.close)
        sessions: dict[str, Session] = {}
        headers: list[SourceHeader] = []
        problems: list[Problem] = []
        for source in chosen_sources(job.config, names):
            session = stack.enter_context(open_session(job.repository, job.state_folder, source, job.config.host, job.progress))
            sessions[source.name] = session
            header, found = gather(_gathering(job, session, scratch, fleeting=fleeting), session.state.anchor().head)
            headers.append(header)
            problems += found
        job.progress.phase("asking the index", 0, 0)
        look_up(scratch, job.repository.index)
        scratch.join()

        pack = job.config.repository.pack
        below = pack.below if pack is not None else 0

        def steps() -> Iterator[Step]:
            return (step for change in scratch.changes() if (step := compile_change(change, below)) is not None)

        plan = Plan(_header(job, headers), steps, problems)
        yield Planned(plan, sessions, mass_changes(job.config, plan, sessions))


def _gathering(job: Job, session: Session, scratch: Scratch, *, fleeting: bool) -> Gathering:
    return Gathering(
        source=session.source,
        state=session.state,
        scratch=scratch,
        index=job.repository.index,
        keys=job.repository.keys,
        progress=job.progress,
        stop=job.stop,
        scanned_ns=job.clock_ns(),
        rewrite=session.rewrite,
        own=job.own,
        helper=job.helper,
        fleeting=fleeting,
    )


def _header(job: Job, headers: list[SourceHeader]) -> PlanHeader:
    configured = {source.name for source in job.config.sources}
    others = [f.name for f in all_sources(job.repository.index) if f.host == job.config.host and f.name not in configured]
    identity = job.repository.identity
    pack = job.config.repository.pack
    return PlanHeader(
        repository=identity.id,
        incarnation=identity.incarnation,
        host=job.config.host,
        made_at=job.clock(),
        sources=tuple(headers),
        unconfigured=tuple(others),
        pack_size=pack.size if pack is not None else 0,
    )


def mass_changes(config: Config, plan: Plan, sessions: dict[str, Session]) -> tuple[MassChange, ...]:
    """The sources of which the plan removes, or newly excludes, more than the share and the number of files that the guard
    allows."""
    out = []
    for name, session in sessions.items():
        files = session.state.count_files()
        # No more can be removed than there is: that spares a first backup one reading of its plan.
        removed = plan.outline(name).files_removed if files > config.mass_change_files else 0
        if removed > config.mass_change_files and removed > config.mass_change_share * files:
            out.append(MassChange(name, removed, files))
    return tuple(out)


# Applying


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """`strict`: a saved plan, which may not do more than it says."""

    allow_mass_change: bool = False
    take_over: bool = False
    strict: bool = False


def apply(job: Job, work: Planned, options: ApplyOptions) -> tuple[Summary, list[Problem]]:
    """Take the steps of the plan, source by source. Per-file failures are answered, everything else is raised."""
    if work.mass_changes and not options.allow_mass_change:
        first = work.mass_changes[0]
        raise Refused(
            f"the plan removes {first.removed:,} of {first.files:,} files of source {first.source}",
            "look at the plan; if that is what you want: apply --allow-mass-change",
        )
    began = job.clock()
    plan = work.plan
    summary = Summary(plan)
    problems = list(plan.problems)
    # Nobody has asked what it comes to: then nobody looks at the progress either.
    totals = plan.totals if plan.is_totalled else Totals()
    job.progress.phase("applying", totals.packed + totals.objects_put - totals.packs, totals.bytes_upload)
    headers = {header.name: header for header in plan.header.sources}
    for header in plan.header.sources:
        _check_owner(work.sessions[header.name], job.config.host, options)
    done = set()
    for name, steps in groupby(plan.steps(), key=lambda step: step.source):
        problems += _apply_source(job, work.sessions[name], headers[name], steps, options, summary)
        done.add(name)
    for header in plan.header.sources:
        summary.files += header.files
        summary.files_bytes += header.files_bytes
        summary.files_hashed += header.files_hashed
        summary.bytes_hashed += header.bytes_hashed
        if header.name not in done:
            _settle_unchanged(job, work.sessions[header.name], header, options, summary)
    summary.duration = job.clock() - began
    return summary, problems


def _check_owner(session: Session, host: str, options: ApplyOptions) -> None:
    """Before anything is done: the lease itself is taken source by source, later."""
    if session.foreign and not options.take_over and session.facts is not None:
        raise Locked(
            f"source {session.source.name} belongs to host {session.facts.host!r}, this is {host!r}",
            f"set `host: {session.facts.host}` in the configuration if this is the same machine under another name"
            " (containers, CI); use --take-over if this machine replaces it",
        )


def _settle_unchanged(job: Job, session: Session, header: SourceHeader, options: ApplyOptions, summary: Summary) -> None:
    """A source without a step still needs its first checkpoint after a rebuild, may have a run that was cut short behind its last
    step, and is noted as seen."""
    state = session.state
    cut_short = session.facts is not None and session.facts.unfinished
    if state.note("checkpoint") == "1" or session.rewrite or cut_short:
        _apply_source(job, session, header, iter(()), options, summary)
    remember_mounts(session.source, state)


def _apply_source(
    job: Job,
    session: Session,
    header: SourceHeader,
    steps: Iterator[Step],
    options: ApplyOptions,
    summary: Summary,
) -> list[Problem]:
    if session.rewrite:
        session.state.set_note("rewrite", "1")
    job.repository.keys.add_source(header.name)
    lease = _lease(job, session, header, options)
    root = os.open(header.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    files = SourceFiles(root, "inode" in session.source.compare)
    ledger, uploader, packer = _workers(job, session, files, header.files_hashed)
    context = RunContext(
        repository=job.repository,
        header=header,
        host=job.config.host,
        state=session.state,
        lease=lease,
        ledger=ledger,
        uploader=uploader,
        packer=packer,
        progress=job.progress,
        stop=job.stop,
        now=job.clock,
        log_interval=float(job.config.log_interval_seconds),
        strict=options.strict,
    )
    executor = SourceExecutor(context)
    with _accounted(lease, session.state):
        try:
            executor.run(steps)
        finally:
            with ExitStack() as closing:
                closing.callback(os.close, root)
                closing.callback(uploader.close)
                if packer is not None:
                    # First: it may be storing a pack.
                    closing.callback(packer.stop)
            _add_up(summary, ledger, uploader, executor)
            summary.runs = (*summary.runs, lease.facts.run)
    remember_mounts(session.source, session.state)
    return executor.problems


@contextmanager
def _accounted(lease: Lease, state: State) -> Iterator[None]:
    """Says at the end what the source holds by now, also where the run is cut short."""
    try:
        yield
    except S3HashSyncError as error:
        # A store that does not answer is not asked once more.
        if not error.transient:
            with suppress(S3HashSyncError):
                lease.finish(*state.count_files_and_bytes(), whole=False)
        raise
    with suppress(Locked):
        # Whoever has taken the source over since says what it holds.
        lease.finish(*state.count_files_and_bytes(), whole=True)


def _lease(job: Job, session: Session, header: SourceHeader, options: ApplyOptions) -> Lease:
    newest = newest_key(job.repository.objects, header.name)
    run = new_run_id(job.clock(), newest, job.entropy(4).hex())
    head = session.state.anchor().head
    facts = SourceFacts(header.name, job.config.host, run, head, int(job.clock()), rewrite=session.rewrite)
    seen = session.facts.head if session.facts else ""
    lease, _ = acquire(job.repository.index, facts, job.entropy, seen=seen, take_over=options.take_over)
    return lease


def _workers(job: Job, session: Session, files: SourceFiles, hashed: int) -> tuple[Ledger, Uploader, Packer | None]:
    repository, settings = job.repository, job.config.repository
    terms = Terms(settings.storage_class, settings.min_storage_seconds, settings.keep_deleted_seconds, settings.append_only)
    ledger = Ledger(repository.index, repository.objects, terms, job.clock, job.entropy)
    upload = UploadSettings(
        storage_class=settings.storage_class,
        threads=job.threads,
        now=lambda: int(job.clock()),
        entropy=job.entropy,
        seals=SealFiles(os.path.join(job.state_folder, session.source.name)),
        verify=job.config.verify_uploads,
    )
    storing = UploadPorts(repository, session.state, upload)
    uploader = Uploader(storing, StoredPacks(storing), files, job.progress, job.stop)
    if settings.pack is None:
        return ledger, uploader, None
    verify = job.config.verify_uploads
    limits = PackLimits(settings.pack.size, job.state_folder, verify)
    idle = threading.Event()
    frames: FrameMaker = ThreadFrames(files.root, verify=verify)
    if job.helper is not None and (job.helper.started or hashed >= WORTH_IT):
        away = HelperFrames(job.helper, folder_of(session.source.path, files.root), verify=verify)
        frames = SharedFrames(away, frames, idle)
    ports = PackPorts(frames, repository.keys, job.entropy, job.progress, uploader.packs.put, idle)
    return ledger, uploader, Packer(ports, limits)


def _add_up(summary: Summary, ledger: Ledger, uploader: Uploader, executor: SourceExecutor) -> None:
    summary.objects_put += uploader.tally.objects
    summary.bytes_uploaded += uploader.tally.bytes_read
    summary.bytes_stored += uploader.tally.bytes_stored
    summary.adopted += uploader.tally.adopted
    summary.packs += uploader.tally.packs
    summary.index_writes += ledger.tally.writes + uploader.tally.index_writes
    summary.index_units += ledger.tally.units + uploader.tally.index_units
    summary.steps_done += executor.done
