"""`rebuild`: the local state from logs or index, and the index from the logs. Decides what is asked and printed."""

from __future__ import annotations

import os
import time

import click

from s3hashsync.cli.app import Context, common, identity_option, pass_context
from s3hashsync.cli.output import plural
from s3hashsync.cli.progress import Shown
from s3hashsync.config import Config, DynamoUrl
from s3hashsync.errors import Incomplete, UsageError
from s3hashsync.run.backup import chosen_sources
from s3hashsync.run.identities import is_named
from s3hashsync.run.keyring import Keyring
from s3hashsync.run.ledger import Terms
from s3hashsync.run.rebuild import rebuild_on_newest
from s3hashsync.run.reindex import Rebuilder, rebuild_index
from s3hashsync.run.repository import Identity
from s3hashsync.run.session import locked_state
from s3hashsync.wiring import keys_of, opened_stores, prepare_stores


@click.command("rebuild")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--index", "index", is_flag=True, help="Make a lost index anew from the run logs.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@identity_option
@common
@pass_context
def rebuild_command(context: Context, sources: tuple[str, ...], index: bool, yes: bool) -> None:
    """Make the local state anew from the run logs (or, where they are gone, from the index). Uploads nothing."""
    if index:
        if sources:
            raise UsageError("--index rebuilds the index of all sources", "name no source")
        _rebuild_index(context, yes)
        return
    with context.job("rebuild") as (job, progress):
        if is_named(os.environ, context.unlocking(progress)):
            # The index would do as well. But a person who gives an identity wants the run logs read with it.
            job.repository.keys.identities()
        for source in chosen_sources(job.config, sources):
            with locked_state(job.state_folder, source.name) as state:
                head = rebuild_on_newest(job.repository, state, source.name, progress)
                progress.stop()
                entries = state.count()
                context.output.message("rebuilt", source=source.name, head=head, entries=entries)
                context.output.info(f"{source.name}: {plural(entries, 'entry', 'entries')}, as of {head or 'the beginning'}")


def _rebuild_index(context: Context, yes: bool) -> None:
    config, output = context.config(), context.output
    if not yes:
        if not context.interactive:
            raise UsageError("there is nobody to ask whether to fill a new index", "say --yes")
        context.confirm(f"Fill the index {config.repository.index} from the run logs?")
    if isinstance(config.repository.index, DynamoUrl):
        prepare_stores(config, os.environ, recovery=False)
    with (
        Shown(output, "rebuild") as progress,
        opened_stores(config, os.environ, progress, new_index=True) as stores,
    ):
        unlocking = context.unlocking(progress)

        def keys(about: Identity) -> Keyring:
            return keys_of(config, os.environ, stores.objects, about, unlocking)

        rebuilder = Rebuilder(stores.objects, stores.index, _terms(config), progress, time.time, os.urandom, keys)
        done, problems = rebuild_index(rebuilder)
        progress.stop()
    for problem in problems:
        output.problem(problem, "rebuild")
    output.message(
        "rebuilt_index",
        incarnation=done.incarnation,
        sources=done.sources,
        live=done.live,
        trash=done.trash,
        purging=done.purging,
        errors=len(problems),
    )
    output.info(
        f"New index {config.repository.index}: {plural(done.sources, 'source')}, {plural(done.live, 'content')} in use, "
        f"{done.trash:,} in the trash, {done.purging:,} expired."
    )
    if problems:
        raise Incomplete(f"{plural(len(problems), 'name')} could not be taken over", "each is named above")


def _terms(config: Config) -> Terms:
    r = config.repository
    return Terms(r.storage_class, r.min_storage_seconds, r.keep_deleted_seconds, r.append_only)
