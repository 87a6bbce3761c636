"""What kind of file system holds a path, and what its errors mean to a person.

Knows nothing of what lies on it.
"""

from __future__ import annotations

import errno
import os

from s3hashsync import errors

_NETWORK_KINDS = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "lustre",
        "gfs2",
        "ocfs2",
        "beegfs",
        "davfs",
    ]
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_PASSING = frozenset(
    {errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}
    | {errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)


def file_system_kind(path: str) -> str:
    """The type of the file system that holds `path`, as the kernel names it; "" when that cannot be found
    out."""
    real, best, kind = os.path.realpath(path), "", ""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                _, point, type_, *_ = line.split(" ")
                point = point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):  # of two mounts on one point the later one is on top
                    best, kind = point, type_
    except (OSError, ValueError):
        return ""
    return kind


def is_remote(kind: str) -> bool:
    """Whether locks and shared memory may not be trusted there. FUSE counts, except where it serves a local
    disk."""
    return kind in _NETWORK_KINDS or kind.startswith("fuse.")


def translated(error: OSError, what: str, folder: str) -> errors.StoreError:
    """What an operating system error means to a person. A missing file is left to the caller, who knows
    what it proves."""
    reason = f"{what}: {error.strerror or error}"
    if error.errno in _FULL:
        return errors.NoSpace(f"{folder}: no space left ({reason})", "free some space on that disk, or raise its quota")
    if error.errno in _DENIED:
        return errors.Denied(reason, f"check the owner and the rights of {folder}, and that it is not mounted read-only")
    if error.errno in _PASSING:
        return errors.Unreachable(reason, f"check that the disk or the share of {folder} is there")
    if error.errno == errno.EFBIG:
        return errors.StoreError(reason, "this file system holds no files that large (FAT: 4 GiB): use another one")
    if error.errno in {errno.EIO, errno.ENXIO, errno.ENODEV}:
        return errors.StoreError(reason, f"is the disk of {folder} connected, and healthy?")
    return errors.StoreError(reason)
