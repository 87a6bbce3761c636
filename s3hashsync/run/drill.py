"""Proving that an identity opens a repository, before it is needed.

Decides what counts as proof: the repository's keys, the keys of every source, the newest segment of its run logs with its HMAC,
and one content, fetched and opened as by a restore and compared with its SHA-256. The index is asked nothing, for a restore must
do without it. Writes nothing.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from s3hashsync.core.model import Content, Item, Sha256
from s3hashsync.core.plan import Problem
from s3hashsync.errors import Archived, Corrupt, S3HashSyncError, StoreError
from s3hashsync.run.contents import Contents
from s3hashsync.run.history import SOURCE_NAME, Present, newest_key, read_segment, sources_with_logs
from s3hashsync.run.keys import ENROLL, RepositoryKeys
from s3hashsync.run.repository import Repository
from s3hashsync.run.snapshots import segments_back
from s3hashsync.run.unlock import SOURCES, main_key
from s3hashsync.stores.base import ObjectStore, Outcome, Write

TRIES = 20
"""How many of the smallest contents of a segment are asked for, while all of them turn out to be archived."""


@dataclass(frozen=True, slots=True)
class DrilledSource:
    """A source whose keys open. `head` is its newest run-log segment, "" where there is none yet."""

    name: str
    head: str
    paths: int


@dataclass(frozen=True, slots=True)
class DrilledContent:
    """A content that came back as it was."""

    source: str
    path: bytes
    size: int
    sha256: bytes


@dataclass(slots=True)
class Drill:
    """What was tried and went well, and what did not."""

    opener: str = ""
    files: tuple[str, ...] = ()
    sources: list[DrilledSource] = field(default_factory=list)
    content: DrilledContent | None = None
    archived: int = 0
    """Contents that were passed over, for they would have to be thawed first."""
    problems: list[Problem] = field(default_factory=list)


class _NoIndex:
    """`stores.base.Index` that knows nothing."""

    def read(self, keys: Collection[str]) -> dict[str, Item]:
        return {}

    def scan(self) -> Iterator[Item]:
        return iter(())

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        raise StoreError("a drill writes nothing")

    def write_units(self, item: Item) -> int:
        return 0


def drill(keys: RepositoryKeys) -> Drill:
    """Raises `WrongKey` when the identity does not open the repository at all."""
    unlocked = keys.unlocked()
    done = Drill(unlocked.opener.label, tuple(main_key(epoch) for epoch in sorted(unlocked.epochs)))
    repository = Repository(keys.about, keys.objects, _NoIndex(), keys)
    for source in _sources(keys.objects):
        try:
            done.sources.append(_drilled_source(repository, keys, source))
        except S3HashSyncError as error:
            done.problems.append(Problem(source, b"", error.message))
    for one in done.sources:
        if one.head and done.content is None:
            try:
                _drill_content(repository, done, one)
            except S3HashSyncError as error:
                done.problems.append(Problem(one.name, b"", error.message))
    return done


def _sources(objects: ObjectStore) -> list[str]:
    """Those with keys, and those with run logs: neither should be without the other. Names that no source can have are left out,
    for they are printed."""
    keyed = {document.key.removeprefix(SOURCES).removesuffix(".age") for document in objects.documents(SOURCES)}
    return sorted({name for name in keyed if SOURCE_NAME.fullmatch(name)} | set(sources_with_logs(objects)))


def _drilled_source(repository: Repository, keys: RepositoryKeys, source: str) -> DrilledSource:
    if keys.stored_source(source) != keys.source(source):
        raise Corrupt(f"{keys.host_file.path} has other keys of this source than the repository", ENROLL)
    head = newest_key(repository.objects, source)
    paths = sum(1 for _ in read_segment(repository, head)[1]) if head else 0
    return DrilledSource(source, head, paths)


def _drill_content(repository: Repository, done: Drill, source: DrilledSource) -> None:
    """One content of the newest segment that has some which can be read."""
    for key, _ in segments_back(repository, source.name, source.head):
        lines = (line for line in read_segment(repository, key)[1] if isinstance(line, Present))
        held = ((line.content, line) for line in lines if line.content is not None)
        for content, line in heapq.nsmallest(TRIES, held, key=lambda pair: pair[0].size):
            try:
                sha256 = _restored(Contents(repository), content, line.sha256)
            except Archived:
                done.archived += 1
                continue
            done.content = DrilledContent(source.name, line.entry.path, content.size, sha256)
            return


def _restored(contents: Contents, content: Content, sha256: Sha256 | None) -> bytes:
    digest = hashlib.sha256()

    def take(chunks: Iterator[bytes], verify: Callable[[], None]) -> None:
        for chunk in chunks:
            digest.update(chunk)
        verify()

    contents.deliver(content, sha256, take)
    return digest.digest()
