"""The command line: reads arguments, prints, and turns errors into exit codes. Decides nothing about backups."""

from __future__ import annotations

import ctypes
import signal
from contextlib import suppress


def entry_point() -> None:
    """Runs the program and exits with its code."""
    # Until the program is loaded there is nothing to bring to an end: Ctrl-C simply ends it, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _spare_memory()

    from s3hashsync.cli.app import entry_point as run

    run()


def _spare_memory() -> None:
    """glibc gives every thread a heap of its own, and none of them back: a fifth of the memory. With one they wait for each other
    no more than for the interpreter's lock. And it soon takes buffers of many megabytes out of that heap, between which small
    things stay: another tenth. Before the first thread; other C libraries have neither."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, 512 << 10)


_ARENA_MAX, _MMAP_THRESHOLD = -8, -3
"""From malloc.h."""

__all__ = ["entry_point"]
