"""From disk and state to changes: walk, compare, hash what has to be hashed, ask the index about what was found.

Decides what is looked at again, and that what could not be looked at keeps what is known of it. Writes nothing but the
source's own state. Compiling the changes to steps is `core.compile`'s.
"""

from __future__ import annotations

import os
import re
import stat as stats
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from s3hashsync.config import SourceSettings
from s3hashsync.core.compile import Before, Change, Known, Verdict
from s3hashsync.core.ignore import Rules
from s3hashsync.core.model import Entry, Kind, Record
from s3hashsync.core.plan import Problem, SourceHeader
from s3hashsync.disk.metadata import entry_from, same_metadata
from s3hashsync.disk.scratch import Scratch
from s3hashsync.disk.state_rows import FILE_NUMBER, Row, kind_of, number_of, wrapped
from s3hashsync.disk.tree import Item, Seen, Undecided, Unreadable, WalkOptions, is_below, walk, why
from s3hashsync.errors import ChangedUnderfoot
from s3hashsync.run.gathering import (
    REFRESHED,
    Found,
    Gathering,
    entry_is_racy,
    take_over_stats,
    unreadable,
    written_again,
)
from s3hashsync.run.guards import MountPoints, check_inside, check_source
from s3hashsync.run.rehash import Rehash
from s3hashsync.stores.base import IndexReader

_BATCH = 1000
_EXPLAINED = 100
"""So many newly excluded paths are shown with the very rule: asking for it lists every folder above."""


def walk_options(source: SourceSettings, own: Sequence[str] = ()) -> WalkOptions:
    """The rules of a source as the walk takes them. `own`: what belongs to the program itself (states, an embedded repository;
    absolute paths) is left out wherever it lies: it changes while it is read, and would grow by each run."""
    return WalkOptions(
        rules=Rules((*source.exclude, *_own_rules(source, own)), source.exclude_regex),
        ignore_files=tuple(os.fsencode(name) for name in source.ignore_files),
        exclude_caches=source.exclude_caches,
        exclude_if_present=tuple(os.fsencode(name) for name in source.exclude_if_present),
        exclude_larger_than=source.exclude_larger_than,
        one_file_system=source.one_file_system,
    )


def _own_rules(source: SourceSettings, own: Sequence[str]) -> Iterator[str]:
    root = os.path.realpath(source.path)
    for path in own:
        relative = os.path.relpath(os.path.realpath(path), root)
        if relative != os.curdir and relative.split(os.sep)[0] != os.pardir:
            yield "/" + re.sub(r"([*?\[\]\\ ])", r"\\\1", relative)


def gather(g: Gathering, head: str) -> tuple[SourceHeader, list[Problem]]:
    """Fill the scratch with the changes of one source. Raises `Refused` for a root that is not as it should be."""
    check_source(g.source, g.state)
    found = Found()
    g.scratch.begin_source(g.source.name)
    g.progress.phase(f"scanning {g.source.name}", 0, 0)
    with Rehash(g, found) as rehash:
        for batch in _batches(_compare(g, found)):
            rehash.meanwhile(g.scratch.add(batch))
            take_over_stats(g, found, REFRESHED)
            g.stop.check()
        rehash.finish()
    take_over_stats(g, found)
    header = SourceHeader(
        name=g.source.name,
        root=g.source.path,
        head=head,
        scanned_ns=g.scanned_ns,
        entries=found.entries,
        files=found.files,
        files_bytes=found.files_bytes,
        files_hashed=found.files_hashed,
        bytes_hashed=found.bytes_hashed,
        excluded=found.excluded,
    )
    return header, found.problems


def look_up(scratch: Scratch, index: IndexReader) -> None:
    """Ask the index about every content that a change brings."""
    for batch in scratch.hashes():
        items = index.read([h.hex() for h in batch])
        records = [item for item in items.values() if isinstance(item, Record)]
        scratch.set_known({r.hash: Known(r.state, r.location, r.spill) for r in records})


# Comparing


def _compare(g: Gathering, found: Found) -> Iterator[tuple[Change, bool]]:
    """Merge the walk with the rows of the state, both sorted by key: every path that differs, with whether to hash it."""
    rows = g.state.rows()
    row = next(rows, None)
    judge = _Judge(g, found, remembered=g.state.has_found())
    mounts = MountPoints()
    for item in walk(g.root, judge.options):
        key = item.key
        while row is not None and row.key < key:
            if change := judge.gone(row):
                yield change, False
            row = next(rows, None)
        same = row if row is not None and row.key == key else None
        if same is not None:
            row = next(rows, None)
        if not isinstance(item, Seen):
            change_and = judge.not_seen(item, same)
        else:
            found.entries += 1
            if not found.entries % 5000:
                g.progress.advance(5000, 0)
            mounts.see(item)
            change_and = judge.seen(item, same)
        if change_and:
            yield change_and
    while row is not None:
        if change := judge.gone(row):
            yield change, False
        row = next(rows, None)
    check_inside(g.source, g.state, mounts, judge.options)


class _Judge:
    """The verdict on one path at a time."""

    def __init__(self, g: Gathering, found: Found, *, remembered: bool) -> None:
        self._g = g
        self._found = found
        self._remembered = remembered
        self._inode = "inode" in g.source.compare
        self._ctime = "ctime" in g.source.compare
        self._unreadable: bytes | None = None
        self._undecided: bytes | None = None
        self.options = walk_options(g.source, g.own)

    def seen(self, item: Seen, row: Row | None) -> tuple[Change, bool] | None:
        """The change of a path that is on the disk, and whether its content has to be hashed; None when nothing changed."""
        stat = item.stat
        is_file = stats.S_ISREG(stat.st_mode)
        if is_file:
            self._found.files += 1
            self._found.files_bytes += stat.st_size
        if (
            row is not None
            and not row.dirty
            and not row.racy
            and (stat.st_mtime_ns == row.mtime_ns or wrapped(stat.st_mtime_ns) == row.mtime_ns)
            and (stat.st_size == row.size or not is_file)
            and (stat.st_ctime_ns == row.ctime_ns or not self._ctime or wrapped(stat.st_ctime_ns) == row.ctime_ns)
            and (stat.st_ino == row.inode or not self._inode or wrapped(stat.st_ino) == row.inode)
            and is_file == (row.kind == FILE_NUMBER)
        ):
            return self.rewritten(row) if self._g.rewrite else None
        try:
            entry = entry_from(item, self._g.root)
        except ChangedUnderfoot:
            return self._gone_after_all(row)
        except OSError as error:
            self._found.problems.append(unreadable(self._g, item.path, error))
            return self.rewritten(row) if self._g.rewrite and row is not None else None
        if row is None:
            return self._new(item, entry, None, Verdict.NEW)
        if row.dirty:
            return self._new(item, entry, row, Verdict.UNCONFIRMED)
        if self._g.rewrite and row.hash is not None:
            return self._new(item, entry, row, Verdict.REWRITE)
        if number_of(entry.kind) != row.kind or (row.hash is None) != (entry.kind is not Kind.FILE or entry.size == 0):
            return self._new(item, entry, row, Verdict.CHANGED)
        if row.hash is not None:
            return self._new(item, entry, row, Verdict.CHANGED)
        return self._metadata(entry, row)

    def rewritten(self, row: Row) -> tuple[Change, bool] | None:
        """Nothing new is known of the path, but a new owner of the source writes every name that it keeps. A dirty row stays
        dirty until it can be looked at."""
        return written_again(self._g, row.key) if not row.dirty else None

    def _gone_after_all(self, row: Row | None) -> tuple[Change, bool] | None:
        change = self.gone(row) if row is not None else None
        return (change, False) if change else None

    def _new(self, item: Seen, entry: Entry, row: Row | None, verdict: Verdict) -> tuple[Change, bool]:
        before = self._before(row) if row is not None else None
        change = Change(self._g.source.name, entry.path, verdict, entry, before=before)
        if entry.kind is not Kind.FILE or entry.size == 0:
            return change, False
        if self._remembered and (known := self._g.state.hash_found(item.key, item.stat)):
            return replace(change, hash=known[0], sha256=known[1]), False
        return change, True

    def _metadata(self, entry: Entry, row: Row) -> tuple[Change, bool] | None:
        """A path without content of its own: only its metadata can have changed."""
        before = self._g.state.get(row.key)
        if before is not None and same_metadata(entry, before.entry):
            if not _same_stat(entry, row) or row.racy:
                self._found.refresh.append((entry, entry_is_racy(self._g, entry)))
            return None
        return Change(self._g.source.name, entry.path, Verdict.METADATA, entry), False

    def _before(self, row: Row) -> Before:
        hashes = {row.hash} if row.hash else set()
        if row.dirty:
            hashes |= set(self._g.state.dirty_hashes(row.key))
        kind = kind_of(row.kind) if row.kind >= 0 else Kind.FILE
        return Before(kind, row.size, tuple(sorted(hashes)))

    def gone(self, row: Row) -> Change | None:
        """The change of a path that the walk did not bring: deleted, or excluded now, or not looked at."""
        key = row.key
        if self._unreadable is not None and (key == self._unreadable or _is_under(key, self._unreadable)):
            return self._kept(row)
        path = key.replace(b"\0", b"/")
        try:
            there = is_below(self._g.root, path)
        except OSError as error:
            self._found.problems.append(unreadable(self._g, path, error))
            return self._kept(row)
        rule = self._excluded(row, path) if there else ""
        if rule is None:
            return self._kept(row)
        verdict = Verdict.EXCLUDED if rule else Verdict.GONE
        return Change(self._g.source.name, path, verdict, before=self._before(row), rule=rule)

    def not_seen(self, item: Item, row: Row | None) -> tuple[Change, bool] | None:
        """What the walk has to say besides the paths it saw: it keeps what is known there."""
        if isinstance(item, Undecided):
            # Folders below one such are covered by it.
            if self._undecided is None or not _is_under(item.key, self._undecided):
                self._undecided = item.key
        elif isinstance(item, Unreadable):
            self._found.problems.append(unreadable(self._g, item.path, item.error))
            self._unreadable = item.key
        return self.rewritten(row) if self._g.rewrite and row is not None else None

    def _kept(self, row: Row) -> Change | None:
        change = self.rewritten(row) if self._g.rewrite else None
        return change[0] if change else None

    def _excluded(self, row: Row, path: bytes) -> str | None:
        """The rule that leaves out what is there; None when none is known to, so that what is backed up of it stays."""
        if self._undecided is not None and _is_under(row.key, self._undecided):
            return None
        self._found.excluded += 1
        if self._found.excluded > _EXPLAINED:
            return "excluded"
        last = why(self._g.root, path, self.options)[-1]
        if last.excluded and not last.unknown:
            return last.reason
        self._found.excluded -= 1
        message = last.reason if last.unknown else "it came, or came back, while its folder was read: it is left to the next run"
        problem = Problem(self._g.source.name, path, message)
        self._found.problems.append(problem)
        self._g.progress.problem(problem)
        return None


def _is_under(key: bytes, folder: bytes) -> bool:
    return not folder or key.startswith(folder + b"\0")


def _same_stat(entry: Entry, row: Row) -> bool:
    stat = (wrapped(entry.ctime_ns), wrapped(entry.inode), wrapped(entry.mtime_ns))
    return stat == (row.ctime_ns, row.inode, row.mtime_ns)


def _batches(changes: Iterator[tuple[Change, bool]]) -> Iterator[list[tuple[Change, bool]]]:
    while batch := list(islice(changes, _BATCH)):
        yield batch
