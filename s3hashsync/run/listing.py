"""What the repository holds and held: `ls`, `find`, `history`, `diff`, out of the run logs alone.

Decides what a listing means; prints nothing. Neither contents nor local states are looked at. Memory stays flat, so answers are
iterators; they do their work, and raise, while they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from s3hashsync.core.model import ContentHash, Entry, Kind, Sha256
from s3hashsync.core.selection import Selection, is_glob, name_matcher, parse_selection, path_matcher
from s3hashsync.disk.metadata import same_metadata
from s3hashsync.disk.snapshot import Snapshot, SnapshotRow
from s3hashsync.errors import Corrupt, Incomplete, Missing, UsageError
from s3hashsync.run.backup import Job
from s3hashsync.run.history import CHECKPOINT, Present, SegmentHeader, all_segments, read_segment
from s3hashsync.run.snapshots import NoStateError, find_head, find_point, known_sources, opened_snapshot

# ls


@dataclass(frozen=True, slots=True)
class Listed:
    """One path of a source; a content's hash where it has one. `sha256`: only `find` fills it in."""

    source: str
    entry: Entry
    hash: ContentHash | None
    sha256: Sha256 | None = None


def list_paths(job: Job, selection: str, at: float | None = None, *, recursive: bool = False) -> Iterator[Listed]:
    """What lies in a folder (`SOURCE` is its root), or a file itself, or what matches a glob; `recursive`: and what is below."""
    wanted = parse_selection(selection)
    with opened_snapshot(job.repository, find_point(job.repository, wanted.source, at), job.progress) as snapshot:
        found = False
        for row in _listed(snapshot, wanted.pattern, recursive=recursive):
            found = True
            yield Listed(wanted.source, row.entry, row.hash)
        if not found and wanted.pattern and snapshot.row(wanted.pattern) is None:
            raise UsageError(f"there is no {wanted}", f"s3hashsync ls {wanted.source} lists what there is")


def _listed(snapshot: Snapshot, pattern: bytes, *, recursive: bool) -> Iterator[SnapshotRow]:
    row = snapshot.row(pattern)
    if row is not None and row.entry.kind is not Kind.DIRECTORY:
        yield row
    elif row is not None or not pattern:
        yield from snapshot.below(pattern) if recursive else snapshot.children(pattern)
    elif is_glob(pattern):
        matches = path_matcher(pattern, below=recursive)
        yield from (row for row in snapshot.rows() if row.entry.path and matches(row.entry.path))


# find


def find_paths(job: Job, pattern: str, at: float | None = None) -> Iterator[Listed]:
    """In all sources: names that match (with a slash in the pattern whole paths)."""
    matches = name_matcher(pattern.encode("utf-8", "surrogateescape"))
    return (one for one in _everything(job, at) if one.entry.path and matches(one.entry.path))


def find_contents(job: Job, prefix: str, at: float | None = None) -> Iterator[Listed]:
    """In all sources: paths whose content's hash begins with these hexadecimal digits, or, where that is a keyed one, its
    SHA-256."""
    prefix = prefix.lower()
    if not prefix or not set(prefix) <= set("0123456789abcdef"):
        raise UsageError(f"{prefix!r} is not the beginning of a hash", "hashes are written in hexadecimal digits")
    return (one for one in _everything(job, at) if any(h.hex().startswith(prefix) for h in (one.hash, one.sha256) if h))


def _everything(job: Job, at: float | None) -> Iterator[Listed]:
    """All paths of all sources that had a backup then. A source whose log cannot be read hides no other one."""
    unread: list[str] = []
    for source in known_sources(job.repository):
        try:
            point = find_point(job.repository, source, at)
            with opened_snapshot(job.repository, point, job.progress) as snapshot:
                for row in snapshot.rows():
                    job.stop.check()
                    yield Listed(source, row.entry, row.hash, row.sha256)
        except NoStateError:
            continue
        except (Missing, Corrupt) as error:
            job.progress.note(f"source {source} was not searched: {error.message}")
            unread.append(source)
    if unread:
        raise Incomplete(f"not searched: {', '.join(unread)}", "its run logs cannot be read")


# history


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run of a source. `time` is when it ended, epoch seconds; `present` counts the paths that it added or changed.
    `checkpoint`: it wrote the whole state once more, which counts as no change."""

    source: str
    run: str
    host: str
    root: str
    time: float
    present: int = 0
    removed: int = 0
    segments: int = 0
    checkpoint: bool = False


def runs(job: Job, source: str) -> Iterator[RunFacts]:
    """The runs of a source, the newest first, as far back as there are logs."""
    facts: RunFacts | None = None
    for key, header in all_segments(job.repository, find_head(job.repository, source)):
        job.stop.check()
        if facts is not None and header.run != facts.run:
            yield facts
            facts = None
        facts = facts or RunFacts(source, header.run, header.host, header.root, header.time)
        facts = _counted(job, facts, key, header)
    if facts is not None:
        yield facts


def _counted(job: Job, facts: RunFacts, key: str, header: SegmentHeader) -> RunFacts:
    if header.kind == CHECKPOINT:
        return replace(facts, segments=facts.segments + 1, checkpoint=True)
    present = removed = 0
    for line in read_segment(job.repository, key)[1]:
        if isinstance(line, Present):
            present += 1
        else:
            removed += 1
    return replace(facts, present=facts.present + present, removed=facts.removed + removed, segments=facts.segments + 1)


@dataclass(frozen=True, slots=True)
class PathVersion:
    """A path as a run left it: `time` is when it came to be so (epoch seconds). `entry` None: it was removed."""

    run: str
    time: float
    entry: Entry | None
    hash: ContentHash | None


def versions(job: Job, selection: str) -> Iterator[PathVersion]:
    """What one path was over time, the newest first."""
    wanted = parse_selection(selection)
    held: PathVersion | None = None
    found = False
    for key, header in all_segments(job.repository, find_head(job.repository, wanted.source)):
        job.stop.check()
        for version in reversed(_versions_in(job, key, wanted, header)):
            found = True
            if held is not None and not _is_same(held, version):
                yield held
            # The older of two equal ones says since when it is so.
            held = version
    if held is not None:
        yield held
    if not found:
        raise UsageError(f"there is no {wanted}, and there never was", f"s3hashsync ls {wanted.source} lists what there is")


def _versions_in(job: Job, key: str, wanted: Selection, header: SegmentHeader) -> list[PathVersion]:
    out = []
    for line in read_segment(job.repository, key)[1]:
        if isinstance(line, Present):
            if line.entry.path == wanted.pattern:
                out.append(PathVersion(header.run, header.time, line.entry, line.hash))
        elif line.path == wanted.pattern:
            out.append(PathVersion(header.run, header.time, None, None))
    return out


def _is_same(one: PathVersion, other: PathVersion) -> bool:
    if one.entry is None or other.entry is None:
        return one.entry is other.entry
    return one.hash == other.hash and same_metadata(one.entry, other.entry)


# diff


class Change(Enum):
    """What differs; the value is the symbol that a person sees."""

    ADDED = "+"
    REMOVED = "-"
    CHANGED = "~"
    METADATA = "m"


@dataclass(frozen=True, slots=True)
class Difference:
    """One path that is not the same in both states: `before` and `after` are None where it was not there."""

    change: Change
    before: Listed | None
    after: Listed | None

    @property
    def path(self) -> bytes:
        one = self.after or self.before
        assert one is not None
        return one.entry.path


def compare(job: Job, source: str, before: float, after: float | None = None) -> Iterator[Difference]:
    """What changed in a source between two times (`after` None: until now), in the order of paths. A source that had no backup
    yet at `before` was empty then."""
    repository, progress = job.repository, job.progress
    with opened_snapshot(repository, find_point(repository, source, after), progress) as new:
        try:
            then = find_point(repository, source, before)
        except NoStateError:
            yield from (Difference(Change.ADDED, None, Listed(source, row.entry, row.hash)) for row in new.rows())
            return
        with opened_snapshot(repository, then, progress) as old:
            for row, other in _joined(old.rows(), new.rows()):
                job.stop.check()
                if (difference := _difference(source, row, other)) is not None:
                    yield difference


def _joined(old: Iterator[SnapshotRow], new: Iterator[SnapshotRow]) -> Iterator[tuple[SnapshotRow | None, SnapshotRow | None]]:
    """Both are in the order of the walk."""
    left, right = next(old, None), next(new, None)
    while left is not None or right is not None:
        if right is None or (left is not None and _key(left) < _key(right)):
            yield left, None
            left = next(old, None)
        elif left is None or _key(right) < _key(left):
            yield None, right
            right = next(new, None)
        else:
            yield left, right
            left, right = next(old, None), next(new, None)


def _key(row: SnapshotRow) -> bytes:
    return row.entry.path.replace(b"/", b"\0")


def _difference(source: str, old: SnapshotRow | None, new: SnapshotRow | None) -> Difference | None:
    before = Listed(source, old.entry, old.hash) if old else None
    after = Listed(source, new.entry, new.hash) if new else None
    if before is None or after is None:
        return Difference(Change.REMOVED if after is None else Change.ADDED, before, after)
    was, now = before.entry, after.entry
    if before.hash != after.hash or was.kind is not now.kind or was.target != now.target:
        return Difference(Change.CHANGED, before, after)
    return None if same_metadata(was, now) else Difference(Change.METADATA, before, after)
