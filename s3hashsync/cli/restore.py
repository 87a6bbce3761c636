"""`restore`. Decides how it is called and what it prints; the work is in `run.restore`."""

from __future__ import annotations

import time
from itertools import islice

import click

from s3hashsync.cli.app import Context, common, identity_option, pass_context
from s3hashsync.cli.output import Output, b64, duration_text, plural, size_text, text_of
from s3hashsync.cli.times import at_option, moment_text, parse_moment
from s3hashsync.codec.names import display
from s3hashsync.core.restore_plan import RestorePlan, RestoreStep, UseDirectory
from s3hashsync.errors import Incomplete, UsageError
from s3hashsync.run.backup import Job
from s3hashsync.run.restore import PlannedRestore, Restored, RestoreOptions, apply_restore, planned_restore

LINES = 60


@click.command("restore")
@click.argument("selections", nargs=-1, metavar="[SOURCE[:PATH or GLOB]]...")
@click.option("--to", metavar="DIR", help="Restore into this folder.")
@click.option("--in-place", is_flag=True, help="Restore each source to where it was.")
@click.option("--overwrite", is_flag=True, help="Replace what is there and differs; otherwise it is kept.")
@click.option("--dry-run", "-n", is_flag=True, help="Show what would be restored, and restore nothing.")
@at_option
@identity_option
@common
@pass_context
def restore_command(
    context: Context,
    selections: tuple[str, ...],
    to: str | None,
    in_place: bool,
    overwrite: bool,
    dry_run: bool,
    at: str | None,
) -> None:
    """Bring files back: whole sources, folders, single files or globs, from the newest backup or an earlier time.

    One source named: its tree lies right under DIR; several or none named: DIR/<source>/…
    """
    if (to is None) == (not in_place):
        raise UsageError("say where to restore to", "either --to DIR or --in-place")
    moment = parse_moment(at, time.time()) if at else None
    options = RestoreOptions(to=to, at=moment, overwrite=overwrite)
    with context.job("restore") as (job, progress), planned_restore(job, selections, options) as planned:
        progress.stop()
        _show(context.output, planned.plan, every_step=dry_run)
        if dry_run:
            _problems(context.output, planned.plan.problems)
            return
        restored = apply_restore(job, planned)
        progress.stop()
        _finish(context, job, planned, restored)


def _show(output: Output, plan: RestorePlan, *, every_step: bool) -> None:
    for source in plan.sources:
        output.info(f"{click.style(source.name, bold=True)} as of {moment_text(source.time)} -> {source.target}")
    if every_step:
        if output.as_json:
            for step in plan.steps():
                output.message("planned_change", **_fields(step))
        else:
            _lines(output, plan)
    t = plan.totals
    parts = [
        f"{plural(t.files, 'file')} ({size_text(t.bytes)})",
        f"{plural(t.directories, 'folder')}" if t.directories else "",
        f"{plural(t.links, 'link')}" if t.links else "",
        f"{plural(t.special, 'special file')}" if t.special else "",
        f"{t.replaced:,} of what is there replaced" if t.replaced else "",
        f"{t.unchanged:,} there already" if t.unchanged else "",
        f"{t.kept:,} kept as they are (--overwrite replaces them)" if t.kept else "",
        f"{t.conflicts:,} impossible" if t.conflicts else "",
    ]
    classes = ", ".join(
        size_text(c.stored) + (f" from {name}" if name not in ("", "STANDARD") else "")
        for name, c in sorted(t.classes.items())
        if c.objects
    )
    output.info(f"Restore: {', '.join(part for part in parts if part)}" + (f"; fetches {classes}." if classes else "."))


def _lines(output: Output, plan: RestorePlan) -> None:
    shown = (s for s in plan.steps() if s.symbol != " ")
    limit = None if output.verbosity > 0 else LINES
    for step in islice(shown, limit):
        output.info(f"  {step.symbol} {step.source}/{display(step.entry.path)}  ({step.reason.value})")
    if limit is not None and (rest := sum(1 for _ in shown)):
        output.info(f"  … and {rest:,} more (-v lists them)")


def _fields(step: RestoreStep) -> dict[str, object]:
    return {
        "action": type(step).__name__,
        "symbol": step.symbol,
        "source": step.source,
        "path": text_of(step.entry.path),
        **b64(step.entry.path),
        "type": step.entry.kind.value,
        "size": step.entry.size,
        "reason": step.reason.value,
        **({"finish": step.finish} if isinstance(step, UseDirectory) else {}),
    }


def _problems(output: Output, problems: tuple[object, ...]) -> None:
    if problems:
        raise Incomplete(f"{plural(len(problems), 'path')} cannot be restored", "restore --dry-run -v lists them")


def _finish(context: Context, job: Job, planned: PlannedRestore, restored: Restored) -> None:
    output, s = context.output, restored.summary
    for warning in restored.warnings:
        if output.verbosity > 0 or output.as_json:
            output.warning(f"{warning.source}/{display(warning.path)}: {warning.message}")
    if s.warnings and output.verbosity < 1 and not output.as_json:
        hint = "-v lists it" if restored.warnings else ""
        output.warning(f"metadata of {plural(s.warnings, 'path')} could not be put back as it was ({hint})")
    if restored.thaw is not None:
        limit = None if output.verbosity > 0 else LINES
        for file in restored.thaw.files[:limit]:
            output.text(f"  {click.style('waits', fg='cyan')} {file.source}/{display(file.path)}")
        if limit is not None and len(restored.thaw.files) > limit:
            output.text(f"  … and {len(restored.thaw.files) - limit:,} more (-v lists them)")
        for one in restored.thaw.objects:
            output.message(
                "restore_status", key=one.at.stem, version=one.at.version, storage_class=one.storage_class, bytes=one.stored
            )
    output.message(
        "summary",
        files_restored=s.files_restored,
        bytes_restored=s.bytes_restored,
        total_files=planned.plan.totals.files,
        total_bytes=planned.plan.totals.bytes,
        files_kept=s.files_kept,
        files_skipped=s.files_unchanged,
        directories=s.directories,
        links=s.links,
        special=s.special,
        warnings=s.warnings,
        errors=s.problems,
        files_waiting=len(restored.thaw.files) if restored.thaw else 0,
        requests=s.requests,
        bytes_fetched=s.bytes_fetched,
        duration_seconds=round(s.duration, 3),
    )
    output.info(
        f"Restored {plural(s.files_restored, 'file')} ({size_text(s.bytes_restored)}), {plural(s.directories, 'folder')}, "
        f"{plural(s.links, 'link')} in {duration_text(s.duration)}; "
        f"fetched {size_text(s.bytes_fetched)} in {plural(s.requests, 'request')}."
    )
    if restored.problems:
        raise Incomplete(f"{plural(len(restored.problems), 'path')} could not be restored", "each is named above")
    if restored.thaw is not None:
        raise restored.thaw.error(job.config, job.repository.identity)
