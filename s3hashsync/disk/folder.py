"""One open folder of a source: its listing, the markers in it, and the rules that hold in it.

Decides which of its names are left out, and why. Knows nothing of the tree around it.
"""

from __future__ import annotations

import errno
import os
import stat as stats
import sys
from bisect import bisect_left
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Protocol, TypeAlias

from s3hashsync.core.ignore import Rules

CACHE_TAG = b"CACHEDIR.TAG"
CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ENCODING = sys.getfilesystemencoding()
_NAME = itemgetter(0)


@dataclass(frozen=True, slots=True)
class WalkOptions:
    """What belongs to a source. `ignore_files` in rising precedence; `exclude_larger_than` in bytes.

    `report_excluded`: the walk names what it leaves out, and why; that costs time, so only on request.
    """

    rules: Rules = field(default_factory=Rules)
    ignore_files: tuple[bytes, ...] = ()
    exclude_caches: bool = False
    exclude_if_present: tuple[bytes, ...] = ()
    exclude_larger_than: int | None = None
    one_file_system: bool = False
    report_excluded: bool = False

    def by_stat(self, stat: os.stat_result) -> str | None:
        """The reason to leave out a file that is too large."""
        limit = self.exclude_larger_than
        if limit is None or stat.st_size <= limit or not stats.S_ISREG(stat.st_mode):
            return None
        return f"exclude_larger_than: {limit} bytes"


class Listed(Protocol):
    """What is used of os.DirEntry."""

    def is_dir(self, *, follow_symlinks: bool) -> bool: ...

    def stat(self, *, follow_symlinks: bool) -> os.stat_result: ...


class UnreadIgnoreFile:
    """Stands in the listing for an ignore file that could not be read, so that it is reported in its turn."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def is_dir(self, *, follow_symlinks: bool) -> bool:
        return False

    def stat(self, *, follow_symlinks: bool) -> os.stat_result:
        raise self.error


Entries: TypeAlias = list[tuple[bytes, Listed]]


@dataclass(frozen=True, slots=True)
class Folder:
    """An open folder. `marked` is the reason why all names but those in `kept` are left out, or empty. `undecided`: an ignore
    file of it could not be read."""

    fd: int
    path: bytes
    rules: Rules
    entries: Entries = field(default_factory=list)
    kept: frozenset[bytes] = frozenset()
    marked: str = ""
    undecided: bool = False

    @property
    def prefix(self) -> bytes:
        return self.path + b"/" if self.path else b""

    def reason(self, name: bytes, *, is_dir: bool) -> str | None:
        """Why the rules and markers leave this name out; None when they do not."""
        if self.marked and name not in self.kept:
            return self.marked
        verdict = self.rules.verdict(self.prefix + name, is_dir=is_dir)
        return str(verdict.rule) if verdict.excluded else None

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def read_folder(fd: int, path: bytes, rules: Rules, options: WalkOptions) -> Folder:
    """List an open folder; on success the descriptor belongs to the Folder, on OSError it is closed.

    `rules` are those of the folder above. A listing that breaks off counts as none at all.
    """
    try:
        with os.scandir(fd) as listing:
            entries: Entries = [(entry.name.encode(_ENCODING, "surrogateescape"), entry) for entry in listing]
        entries.sort(key=_NAME)
        kept, marked = _markers(fd, entries, options)
        if options.ignore_files:
            rules = _with_ignore_files(fd, rules, (path, entries), options)
    except OSError:
        os.close(fd)
        raise
    undecided = any(isinstance(entries[at][1], UnreadIgnoreFile) for at in _places(entries, options.ignore_files))
    return Folder(fd, path, rules, entries, kept, marked, undecided)


def _markers(fd: int, entries: Entries, options: WalkOptions) -> tuple[frozenset[bytes], str]:
    present = [name for name in options.exclude_if_present if _position(entries, name) is not None]
    if present:
        return frozenset(present), f"exclude_if_present: {os.fsdecode(present[0])} lies beside it"
    if options.exclude_caches and _position(entries, CACHE_TAG) is not None and _is_cache(fd):
        return frozenset([CACHE_TAG]), "exclude_caches: CACHEDIR.TAG lies beside it"
    return frozenset(), ""


def _with_ignore_files(fd: int, rules: Rules, where: tuple[bytes, Entries], options: WalkOptions) -> Rules:
    path, entries = where
    found = []
    for name in options.ignore_files:
        at = _position(entries, name)
        if at is None:
            continue
        try:
            content = _read_whole(fd, name)
        except OSError as error:
            entries[at] = name, UnreadIgnoreFile(error)
        else:
            found.append((name, content))
    return rules.enter(path, found) if found else rules


def _places(entries: Entries, names: tuple[bytes, ...]) -> list[int]:
    return [at for name in names if (at := _position(entries, name)) is not None]


def _position(entries: Entries, name: bytes) -> int | None:
    at = bisect_left(entries, name, key=_NAME)
    return at if at < len(entries) and entries[at][0] == name else None


def _is_cache(folder_fd: int) -> bool:
    try:
        return _read_whole(folder_fd, CACHE_TAG, len(CACHE_SIGNATURE)) == CACHE_SIGNATURE
    except OSError:
        return False


def _read_whole(folder_fd: int, name: bytes, limit: int = sys.maxsize) -> bytes:
    """A small file. As in git, a symlink (or anything but a regular file) of that name does not count."""
    try:
        fd = os.open(name, _FILE_FLAGS, dir_fd=folder_fd)
    except FileNotFoundError:
        return b""
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            return b""
        raise
    try:
        parts: list[bytes] = []
        if stats.S_ISREG(os.fstat(fd).st_mode):
            while limit > 0 and (part := os.read(fd, min(limit, 65536))):
                parts.append(part)
                limit -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)
