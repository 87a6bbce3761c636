"""A source, opened for work on this host: its lock file, its state, and whether that state may be believed.

Decides when the state is rebuilt by itself (it is missing, or stands on another head), and when nothing but `rebuild` may run
(the run logs are newer than the index: somebody restored an old table). Writes nothing to the repository, and reads no segment
for this: a backup host cannot open what it has stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from s3hashsync.config import SourceSettings
from s3hashsync.disk.lock import HostLock
from s3hashsync.disk.state import Anchor, State
from s3hashsync.errors import Corrupt, Refused, S3HashSyncError
from s3hashsync.run import rebuild
from s3hashsync.run.guards import kept_facts
from s3hashsync.run.history import is_there, newest_key, segments_prefix
from s3hashsync.run.lease import SourceFacts, read_source
from s3hashsync.run.progress import Progress
from s3hashsync.run.repository import Repository

REWRITE_NOTE = "rewrite"
CHECKPOINT_NOTE = "checkpoint"
ADOPTED_NOTE = "adopted"
"""The last segment that was found stored after a crash, and the head that it follows: `<key> <head>`."""


@dataclass(frozen=True, slots=True)
class Session:
    """One source under this host's lock. `facts` is what the index says of it (None: not backed up yet); `foreign`: it belongs
    to another host."""

    source: SourceSettings
    state: State
    facts: SourceFacts | None
    foreign: bool

    @property
    def rewrite(self) -> bool:
        """Whether the next apply writes every name that it keeps."""
        return self.foreign or self.state.note(REWRITE_NOTE) == "1" or (self.facts is not None and self.facts.rewrite)


@contextmanager
def locked_state(folder: str, source: str) -> Iterator[State]:
    """The source's state, and its lock file while it is used."""
    make_private(folder)
    lock = HostLock(os.path.join(folder, f"{source}.lock"), source)
    try:
        state = open_state(os.path.join(folder, f"{source}.db"))
        try:
            yield state
        finally:
            state.close()
    finally:
        lock.release()


def open_state(path: str) -> State:
    """A damaged state is put aside, for it is only a cache."""
    try:
        return State(path)
    except Corrupt as error:
        if "newer version" in error.message:
            raise
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(path + suffix):
                os.replace(path + suffix, f"{path}.damaged{suffix}")
        return State(path)


def make_private(folder: str) -> None:
    """The folder of the states: other people's eyes have no business there."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise S3HashSyncError(
            f"cannot make the state folder {folder}: {error.strerror}", "check the rights, or set XDG_STATE_HOME"
        ) from error


@contextmanager
def open_session(repository: Repository, folder: str, source: SourceSettings, host: str, progress: Progress) -> Iterator[Session]:
    """Lock, open, and make sure that the state stands where the index says."""
    with locked_state(folder, source.name) as state:
        facts = read_source(repository.index, source.name)
        _trust(repository, state, source.name, facts, progress)
        yield Session(source, state, facts, foreign=facts is not None and facts.host != host)


def _trust(repository: Repository, state: State, source: str, facts: SourceFacts | None, progress: Progress) -> None:
    identity = repository.identity
    anchor = state.anchor()
    head = facts.head if facts else ""
    newest = newest_key(repository.objects, source, head or segments_prefix(source))
    newest = "" if newest == segments_prefix(source) else newest
    if head and not is_there(repository.objects, head):
        # The state knows all that the segment said: a checkpoint makes the logs whole again.
        state.set_note(CHECKPOINT_NOTE, "1")
        progress.note(f"the run-log segment {head} is gone from the store: the next apply writes the whole source down again")
    known = (anchor.repository, anchor.incarnation) == (identity.id, identity.incarnation)
    if newest != head and not (known and newest == state.note("newest")):
        if not (known and _follows(state, anchor, newest, head)):
            raise Refused(
                f"the run logs of source {source} are newer than the index ({newest})",
                "was the table restored to an older point? s3hashsync rebuild makes the state anew from the logs, and the next"
                " apply writes every name again",
            )
        head = newest
    elif newest != head:
        # `rebuild` has seen that segment, and decided whether this state stands on it.
        head = anchor.head
    if known and head and head == anchor.pending:
        # The segment was stored, then the process died: its rows are still dirty and will be written again. The note comes first,
        # for without it a head that the index does not know yet would be refused.
        state.set_note(ADOPTED_NOTE, f"{head} {anchor.head}")
        state.set_anchor(replace(anchor, head=head, pending=""))
        return
    if known and head == anchor.head:
        return
    if not head and facts is None and not anchor.head and not state.count():
        state.set_anchor(Anchor(identity.id, identity.incarnation))
        return
    progress.note(f"the local state of {source} is missing or out of date: rebuilding it")
    facts_of_the_disk = kept_facts(state)
    rebuild.rebuild_state(repository, state, source, head, progress)
    for name, value in facts_of_the_disk.items():
        state.set_note(name, value)


def _follows(state: State, anchor: Anchor, newest: str, head: str) -> bool:
    """Whether `newest` is a segment of this state's own that follows `head`, and whose rows are still dirty: the one that was
    about to be written, or such a one that an earlier command has found stored, while no run has moved the head since. A segment
    that a run has settled is neither: an index that does not know it has lost what it acknowledges."""
    if newest == anchor.pending:
        return head == anchor.head
    return newest == anchor.head and state.note(ADOPTED_NOTE) == f"{newest} {head}"
