"""What gathering one source needs and counts, for those who compare and those who hash."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from s3hashsync.config import SourceSettings
from s3hashsync.core.compare import is_racy
from s3hashsync.core.compile import Before, Change, Verdict
from s3hashsync.core.model import Entry
from s3hashsync.core.plan import Problem
from s3hashsync.core.value import value
from s3hashsync.disk.scratch import Scratch
from s3hashsync.disk.state import State
from s3hashsync.run.helper import Helper
from s3hashsync.run.keyring import Keyring
from s3hashsync.run.progress import Progress, Stop
from s3hashsync.stores.base import IndexReader


@value
class Gathering:
    """What gathering one source needs. `rewrite`: a new owner writes every name that it keeps. `fleeting`: the plan is applied at
    once, so only what takes long to read is remembered for another plan."""

    source: SourceSettings
    state: State
    scratch: Scratch
    index: IndexReader
    keys: Keyring
    progress: Progress
    stop: Stop
    scanned_ns: int
    rewrite: bool = False
    own: tuple[str, ...] = ()
    helper: Helper | None = None
    fleeting: bool = False

    @property
    def root(self) -> bytes:
        return os.fsencode(self.source.path)


@dataclass(slots=True)
class Found:
    """Counts and problems of one source while it is gathered."""

    entries: int = 0
    files: int = 0
    files_bytes: int = 0
    files_hashed: int = 0
    bytes_hashed: int = 0
    excluded: int = 0
    problems: list[Problem] = field(default_factory=list)
    refresh: list[tuple[Entry, bool]] = field(default_factory=list)


REFRESHED = 5000
"""So many paths of which nothing but the stat is new wait in memory."""


def take_over_stats(g: Gathering, found: Found, most: int = 0) -> None:
    """Into the state, as soon as they are more than `most`: these paths are behind the walk."""
    if len(found.refresh) > most:
        g.state.refresh(found.refresh)
        found.refresh.clear()


def written_again(g: Gathering, key: bytes) -> tuple[Change, bool] | None:
    """The name of this path written again under the content that the state has for it; False: it needs no hashing."""
    known = g.state.get(key)
    if known is None or known.hash is None:
        return None
    before = Before(known.entry.kind, known.entry.size, (known.hash,))
    change = Change(g.source.name, known.entry.path, Verdict.REWRITE, known.entry, before=before)
    return replace(change, hash=known.hash, sha256=known.sha256), False


def entry_is_racy(g: Gathering, entry: Entry) -> bool:
    return is_racy(entry.mtime_ns, entry.ctime_ns, g.scanned_ns)


def unreadable(g: Gathering, path: bytes, error: OSError) -> Problem:
    problem = Problem(g.source.name, path, f"cannot be read: {error.strerror or error}")
    g.progress.problem(problem)
    return problem
