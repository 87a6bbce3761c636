"""The index made anew from the run logs, when it is lost.

Decides which records the new index gets: every name that the newest logs hold, on the version that they say, if the object store
still has it; deleted contents as trash until they expire, and expired ones as purging, never as trash, for somebody may have
begun to delete them. The new index has a new incarnation, so that no local state and no other copy of the old one is believed
any more. Safe to repeat: what an interrupted rebuild left is completed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from typing import TypeVar

from s3hashsync.codec.names import source_of
from s3hashsync.core.model import (
    Content,
    ContentHash,
    Control,
    Kind,
    Record,
    RecordState,
    Rev,
    StoredName,
)
from s3hashsync.core.plan import Problem
from s3hashsync.disk.catalogue import Catalogue, Found, FoundPack
from s3hashsync.errors import Missing, NoRepository, Refused, S3HashSyncError
from s3hashsync.run.history import Present, SegmentHeader, read_segment
from s3hashsync.run.keyring import Keyring
from s3hashsync.run.lease import PREFIX, SourceFacts, enlist, write_facts
from s3hashsync.run.ledger import REV_BYTES, Ledger, Supply, Terms
from s3hashsync.run.progress import Progress
from s3hashsync.run.repository import (
    ITEM,
    Identity,
    Repository,
    control_item,
    plain_keys,
    read_identity,
    replace_identity,
)
from s3hashsync.run.snapshots import find_point, known_sources, opened_snapshot, segments_back
from s3hashsync.run.stored_packs import PackList
from s3hashsync.stores.base import Index, ObjectStore, Write

_BATCH = 1000
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Rebuilder:
    """What a rebuild works with. With encryption `keys` answers with the user's identity at hand: names and logs need it."""

    objects: ObjectStore
    index: Index
    terms: Terms
    progress: Progress
    clock: Callable[[], float]
    entropy: Callable[[int], bytes]
    keys: Callable[[Identity], Keyring] = plain_keys


@dataclass(slots=True)
class RebuiltIndex:
    """What the new index holds."""

    incarnation: str = ""
    sources: int = 0
    live: int = 0
    trash: int = 0
    purging: int = 0
    packs: int = 0


def rebuild_index(r: Rebuilder) -> tuple[RebuiltIndex, list[Problem]]:
    """Fill an empty index. Raises `Refused` when the index is there and fits, or is another repository's, and `WrongKey` where
    the logs cannot be opened."""
    identity = read_identity(r.objects)
    if identity is None:
        raise NoRepository("there is no repository to rebuild an index for", "s3hashsync init makes one")
    repository = Repository(identity, r.objects, r.index, r.keys(identity))
    _check_empty(r.index, identity)
    done = RebuiltIndex()
    with closing(Catalogue()) as catalogue:
        heads = [_collect(repository, source, catalogue, r.progress) for source in known_sources(repository)]
        stored = chain(r.objects.versions("objects/"), r.objects.versions("packs/"))
        for batch in _batches((v.stem, v.version, v.size) for v in stored if not v.is_marker):
            catalogue.add_versions(batch)
        r.progress.phase("writing the index", 0, 0)
        # Packs first: whoever finds a record finds the list that purging its pack goes by.
        for packs in _batches(catalogue.packs(), 100):
            _write_packs(r, packs)
            done.packs += len(packs)
        lost: list[tuple[ContentHash, StoredName, str]] = []
        _write_records(r, catalogue, done, lost)
        lost += [(hash_, name, "no run log says where its content lies") for hash_, name in catalogue.unlocated()]
        problems = [_problem(repository.keys, *one) for one in lost]
    for header, head, files, size in heads:
        facts = SourceFacts(header.source, header.host, header.run, head, int(header.time), files, size)
        _write_source(r, facts)
        done.sources += 1
    done.incarnation = _settle_incarnation(r, identity)
    return done, problems


def _check_empty(index: Index, identity: Identity) -> None:
    item = index.read([ITEM]).get(ITEM)
    if item is None:
        return
    if not isinstance(item, Control) or item.get("id") != identity.id:
        raise Refused("the index belongs to another repository", "point index: at a new, empty one")
    if item.get("incarnation") == identity.incarnation:
        raise Refused("the index is there and fits: nothing to rebuild", "s3hashsync rebuild makes the local state anew")
    raise Refused(
        "the index is an older copy of the one this repository used",
        "point index: at a new, empty one: names in an old copy may be wrong",
    )


def _collect(
    repository: Repository, source: str, catalogue: Catalogue, progress: Progress
) -> tuple[SegmentHeader, str, int, int]:
    """The source's names as they are now, and every content its logs ever mention; answers its newest segment, and how many files
    and bytes it holds."""
    point = find_point(repository, source)
    names = repository.keys.names(source)
    files = size = 0
    with opened_snapshot(repository, point, progress) as snapshot:
        for rows in _batches(snapshot.rows()):
            named = [(row.hash, names.of(row.entry.path, row.hash)) for row in rows if row.hash is not None]
            catalogue.add_names(named)
            catalogue.add_contents(row.content for row in rows if row.content is not None)
            regular = [row.entry.size for row in rows if row.entry.kind is Kind.FILE]
            files, size = files + len(regular), size + sum(regular)
    try:
        for key, header in segments_back(repository, source, point.head):
            _, lines = read_segment(repository, key)
            for batch in _batches(lines):
                catalogue.add_contents(line.content for line in batch if isinstance(line, Present) and line.content)
                catalogue.add_removals((h, int(header.time)) for line in batch for h in line.was)
    except Missing as error:
        progress.note(f"{error.message}: contents deleted before it are left to the sweep")
    return point.header, point.head, files, size


def _write_packs(r: Rebuilder, packs: list[FoundPack]) -> None:
    """The items `pack:<id>`, with the members that the logs mention. Others may lie in a pack: members that were deleted before
    the oldest log, or that no record ever named (the process died). No record points to those, so they are dead with the pack;
    to read them out of the pack itself would be too dear in a cold class. The checksum of the whole pack and its attempt are in
    no log."""
    heads: list[Control] = []
    more: list[Control] = []
    for pack in packs:
        attempt = "" if r.objects.versioned else pack.version
        *pages, head = PackList(pack.id, pack.members, pack.stored, "", attempt).items(lambda: Rev(r.entropy(REV_BYTES)))
        heads.append(head)
        more += pages
    # The item that says how many there are comes last. What an interrupted rebuild left is replaced.
    for items in (more, heads):
        there = r.index.read([item.key for item in items]) if items else {}
        for outcome in r.index.write([Write(item, there[item.key].rev if item.key in there else None) for item in items]):
            if not outcome.written:
                raise Refused("another process is making this index at this very moment", "run rebuild --index again")


def _write_records(
    r: Rebuilder, catalogue: Catalogue, done: RebuiltIndex, lost: list[tuple[ContentHash, StoredName, str]]
) -> None:
    for batch in _batches(catalogue.found()):
        live: list[Found] = []
        dead: list[Write] = []
        for found in batch:
            there = catalogue.is_there(found.content)
            if found.names and there:
                live.append(found)
            elif found.names:
                why = "its content is no longer in the object store"
                lost += [(found.content.hash, name, why) for name in sorted(found.names)]
            elif there:
                dead.append(_dead(r, found))
        for class_, group in groupby(sorted(live, key=lambda f: f.content.storage_class), lambda f: f.content.storage_class):
            _write_live(r, class_, list(group))
        outcomes = r.index.write(dead)
        for write, outcome in zip(dead, outcomes, strict=True):
            trash = isinstance(write.item, Record) and write.item.state is RecordState.TRASH
            done.trash += outcome.written and trash
            done.purging += outcome.written and not trash
        done.live += len(live)
        r.progress.advance(len(batch), 0)


def _write_live(r: Rebuilder, storage_class: str, live: list[Found]) -> None:
    """By the ledger: so records that an interrupted rebuild left get what they lack."""
    contents = {found.content.hash: found.content for found in live}

    def supply(needed: Mapping[ContentHash, Rev | None]) -> Mapping[ContentHash, Supply | S3HashSyncError]:
        return {hash_: _supply(contents[hash_]) for hash_ in needed}

    ledger = Ledger(r.index, r.objects, replace(r.terms, storage_class=storage_class), r.clock, r.entropy)
    answers = ledger.add({found.content.hash: found.names for found in live}, supply, lambda: None)
    for answer in answers.values():
        if isinstance(answer, S3HashSyncError):
            raise answer


def _supply(content: Content) -> Supply:
    return Supply(content.location, content.encoding, content.stored, content.checksum, content.size, content.stored_at)


def _dead(r: Rebuilder, found: Found) -> Write:
    content = found.content
    expiration = max(content.stored_at + r.terms.min_storage_seconds, found.removed_at + r.terms.keep_deleted_seconds)
    record = Record(
        hash=content.hash,
        state=RecordState.TRASH if expiration > r.clock() else RecordState.PURGING,
        rev=Rev(r.entropy(REV_BYTES)),
        expiration=expiration,
        size=content.size,
        stored=content.stored,
        stored_at=content.stored_at,
        storage_class=content.storage_class,
        checksum=content.checksum,
        encoding=content.encoding,
        location=content.location,
    )
    return Write(record, None)


def _write_source(r: Rebuilder, facts: SourceFacts) -> None:
    if PREFIX + facts.name not in r.index.read([PREFIX + facts.name]):
        enlist(r.index, facts.name, r.entropy)
        write_facts(r.index, facts, None, r.entropy)


def _settle_incarnation(r: Rebuilder, identity: Identity) -> str:
    """`repository.json` first: a process that dies in between leaves an index without its item, which rebuild completes."""
    renewed = replace(identity, incarnation=r.entropy(8).hex())
    replace_identity(r.objects, renewed)
    (outcome,) = r.index.write([Write(control_item(renewed, Rev(r.entropy(REV_BYTES))), None)])
    if not outcome.written:
        raise Refused("another process is making this index at this very moment", "run rebuild --index again")
    return renewed.incarnation


def _problem(keys: Keyring, hash_: ContentHash, name: StoredName, why: str) -> Problem:
    source = source_of(name)
    path = keys.names(source).path(name, hash_)
    return Problem(source, path, f"{why}; the next apply uploads it again if it is still on the disk")


def _batches(items: Iterable[_T], size: int = _BATCH) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
