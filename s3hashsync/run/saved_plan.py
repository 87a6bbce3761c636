"""Saved plans: a plan in a file, and the sources it was made on opened again.

Decides when a saved plan is too old to be applied. The form of the file is `codec.plan_file`'s; applying is `run.backup`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from s3hashsync.codec import plan_file
from s3hashsync.core.plan import Plan, Step
from s3hashsync.errors import Corrupt, Refused, S3HashSyncError
from s3hashsync.run.backup import Job, Planned, chosen_sources, mass_changes
from s3hashsync.run.guards import check_source
from s3hashsync.run.session import open_session


def save(plan: Plan, path: str) -> None:
    """Write the plan to a file that nobody else can read, atomically."""
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        # Whatever lies there is not written into: it may be a link, or be open to others.
        with suppress(FileNotFoundError):
            os.unlink(beside)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "wb") as target:
                plan_file.write_plan(target, plan.header, plan.problems, plan.steps())
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise S3HashSyncError(f"cannot write the plan {path}: {error.strerror}", "choose another --out FILE") from error


def load(path: str) -> Plan:
    """A saved plan; its steps are read from the file each time."""
    try:
        with open(path, "rb") as source:
            header, problems = plan_file.read_header(source)
    except OSError as error:
        hint = "make one: s3hashsync plan --out FILE"
        raise S3HashSyncError(f"cannot read the plan {path}: {error.strerror}", hint) from error
    except Corrupt as error:
        raise Corrupt(f"{path}: {error.message}", error.hint) from error

    def steps() -> Iterator[Step]:
        with open(path, "rb") as source:
            yield from plan_file.read_steps(source)

    return Plan(header, steps, problems)


@contextmanager
def reopened(job: Job, plan: Plan) -> Iterator[Planned]:
    """The sources of a saved plan, opened; raises `Refused` when the plan is not of this repository, or stale."""
    identity = job.repository.identity
    if (plan.header.repository, plan.header.incarnation) != (identity.id, identity.incarnation):
        raise Refused("the plan was made for another repository", "make a new plan")
    if plan.header.host != job.config.host:
        raise Refused(f"the plan was made on host {plan.header.host!r}", "apply it there, or make a new plan here")
    with ExitStack() as stack:
        sessions = {}
        for header in plan.header.sources:
            (source,) = chosen_sources(job.config, [header.name])
            if source.path != header.root:
                raise Refused(f"source {source.name} was at {header.root} when the plan was made", "make a new plan")
            session = stack.enter_context(open_session(job.repository, job.state_folder, source, job.config.host, job.progress))
            if session.state.anchor().head != header.head:
                raise Refused(f"the plan is stale: source {source.name} was backed up since it was made", "make a new plan")
            check_source(source, session.state)
            sessions[source.name] = session
        yield Planned(plan, sessions, mass_changes(job.config, plan, sessions))
