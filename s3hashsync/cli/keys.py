"""`key`: the identities and passphrases that open an encrypted repository, and the hosts that may write to it. Decides how the
commands are called and what they print."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import click

from s3hashsync.cli.app import Context, common, identity_option, pass_context
from s3hashsync.cli.output import Output, b64, plural, size_text, text_of
from s3hashsync.cli.progress import Shown
from s3hashsync.codec.age import Passphrase, X25519Identity, X25519Recipient
from s3hashsync.codec.key_files import RECIPIENTS, RecipientList, fingerprint_text
from s3hashsync.codec.names import display
from s3hashsync.config import Config, EncryptionSettings, Secret
from s3hashsync.errors import Corrupt, Incomplete, Refused, UsageError
from s3hashsync.run.drill import Drill, drill
from s3hashsync.run.identities import generate_identity, is_there
from s3hashsync.run.key_health import key_faults, old_versions, unlisted
from s3hashsync.run.keys import ENROLL, RepositoryKeys
from s3hashsync.run.recipients import Change, Wanted, begin_change, change_recipients, difference
from s3hashsync.run.unlock import openers_text
from s3hashsync.wiring import opened_keys

DEFAULT_FILE = "s3hashsync-identity.txt"
KEPT_COPY = "Whoever kept a copy of the key files and of an identity that was removed can still open what is stored."


@click.group("key")
def key_command() -> None:
    """Identities, hosts, and who can open the repository."""


@contextmanager
def _opened(context: Context, config: Config) -> Iterator[RepositoryKeys]:
    with Shown(context.output, "key") as progress, opened_keys(config, os.environ, progress, context.unlocking(progress)) as keys:
        yield keys


@key_command.command("generate")
@click.argument("file", default=DEFAULT_FILE)
@click.option("--passphrase", is_flag=True, help="Protect the file with a passphrase, as age -p does.")
@common
@pass_context
def generate_command(context: Context, file: str, passphrase: bool) -> None:
    """Make an age identity, and print its recipient. What is there is never overwritten."""
    path = os.path.abspath(os.path.expanduser(file))
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already", "name another file: an identity is never overwritten")
    protection = Passphrase(_new_passphrase(context, "S3HASHSYNC_PASSPHRASE")) if passphrase else None
    recipient = generate_identity(path, os.urandom, protection)
    context.output.message("generated", file=path, recipient=recipient, passphrase=passphrase)
    context.output.text(recipient)
    context.output.info(f"Its identity is in {path}: keep it where the backup is not, on paper or on a stick, not here.")


def _new_passphrase(context: Context, variable: str | None) -> str:
    if variable and os.environ.get(variable):
        return os.environ[variable]
    if not context.interactive:
        hint = f"set {variable}" if variable else "write it under encryption.passphrase, then: s3hashsync key sync"
        raise UsageError("there is nobody to ask for the new passphrase", hint)
    return context.ask("New passphrase", hidden=True, twice=True)


@key_command.command("enroll")
@identity_option
@common
@pass_context
def enroll_command(context: Context) -> None:
    """Write what this host needs to back up: once on a new or reinstalled host, with the identity at hand."""
    config, output = context.config(), context.output
    with _opened(context, config) as keys:
        host = keys.enroll(source.name for source in config.sources)
        output.message(
            "enrolled",
            repository=host.repository,
            fingerprint=host.fingerprint,
            epoch=host.epoch,
            file=keys.host_file.path,
            sources=sorted(host.sources),
        )
        output.info(f"This host can back up now: {keys.host_file.path} lets it write, and opens nothing.")
        output.info(f"The repository's fingerprint is {fingerprint_text(host.fingerprint)}: compare it with your recovery sheet.")
        output.info(f"Keys of sources: {', '.join(sorted(host.sources)) or 'none yet'}.")


@key_command.command("list")
@identity_option
@common
@pass_context
def list_command(context: Context) -> None:
    """Show who can open the repository. Needs no identity; with one, the list is checked."""
    config, output = context.config(), context.output
    with (
        Shown(output, "key") as progress,
        # Nobody is asked: it can be shown without.
        opened_keys(config, os.environ, progress, context.unlocking(progress, may_ask=False)) as keys,
    ):
        checked = keys.unlock_if_at_hand()
        listed = None
        # What is damaged is among the faults.
        with suppress(Corrupt):
            listed = keys.stated_recipients()
        _list(output, config, keys, listed, checked=checked)
        for fault in (*key_faults(keys), *old_versions(keys)):
            output.warning(str(fault))


def _list(output: Output, config: Config, keys: RepositoryKeys, listed: RecipientList | None, *, checked: bool) -> None:
    host = keys.host
    output.message(
        "keys",
        repository=keys.about.id,
        fingerprint=keys.about.fingerprint,
        epoch=listed.epoch if listed else None,
        recipients=list(listed.recipients) if listed else None,
        passphrases=listed.passphrases if listed else None,
        checked=checked,
        enrolled=host is not None,
        host_key=keys.host_file.path,
        sources=sorted(host.sources) if host else [],
    )
    output.text(f"repository {keys.about.id}  {config.repository.objects}")
    output.text(f"  fingerprint {fingerprint_text(keys.about.fingerprint)}")
    if listed is not None:
        output.text(f"  epoch {listed.epoch} of the keys, which can be opened with")
        for recipient in listed.recipients:
            output.text(f"    the identity of {recipient}")
        if listed.passphrases:
            output.text(f"    {'a passphrase' if listed.passphrases == 1 else f'any of {listed.passphrases} passphrases'}")
        output.text("  the list is authentic" if checked else "  the list is as the store says: with --identity it is checked")
    if keys.damage is not None:
        output.text(f"  this host cannot write: {keys.damage.message} ({keys.damage.hint})")
    elif host is None:
        output.text(f"  this host is not enrolled ({ENROLL})")
    else:
        output.text(f"  this host is enrolled, for {', '.join(sorted(host.sources)) or 'no source yet'}: {keys.host_file.path}")


@key_command.command("add")
@click.argument("recipients", nargs=-1, metavar="[RECIPIENT]...")
@click.option("--passphrase", is_flag=True, help="A new passphrase opens the repository as well.")
@identity_option
@common
@pass_context
def add_command(context: Context, recipients: tuple[str, ...], passphrase: bool) -> None:
    """Let further identities, or a passphrase, open the repository."""
    _named(recipients, passphrase=passphrase)
    config = context.config()
    with _opened(context, config) as keys:
        change, now = _begun(keys)
        new = Passphrase(_new_passphrase(context, None)) if passphrase else None
        everybody = tuple(dict.fromkeys((*now.recipients, *recipients)))
        _changed(context, config, change, change_recipients(change, Wanted(everybody, new)))


@key_command.command("remove")
@click.argument("recipients", nargs=-1, metavar="[RECIPIENT]...")
@click.option("--passphrase", is_flag=True, help="No passphrase opens the repository any more.")
@identity_option
@common
@pass_context
def remove_command(context: Context, recipients: tuple[str, ...], passphrase: bool) -> None:
    """Take recipients, or all passphrases, away. Never the last recipient."""
    _named(recipients, passphrase=passphrase)
    config = context.config()
    with _opened(context, config) as keys:
        change, now = _begun(keys)
        _check_listed(context.output, change, now, recipients, passphrase=passphrase)
        left = tuple(one for one in now.recipients if one not in recipients)
        _changed(context, config, change, change_recipients(change, Wanted(left, drop_passphrases=passphrase)))
    context.output.info(KEPT_COPY)


def _check_listed(output: Output, change: Change, now: RecipientList, recipients: Sequence[str], *, passphrase: bool) -> None:
    """Somebody who is named by mistake is not removed, and the one who was meant still is there. But what a removal that was cut
    short has left, old versions included, is not listed any more: then the same command ends it."""
    wrong = []
    if unknown := [one for one in recipients if one not in now.recipients]:
        wrong.append(f"{', '.join(unknown)} cannot open the repository")
    if passphrase and not now.passphrases:
        wrong.append("no passphrase opens the repository")
    if not wrong:
        return
    if not any(unlisted(change.keys.objects, now)) and not change.past():
        raise UsageError(wrong[0], f"what opens it: {openers_text(now)}")
    output.warning(f"by its list, {' and '.join(wrong)}: key files that an earlier change has left are taken away")


@key_command.command("sync")
@identity_option
@common
@pass_context
def sync_command(context: Context) -> None:
    """Make the recipients those of the configuration, and add its passphrase. Takes no passphrase away."""
    config = context.config()
    settings = config.encryption
    if not isinstance(settings, EncryptionSettings) or not settings.recipients:
        raise UsageError(f"{config.file} names no recipients", "write encryption: {recipients: [age1…, age1…]}")
    with _opened(context, config) as keys:
        change = begin_change(keys)
        before = change.before
        secret = settings.passphrase
        if secret is not None and before is not None and before.passphrases and not is_there(secret, os.environ):
            context.output.warning(f"encryption.passphrase is not at hand ({secret.words[0]} is not set): it was not compared")
            secret = None
        new = Passphrase(secret.reveal(os.environ)) if secret else None
        after = change_recipients(change, Wanted(settings.recipients, new))
        _changed(context, config, change, after)
        _say_passphrases(context.output, config, settings.passphrase, after.passphrases)
    if difference(settings, before).removed:
        context.output.info(KEPT_COPY)


def _say_passphrases(output: Output, config: Config, secret: Secret | None, there: int) -> None:
    """A configuration that names another passphrase than before, or none any more, takes none away."""
    if there > 1 and secret is not None:
        output.warning(
            f"{there} passphrases open the repository, {config.file} names one: to be rid of the others, s3hashsync key remove"
            " --passphrase takes all away, and s3hashsync key sync adds that one again"
        )
    elif there and secret is None:
        output.info(f"{config.file} names no passphrase: s3hashsync key remove --passphrase takes away what there is.")


def _named(recipients: Sequence[str], *, passphrase: bool) -> None:
    if not recipients and not passphrase:
        raise UsageError("nobody is named", "name recipients (age1…), or say --passphrase")
    for one in recipients:
        X25519Recipient.parse(one)


def _begun(keys: RepositoryKeys) -> tuple[Change, RecipientList]:
    change = begin_change(keys)
    if change.before is None:
        raise Refused(
            f"{RECIPIENTS} is lost, damaged, or not about the key files that are there, so who can open the repository is not"
            " known",
            "name all of them in the configuration, and run s3hashsync key sync",
        )
    return change, change.before


def _changed(context: Context, config: Config, change: Change, after: RecipientList) -> None:
    output = context.output
    before = change.before
    there = before.recipients if before else ()
    added = [one for one in after.recipients if one not in there]
    removed = [one for one in there if one not in after.recipients]
    more = after.passphrases - before.passphrases if before else 0
    output.message(
        "recipients",
        added=added,
        removed=removed,
        recipients=list(after.recipients),
        passphrases=after.passphrases,
    )
    for sign, names in (("+", added), ("-", removed)):
        for one in names:
            output.info(f"{sign} {one}")
    if more:
        output.info(f"{'+' if more > 0 else '-'} {plural(abs(more), 'passphrase')}")
    output.info(f"What opens the repository now: {openers_text(after)}.")
    tried = change.unlocked.opener.label + (" and the new passphrase" if more > 0 else "")
    output.info(f"Tried: {tried}. To try the others: s3hashsync key drill.")
    if len(after.recipients) + after.passphrases < 2:
        output.warning("a single secret opens the repository: when it is lost, everything is")
    settings = config.encryption
    if isinstance(settings, EncryptionSettings) and difference(settings, after):
        output.info(f"{config.file} names others: change it there, too, or key sync takes this back.")


@key_command.command("drill")
@identity_option
@common
@pass_context
def drill_command(context: Context) -> None:
    """Prove that an identity opens the repository: its keys, every source's run log, and one content."""
    config, output = context.config(), context.output
    with _opened(context, config) as keys:
        done = drill(keys)
        listed = begin_change(keys).before
        mine = {str(one.recipient) for one in keys.unlocked().opener.identities if isinstance(one, X25519Identity)}
    for problem in done.problems:
        output.problem(problem, "drill")
    untried = [one for one in listed.recipients if one not in mine] if listed else []
    _print_drill(output, done, untried, (listed.passphrases if listed else 0) - (0 if mine else 1))
    if done.problems:
        raise Incomplete(f"{plural(len(done.problems), 'thing')} could not be opened", "each is named above")


def _print_drill(output: Output, done: Drill, untried: list[str], passphrases: int) -> None:
    content = done.content
    output.message(
        "drill",
        opened_with=done.opener,
        files=list(done.files),
        sources=[{"source": one.name, "segment": one.head or None, "paths": one.paths} for one in done.sources],
        content=content
        and {
            "source": content.source,
            "path": text_of(content.path),
            **b64(content.path),
            "size": content.size,
            "sha256": content.sha256.hex(),
        },
        archived=done.archived,
        untried=untried,
        untried_passphrases=max(passphrases, 0),
        errors=len(done.problems),
    )
    output.info(f"{done.opener} opens {', '.join(done.files)}")
    for one in done.sources:
        log = f"run log {one.head} ({plural(one.paths, 'path')})" if one.head else "no run log yet"
        output.info(f"source {one.name}: its keys, {log}")
    if content is not None:
        output.info(f"content of {content.source}/{display(content.path)}: {size_text(content.size)}, its SHA-256 is right")
    elif done.archived:
        output.info("no content was tried: those that were looked at lie in an archive class, and have to be thawed first")
    elif done.sources:
        output.info("no content was tried: none is stored")
    for recipient in untried:
        output.info(f"not tried: the identity of {recipient}")
    if passphrases > 0:
        output.info(f"not tried: {plural(passphrases, 'passphrase')}")
    if untried or passphrases > 0:
        output.info("Each takes its own secret: run the drill with each of them.")
