"""`why` and `status`, and the commands that look into the run logs. Decides what they print."""

from __future__ import annotations

import os
import time

import click

from s3hashsync.cli.app import Context, common, pass_context
from s3hashsync.cli.output import b64, duration_text, plural, size_text, text_of
from s3hashsync.codec.names import display
from s3hashsync.config import Config, SourceSettings
from s3hashsync.disk.tree import why
from s3hashsync.errors import UsageError
from s3hashsync.run.gather import walk_options
from s3hashsync.run.lease import all_sources


@click.command("why")
@click.argument("path")
@common
@pass_context
def why_command(context: Context, path: str) -> None:
    """Say which rule keeps PATH in the backup or out of it."""
    config, output = context.config(), context.output
    absolute = os.path.abspath(path)
    source, relative = _source_of(config, absolute)
    explanations = why(os.fsencode(source.path), os.fsencode(relative), walk_options(source))
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
        known = {facts.name: facts for facts in all_sources(job.repository.index)}
        for name in sorted(configured | known.keys()):
            facts = known.get(name)
            output.message(
                "source",
                source=name,
                configured=name in configured,
                host=facts.host if facts else None,
                run=facts.run if facts else None,
                head=facts.head if facts else None,
                updated=facts.updated if facts else None,
                files=facts.files if facts else 0,
                size=facts.size if facts else 0,
            )
            if facts is None:
                output.text(f"  {name}: never backed up")
                continue
            missing = "" if name in configured else "; not in this configuration"
            output.text(
                f"  {name}: {plural(facts.files, 'file')}, {size_text(facts.size)}, from {facts.host}, last changed"
                f" {duration_text(max(now - facts.updated, 0))} ago{missing}"
            )
