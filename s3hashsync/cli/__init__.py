"""The command line: reads arguments, prints, and turns errors into exit codes. Decides nothing about backups."""

from __future__ import annotations

import ctypes
import signal
from contextlib import suppress


def entry_point() -> None:
    """Runs the program and exits with its code."""
    # Until the program is loaded there is nothing to bring to an end: Ctrl-C simply ends it, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _one_arena()

    from s3hashsync.cli.app import entry_point as run

    run()


def _one_arena() -> None:
    """glibc gives every thread a heap of its own, and none of them back: a fifth of the memory. With one they wait for each other
    no more than for the interpreter's lock. Before the first thread; other C libraries do not have it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


_ARENA_MAX = -8
"""From malloc.h."""

__all__ = ["entry_point"]
