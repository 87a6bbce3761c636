"""`plan`, `apply` and `show`. Decides how they are called and what they print; the work is in `run.backup`."""

from __future__ import annotations

import os

import click

from s3hashsync.cli.app import Context, common, pass_context
from s3hashsync.cli.output import Output, duration_text, plural, size_text
from s3hashsync.cli.progress import Shown
from s3hashsync.cli.render import emit_plan, objects_text, print_plan, totals_fields
from s3hashsync.config import exposed
from s3hashsync.core.plan import Plan, Problem
from s3hashsync.errors import ExitCode, Incomplete, Interrupted, S3HashSyncError, UsageError
from s3hashsync.run import backup, saved_plan
from s3hashsync.run.backup import ApplyOptions, Job, MassChange, Planned, Summary
from s3hashsync.run.key_health import check_writable
from s3hashsync.run.recipients import stated_difference
from s3hashsync.wiring import refuse_what_breaks, tidy

DETAILED_CHANGES = 2


@click.command("plan")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--out", metavar="FILE", help="Save the plan; `apply FILE` does that and nothing else.")
@click.option("--detailed-exitcode", is_flag=True, help="0 no changes, 2 changes, 1 any error.")
@common
@pass_context
def plan_command(context: Context, sources: tuple[str, ...], out: str | None, detailed_exitcode: bool) -> None:
    """Show what apply would do. Writes nothing to the repository."""
    try:
        plan = _plan(context, sources, out)
    except S3HashSyncError as error:
        if detailed_exitcode and error.exit_code is not ExitCode.INTERRUPTED:
            error.exit_code = ExitCode.ERROR
        raise
    if plan.problems:
        message = f"{plural(len(plan.problems), 'path')} could not be read"
        if detailed_exitcode:
            raise S3HashSyncError(message)
        raise Incomplete(message, "what is known of them stays as it is")
    if detailed_exitcode and plan.totals.steps:
        context.exit_code = ExitCode(DETAILED_CHANGES)


def _plan(context: Context, sources: tuple[str, ...], out: str | None) -> Plan:
    if out:
        _check_out(out)
    with context.job("plan") as (job, progress):
        if said := exposed(job.config):
            context.output.warning(said)
        _check_keys(context.output, job)
        return _planned(context, job, progress, sources, out)


def _planned(context: Context, job: Job, progress: Shown, sources: tuple[str, ...], out: str | None) -> Plan:
    with backup.planned(job, sources) as work:
        progress.stop()
        _show_recipients(context.output, job)
        _show(context.output, work)
        _warn_of_owners(context.output, work)
        if out:
            saved_plan.save(work.plan, out)
            context.output.info(f"Saved to {out}. To take exactly these steps: s3hashsync apply {out}")
        return work.plan


def _check_out(out: str) -> None:
    """Before hours of hashing, not after. A device would be replaced by the file, for a plan is renamed to its name."""
    folder = os.path.dirname(out) or "."
    if not os.path.isdir(folder):
        raise UsageError(f"cannot write the plan {out}: there is no folder {folder}", "choose another --out FILE")
    if os.path.exists(out) and not os.path.isfile(out):
        raise UsageError(f"cannot write the plan {out}: it is there, and is no file", "choose another --out FILE")


def _check_keys(output: Output, job: Job) -> None:
    for fault in check_writable(job.repository.keys):
        output.warning(str(fault))


def _show_recipients(output: Output, job: Job) -> None:
    """Where the configuration wants others than the repository has: no backup fails because of it."""
    try:
        differs = stated_difference(job.config, job.repository.keys)
    except S3HashSyncError as error:
        output.warning(f"who can open the repository cannot be said: {error.message}")
        return
    if not differs:
        return
    output.message("recipients", added=list(differs.added), removed=list(differs.removed), passphrase=differs.passphrase)
    added = [f"+ {one}" for one in differs.added] + (["+ a passphrase"] if differs.passphrase else [])
    said = " ".join([*added, *(f"- {one}" for one in differs.removed)])
    output.info(f"recipients: {said}; s3hashsync key sync applies it")


def _show(output: Output, work: Planned, *, allowed: bool = False) -> None:
    if output.as_json:
        emit_plan(output, work.plan)
    else:
        print_plan(output, work.plan)
    for change in work.mass_changes:
        output.warning(_mass_text(change) + ("" if allowed else "; apply refuses it without --allow-mass-change"))


def _warn_of_owners(output: Output, work: Planned) -> None:
    for session in work.sessions.values():
        if session.foreign and session.facts is not None:
            name, owner = session.source.name, session.facts.host
            output.warning(f"source {name} belongs to host {owner!r}, not to this one: apply refuses it without --take-over")


def _mass_text(change: MassChange) -> str:
    return f"this removes {change.removed:,} of {change.files:,} files of source {change.source}"


@click.command("apply")
@click.argument("what", nargs=-1, metavar="[SOURCE]... | FILE")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--allow-mass-change", is_flag=True, help="Remove more of a source than the guard allows.")
@click.option("--take-over", is_flag=True, help="This machine replaces the one that backed the source up before.")
@common
@pass_context
def apply_command(context: Context, what: tuple[str, ...], yes: bool, allow_mass_change: bool, take_over: bool) -> None:
    """Plan and apply, or apply a saved plan."""
    with context.job("backup") as (job, progress):
        _check_keys(context.output, job)
        refuse_what_breaks(job, os.environ)
        tidy(job.config)
        file = _plan_file(job, what)
        options = ApplyOptions(allow_mass_change, take_over, strict=file is not None)
        if file is not None:
            with saved_plan.reopened(job, saved_plan.load(file)) as work:
                _apply(context, job, work, options)
            return
        with backup.planned(job, what, fleeting=yes) as work:
            progress.stop()
            _show_recipients(context.output, job)
            if not context.output.as_json and context.output.verbosity >= 0:
                _show(context.output, work, allowed=allow_mass_change)
            if not yes and work.plan.totals.steps:
                _confirm(context)
            _apply(context, job, work, options)


def _plan_file(job: Job, what: tuple[str, ...]) -> str | None:
    """The saved plan that is meant, unless every word is a source. A source wins over a file of the same name."""
    names = sorted(source.name for source in job.config.sources)
    if len(what) != 1 or what[0] in names:
        return None
    if not os.path.isfile(what[0]):
        raise UsageError(
            f"{what[0]!r} is neither a source in {job.config.file} nor a saved plan", f"the sources are: {', '.join(names)}"
        )
    return what[0]


def _confirm(context: Context) -> None:
    if not context.interactive:
        raise UsageError("there is nobody to ask whether to apply this plan", "say --yes, or apply a saved plan")
    context.confirm("Apply this plan?")


def _apply(context: Context, job: Job, work: Planned, options: ApplyOptions) -> None:
    output = context.output
    progress = job.progress
    assert isinstance(progress, Shown)
    try:
        summary, problems = backup.apply(job, work, options)
    except Interrupted:
        output.info("Stopped. What was acknowledged is stored.")
        raise
    progress.stop()
    if output.as_json:
        emit_summary(output, summary, problems)
    else:
        _print_summary(output, summary)
    if problems:
        raise Incomplete(
            f"{plural(len(problems), 'path')} could not be backed up", "each is named above; the next apply tries again"
        )


def _print_summary(output: Output, summary: Summary) -> None:
    units = f" ({plural(summary.index_units, 'write unit')})" if summary.index_units else ""
    if not summary.steps_done and not summary.runs:
        return
    output.info(
        f"Applied {plural(summary.steps_done, 'step')} in {duration_text(summary.duration)}: "
        f"{size_text(summary.bytes_uploaded)} in {objects_text(summary.objects_put, summary.packs)} uploaded "
        f"(stored as {size_text(summary.bytes_stored)}), {plural(summary.index_writes, 'index write')}{units}."
    )
    if summary.adopted:
        output.info(f"{plural(summary.adopted, 'content')} that an interrupted run had stored used without an upload.")


def emit_summary(output: Output, summary: Summary, problems: list[Problem]) -> None:
    """restic's names where they fit, ours beside them."""
    totals = summary.plan.totals
    output.message(
        "summary",
        bytes_uploaded=summary.bytes_uploaded,
        bytes_stored=summary.bytes_stored,
        objects_put=summary.objects_put,
        packs_put=summary.packs,
        objects_adopted=summary.adopted,
        index_writes=summary.index_writes,
        index_write_units=summary.index_units,
        files_hashed=summary.files_hashed,
        bytes_hashed=summary.bytes_hashed,
        errors=len(problems),
        duration_seconds=round(summary.duration, 3),
        change_summary=totals_fields(totals),
        files_new=totals.add + totals.copy + totals.undelete,
        files_changed=totals.change + totals.metadata,
        total_files_processed=summary.files,
        total_bytes_processed=summary.files_bytes,
        data_added=summary.bytes_uploaded,
        data_added_packed=summary.bytes_stored,
        total_duration=round(summary.duration, 3),
        runs=list(summary.runs),
    )


@click.command("show")
@click.argument("file")
@common
@pass_context
def show_command(context: Context, file: str) -> None:
    """Show a saved plan."""
    plan = saved_plan.load(file)
    if context.output.as_json:
        emit_plan(context.output, plan)
    else:
        print_plan(context.output, plan)
        for problem in plan.problems:
            context.output.problem(problem, "plan")
