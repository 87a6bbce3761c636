"""What a restore has done so far, and what came in its way, counted for all its threads.

Decides when failures in a row mean that nothing else will work either. Knows nothing of how files are placed.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from s3hashsync.core.model import Content
from s3hashsync.core.plan import Problem
from s3hashsync.core.restore_plan import RestoreStep
from s3hashsync.disk.place import Placer
from s3hashsync.errors import S3HashSyncError, Unreachable
from s3hashsync.run.progress import Progress
from s3hashsync.run.thaw import Archive

_IN_A_ROW = 5
"""So many files in a row that the store does not answer for, after all retries: it is away, not one object."""
_WARNINGS = 1000


@dataclass(slots=True)
class RestoreSummary:
    """What a restore has done. `duration` in seconds; `requests` and `bytes_fetched` (as stored): what contents
    took to read."""

    files_restored: int = 0
    bytes_restored: int = 0
    files_kept: int = 0
    files_unchanged: int = 0
    directories: int = 0
    links: int = 0
    special: int = 0
    warnings: int = 0
    problems: int = 0
    requests: int = 0
    bytes_fetched: int = 0
    duration: float = 0.0


class Tally:
    """Counts for all threads of a restore."""

    def __init__(self, progress: Progress) -> None:
        self.summary = RestoreSummary()
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.archive = Archive()
        self._progress = progress
        self._lock = threading.Lock()
        self._unreachable = 0

    def placed(self, files: int, bytes_: int) -> None:
        with self._lock:
            self.summary.files_restored += files
            self.summary.bytes_restored += bytes_
            self._unreachable = 0
        self._progress.advance(files, bytes_)

    def kept(self, step: RestoreStep) -> None:
        """Something of that name appeared after the plan was made, or the target takes two names for one: what the plan promised
        was not done, and that is said."""
        with self._lock:
            self.summary.files_kept += 1
        message = "something of that name appeared during the restore and was left as it is"
        self.problem(Problem(step.source, step.entry.path, message))

    def problem(self, problem: Problem, error: S3HashSyncError | None = None) -> None:
        """Raises `error` again when it says that nothing else will work either."""
        with self._lock:
            self.problems.append(problem)
            self._unreachable = self._unreachable + 1 if isinstance(error, Unreachable) else 0
            gone = self._unreachable >= _IN_A_ROW
        self._progress.problem(problem)
        if gone and error is not None:
            raise error

    def archived(self, problem: Problem, content: Content) -> None:
        with self._lock:
            self.archive.add(problem, content)

    def warn(self, source: str, placer: Placer) -> None:
        with self._lock:
            for found in placer.problems:
                self.summary.warnings += 1
                if len(self.warnings) < _WARNINGS:
                    self.warnings.append(Problem(source, found.path, found.message))
        placer.problems.clear()
