"""The command line: reads arguments, prints, and turns errors into exit codes. Decides nothing about backups."""

from __future__ import annotations

import signal


def entry_point() -> None:
    """Runs the program and exits with its code."""
    # Until the program is loaded there is nothing to bring to an end: Ctrl-C simply ends it, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    from s3hashsync.cli.app import entry_point as run

    run()


__all__ = ["entry_point"]
