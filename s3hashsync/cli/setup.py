"""`init`, `doctor`, `validate`, `schema`, `completion`. Decides what they print; looking and making is done in `wiring`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import click
from click.shell_completion import get_completion_class

from s3hashsync.cli.app import Context, cli, common, identity_option, pass_context
from s3hashsync.cli.output import Output, plural
from s3hashsync.cli.overlap import overlaps
from s3hashsync.cli.progress import Shown
from s3hashsync.codec.age import Passphrase
from s3hashsync.codec.key_files import RecipientList, fingerprint_text
from s3hashsync.config import Config, EncryptionSettings, FolderUrl, S3Url, exposed, schema_text
from s3hashsync.core.ignore import dead_negations
from s3hashsync.errors import Corrupt, Refused, S3HashSyncError, UsageError
from s3hashsync.run.founding import Openers, is_begun, no_recipients
from s3hashsync.run.identities import generate_identity
from s3hashsync.run.key_health import SYNC, key_faults, old_versions
from s3hashsync.run.keyring import Keyring
from s3hashsync.run.keys import ENROLL, RepositoryKeys
from s3hashsync.run.recipients import difference
from s3hashsync.run.repository import Identity, losing_writes
from s3hashsync.run.unlock import openers_text
from s3hashsync.wiring import (
    Found,
    check_stores,
    host_place,
    iam_policies,
    keys_of,
    make_repository,
    needs_aws,
    opened_stores,
    prepare_stores,
    repository_there,
)

_SIGNS = {"ok": "ok", "created": "created", "warning": "warning", "refused": "refused"}


@click.command("init")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before creating a bucket or a table.")
@click.option("--point-in-time-recovery", is_flag=True, help="Switch on the table's continuous backup (costs money).")
@click.option("--one-recipient", is_flag=True, help="Encrypt to a single recipient: lost with it, everything is lost.")
@identity_option
@common
@pass_context
def init_command(context: Context, yes: bool, point_in_time_recovery: bool, one_recipient: bool) -> None:
    """Create the repository, or check that it is there and fits."""
    config, output = context.config(), context.output
    openers = _openers(context, config, one_recipient=one_recipient)
    if needs_aws(config):
        if not yes:
            _ask(context, config)
        findings = prepare_stores(config, os.environ, recovery=point_in_time_recovery)
        _report(output, findings)
        _refuse(findings)
    with Shown(output, "init") as progress, opened_stores(config, os.environ, progress, create=True) as stores:
        identity, new = make_repository(config, stores, os.environ, context.unlocking(progress), openers)
        keys = keys_of(config, os.environ, stores.objects, identity)
        _initialised(output, config, identity, keys, new=new)
    if needs_aws(config) and not output.as_json:
        for role, text in iam_policies(config):
            output.info(f"\nIAM policy for the role {role}:\n{text}")


def _initialised(output: Output, config: Config, identity: Identity, keys: Keyring, *, new: bool) -> None:
    mine = keys if isinstance(keys, RepositoryKeys) else None
    encryption: dict[str, object] = {"encryption": identity.encryption}
    if mine is not None:
        encryption |= {
            "fingerprint": identity.fingerprint,
            "enrolled": mine.host is not None,
            "host_key": mine.host_file.path,
        }
    output.message(
        "initialized",
        id=identity.id,
        new=new,
        objects=str(config.repository.objects),
        index=str(config.repository.index),
        **encryption,
    )
    done = "Created" if new else "There already, and fits:"
    output.info(f"{done} repository {identity.id[:8]} at {config.repository.objects}, index {config.repository.index}")
    if mine is not None:
        _encrypted(output, mine)


def _encrypted(output: Output, keys: RepositoryKeys) -> None:
    output.info(f"Encrypted; fingerprint {fingerprint_text(keys.about.fingerprint)}")
    for fault in key_faults(keys):
        if fault.fatal:
            raise Corrupt(f"nobody can open the repository: {fault.what}", fault.hint)
        output.warning(str(fault))
    with suppress(Corrupt):
        listed = keys.stated_recipients()
        output.info(f"What opens it: {openers_text(listed) if listed else 'nobody knows'}")
    output.info("Without one of these nobody can read anything. Keep them, and the fingerprint, on paper and away from")
    output.info("the machines that are backed up: s3hashsync recovery-kit DIR writes a sheet. To try one of them:")
    output.info("s3hashsync key drill --identity FILE")
    if keys.damage is not None:
        output.warning(f"this host cannot write: {keys.damage.message} ({keys.damage.hint})")
    elif keys.host is None:
        output.info(f"This host is not enrolled yet, so it cannot back up: {ENROLL}")
    else:
        output.info(f"This host is enrolled: {keys.host_file.path} lets it write, and opens nothing.")


def _openers(context: Context, config: Config, *, one_recipient: bool) -> Openers | None:
    """Whom a new repository is to be encrypted to, None: nobody. Before anything is made."""
    settings = config.encryption
    if settings == "off":
        return None
    if settings is None and isinstance(config.repository.objects, S3Url) and not context.interactive:
        raise UsageError(
            f"{config.file} says nothing about encryption, and {config.repository.objects} is not on this machine",
            "write encryption: {recipients: [age1…, age1…]} (s3hashsync key generate makes an identity), or encryption: off"
            " if the bucket's owner may read your files",
        )
    if repository_there(config, os.environ):
        # It is what it is; whether that fits is looked at later, and no secret is needed for it.
        return None
    if settings is None:
        return _undecided(context, config)
    if not settings.recipients and not context.identity_file and not is_begun(host_place(config, os.environ)):
        raise no_recipients()
    ways = len(settings.recipients) + (settings.passphrase is not None)
    if settings.recipients and ways < 2 and not one_recipient:
        raise UsageError(
            f"{config.file} names a single recipient: when its identity is lost, the whole backup is",
            "name a second one that is kept elsewhere, or a passphrase (s3hashsync key generate makes an identity);"
            " to do without: --one-recipient",
        )
    passphrase = Passphrase(settings.passphrase.reveal(os.environ)) if settings.passphrase and settings.recipients else None
    return Openers(settings.recipients, passphrase)


def _undecided(context: Context, config: Config) -> Openers | None:
    objects = config.repository.objects
    if is_begun(host_place(config, os.environ)):
        context.output.info("An init that was begun here is brought to its end.")
        return Openers(())
    if context.interactive:
        return _asked(context, config)
    context.output.info(f"{config.file} says nothing about encryption: nothing is encrypted. Whoever can read {objects} can read")
    context.output.info("the backup, and that stays so. (encryption: off says that this is known and wanted.)")
    return None


def _asked(context: Context, config: Config) -> Openers | None:
    """Two ways in, made here and now: an identity in a file, and a passphrase."""
    output = context.output
    output.info(f"{config.file} says nothing about encryption. It is decided now, and cannot be changed later.")
    if not context.agrees("Encrypt the backup?"):
        output.info("Nothing will be encrypted. Write it down in the configuration, too: encryption: off")
        return None
    path = os.path.abspath(context.ask("Make an identity in the file", default="s3hashsync-identity.txt"))
    passphrase = Passphrase(context.ask("And a passphrase that opens it as well", hidden=True, twice=True))
    recipient = generate_identity(path, os.urandom)
    output.info(f"Made {path}: move it to a stick or print it, it must not stay on this machine. Write into {config.file}:")
    output.info(f"encryption:\n  recipients:\n    - {recipient}")
    return Openers((recipient,), passphrase)


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
        unwritable = list(losing_writes(job.repository.objects, job.repository.index, job.entropy))
        findings.extend(("refused", f"no backup can be written: {error.message}", error.hint) for error in unwritable)
        if not unwritable:
            findings.append(("ok", "object store and index can be written", None))
        findings.extend(_key_findings(config, job.repository.keys))
        if isinstance(config.repository.objects, FolderUrl):
            lost = "this store keeps no versions: no undelete by hand, no protection from a host that may delete"
            findings.append(("warning", lost, None))
    for source in config.sources:
        there = os.path.isdir(source.path)
        findings.append(
            ("ok" if there else "warning", f"source {source.name}: {source.path} is {'there' if there else 'missing'}", None)
        )
    findings.extend(("warning", said, None) for said in (exposed(config), *overlaps(config, os.environ)) if said)
    _report(output, findings)
    _refuse(findings)
    warnings = sum(severity == "warning" for severity, _, _ in findings)
    output.info(f"{plural(len(findings), 'thing')} looked at, {plural(warnings, 'warning')}.")


def _key_findings(config: Config, keys: Keyring) -> Iterator[Found]:
    """Of an encrypted repository: what this host has, and whether its openers are what they should be. Needs no identity."""
    if not isinstance(keys, RepositoryKeys):
        return
    file, host = keys.host_file, keys.host
    if keys.damage is not None:
        yield "warning", f"this host cannot write: {keys.damage.message}", keys.damage.hint
    elif host is None:
        yield "warning", f"this host is not enrolled: there is no {file.path}", ENROLL
    else:
        yield "ok", f"this host is enrolled: {file.path}, fingerprint {fingerprint_text(host.fingerprint)}", None
    if file.is_open_to_others():
        yield "warning", f"others on this machine can read {file.path}", f"chmod 600 {file.path}"
    yield from (
        ("refused" if fault.fatal else "warning", fault.what, fault.hint) for fault in (*key_faults(keys), *old_versions(keys))
    )
    with suppress(Corrupt):
        yield from _list_findings(config, keys.stated_recipients())


def _list_findings(config: Config, listed: RecipientList | None) -> Iterator[Found]:
    if listed is None:
        return
    yield "ok", f"what opens the repository: {openers_text(listed)}", None
    if len(listed.recipients) + listed.passphrases < 2:
        yield "warning", "a single secret opens the repository: when it is lost, everything is", "s3hashsync key add RECIPIENT"
    if isinstance(config.encryption, EncryptionSettings) and difference(config.encryption, listed):
        yield "warning", "the configuration names other recipients than the repository has", SYNC


@click.command("validate")
@common
@pass_context
def validate_command(context: Context) -> None:
    """Check the configuration alone: all faults at once. Runs no command, reads no secret, needs no network."""
    config, output = context.config(), context.output
    for source in config.sources:
        for dead in dead_negations(source.exclude):
            output.warning(f"source {source.name}: {dead}")
    for said in (exposed(config), *overlaps(config, os.environ)):
        if said:
            output.warning(said)
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
