"""Metadata of a path: from the disk into an Entry, and from an Entry onto the disk.

Decides what counts as metadata, when two entries have the same, and in which order it is put back. Knows
nothing of contents. What cannot be put back is a problem with a name, never an exception: a restored file
with the wrong owner is better than none.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat as stats
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from s3hashsync.core.model import Entry, Kind
from s3hashsync.disk.tree import Seen
from s3hashsync.errors import ChangedUnderfoot

_KINDS = {
    stats.S_IFREG: Kind.FILE,
    stats.S_IFDIR: Kind.DIRECTORY,
    stats.S_IFLNK: Kind.SYMLINK,
    stats.S_IFIFO: Kind.FIFO,
    stats.S_IFSOCK: Kind.SOCKET,
    stats.S_IFCHR: Kind.CHARACTER_DEVICE,
    stats.S_IFBLK: Kind.BLOCK_DEVICE,
}
_DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
_HAS_XATTRS = hasattr(os, "listxattr")  # Linux alone, in Python's library
_SET_ID = stats.S_ISUID | stats.S_ISGID


@dataclass(frozen=True, slots=True)
class MetadataProblem:
    """Something of a path's metadata that could not be put back."""

    path: bytes
    message: str

    def __str__(self) -> str:
        return f"{os.fsdecode(self.path)}: {self.message}"


def entry_from(seen: Seen, root: bytes) -> Entry:
    """The metadata of a path that the walk saw below `root` (absolute). ChangedUnderfoot where it is gone."""
    stat = seen.stat
    kind = _KINDS[stats.S_IFMT(stat.st_mode)]
    path = os.path.join(root, seen.path) if seen.path else root
    size = stat.st_size if kind is Kind.FILE else 0
    return Entry(
        path=seen.path,
        kind=kind,
        size=size,
        mtime_ns=stat.st_mtime_ns,
        ctime_ns=stat.st_ctime_ns,
        inode=stat.st_ino,
        device=stat.st_dev,
        mode=stats.S_IMODE(stat.st_mode),
        uid=stat.st_uid,
        gid=stat.st_gid,
        # A folder's count of links is the number of folders in it, which says nothing that is not said there.
        links=1 if kind is Kind.DIRECTORY else stat.st_nlink,
        rdev=stat.st_rdev if kind in _DEVICES else 0,
        target=_target(path) if kind is Kind.SYMLINK else None,
        xattrs=_xattrs(path),
        sparse=stat.st_blocks * 512 < size,
    )


def same_metadata(entry: Entry, other: Entry) -> bool:
    """Whether nothing would be restored differently. With hard links it counts which files hang together."""
    return (
        entry.kind is other.kind
        and entry.size == other.size
        and entry.mtime_ns == other.mtime_ns
        and entry.mode == other.mode
        and entry.uid == other.uid
        and entry.gid == other.gid
        and entry.links == other.links
        and (entry.links == 1 or (entry.device, entry.inode) == (other.device, other.inode))
        and entry.rdev == other.rdev
        and entry.target == other.target
        and entry.xattrs == other.xattrs
    )


def _target(path: bytes) -> bytes:
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
            # A path that is too long, a broken disk: it is still there, and must not pass for gone.
            raise
        message = f"{os.fsdecode(path)} changed while it was read: {error.strerror}"
        raise ChangedUnderfoot(message, "it is left to the next run") from None


def _xattrs(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """What there is and may be read. Attributes that a user may not see belong to the system."""
    if not _HAS_XATTRS:
        return ()
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return ()
    found = []
    for name in names:
        try:
            found.append((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)))
        except OSError:
            continue
    return tuple(sorted(found))


def apply_to_open(fd: int, entry: Entry) -> list[MetadataProblem]:
    """Put everything back on an open file or folder."""
    problems = _Problems(entry.path)
    mode = _owner(entry, problems, lambda uid, gid: os.chown(fd, uid, gid))
    for name, value in entry.xattrs if _HAS_XATTRS else ():
        with problems.of(f"extended attribute {os.fsdecode(name)}"):
            os.setxattr(fd, name, value)
    # Once for every file: what fails is tried again where it gets its name.
    try:
        os.fchmod(fd, mode)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
    except (OSError, OverflowError):
        with problems.of("mode"):
            os.fchmod(fd, mode)
        with problems.of("times"):
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
    return problems.found


def apply_to_name(folder_fd: int, name: bytes, entry: Entry) -> list[MetadataProblem]:
    """Put everything back on what cannot be opened: symlink, fifo, socket, device. No link is followed."""
    problems = _Problems(entry.path)
    mode = _owner(entry, problems, lambda uid, gid: os.chown(name, uid, gid, dir_fd=folder_fd, follow_symlinks=False))
    # The call takes no folder descriptor; the kernel's own name for the folder does the same.
    path = b"/proc/self/fd/%d/%b" % (folder_fd, name)
    for attribute, value in entry.xattrs if _HAS_XATTRS else ():
        with problems.of(f"extended attribute {os.fsdecode(attribute)}"):
            os.setxattr(path, attribute, value, follow_symlinks=False)
    if entry.kind is not Kind.SYMLINK:
        with problems.of("mode"):
            chmod_name(folder_fd, name, mode)
    with problems.of("times"):
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=folder_fd, follow_symlinks=False)
    return problems.found


class _Problems:
    def __init__(self, path: bytes) -> None:
        self.path = path
        self.found: list[MetadataProblem] = []

    def add(self, message: str) -> None:
        self.found.append(MetadataProblem(self.path, message))

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.add(f"{what} could not be restored: {reason}")


def _owner(entry: Entry, problems: _Problems, chown: Callable[[int, int], None]) -> int:
    """Change the owner as far as this user may, and return the mode that goes with the result.

    Whoever is not root gets the files of others as his own, as with tar; that is no problem to report. But
    a file that came to another owner must not act in that one's name.
    """
    mine = os.geteuid()
    given = mine == 0 or entry.uid == mine
    if given:
        try:
            chown(entry.uid if mine == 0 else -1, entry.gid)
        except (OSError, OverflowError) as error:
            given = False
            problems.add(f"owner {entry.uid}:{entry.gid} could not be restored: {error}")
    if given or entry.kind is Kind.DIRECTORY or not entry.mode & _SET_ID:
        return entry.mode
    problems.add("setuid and setgid were left out, because the owner could not be restored")
    return entry.mode & ~_SET_ID


def chmod_name(folder_fd: int, name: bytes, mode: int) -> None:
    """Change the mode of what has this name in the folder, and of nothing that a symlink points to."""
    if os.chmod in os.supports_follow_symlinks and os.chmod in os.supports_dir_fd:
        os.chmod(name, mode, dir_fd=folder_fd, follow_symlinks=False)
        return
    # Linux has no such call; but a descriptor that only names its file has a path that leads nowhere else.
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        os.chmod(b"/proc/self/fd/%d" % fd, mode)
    finally:
        os.close(fd)


@lru_cache(maxsize=4096)
def owner_name(uid: int) -> str:
    """The user's name on this host; empty when there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return ""


@lru_cache(maxsize=4096)
def group_name(gid: int) -> str:
    """The group's name on this host; empty when there is none."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return ""
