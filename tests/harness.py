"""A repository on the embedded stores, a host with its state, and a source: driven without the command line. Plain and without
packs, unless a test asks for more; names are shown as they would be without encryption, whatever the index holds.

Decides what must hold after every run (`assert_safe`) and after a run that came to its end
(`assert_converged`). The clock stands an hour ahead of the files, so that no file is racy unless a test wants it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from s3hashsync.codec.age import X25519Identity
from s3hashsync.codec.names import source_of, stored_name
from s3hashsync.config import Config, FolderUrl, SourceSettings, SqliteUrl
from s3hashsync.config.model import EncryptionSettings, PackSettings, RepositorySettings
from s3hashsync.core.model import ContentHash, Kind, Overflow, Record, RecordState, Sha256, StoredName, object_stem
from s3hashsync.core.plan import Problem, Step, Totals
from s3hashsync.disk.state import State
from s3hashsync.disk.state_rows import key_of
from s3hashsync.run import backup
from s3hashsync.run.contents import Contents
from s3hashsync.run.founding import Founder, Openers, found_encrypted
from s3hashsync.run.history import CHECKPOINT, Present, Removed, read_header, read_segment
from s3hashsync.run.keyring import Keyring
from s3hashsync.run.keys import RepositoryKeys
from s3hashsync.run.lease import read_source
from s3hashsync.run.pins import HostPlace, check_pins
from s3hashsync.run.progress import Silent, Stop
from s3hashsync.run.repository import Identity, Repository, initialise, open_repository, plain_keys
from s3hashsync.run.unlock import Opener, opener_from
from s3hashsync.stores.base import Index, ObjectStore
from s3hashsync.stores.local import LocalObjects
from s3hashsync.stores.sqlite import SqliteIndex
from tests.memory import fast_folder as fast_folder

SOURCE = "photos"
SLOW = pytest.mark.skipif(not os.environ.get("S3HASHSYNC_SLOW"), reason="minutes: set S3HASHSYNC_SLOW=1")
"""Besides the marker `slow`: `make test` leaves these out, and `make integration` runs them."""
LEFT_OUT = (SLOW, pytest.mark.slow)
"""Both, for a case whose neighbours stay in."""
AHEAD = 3600.0
Wrap = Callable[[ObjectStore, Index], tuple[ObjectStore, Index]]


def as_they_are(objects: ObjectStore, index: Index) -> tuple[ObjectStore, Index]:
    return objects, index


@dataclass(slots=True)
class Done:
    """What one `backup` did."""

    summary: backup.Summary
    problems: list[Problem]
    totals: Totals


@dataclass
class House:
    """One repository, one source folder, and one host that backs it up. Copies of it are further hosts. `identity`: with
    encryption the user's identity is at hand also where `plan` and `backup` run, which need none."""

    folder: Path
    host: str = "laptop"
    state_name: str = "state"
    source_name: str = SOURCE
    tree: str = ""
    wrap: Wrap = as_they_are
    seed: int = 1
    ahead: float = AHEAD
    threads: int = 1
    log_interval: int = 3600
    compare: frozenset[str] = frozenset({"size", "mtime", "ctime", "inode"})
    encryption: bool = False
    identity: bool = False
    pack: PackSettings | None = None
    verify: bool = True
    stop: Stop = field(default_factory=Stop)
    seeds: Iterator[int] = field(default_factory=lambda: itertools.count(2))

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._seen: Repository | None = None
        self.source.mkdir(parents=True, exist_ok=True)

    @property
    def source(self) -> Path:
        return self.folder / (self.tree or self.source_name)

    @property
    def state_folder(self) -> Path:
        return self.folder / self.state_name

    @property
    def state_path(self) -> Path:
        return self.state_folder / f"{self.source_name}.db"

    def clock(self) -> float:
        return time.time() + self.ahead

    def clock_ns(self) -> int:
        return int(self.clock() * 1_000_000_000)

    @property
    def place(self) -> HostPlace:
        """Where this host keeps its keys."""
        return HostPlace(str(self.folder / f"keys of {self.host}"), f"file://{self.folder / 'repository'}")

    def init(self) -> House:
        now, entropy = int(self.clock()), self._random.randbytes
        with self._stores(create=True) as (objects, index):
            if not self.encryption:
                initialise(objects, index, now, entropy)
                return self
            mine = X25519Identity.generate(entropy)
            (self.folder / "identity").write_text(f"{mine.secret_text()}\n")
            found_encrypted(Founder(objects, index, self.place, Openers((str(mine.recipient),)), now, entropy))
        return self

    def opener(self) -> Opener:
        """The user's identity."""
        data = (self.folder / "identity").read_bytes()
        return opener_from("the identity of the house", data, lambda: None)

    def keys(self, objects: ObjectStore, *, identity: bool) -> Callable[[Identity], Keyring]:
        """The keys as this host has them, with the user's identity or without."""

        def found(about: Identity) -> Keyring:
            if not self.encryption:
                return plain_keys(about)
            check_pins(self.place, about)
            opener = self.opener() if identity else None
            return RepositoryKeys(objects, about, self.place, lambda by_passphrase: opener, self._random.randbytes)

        return found

    def enroll(self) -> House:
        """A new or reinstalled host gets its keys."""
        with self.repository() as repository:
            assert isinstance(repository.keys, RepositoryKeys)
            repository.keys.enroll([self.source_name])
        return self

    @contextlib.contextmanager
    def _stores(self, *, create: bool = False) -> Iterator[tuple[LocalObjects, SqliteIndex]]:
        objects = LocalObjects(str(self.folder / "repository"), create=create)
        index = SqliteIndex(str(self.folder / "repository" / "index.db"), create=create)
        try:
            yield objects, index
        finally:
            index.close()
            objects.close()

    @contextlib.contextmanager
    def repository(self, *, identity: bool = True) -> Iterator[Repository]:
        """As it is, without faults."""
        with self._stores() as (objects, index):
            yield open_repository(objects, index, self.keys(objects, identity=identity))

    @contextlib.contextmanager
    def state(self) -> Iterator[State]:
        state = State(str(self.state_path))
        try:
            yield state
        finally:
            state.close()

    @contextlib.contextmanager
    def fresh_state(self) -> Iterator[State]:
        """As the first command on a host makes it."""
        self.state_folder.mkdir(exist_ok=True)
        with self.state() as state:
            yield state

    # Running

    @contextlib.contextmanager
    def job(self, *, identity: bool = True) -> Iterator[backup.Job]:
        with self._stores() as stores:
            objects, index = self.wrap(*stores)
            repository = open_repository(objects, index, self.keys(objects, identity=identity))
            yield backup.Job(
                self.config(),
                repository,
                str(self.state_folder),
                Silent(),
                self.stop,
                self.clock,
                self.clock_ns,
                self._random.randbytes,
                self.threads,
            )

    def config(self) -> Config:
        repository = RepositorySettings(
            objects=FolderUrl(str(self.folder / "repository")),
            index=SqliteUrl(str(self.folder / "repository" / "index.db")),
            region=None,
            profile=None,
            role_arn=None,
            s3_endpoint=None,
            dynamodb_endpoint=None,
            credentials=None,
            path_style=False,
            storage_class="STANDARD",
            min_storage_seconds=0,
            keep_deleted_seconds=0,
            append_only=False,
            pack=self.pack,
        )
        return Config(
            file="backup.yaml",
            repository=repository,
            encryption=EncryptionSettings() if self.encryption else "off",
            host=self.host,
            sources=(self.source_settings(),),
            upload_threads=self.threads,
            mass_change_share=1.0,
            mass_change_files=1 << 40,
            log_interval_seconds=self.log_interval,
            verify_uploads=self.verify,
        )

    def source_settings(self) -> SourceSettings:
        return SourceSettings(
            name=self.source_name,
            path=str(self.source),
            exclude=(),
            exclude_regex=(),
            ignore_files=(),
            exclude_caches=False,
            exclude_if_present=(),
            exclude_larger_than=None,
            one_file_system=False,
            compare=self.compare,
            allow_empty=True,
        )

    def plan(self) -> list[Step]:
        with self.job(identity=self.identity) as job, backup.planned(job) as work:
            return list(work.plan.steps())

    def backup(self, options: backup.ApplyOptions | None = None) -> Done:
        with self.job(identity=self.identity) as job, backup.planned(job) as work:
            summary, problems = backup.apply(job, work, options or backup.ApplyOptions())
            return Done(summary, problems, work.plan.totals)

    def again(self, **fields: object) -> House:
        """The next process: new objects on the same folders, other randomness."""
        return replace(self, **{"seed": next(self.seeds), "stop": Stop(), **fields})

    # The source

    def write(self, path: str, content: str | bytes) -> None:
        """A new file takes the old one's place, so that its inode tells the two apart whatever the clock's grain."""
        place = self.source / path
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(place.name + ".new")
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(beside, place)

    # Looking

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[Repository]:
        """As it is, with the user's identity. Looks inside of a look share its repository: opening takes most of the time."""
        if self._seen is not None:
            yield self._seen
            return
        with self.repository() as repository:
            self._seen = repository
            try:
                yield repository
            finally:
                self._seen = None

    def records(self) -> dict[ContentHash, Record]:
        with self._stores() as (_, index):
            return {item.hash: item for item in index.scan() if isinstance(item, Record)}

    def names(self) -> dict[str, ContentHash]:
        """Every name that counts, with its content; a name under two contents fails."""
        found = [(name, h) for h, names in self._names_by_hash().items() for name in names]
        assert len(found) == len(dict(found)), f"a name under two contents: {sorted(found)}"
        return dict(found)

    def names_of(self, hash_: ContentHash) -> frozenset[str]:
        return self._names_by_hash().get(hash_, frozenset())

    def _names_by_hash(self) -> dict[ContentHash, frozenset[str]]:
        with self.looked_at() as repository:
            return names_by_hash(repository)

    def stored_versions(self) -> dict[str, list[str]]:
        """Stem to versions: everything that lies in the store, whether anybody points to it or not."""
        out: dict[str, list[str]] = {}
        with self.looked_at() as repository:
            objects = repository.objects
            for version in itertools.chain(objects.versions("objects/"), objects.versions("packs/")):
                out.setdefault(version.stem, []).append(version.version)
        return out

    def logged(self) -> dict[bytes, Present]:
        """The source as its run logs tell it, from the segment that the state stands on."""
        with self.looked_at() as repository, self.state() as state:
            facts = read_source(repository.index, self.source_name)
            return replay(repository, state.anchor().head or (facts.head if facts else ""))

    def contents(self) -> dict[str, ContentHash]:
        """What the source's files hold: names and hashes of all that are not empty."""
        out: dict[str, ContentHash] = {}
        root = os.fsencode(self.source)
        with self.looked_at() as repository:
            for folder, _, files in os.walk(root):
                for file in files:
                    path = os.path.join(folder, file)
                    if stat.S_ISREG(os.lstat(path).st_mode) and os.path.getsize(path):
                        digest = Sha256(hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest())
                        hash_ = repository.keys.content_hash(digest)
                        out[stored_name(self.source_name, os.path.relpath(path, root))] = hash_
        return out

    # What must hold

    def assert_safe(self) -> None:
        """After anything: bytes of every live or trash record are there and right; what the state takes for
        acknowledged is in the index and in the run logs."""
        with self.looked_at():
            self._assert_safe()

    def _assert_safe(self) -> None:
        assert_contents_readable(self)
        if not self.state_path.exists():
            return
        with self.state() as state:
            clean = {row.key: row.hash for row in state.rows() if not row.dirty}
        names = self._names_by_hash()
        logged = {key_of(path): line.hash for path, line in self.logged().items()} if clean else {}
        for key, hash_ in clean.items():
            assert logged[key] == hash_, f"{key!r} is acknowledged, and the run logs do not have it so"
            if hash_ is not None:
                name = stored_name(self.source_name, key.replace(b"\0", b"/"))
                assert name in names.get(hash_, ()), f"{name} is acknowledged, and the index does not have it"

    def assert_logs_restorable(self) -> None:
        """A lost laptop: whatever the run logs say of the source is in the index, under its name, with its bytes."""
        with self.looked_at() as repository:
            names = names_by_hash(repository)
            facts = read_source(repository.index, self.source_name)
            head = facts.head if facts else ""
            for path, line in replay(repository, head).items():
                if line.hash is not None:
                    assert stored_name(self.source_name, path) in names.get(line.hash, ()), f"{path!r} is in no record"

    def assert_holds(self) -> None:
        """Every file of the source is in the index under its own content, whatever else is there."""
        with self.looked_at():
            self.assert_safe()
            names = self._names_by_hash()
            for name, hash_ in self.contents().items():
                assert name in names.get(hash_, ()), f"{name} is not in the index"

    def assert_converged(self, *, copies: int = 1) -> None:
        """After a run that came to its end: index, run logs and store hold the source, all of it and nothing else."""
        with self.looked_at():
            self.assert_safe()
            assert self.plan() == []
            self._assert_holds_the_source(copies)

    def _assert_holds_the_source(self, copies: int) -> None:
        wanted = self.contents()
        mine = {name: h for name, h in self.names().items() if name.startswith(f"{self.source_name}/")}
        assert mine == wanted
        logged = self.logged()
        assert {stored_name(self.source_name, p): line.hash for p, line in logged.items() if line.hash} == wanted
        assert set(logged) == set(paths_below(self.source))
        for line in logged.values():
            assert line.hash is None or line.content is not None or line.entry.kind is not Kind.FILE
        versions = self.stored_versions()
        for hash_ in wanted.values():
            assert len(versions.get(object_stem(hash_), ())) <= copies, "a content is stored twice"

    def forget_state(self) -> None:
        shutil.rmtree(self.state_folder)


def names_by_hash(repository: Repository) -> dict[ContentHash, frozenset[str]]:
    """The names that count: of live records, and of the overflow items that these list."""
    items = list(repository.index.scan())
    out: dict[ContentHash, set[StoredName]] = {}
    for item in items:
        if isinstance(item, Record) and item.state is RecordState.LIVE:
            out.setdefault(item.hash, set()).update(item.names)
    records = {item.hash: item for item in items if isinstance(item, Record)}
    for item in items:
        if isinstance(item, Overflow) and item.hash in out and item.prefix in records[item.hash].buckets:
            out[item.hash] |= item.names
    return {hash_: frozenset(_shown(repository, name, hash_) for name in names) for hash_, names in out.items()}


def _shown(repository: Repository, name: StoredName, hash_: ContentHash) -> str:
    """As it would be without encryption; a name that nobody can have made raises `Corrupt`."""
    source = source_of(name)
    return stored_name(source, repository.keys.names(source).path(name, hash_))


def replay(repository: Repository, head: str) -> dict[bytes, Present]:
    """The source at `head`, from its newest checkpoint on."""
    out: dict[bytes, Present] = {}
    keys = []
    while head:
        keys.append(head)
        header = read_header(repository, head)
        head = "" if header.kind == CHECKPOINT else header.previous
    for key in reversed(keys):
        for line in read_segment(repository, key)[1]:
            if isinstance(line, Removed):
                out.pop(line.path, None)
            else:
                out[line.entry.path] = line
    return out


def assert_contents_readable(house: House) -> None:
    """Bytes of every live or trash record are there, and are what its hash says: objects and packs, encrypted or not."""

    def take(chunks: Iterator[bytes], verify: Callable[[], None]) -> None:
        for _ in chunks:
            pass
        verify()

    with house.looked_at() as repository:
        contents = Contents(repository)
        for item in repository.index.scan():
            if isinstance(item, Record) and item.state in (RecordState.LIVE, RecordState.TRASH):
                contents.deliver(item.content, None, take)


def paths_below(root: Path) -> Iterator[bytes]:
    top = os.fsencode(root)
    yield b""
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            yield os.path.relpath(os.path.join(folder, name), top)
