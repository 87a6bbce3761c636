"""The local state made anew: from the run logs (then nothing is hashed), or from the index (then every file is hashed once).

Decides which rows the state gets. What the newest segment was about to remove from the index may still be there after a
crash: such paths are marked, so that the next run settles them. Reads the repository, writes the state alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from s3hashsync.codec.names import Names, source_of
from s3hashsync.core.compare import is_racy
from s3hashsync.core.model import (
    Content,
    ContentHash,
    Entry,
    Kind,
    Overflow,
    Record,
    RecordState,
    Sha256,
    StoredName,
)
from s3hashsync.disk.state import Anchor, State
from s3hashsync.disk.state_rows import UNKNOWN_TIME, Known, key_of
from s3hashsync.errors import Corrupt, Missing, WrongKey
from s3hashsync.run.history import (
    CHECKPOINT,
    Line,
    Present,
    Removed,
    SegmentHeader,
    newest_key,
    read_segment,
    segments_prefix,
)
from s3hashsync.run.lease import read_source
from s3hashsync.run.progress import Progress
from s3hashsync.run.repository import Repository
from s3hashsync.run.snapshots import segments_back
from s3hashsync.stores.base import IndexReader

_BATCH = 2000
_T = TypeVar("_T")


def rebuild_state(repository: Repository, state: State, source: str, head: str, progress: Progress) -> None:
    """Make the state stand on `head`, from the logs where they can be read, otherwise from the index: with encryption a backup
    host cannot open what it has stored, but has the keys of its own sources' names. Raises `WrongKey`, and leaves the state as it
    is, where it has not even these."""
    _readable_names(repository, source)
    state.clear()
    if head:
        try:
            if not from_logs(repository, state, source, head, progress):
                state.set_note("rewrite", "1")
        except (Missing, Corrupt) as error:
            progress.note(f"the run logs cannot be read ({error.message}): rebuilding from the index instead")
            state.clear()
            from_index(repository, state, source, progress)
        except WrongKey as error:
            progress.note(
                f"the run logs are encrypted ({error.message}): rebuilding from the index; every file is hashed once, nothing is"
                " uploaded for it"
            )
            state.clear()
            from_index(repository, state, source, progress)
    else:
        from_index(repository, state, source, progress)
    identity = repository.identity
    state.set_anchor(Anchor(identity.id, identity.incarnation, head))


def rebuild_on_newest(repository: Repository, state: State, source: str, progress: Progress) -> str:
    """What `rebuild` does on purpose: also where the run logs are newer than the index (a table restored to an older point).
    Then the next apply writes every name again, for the index may have lost some. Answers the head that the state stands on
    now. Raises `WrongKey` where the index is behind and the logs cannot be opened: they alone know what it lacks."""
    facts = read_source(repository.index, source)
    head = facts.head if facts else ""
    newest = newest_key(repository.objects, source, head or segments_prefix(source))
    newest = "" if newest == segments_prefix(source) else newest
    if newest == head:
        rebuild_state(repository, state, source, head, progress)
        return head
    repository.keys.identities()
    built_on = not head or any(key == head for key, _ in segments_back(repository, source, newest))
    chosen = newest if built_on else head
    rebuild_state(repository, state, source, chosen, progress)
    state.set_note("rewrite", "1")
    state.set_note("newest", newest)
    return chosen


def from_logs(repository: Repository, state: State, source: str, head: str, progress: Progress) -> bool:
    """Replay the segments from the newest checkpoint on. Answers whether they all were written to this index and by the source's
    present owner: where not, the names that they acknowledge may be missing in this index, or a write of the former owner may
    still be under way, and the next run writes them again. (That run ends with a checkpoint: then they all are.)"""
    headers = dict(_since_checkpoint(repository, source, head))
    segments = list(headers)[::-1]
    progress.phase("reading run logs", len(segments), 0)
    for key in segments:
        header, lines = read_segment(repository, key)
        for batch in _batches(lines):
            # The last word on a path counts.
            words = {line.entry.path if isinstance(line, Present) else line.path: line for line in batch}
            state.load(_rows(words.values(), header.scanned_ns))
            state.drop(key_of(line.path) for line in words.values() if isinstance(line, Removed))
        progress.advance(1, 0)
    for key in segments:
        _, lines = read_segment(repository, key)
        _mark_unfinished(repository.index, state, repository.keys.names(source), (line for line in lines if line.was))
    owner = read_source(repository.index, source)
    if owner is not None and owner.rewrite:
        return False
    return all(
        header.incarnation == repository.identity.incarnation and (owner is None or header.host == owner.host)
        for header in headers.values()
    )


def _since_checkpoint(repository: Repository, source: str, head: str) -> Iterator[tuple[str, SegmentHeader]]:
    """The segments that make up the state, newest first."""
    for key, header in segments_back(repository, source, head):
        yield key, header
        if header.kind == CHECKPOINT:
            return


def _rows(lines: Iterable[Line], scanned_ns: int) -> Iterator[tuple[Known, Content | None]]:
    for line in lines:
        if isinstance(line, Present):
            racy = is_racy(line.entry.mtime_ns, line.entry.ctime_ns, scanned_ns)
            yield Known(line.entry, line.hash, line.sha256, racy), line.content


def _mark_unfinished(index: IndexReader, state: State, names: Names, lines: Iterable[Line]) -> None:
    """Whether the removals of a segment reached the index is not known (a run may have died before them, and the next one
    before it was done with its work): where they did not, the path is dirty."""
    for batch in _batches(lines):
        hashes = sorted({h for line in batch for h in line.was})
        holders = _names_of(index, hashes)
        unfinished = []
        for line in batch:
            path = line.path if isinstance(line, Removed) else line.entry.path
            now = state.get(key_of(path))
            still = [h for h in line.was if names.of(path, h) in holders.get(h, ()) and (now is None or h != now.hash)]
            if still:
                unfinished.append((key_of(path), still))
        if unfinished:
            state.mark(unfinished)


def _names_of(index: IndexReader, hashes: list[ContentHash]) -> dict[ContentHash, frozenset[str]]:
    """All names of these contents, overflow items included."""
    records = [item for item in index.read([h.hex() for h in hashes]).values() if isinstance(item, Record)]
    out: dict[ContentHash, frozenset[str]] = {r.hash: frozenset(r.names) for r in records if r.state is RecordState.LIVE}
    keys = [f"{r.key}#{prefix}" for r in records if r.state is RecordState.LIVE for prefix in r.buckets]
    for item in index.read(keys).values() if keys else ():
        if isinstance(item, Overflow):
            out[item.hash] = out.get(item.hash, frozenset()) | item.names
    return out


def from_index(repository: Repository, state: State, source: str, progress: Progress) -> None:
    """Names and hashes alone: sizes, times and folders are not in the index, so every file is hashed once, nothing is uploaded,
    and the next run writes a checkpoint. Raises `WrongKey` without the keys of the source's names, and `Corrupt` for a name that
    they do not open."""
    progress.phase("reading the index", 0, 0)
    rows = _IndexRows(source, _readable_names(repository, source), encrypted=repository.keys.encrypted)
    spilled: list[Overflow] = []
    for batch in _batches(repository.index.scan()):
        _load(state, (row for item in batch if isinstance(item, Record) for row in rows.of(item, item.names)))
        spilled += [rows.only_mine(item) for item in batch if isinstance(item, Overflow)]
        spilled = [item for item in spilled if item.names]
        progress.advance(len(batch), 0)
    for overflows in _batches(iter(spilled)):
        # An overflow item counts only while its live record lists it.
        records = repository.index.read({item.hash.hex() for item in overflows})
        for item in overflows:
            record = records.get(item.hash.hex())
            if isinstance(record, Record) and item.prefix in record.buckets:
                _load(state, rows.of(record, item.names))
    if state.count():
        state.set_note("checkpoint", "1")


def _readable_names(repository: Repository, source: str) -> Names:
    try:
        return repository.keys.names(source)
    except WrongKey as error:
        raise WrongKey(
            f"this host does not have the keys of source {source}, and {error.message}",
            "with the identity at hand, once on this host: s3hashsync key enroll",
        ) from None


def _load(state: State, rows: Iterable[tuple[Known, Content | None]]) -> None:
    """A path that the index has under two contents (a run died between adding and removing) is dirty, with both."""
    loaded = list(rows)
    hashes: dict[bytes, set[ContentHash]] = {}
    for known, _ in loaded:
        key = key_of(known.entry.path)
        before = state.get(key)
        hashes.setdefault(key, set()).update(k.hash for k in (known, before) if k is not None and k.hash is not None)
    state.load(loaded)
    state.mark((key, sorted(several)) for key, several in hashes.items() if len(several) > 1)


@dataclass(frozen=True, slots=True)
class _IndexRows:
    """The rows that names in the index make."""

    source: str
    names: Names
    encrypted: bool

    def only_mine(self, item: Overflow) -> Overflow:
        return replace(item, names=frozenset(name for name in item.names if source_of(name) == self.source))

    def of(self, record: Record, names: Iterable[StoredName]) -> Iterator[tuple[Known, Content | None]]:
        if record.state is not RecordState.LIVE:
            return
        # The keyed hash does not tell the SHA-256: hashing the file does.
        sha256 = None if self.encrypted else Sha256(bytes(record.hash))
        for name in names:
            if source_of(name) == self.source:
                path = self.names.path(name, record.hash)
                entry = Entry(path, Kind.FILE, record.size, UNKNOWN_TIME, 0, 0, 0, 0, 0, 0)
                yield Known(entry, record.hash, sha256, racy=True), record.content


def _batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
