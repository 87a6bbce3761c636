"""`init`, `doctor`, `validate`, `schema`, `completion`. Decides what they print; looking and making is done in `wiring`."""

from __future__ import annotations

import os
import time

import click
from click.shell_completion import get_completion_class

from s3hashsync.cli.app import Context, cli, common, pass_context
from s3hashsync.cli.output import Output, plural
from s3hashsync.cli.overlap import overlaps
from s3hashsync.cli.progress import Shown
from s3hashsync.config import Config, FolderUrl, S3Url, schema_text
from s3hashsync.core.ignore import dead_negations
from s3hashsync.errors import Refused, S3HashSyncError, UsageError
from s3hashsync.run.repository import initialise
from s3hashsync.wiring import check_stores, iam_policies, needs_aws, opened_stores, prepare_stores

_SIGNS = {"ok": "ok", "created": "created", "warning": "warning", "refused": "refused"}


@click.command("init")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before creating a bucket or a table.")
@click.option("--point-in-time-recovery", is_flag=True, help="Switch on the table's continuous backup (costs money).")
@common
@pass_context
def init_command(context: Context, yes: bool, point_in_time_recovery: bool) -> None:
    """Create the repository, or check that it is there and fits."""
    config, output = context.config(), context.output
    if config.encryption is None and isinstance(config.repository.objects, S3Url):
        raise UsageError(
            f"{config.file} says nothing about encryption, and {config.repository.objects} is not on this machine",
            "say `encryption: off` if the bucket's owner may read your files (encryption is not available yet in this version)",
        )
    if needs_aws(config):
        if not yes:
            _ask(context, config)
        findings = prepare_stores(config, os.environ, recovery=point_in_time_recovery)
        _report(output, findings)
        _refuse(findings)
    with Shown(output, "init") as progress, opened_stores(config, os.environ, progress, create=True) as stores:
        identity, new = initialise(stores.objects, stores.index, int(time.time()), os.urandom)
    output.message(
        "initialized",
        id=identity.id,
        new=new,
        objects=str(config.repository.objects),
        index=str(config.repository.index),
    )
    done = "Created" if new else "There already, and fits:"
    output.info(f"{done} repository {identity.id[:8]} at {config.repository.objects}, index {config.repository.index}")
    if needs_aws(config) and not output.as_json:
        for role, text in iam_policies(config):
            output.info(f"\nIAM policy for the role {role}:\n{text}")


def _ask(context: Context, config: Config) -> None:
    repository = config.repository
    if not context.interactive:
        raise UsageError("there is nobody to ask whether to create what is missing in AWS", "say --yes")
    context.confirm(f"Create what is missing of {repository.objects} and {repository.index}?")


def _report(output: Output, findings: list[tuple[str, str, str | None]]) -> None:
    for severity, what, hint in findings:
        output.message("finding", severity=severity, what=what, hint=hint)
        if severity == "ok" and output.verbosity < 1:
            continue
        colour = {"created": "green", "warning": "yellow", "refused": "red"}.get(severity)
        output.text(f"{click.style(severity + ':', fg=colour)} {what}" + (f" ({hint})" if hint else ""))


def _refuse(findings: list[tuple[str, str, str | None]]) -> None:
    for severity, what, hint in findings:
        if severity == "refused":
            raise Refused(what, hint)


@click.command("doctor")
@common
@pass_context
def doctor_command(context: Context) -> None:
    """Check configuration, stores and rights, and say what is missing or dangerous."""
    config, output = context.config(), context.output
    findings = check_stores(config, os.environ)
    with context.job("doctor") as (job, _):
        findings.append(("ok", f"repository {job.repository.identity.id[:8]} and its index belong together", None))
        if isinstance(config.repository.objects, FolderUrl):
            lost = "this store keeps no versions: no undelete by hand, no protection from a host that may delete"
            findings.append(("warning", lost, None))
    for source in config.sources:
        there = os.path.isdir(source.path)
        findings.append(
            ("ok" if there else "warning", f"source {source.name}: {source.path} is {'there' if there else 'missing'}", None)
        )
    findings.extend(("warning", held, None) for held in overlaps(config, os.environ))
    _report(output, findings)
    _refuse(findings)
    warnings = sum(severity == "warning" for severity, _, _ in findings)
    output.info(f"{plural(len(findings), 'thing')} looked at, {plural(warnings, 'warning')}.")


@click.command("validate")
@common
@pass_context
def validate_command(context: Context) -> None:
    """Check the configuration alone: all faults at once. Runs no command, reads no secret, needs no network."""
    config, output = context.config(), context.output
    for source in config.sources:
        for dead in dead_negations(source.exclude):
            output.warning(f"source {source.name}: {dead}")
    for held in overlaps(config, os.environ):
        output.warning(held)
    output.message("validated", file=config.file, sources=[source.name for source in config.sources])
    output.info(f"{config.file} is valid: {plural(len(config.sources), 'source')}.")


@click.command("schema")
@common
@pass_context
def schema_command(context: Context) -> None:
    """Print the JSON Schema of the configuration."""
    click.echo(schema_text(), nl=False)


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common
@pass_context
def completion_command(context: Context, shell: str) -> None:
    """Print the completion script of a shell."""
    found = get_completion_class(shell)
    if found is None:
        raise S3HashSyncError(f"there is no completion for {shell}")
    click.echo(found(cli, {}, "s3hashsync", "_S3HASHSYNC_COMPLETE").source())
