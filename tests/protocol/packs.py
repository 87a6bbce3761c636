"""PACK as the program does it, and PURGE PACK as the design has it, as processes of the search.

The packing process runs the real `StoredPacks`, `Uploader` and `Ledger`, with the host's state kept in the world. Purging is
written here until a command does it; each of its rules can be taken out. Knows nothing of what must hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from s3hashsync.codec.pack import hashes_of
from s3hashsync.core.model import (
    ContentHash,
    Control,
    Entry,
    Item,
    Kind,
    PackAt,
    Record,
    RecordState,
    Rev,
    Sha256,
    StoredName,
    pack_key,
    pack_stem,
)
from s3hashsync.disk.state import OpenAttempt, OpenPack
from s3hashsync.run.attempts import UploadPorts, UploadSettings
from s3hashsync.run.candidates import Candidate
from s3hashsync.run.keyring import NoKeys
from s3hashsync.run.ledger import Ledger, Terms
from s3hashsync.run.packing import Pack, PackedContent
from s3hashsync.run.progress import Silent, Stop
from s3hashsync.run.repository import Identity, Repository
from s3hashsync.run.stored_packs import StoredPacks
from s3hashsync.run.uploads import Uploader
from s3hashsync.stores.base import Outcome, Write
from tests.protocol.explorer import CHECKSUM, Process, Remote

LIVE, TRASH, PURGING, GONE = RecordState.LIVE, RecordState.TRASH, RecordState.PURGING, RecordState.GONE
TERMS = Terms("STANDARD", 0, 0)
PACKS = "packs/"
TEXTS = {"a": b"content a", "b": b"content b"}
SHA256 = {name: Sha256(hashlib.sha256(text).digest()) for name, text in TEXTS.items()}
HASHES = {name: ContentHash(sha256) for name, sha256 in SHA256.items()}
A, B = HASHES["a"], HASHES["b"]
TEXT_OF = {SHA256[name]: text for name, text in TEXTS.items()}
CANDIDATES = {
    HASHES[name]: [Candidate(Entry(name.encode(), Kind.FILE, len(text), 0, 0, 1, 1, 0o600, 0, 0), SHA256[name])]
    for name, text in TEXTS.items()
}


# PACK


class Sealed(NoKeys):
    """Nothing is encrypted, and what was stored is not read back: it does not count here."""

    encrypted = True


class Files:
    """`run.candidates.SourceFiles`: every file holds still."""

    def content(self, candidate: Candidate) -> bytes:
        return TEXT_OF[candidate.sha256]


class Disk:
    """As much of `disk.state.State` as uploads need, on the disk of one host of the world."""

    def __init__(self, remote: Remote, host: str) -> None:
        self._remote = remote
        self._host = host

    def mark(self, paths: Iterable[object], attempts: Iterable[OpenAttempt] = ()) -> None:
        for attempt in attempts:
            self._remote.keep(self._host, f"attempt {attempt.hash.hex()}", attempt)

    def attempt(self, hash_: ContentHash) -> OpenAttempt | None:
        return next(iter(self._remote.kept(self._host, f"attempt {hash_.hex()}")), None)  # type: ignore[arg-type]

    def resumable(self) -> set[str]:
        return set()

    def mark_pack(self, pack: OpenPack) -> None:
        self._remote.keep(self._host, f"pack {pack.id}", pack)

    def open_packs(self) -> list[OpenPack]:
        return list(self._remote.kept(self._host, "pack "))  # type: ignore[arg-type]

    def forget_packs(self, ids: Iterable[str]) -> None:
        for id_ in ids:
            self._remote.drop(self._host, f"pack {id_}")


class NoSeals:
    """`disk.seals.SealFiles` where nothing is sent in parts."""

    def drop_all_but(self, attempt_ids: set[str]) -> None: ...

    def drop(self, attempt_id: str) -> None: ...


class OneByOne:
    """The index, one write a request: those of a batch are independent of each other."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def read(self, keys: Collection[str]) -> dict[str, Item]:
        return self._remote.read(keys)

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        return [outcome for write in writes for outcome in self._remote.write([write])]

    def write_units(self, item: Item) -> int:
        return 0


def settings(remote: Remote) -> UploadSettings:
    return UploadSettings("STANDARD", 1, lambda: 1_000, remote.entropy, NoSeals(), verify=False)  # type: ignore[arg-type]


class Body(bytes):
    """A `disk.spool.Spool` that takes no file."""

    size = 4

    def close(self) -> None: ...


def pack_of(hashes: Iterable[ContentHash], id_: str) -> Pack:
    """Bytes do not count here, places do: every content has another one."""
    contents = {hash_: PackedContent(n, 1, 512, 9, 1) for n, hash_ in enumerate(hashes)}
    return Pack(id_, Body(b"body"), "zstd", CHECKSUM, contents)  # type: ignore[arg-type]


def fresh_id(remote: Remote) -> str:
    return remote.entropy(16).hex()


def constant_id(remote: Remote) -> str:
    """The rule taken out: an id that is used again."""
    return OLD


OLD = "ab" * 16
FIRST = bytes([0, 1]).ljust(16, b"\0").hex()
"""The id that the first process of a search draws first."""


def packs(
    host: str,
    wanted: Mapping[str, str],
    kind: type[StoredPacks] = StoredPacks,
    draw: Callable[[Remote], str] = fresh_id,
) -> Process:
    """A run of a host: the contents `wanted` (name to content, a or b) go into one pack and get their names. Runs of one host
    follow each other, and share its disk."""

    def body(remote: Remote) -> None:
        for name in sorted(wanted):
            remote.note("adding", StoredName(name))
        index, state = OneByOne(remote), Disk(remote, host)
        repository = Repository(Identity("r", "i", 0), remote, index, Sealed())  # type: ignore[arg-type]
        ports = UploadPorts(repository, state, settings(remote))  # type: ignore[arg-type]
        made = Uploader(ports, kind(ports), Files(), Silent(), Stop())  # type: ignore[arg-type]
        try:
            hashes = {HASHES[content]: frozenset({StoredName(name)}) for name, content in sorted(wanted.items())}
            if missing := [hash_ for hash_ in hashes if hash_ not in made.packs.waiting]:
                made.packs.put(pack_of(missing, draw(remote)))
            made.candidates = CANDIDATES
            ledger = Ledger(index, remote, TERMS, lambda: 2_000.0, remote.entropy)  # type: ignore[arg-type]
            answers = ledger.add(hashes, made, lambda: None, made.packs.new_among(hashes))
            for name, content in sorted(wanted.items()):
                if isinstance(answers[HASHES[content]], Record):
                    remote.note("acknowledged", StoredName(name))
            state.forget_packs([pack.id for pack in state.open_packs()])
        finally:
            made.close()

    return Process(f"{host} packs {','.join(sorted(wanted))}", body, StoredName(host))


def removes(name: str, hash_: ContentHash) -> Process:
    stored = StoredName(name)

    def body(remote: Remote) -> None:
        remote.note("removing", stored)
        ledger = Ledger(remote, remote, TERMS, lambda: 2_000.0, remote.entropy)  # type: ignore[arg-type]
        ledger.remove({hash_: frozenset({stored})}, lambda: None)
        remote.note("removed", stored)

    return Process(f"remove {name}", body, stored)


# PURGE PACK


@dataclass(frozen=True, slots=True)
class Purging:
    """The rules. `fenced`: whose rev moves where the member is elsewhere or nowhere (None: absent). `last`: of the versions that
    are listed the last one is purged, not the first. `known`: the pack that is purged where nothing is listed first."""

    exact: bool = True
    listed_first: bool = True
    all_items: bool = True
    purging: bool = True
    fenced: frozenset[RecordState | None] = frozenset({None, *RecordState})
    last: bool = False
    known: str = ""


RIGHT = Purging()


def purges(rules: Purging = RIGHT) -> Process:
    """One version; every trash has expired here. A refused write: start again, with the listing."""

    def body(remote: Remote) -> None:
        done = False
        while not done:
            found = _listed(remote) if rules.listed_first else [(pack_stem(rules.known), "")]
            done = not found or _Purge(remote, rules, *found[-1 if rules.last else 0]).run()

    return Process("purge", body)


def _listed(remote: Remote) -> list[tuple[str, str]]:
    return [(version.stem, version.version) for version in remote.versions(PACKS)]


class _Purge:
    def __init__(self, remote: Remote, rules: Purging, stem: str, version: str) -> None:
        self.remote = remote
        self.rules = rules
        self.stem = stem
        self.version = version
        self.item: Control | None = None

    @property
    def pack(self) -> str:
        return self.stem.removeprefix(PACKS)

    def run(self) -> bool:
        """False: a write was refused."""
        members = self._members()
        records = self._records(members)
        if any(self._is_here(record) and record.state is LIVE for record in records.values()):
            return True
        for hash_ in members:
            after = self._moved(hash_, records.get(hash_))
            if after is not None and not self._write(after, records.get(hash_)):
                return False
        for version in self._doomed():
            self.remote.delete(self.stem, version)
        for record in self._records(members).values():
            if self._is_here(record) and record.state is PURGING:
                self._write(replace(record, state=GONE, names=frozenset(), location=None), record)
        self._close()
        return True

    def _members(self) -> list[ContentHash]:
        """Without an item nobody can have used the pack: it is written first."""
        item = self.remote.read([pack_key(self.pack)]).get(pack_key(self.pack))
        if not isinstance(item, Control):
            return []
        self.item = item
        further = [f"{item.key}.{n}" for n in range(1, int(item.get("parts")))] if self.rules.all_items else []
        parts = self.remote.read(further) if further else {}
        data = b"".join((item.data, *(parts[key].data for key in further)))  # type: ignore[union-attr]
        return list(hashes_of(data))

    def _records(self, members: Sequence[ContentHash]) -> dict[ContentHash, Record]:
        if not members:
            return {}
        items = self.remote.read([hash_.hex() for hash_ in members])
        return {item.hash: item for item in items.values() if isinstance(item, Record)}

    def _is_here(self, record: Record) -> bool:
        at = record.location
        return isinstance(at, PackAt) and at.pack == self.pack and (at.version == self.version or not self.version)

    def _moved(self, hash_: ContentHash, record: Record | None) -> Record | None:
        """The record as it is to be written but for its rev, None where nothing is."""
        if record is not None and self._is_here(record):
            return replace(record, state=PURGING) if record.state is TRASH and self.rules.purging else None
        if (record.state if record else None) not in self.rules.fenced:
            return None
        return record or Record(hash_, GONE, Rev(b""))

    def _write(self, after: Record, before: Record | None) -> bool:
        after = replace(after, rev=Rev(self.remote.entropy(12)))
        (outcome,) = self.remote.write([Write(after, before.rev if before else None)])
        return outcome.written

    def _doomed(self) -> list[str]:
        """The very version; with a rule taken out, all that there are now."""
        if self.rules.exact and self.version:
            return [self.version]
        return [version for stem, version in _listed(self.remote) if stem == self.stem]

    def _close(self) -> None:
        """The item of a pack that is not there any more shrinks."""
        if self.item is None or not self.item.data or any(stem == self.stem for stem, _ in _listed(self.remote)):
            return
        tombstone = Control(self.item.key, Rev(self.remote.entropy(12)), (("parts", "1"), ("state", "gone")))
        self.remote.write([Write(tombstone, self.item.rev)])
