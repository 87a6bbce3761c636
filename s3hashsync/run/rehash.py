"""Reads every file whose content may be new, and settles what its change is.

Decides who reads what: small files in groups, here and in the helper, which begins while the walk goes on; large ones in threads.
And what of it is remembered, so that an interrupted plan does not read it again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from s3hashsync.core.compile import Change, Verdict
from s3hashsync.core.model import ContentHash, Entry, Sha256
from s3hashsync.core.plan import Problem
from s3hashsync.core.value import value
from s3hashsync.disk.metadata import same_metadata
from s3hashsync.disk.scratch import ToHash
from s3hashsync.run.gathering import REFRESHED, Found, Gathering, entry_is_racy, take_over_stats, written_again
from s3hashsync.run.hashing import FileToHash, HashedFile, hash_files
from s3hashsync.run.helper import WORTH_IT, folder_of

_THREADS = 2
_SMALL = 64 << 10
_GROUP = 500
_GROUP_BYTES = 16 << 20
_HELPED = 3
"""So many groups wait at the helper; what is more is hashed here."""
_HELPED_MEANWHILE = 8
"""While the walk goes on: it brings more than the helper can take."""
_REMEMBERED = 5000
_REMEMBERED_BYTES = 1 << 30
"""So many hashes, or so many hashed bytes, are lost at most when a plan is killed: each remembering waits for the disk."""
_FLEETING = 100_000
"""So many hashes, or that many bytes, may be lost of a plan that is applied at once: reading them again takes seconds."""

_Waiting: TypeAlias = "tuple[list[ToHash], Future[list[HashedFile]]]"


class Rehash:
    """The hashing of one source: `meanwhile` as the walk finds files, `finish` once it has ended."""

    def __init__(self, g: Gathering, found: Found) -> None:
        self._g = g
        self._found = found
        self._root: int | None = None
        self._inodes = "inode" in g.source.compare
        self._files = 0
        self._size = 0
        self._helped: deque[_Waiting] = deque()
        self._remember: list[tuple[Entry, ContentHash, Sha256]] = []
        self._noted = 0

    def __enter__(self) -> Rehash:
        return self

    def __exit__(self, *_: object) -> None:
        if self._root is not None:
            os.close(self._root)
        if self._remember:
            self._g.state.remember_hashes(self._remember)

    def _opened(self) -> int:
        """Not before there is something to read: a folder that cannot be read is the walk's to report."""
        if self._root is None:
            self._root = os.open(self._g.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._root

    def meanwhile(self, found: list[ToHash]) -> None:
        """The walk has found these; those that the helper is given now need not wait for its end."""
        self._files += len(found)
        self._size += sum(todo.entry.size for todo in found)
        if self._files < WORTH_IT or self._g.helper is None:
            return
        for group in _groups(todo for todo in found if todo.entry.size < _SMALL):
            if len(self._helped) < _HELPED_MEANWHILE:
                self._help(group)
        for group, hashed in self._answered():
            self._settle(group, hashed)

    def finish(self) -> None:
        """All that the walk has found and nobody has read yet."""
        if not self._files:
            return
        g = self._g
        g.progress.phase(f"hashing {g.source.name}", self._files, self._size)
        g.progress.advance(self._found.files_hashed, self._found.bytes_hashed)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash") as pool:
            for group, hashed in self._hashed(pool):
                g.progress.advance(len(group), sum(todo.entry.size for todo in group))
                self._settle(group, hashed)
        g.stop.check()

    def _hashed(self, pool: ThreadPoolExecutor) -> Iterator[tuple[list[ToHash], list[HashedFile]]]:
        """Groups of small files are hashed here and in the helper, side by side: threads with small files take the interpreter's
        lock from each other at every call of the system, and are slower than one."""
        root, helper = self._opened(), self._g.helper if self._files >= WORTH_IT else None
        under_way = {todo.n for group, _ in self._helped for todo in group}
        waiting: deque[_Waiting] = deque()
        for group in _groups(todo for todo in self._g.scratch.to_hash() if todo.n not in under_way):
            if self._g.stop:
                break
            if sum(todo.entry.size for todo in group) >= _SMALL * len(group):
                waiting.append((group, pool.submit(hash_files, root, _asked(group), inodes=self._inodes)))
                if len(waiting) > 4 * _THREADS:
                    group, answer = waiting.popleft()
                    yield group, answer.result()
            elif helper is not None and len(self._helped) < _HELPED:
                self._help(group)
            else:
                yield group, hash_files(root, _asked(group), inodes=self._inodes)
            yield from self._answered()
        for group, answer in (*self._helped, *waiting):
            yield group, answer.result()

    def _help(self, group: list[ToHash]) -> None:
        assert self._g.helper is not None
        folder = folder_of(self._g.source.path, self._opened())
        self._helped.append((group, self._g.helper.hash_files(folder, _asked(group), inodes=self._inodes)))

    def _answered(self) -> Iterator[tuple[list[ToHash], list[HashedFile]]]:
        while self._helped and self._helped[0][1].done():
            group, answer = self._helped.popleft()
            yield group, answer.result()

    # What comes of it

    def _settle(self, group: list[ToHash], hashed: list[HashedFile]) -> None:
        """Take over what was found."""
        settled = _Settled([], [], [])
        for todo, (sha256, problem) in zip(group, hashed, strict=True):
            if sha256 is None:
                settled.forget.append(todo.n)
                self._not_read(todo.entry, problem)
            else:
                self._read(todo, Sha256(sha256), settled)
        g = self._g
        g.scratch.set_hashes(settled.hashes)
        g.scratch.set_verdicts(settled.verdicts)
        g.scratch.forget(settled.forget)
        take_over_stats(g, self._found, REFRESHED)
        if len(self._remember) >= _REMEMBERED or self._found.bytes_hashed - self._noted >= _REMEMBERED_BYTES:
            g.state.remember_hashes(self._remember)
            self._remember, self._noted = [], self._found.bytes_hashed

    def _not_read(self, entry: Entry, problem: str | None) -> None:
        g = self._g
        if g.rewrite and (change_and := _clean_again(g, entry)):
            # What cannot be read keeps its name, and a new owner writes that one, too.
            g.scratch.add([change_and])
        if problem is not None:
            said = Problem(g.source.name, entry.path, problem)
            self._found.problems.append(said)
            g.progress.problem(said)

    def _read(self, todo: ToHash, sha256: Sha256, settled: _Settled) -> None:
        g, found, entry = self._g, self._found, todo.entry
        found.files_hashed += 1
        found.bytes_hashed += entry.size
        hash_ = g.keys.content_hash(sha256)
        racy = entry_is_racy(g, entry)
        if hash_ != todo.before or g.rewrite:
            settled.hashes.append((todo.n, hash_, sha256))
            # What may change without a new time must be hashed by the next plan, too.
            if not racy and not self._is_fleeting():
                self._remember.append((entry, hash_, sha256))
            return
        known = g.state.get(entry.path.replace(b"/", b"\0"))
        if known is not None and same_metadata(entry, known.entry):
            settled.forget.append(todo.n)
            found.refresh.append((entry, racy))
        else:
            settled.hashes.append((todo.n, hash_, sha256))
            settled.verdicts.append((todo.n, Verdict.METADATA))

    def _is_fleeting(self) -> bool:
        found = self._found
        return self._g.fleeting and found.files_hashed < _FLEETING and found.bytes_hashed < _REMEMBERED_BYTES


@value
class _Settled:
    """What the scratch is told of a group, by the number of each change."""

    hashes: list[tuple[int, ContentHash, Sha256]]
    verdicts: list[tuple[int, Verdict]]
    forget: list[int]


def _asked(group: list[ToHash]) -> list[FileToHash]:
    return [(e.path, e.size, e.mtime_ns, e.inode) for e in (todo.entry for todo in group)]


def _groups(files: Iterable[ToHash]) -> Iterator[list[ToHash]]:
    group: list[ToHash] = []
    size = 0
    for todo in files:
        group.append(todo)
        size += todo.entry.size
        if size > _GROUP_BYTES or len(group) >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _clean_again(g: Gathering, entry: Entry) -> tuple[Change, bool] | None:
    key = entry.path.replace(b"/", b"\0")
    return None if g.state.is_dirty(key) else written_again(g, key)
