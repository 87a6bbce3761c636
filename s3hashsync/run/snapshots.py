"""The state of a source at its head or at an earlier time, out of its run logs.

Decides which segment is the newest that counts, and what "at a time" means. The local state is never asked; the index is asked
for the head, and for the place of a content that the logs do not locate, and may know nothing. Memory stays flat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from s3hashsync.core.model import Content, ContentHash, Record, RecordState
from s3hashsync.core.selection import is_glob, path_matcher
from s3hashsync.disk.snapshot import Snapshot, SnapshotRow
from s3hashsync.errors import Corrupt, Missing, UsageError
from s3hashsync.run.history import (
    CHECKPOINT,
    SOURCE_NAME,
    Line,
    Present,
    Removed,
    SegmentHeader,
    read_header,
    read_segment,
    segment_keys,
    sources_with_logs,
)
from s3hashsync.run.lease import all_sources, read_source
from s3hashsync.run.progress import Progress
from s3hashsync.run.repository import Repository
from s3hashsync.stores.base import IndexReader

_BATCH = 2000


@dataclass(frozen=True, slots=True)
class Point:
    """A state of a source: the segments that make it up, oldest first (keys), and the newest one's header."""

    source: str
    segments: tuple[str, ...]
    header: SegmentHeader

    @property
    def head(self) -> str:
        return self.segments[-1]


class NoStateError(UsageError):
    """The source is there, but had no backup yet at that time."""


def known_sources(repository: Repository) -> list[str]:
    """Every source that has a backup, whether index or object store know of it."""
    names = {facts.name for facts in all_sources(repository.index)} | set(sources_with_logs(repository.objects))
    return sorted(name for name in names if SOURCE_NAME.fullmatch(name))


def find_head(repository: Repository, source: str) -> str:
    """The key of the newest segment that counts: the one that the index names, or one that is built on it (the process died
    before it moved the head, or the table is an older copy). Where the index knows nothing of the source, the newest there is."""
    if SOURCE_NAME.fullmatch(source) is None:
        raise _unknown(repository, source)
    facts = read_source(repository.index, source)
    head = facts.head if facts else ""
    later = list(segment_keys(repository.objects, source, head))
    for key in reversed(later):
        if facts is None or _is_built_on(repository, key, head):
            return key
    if not head:
        raise _unknown(repository, source)
    return head


def _unknown(repository: Repository, source: str) -> UsageError:
    others = [name for name in known_sources(repository) if name != source]
    hint = f"the sources are: {', '.join(others)}" if others else "nothing was backed up to it yet"
    return UsageError(f"there is no backup of a source {source!r} in this repository", hint)


def _is_built_on(repository: Repository, key: str, head: str) -> bool:
    try:
        while key > head:
            key = read_header(repository, key).previous
    except (Missing, Corrupt):
        return False
    return key == head


def segments_back(repository: Repository, source: str, head: str) -> Iterator[tuple[str, SegmentHeader]]:
    """Every segment from `head` back, newest first. Raises `Missing` where the chain is broken, and `Corrupt` where `head` is of
    another source. It comes to an end: a segment that does not stand on an earlier one of its source is not believed."""
    key = head
    while key:
        try:
            header = read_header(repository, key)
        except Missing:
            raise Missing(
                f"the run-log segment {key} of source {source} is gone",
                "an older version of that object may still be in the bucket",
            ) from None
        if header.source != source:
            raise Corrupt(f"the run-log segment {key} does not belong to the log of source {source}")
        yield key, header
        key = header.previous


def find_point(repository: Repository, source: str, at: float | None = None) -> Point:
    """The source's state at its head, or as of `at` (epoch seconds). Raises `UsageError` where there was none yet."""
    head = find_head(repository, source)
    keys: list[str] = []
    newest: SegmentHeader | None = None
    oldest = 0.0
    for key, header in segments_back(repository, source, head):
        oldest = header.time
        if newest is None and at is not None and header.time > at:
            continue
        # Whatever the newest one is built on counts, also where a clock that was set back says that it is later.
        newest = newest or header
        keys.append(key)
        if header.kind == CHECKPOINT:
            break
    if newest is None:
        assert at is not None
        raise NoStateError(f"source {source} had no backup yet at {_shown(at)}", f"its oldest state is of {_shown(oldest)}")
    return Point(source, tuple(reversed(keys)), newest)


def _shown(time: float) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC"


@contextmanager
def opened_snapshot(repository: Repository, point: Point, progress: Progress) -> Iterator[Snapshot]:
    """The state as a table that can be read again and again, until the block is left."""
    snapshot = Snapshot()
    try:
        progress.phase(f"reading run logs of {point.source}", len(point.segments), 0)
        for key in point.segments:
            _, lines = read_segment(repository, key)
            for batch in _batches(lines):
                _fold(snapshot, batch)
            progress.advance(1, 0)
        snapshot.locate_inside()
        for hashes in snapshot.unlocated():
            for content in locations(repository.index, hashes).values():
                snapshot.locate(content.hash, content)
        yield snapshot
    finally:
        snapshot.close()


def _fold(snapshot: Snapshot, batch: Sequence[Line]) -> None:
    # The last word on a path counts.
    last = {line.entry.path if isinstance(line, Present) else line.path: line for line in batch}
    present = (SnapshotRow(p.entry, p.hash, p.sha256, p.content) for p in last.values() if isinstance(p, Present))
    snapshot.fold(present, (path for path, line in last.items() if isinstance(line, Removed)))


def _batches(lines: Iterator[Line]) -> Iterator[list[Line]]:
    while batch := list(islice(lines, _BATCH)):
        yield batch


def locations(index: IndexReader, hashes: Sequence[ContentHash]) -> dict[ContentHash, Content]:
    """Where these contents are now, as far as the index knows."""
    found = index.read([hash_.hex() for hash_ in hashes]).values()
    return {
        item.hash: item.content
        for item in found
        if isinstance(item, Record) and item.state is not RecordState.GONE and item.location is not None
    }


def selected(snapshot: Snapshot, pattern: bytes) -> Iterator[SnapshotRow]:
    """What a pattern means here, with everything below a folder that it names. A path that is there is meant as it is written,
    also when it looks like a glob."""
    row = snapshot.row(pattern)
    if not pattern:
        yield from snapshot.rows()
    elif row is not None:
        yield row
        yield from snapshot.below(pattern)
    elif is_glob(pattern):
        matches = path_matcher(pattern, below=True)
        yield from (row for row in snapshot.rows() if row.entry.path and matches(row.entry.path))
