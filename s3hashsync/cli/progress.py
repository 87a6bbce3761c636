"""Progress of a running command: a bar on a terminal, status lines in JSON, nothing otherwise.

Decides when something is shown. Draws with rich, which is imported only where a bar is drawn.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from s3hashsync.cli.output import Output
from s3hashsync.core.plan import Problem

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

STATUS_SECONDS = 1.0


class Shown:
    """Implements `run.progress.Progress` for the command line; a context manager, for a bar has to be taken away again."""

    def __init__(self, output: Output, during: str) -> None:
        self._output = output
        self._during = during
        self._lock = threading.Lock()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._wants_bar = not output.as_json and output.verbosity >= 0 and sys.stderr.isatty()
        self._phase = ""
        self._files = self._bytes = self._total_files = self._total_bytes = 0
        self._last_status = time.monotonic()
        self.problems = 0

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def phase(self, name: str, files: int, bytes_: int) -> None:
        with self._lock:
            self._phase, self._total_files, self._total_bytes = name, files, bytes_
            self._files = self._bytes = 0
            if self._wants_bar:
                self._draw()

    def _draw(self) -> None:
        # Without a total there is nothing to fill a bar with, nor a time left: each phase gets its own columns.
        self.stop()
        self._bar = _bar(in_bytes=bool(self._total_bytes))
        self._bar.start()
        total = self._total_bytes or self._total_files or None
        self._task = self._bar.add_task(self._phase, total=total, files="")

    def advance(self, files: int, bytes_: int) -> None:
        with self._lock:
            self._files += files
            self._bytes += bytes_
            if self._bar is not None and self._task is not None:
                done = self._bytes if self._total_bytes else self._files
                self._bar.update(self._task, completed=done, files=f"{self._files:,} files")
            elif self._output.as_json and time.monotonic() - self._last_status >= STATUS_SECONDS:
                self._last_status = time.monotonic()
                self._status()

    def _status(self) -> None:
        share = self._bytes / self._total_bytes if self._total_bytes else 0.0
        self._output.message(
            "status",
            action=self._phase,
            percent_done=round(min(share, 1.0), 4),
            total_files=self._total_files,
            files_done=self._files,
            total_bytes=self._total_bytes,
            bytes_done=self._bytes,
        )

    def problem(self, problem: Problem) -> None:
        with self._lock:
            self.problems += 1
            self._output.problem(problem, self._during)

    def note(self, text: str) -> None:
        with self._lock:
            if self._output.as_json:
                self._output.message("note", message=text)
            elif self._output.verbosity >= 0:
                sys.stderr.write(f"{text}\n")


def _bar(*, in_bytes: bool) -> Bar:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    description, files = TextColumn("{task.description}"), TextColumn("{task.fields[files]}")
    sized: list[ProgressColumn] = [BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn()]
    columns = [description, *sized, files, TimeRemainingColumn()] if in_bytes else [SpinnerColumn(), description, files]
    return Progress(*columns, console=Console(stderr=True), transient=True)
