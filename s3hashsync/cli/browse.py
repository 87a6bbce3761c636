"""`why` and `status`, and the commands that look into the run logs. Decides what they print."""

from __future__ import annotations

import os
import stat as stats
import time
from collections import Counter

import click

from s3hashsync.cli.app import Context, common, identity_option, pass_context
from s3hashsync.cli.output import Output, b64, duration_text, plural, size_text, text_of
from s3hashsync.cli.times import at_option, moment_text, parse_moment
from s3hashsync.codec.names import display
from s3hashsync.config import Config, SourceSettings
from s3hashsync.core.model import Entry, Kind
from s3hashsync.disk.metadata import group_name, owner_name
from s3hashsync.disk.tree import why
from s3hashsync.errors import UsageError
from s3hashsync.run.gather import walk_options
from s3hashsync.run.key_health import key_faults
from s3hashsync.run.lease import SourceFacts, all_sources
from s3hashsync.run.listing import Change, Listed, PathVersion, compare, find_contents, find_paths, list_paths, runs, versions
from s3hashsync.wiring import own_paths

_FORMATS = {
    Kind.FILE: stats.S_IFREG,
    Kind.DIRECTORY: stats.S_IFDIR,
    Kind.SYMLINK: stats.S_IFLNK,
    Kind.FIFO: stats.S_IFIFO,
    Kind.SOCKET: stats.S_IFSOCK,
    Kind.CHARACTER_DEVICE: stats.S_IFCHR,
    Kind.BLOCK_DEVICE: stats.S_IFBLK,
}


@click.command("why")
@click.argument("path")
@common
@pass_context
def why_command(context: Context, path: str) -> None:
    """Say which rule keeps PATH in the backup or out of it."""
    config, output = context.config(), context.output
    absolute = os.path.abspath(path)
    source, relative = _source_of(config, absolute)
    explanations = why(os.fsencode(source.path), os.fsencode(relative), walk_options(source, own_paths(config, os.environ)))
    for said in explanations:
        output.text(f"{display(said.path) or '.'}: {'excluded' if said.excluded else 'kept'}: {said.reason}")
    last = explanations[-1]
    output.message(
        "why",
        source=source.name,
        path=text_of(os.fsencode(relative)),
        **b64(os.fsencode(relative)),
        excluded=last.excluded,
        reasons=[{"path": text_of(e.path), "excluded": e.excluded, "reason": e.reason} for e in explanations],
    )


def _source_of(config: Config, absolute: str) -> tuple[SourceSettings, str]:
    """The innermost source that the path lies in, and the path relative to its root. Symlinks above the path do not hide it."""
    parent, name = os.path.split(absolute)
    resolved = os.path.join(os.path.realpath(parent), name)
    for candidate in (absolute, resolved):
        for source in sorted(config.sources, key=lambda s: -len(s.path)):
            for root in (source.path, os.path.realpath(source.path)):
                if candidate == root or candidate.startswith(root.rstrip("/") + "/"):
                    return source, os.path.relpath(candidate, root) if candidate != root else ""
    raise UsageError(f"{absolute} lies in no source", f"the sources are: {', '.join(s.path for s in config.sources)}")


@click.command("status")
@common
@pass_context
def status_command(context: Context) -> None:
    """Show the repository and its sources: what was backed up last, when, and from where."""
    with context.job("status") as (job, progress):
        progress.stop()
        output, identity, now = context.output, job.repository.identity, time.time()
        configured = {source.name for source in job.config.sources}
        output.text(f"repository {identity.id}  {job.config.repository.objects}  {job.config.repository.index}")
        output.message("repository", id=identity.id, created=identity.created, encryption=identity.encryption)
        for fault in key_faults(job.repository.keys):
            output.warning(str(fault))
        known = {facts.name: facts for facts in all_sources(job.repository.index)}
        for name in sorted(configured | known.keys()):
            _print_source(output, name, known.get(name), now, configured=name in configured)


def _print_source(output: Output, name: str, facts: SourceFacts | None, now: float, *, configured: bool) -> None:
    output.message(
        "source",
        source=name,
        configured=configured,
        host=facts.host if facts else None,
        run=facts.run if facts else None,
        head=facts.head if facts else None,
        updated=facts.updated if facts else None,
        files=facts.files if facts else 0,
        size=facts.size if facts else 0,
        unfinished=facts is not None and facts.unfinished,
    )
    if facts is None:
        output.text(f"  {name}: never backed up")
        return
    missing = "" if configured else "; not in this configuration"
    output.text(
        f"  {name}: {plural(facts.files, 'file')}, {size_text(facts.size)}, from {facts.host}, last changed"
        f" {duration_text(max(now - facts.updated, 0))} ago{missing}"
    )
    if facts.unfinished:
        output.text("    the last run is still under way, or was cut short: then the next apply goes on with it")


# What the run logs know


@click.command("ls")
@click.argument("selection", metavar="SOURCE[:PATH or GLOB]")
@click.option("-R", "--recursive", is_flag=True, help="And everything below.")
@at_option
@identity_option
@common
@pass_context
def ls_command(context: Context, selection: str, recursive: bool, at: str | None) -> None:
    """List what is in the backup."""
    moment = parse_moment(at, time.time()) if at else None
    with context.job("ls") as (job, progress):
        for one in list_paths(job, selection, moment, recursive=recursive):
            progress.stop()
            _print_entry(context.output, one)


@click.command("find")
@click.argument("pattern")
@click.option("--hash", "by_hash", is_flag=True, help="PATTERN is the beginning of a content's hash.")
@at_option
@identity_option
@common
@pass_context
def find_command(context: Context, pattern: str, by_hash: bool, at: str | None) -> None:
    """Find paths in all sources by their name (a glob), or by the hash of their content."""
    moment = parse_moment(at, time.time()) if at else None
    with context.job("find") as (job, progress):
        for one in (find_contents if by_hash else find_paths)(job, pattern, moment):
            progress.stop()
            _print_entry(context.output, one)


def _print_entry(output: Output, one: Listed) -> None:
    entry = one.entry
    mode = stats.filemode(_FORMATS[entry.kind] | entry.mode)
    link = f" -> {display(entry.target)}" if entry.target is not None else ""
    output.text(
        f"{mode} {owner_name(entry.uid) or entry.uid!s:>8} {group_name(entry.gid) or entry.gid!s:>8} {entry.size:>12,} "
        f"{moment_text(entry.mtime_ns / 1e9)} {one.source}/{display(entry.path)}{link}"
    )
    output.message("node", source=one.source, **entry_fields(entry), hash=one.hash.hex() if one.hash else None)


def entry_fields(entry: Entry) -> dict[str, object]:
    return {
        "path": text_of(entry.path),
        **b64(entry.path),
        "type": entry.kind.value,
        "size": entry.size,
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
        **({"target": text_of(entry.target)} if entry.target is not None else {}),
    }


@click.command("history")
@click.argument("selection", metavar="SOURCE[:PATH]")
@identity_option
@common
@pass_context
def history_command(context: Context, selection: str) -> None:
    """Show the runs of a source, or what one path was over time; the newest first."""
    output = context.output
    with context.job("history") as (job, progress):
        if ":" in selection:
            for version in versions(job, selection):
                progress.stop()
                _print_version(output, version)
            return
        for run in runs(job, selection):
            progress.stop()
            note = ", whole state" if run.checkpoint else ""
            written = f"{plural(run.present, 'path')} written, {run.removed:,} removed{note}"
            output.text(f"{moment_text(run.time)}  {run.run}  {run.host}  {written}")
            output.message(
                "run",
                run=run.run,
                time=run.time,
                host=run.host,
                root=run.root,
                written=run.present,
                removed=run.removed,
                segments=run.segments,
                checkpoint=run.checkpoint,
            )


def _print_version(output: Output, version: PathVersion) -> None:
    entry = version.entry
    if entry is None:
        output.text(f"{moment_text(version.time)}  removed")
    else:
        content = version.hash.hex()[:16] if version.hash else entry.kind.value
        modified = moment_text(entry.mtime_ns / 1e9)
        output.text(f"{moment_text(version.time)}  {entry.size:>12,}  modified {modified}  {content}")
    output.message(
        "version",
        run=version.run,
        time=version.time,
        removed=entry is None,
        **(entry_fields(entry) if entry else {}),
        hash=version.hash.hex() if version.hash else None,
    )


@click.command("diff")
@click.argument("source")
@click.argument("before", metavar="FROM")
@click.argument("after", metavar="[TO]", required=False)
@identity_option
@common
@pass_context
def diff_command(context: Context, source: str, before: str, after: str | None) -> None:
    """Show what changed in a source between two times (TO: now)."""
    output, now = context.output, time.time()
    counts: Counter[str] = Counter()
    with context.job("diff") as (job, progress):
        for one in compare(job, source, parse_moment(before, now), parse_moment(after, now) if after else None):
            progress.stop()
            counts[one.change.value] += 1
            output.text(f"{one.change.value} {display(one.path) or '.'}")
            output.message("change", modifier=one.change.value, path=text_of(one.path), **b64(one.path))
    output.message("statistics", **{change.name.lower(): counts[change.value] for change in Change})
    output.info(", ".join(f"{counts[change.value]:,} {change.name.lower()}" for change in Change))
