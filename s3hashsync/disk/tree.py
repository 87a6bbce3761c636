"""The walk over a source: what is there, in the order of the state, without what is excluded.

Decides what the walk enters and what it reports. Knows nothing of what was there before, of contents, or of
metadata beyond one lstat a path.

Every folder is opened relative to the one above it and never through a symlink: a tree that changes during
the walk cannot lead out of the source, and no path is too long. Memory: one listing for each open folder.
"""

from __future__ import annotations

import errno
import os
import stat as stats
import sys
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from s3hashsync.core.ignore import Rules
from s3hashsync.core.value import value
from s3hashsync.disk.folder import FOLDER_FLAGS, Folder, Listed, UnreadIgnoreFile, WalkOptions, read_folder
from s3hashsync.errors import Refused

__all__ = [
    "Excluded",
    "Explanation",
    "Item",
    "RootFacts",
    "Seen",
    "Undecided",
    "Unreadable",
    "WalkOptions",
    "check_root",
    "is_below",
    "walk",
    "why",
]

_OTHER_FILE_SYSTEM = "one_file_system: another file system is mounted here"


class Seen(NamedTuple):
    """One path. `key` is the path with its slashes as NUL: the walk is sorted by it."""

    key: bytes
    path: bytes
    stat: os.stat_result


class Unreadable(NamedTuple):
    """Something that may be there but could not be looked at: whoever knows of it keeps what he knows.

    With `is_dir` that holds for everything below, too. Right after a Seen of the same path: for that alone.
    """

    key: bytes
    path: bytes
    error: OSError
    is_dir: bool


class Excluded(NamedTuple):
    """A path that is left out, with all below it; only with `report_excluded`.

    Right after a Seen of the same path (a mount point): for what lies below it alone.
    """

    key: bytes
    path: bytes
    is_dir: bool
    reason: str


class Undecided(NamedTuple):
    """A folder with an ignore file that could not be read. What the walk leaves out below it may be left out for want of that
    file's negations: whoever knows of it keeps what he knows.

    Before everything in the folder; the ignore file itself comes as `Unreadable` in its turn.
    """

    key: bytes
    path: bytes


Item: TypeAlias = Seen | Unreadable | Excluded | Undecided


@value
class RootFacts:
    """What guards want to know of a source's root before anything is compared."""

    device: int
    is_mount: bool
    empty: bool


@value
class Explanation:
    """Why a path is or is not in the backup. `path` is the one spoken of: itself or a folder above it. `unknown`: it could not be
    looked at, so nothing is known of what the rules say."""

    path: bytes
    excluded: bool
    reason: str
    unknown: bool = False


def check_root(root: bytes) -> RootFacts:
    """Look at a source's root. Refused when it is missing, no folder, or unreadable."""
    shown = os.fsdecode(root)
    try:
        with os.scandir(root) as entries:
            empty = next(entries, None) is None
        return RootFacts(os.stat(root).st_dev, os.path.ismount(os.path.realpath(root)), empty)
    except FileNotFoundError:
        hint = "is the disk mounted? otherwise correct `path` of the source"
        raise Refused(f"{shown} is missing", hint) from None
    except NotADirectoryError:
        raise Refused(f"{shown} is not a folder", "`path` of a source names a folder") from None
    except OSError as error:
        hint = "run as a user that may read it, or correct `path` of the source"
        raise Refused(f"{shown} cannot be read: {error.strerror}", hint) from None


def walk(root: bytes, options: WalkOptions) -> Iterator[Item]:
    """Everything in the source, depth first, names in byte order; the root comes first, as b"".

    The root itself may be a symlink to a folder. What vanishes during the walk was not there.
    """
    check_root(root)
    return _Walk(options).items(root)


class _Walk:
    def __init__(self, options: WalkOptions) -> None:
        self._options = options
        self._stack: list[tuple[Folder, Iterator[tuple[bytes, Listed]]]] = []
        self._device = 0

    def items(self, path: bytes) -> Iterator[Item]:
        fd = os.open(path, FOLDER_FLAGS)
        try:
            root = os.fstat(fd)
            self._device = root.st_dev
            yield Seen(b"", b"", root)
            yield from self._enter(fd, b"", self._options.rules)
            while self._stack:
                yield from self._rest_of(*self._stack[-1])
        finally:
            for folder, _ in self._stack:
                folder.close()

    def _enter(self, fd: int, path: bytes, rules: Rules) -> Iterator[Unreadable | Undecided]:
        try:
            folder = read_folder(fd, path, rules, self._options)
        except OSError as error:
            yield Unreadable(path.replace(b"/", b"\0"), path, error, True)
        else:
            self._stack.append((folder, iter(folder.entries)))
            if folder.undecided:
                yield Undecided(path.replace(b"/", b"\0"), path)

    def _rest_of(self, folder: Folder, entries: Iterator[tuple[bytes, Listed]]) -> Iterator[Item]:
        """The folder's further entries, up to the first folder among them, which is then on the stack.

        The one loop that runs once a file: what it does not need for every file is outside."""
        prefix = folder.prefix
        key_prefix = prefix.replace(b"/", b"\0")
        excludes = None if folder.rules.empty else folder.rules.excluded
        marked, kept = bool(folder.marked), folder.kept
        limit = self._options.exclude_larger_than
        limit = sys.maxsize if limit is None else limit
        for name, entry in entries:
            path = prefix + name
            is_dir = True  # until we know: a folder's contents must not be taken for gone
            try:
                is_dir = entry.is_dir(follow_symlinks=False)
                if (excludes and excludes(path, is_dir=is_dir)) or (marked and name not in kept):
                    yield from self._left_out(folder, name, entry, is_dir=is_dir)
                    continue
                stat = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                yield Unreadable(key_prefix + name, path, error, is_dir)
                continue
            if stat.st_size > limit and (reason := self._options.by_stat(stat)):
                if self._options.report_excluded:
                    yield Excluded(key_prefix + name, path, False, reason)
                continue
            yield Seen(key_prefix + name, path, stat)
            if stats.S_ISDIR(stat.st_mode):
                yield from self._descend(folder, name, stat)
                if self._stack[-1][0] is not folder:
                    return
        self._stack.pop()
        folder.close()

    def _descend(self, above: Folder, name: bytes, stat: os.stat_result) -> Iterator[Item]:
        """Put the folder on the stack, or say why not."""
        path = above.prefix + name
        key = path.replace(b"/", b"\0")
        if self._options.one_file_system and stat.st_dev != self._device:
            if self._options.report_excluded:
                yield Excluded(key, path, True, _OTHER_FILE_SYSTEM)
            return
        try:
            fd = os.open(name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=above.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            yield Unreadable(key, path, error, True)
        else:
            yield from self._enter(fd, path, above.rules)

    def _left_out(self, folder: Folder, name: bytes, entry: Listed, *, is_dir: bool) -> Iterator[Item]:
        path = folder.prefix + name
        key = path.replace(b"/", b"\0")
        if isinstance(entry, UnreadIgnoreFile):
            # Excluded or not: its rules are missing from this run, and that must be said.
            yield Unreadable(key, path, entry.error, False)
        elif self._options.report_excluded:
            yield Excluded(key, path, is_dir, folder.reason(name, is_dir=is_dir) or "")


def is_below(root: bytes, path: bytes) -> bool:
    """Whether `path` (relative) is there, through real folders alone: what a symlink leads to is not in the source. Raises
    OSError when that could not be found out."""
    try:
        os.lstat(os.path.join(root, path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
            raise
    above, _, name = path.rpartition(b"/")
    fd = os.open(root, FOLDER_FLAGS)
    try:
        for part in above.split(b"/") if above else ():
            below = os.open(part, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
        os.stat(name or b".", dir_fd=fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK):
            return False
        raise
    finally:
        os.close(fd)
    return True


def why(root: bytes, path: bytes, options: WalkOptions) -> list[Explanation]:
    """Why `path` (relative) is or is not in the backup: every line that decides on it or on a folder above.

    From the top; the last one decides. What is not there is judged as a file, with a slash at its end as a
    folder, by the ignore files that are there.
    """
    check_root(root)
    said: list[Explanation] = []
    above = Folder(-1, b"", options.rules)
    try:
        above = read_folder(os.open(root, FOLDER_FLAGS), b"", options.rules, options)
        device = os.fstat(above.fd).st_dev
        names = [name for name in path.split(b"/") if name]
        for depth, name in enumerate(names, 1):
            here = above.prefix + name
            last = depth == len(names)
            stat = _lstat(above.fd, name)
            is_dir = stats.S_ISDIR(stat.st_mode) if stat else not last or path.endswith(b"/")
            reason = above.reason(name, is_dir=is_dir) or (options.by_stat(stat) if stat else None)
            if reason is None and options.one_file_system and stat and is_dir and not last:
                reason = _OTHER_FILE_SYSTEM if stat.st_dev != device else None
            if reason is not None:
                return [*said, Explanation(here, True, reason)]
            if rule := above.rules.verdict(here, is_dir=is_dir).rule:
                said.append(Explanation(here, False, str(rule)))
            if not last:
                above = _step_into(above, name, options)
    except OSError as error:
        return [*said, Explanation(above.path, True, f"cannot be read: {error.strerror}", unknown=True)]
    finally:
        above.close()
    return [*said, Explanation(path.strip(b"/"), False, "not excluded")]


def _step_into(above: Folder, name: bytes, options: WalkOptions) -> Folder:
    """The next folder of `why`; below what is not there, the rules of the last one that is go on."""
    path = above.prefix + name
    if _lstat(above.fd, name) is None:
        above.close()
        return Folder(-1, path, above.rules)
    fd = os.open(name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=above.fd)
    below = read_folder(fd, path, above.rules, options)
    above.close()
    return below


def _lstat(folder_fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except OSError:
        return None
