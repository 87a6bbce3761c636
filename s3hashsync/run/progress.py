"""How a running command tells what it does, and hears that it should stop.

Decides what can be told. Knows no terminal: the command line implements `Progress`, tests count with it.
"""

from __future__ import annotations

import threading
from typing import Protocol

from s3hashsync.core.plan import Problem
from s3hashsync.errors import Interrupted


class Progress(Protocol):
    """Called from the main thread and from workers; must be quick and must not raise."""

    def phase(self, name: str, files: int, bytes_: int) -> None:
        """A new phase begins: so many files and bytes are ahead (0 when unknown)."""

    def advance(self, files: int, bytes_: int) -> None: ...

    def problem(self, problem: Problem) -> None: ...

    def note(self, text: str) -> None:
        """Something a person should know, on a line of its own."""


class Silent:
    """Tells nobody."""

    def phase(self, name: str, files: int, bytes_: int) -> None: ...

    def advance(self, files: int, bytes_: int) -> None: ...

    def problem(self, problem: Problem) -> None: ...

    def note(self, text: str) -> None: ...


class Stop:
    """Set by a signal: what is under way is brought to an acknowledged end, nothing new is begun."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        if self._event.is_set():
            raise Interrupted("interrupted", "run the same command again: it goes on where it stopped")
