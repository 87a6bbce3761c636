"""`recovery-kit`. Decides how it is called and what it prints; the kit is made in `run.recovery_kit`."""

from __future__ import annotations

import os

import click

from s3hashsync.cli.app import Context, common, pass_context
from s3hashsync.cli.output import plural
from s3hashsync.cli.progress import Shown
from s3hashsync.errors import NoRepository
from s3hashsync.run.recovery_kit import facts_of, kit, write_kit
from s3hashsync.run.repository import read_identity
from s3hashsync.wiring import keys_of, opened_stores


@click.command("recovery-kit")
@click.argument("folder", metavar="DIR")
@click.option("--force", is_flag=True, help="Replace files of an older kit, or whatever has their names.")
@click.option("--with-keys", is_flag=True, help="Copy the repository's key files, too; they are encrypted to your recipients.")
@common
@pass_context
def recovery_kit_command(context: Context, folder: str, force: bool, with_keys: bool) -> None:
    """Write a sheet to print and scripts that restore without this program; they hold no secret."""
    config, output = context.config(), context.output
    with Shown(output, "recovery-kit") as progress, opened_stores(config, os.environ, progress) as stores:
        identity = read_identity(stores.objects)
        if identity is None:
            raise NoRepository(f"there is no repository at {config.repository.objects}", "s3hashsync init makes one")
        # No key is needed, but a sheet must not name a repository that was put in the place of the right one.
        keys_of(config, os.environ, stores.objects, identity)
        facts = facts_of(config, identity, stores.objects, with_keys=with_keys)
    done = write_kit(folder, kit(facts), force=force)
    output.message(
        "recovery_kit",
        folder=os.path.abspath(folder),
        written=list(done.written),
        unchanged=list(done.unchanged),
        repository=identity.id,
        sources=list(facts.sources),
    )
    for name in done.written:
        output.info(f"  {os.path.join(folder, name)}")
    same = f", {plural(len(done.unchanged), 'file')} there already" if done.unchanged else ""
    output.info(f"{plural(len(done.written), 'file')} written{same}. No secret is in them.")
    output.info("Print RECOVERY.txt, and keep the folder where the backup is not.")
