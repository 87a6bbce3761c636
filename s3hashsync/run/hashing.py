"""Hashing files of a plan, many at once.

Decides what is a problem and what is not: a file that was deleted in the meantime is none. What is asked for and what comes
back are plain tuples, for they may travel between processes (`run.helper`).
"""

from __future__ import annotations

import os
from typing import TypeAlias

from s3hashsync.disk.read import Facts, hash_file
from s3hashsync.errors import ChangedUnderfoot

FileToHash: TypeAlias = tuple[bytes, int, int, int]
"""Path, size, mtime (ns), inode."""

HashedFile: TypeAlias = tuple[bytes | None, str | None]
"""The SHA-256, or None with what is wrong (None: the file is gone, and the next run removes it)."""


def hash_files(root: int, files: list[FileToHash], *, inodes: bool) -> list[HashedFile]:
    """Those below the open folder `root`; `inodes`: whether inodes mean anything there."""
    out: list[HashedFile] = []
    for path, size, mtime_ns, inode in files:
        try:
            out.append((hash_file(path, Facts(size, mtime_ns, inode if inodes else None), dir_fd=root), None))
        except ChangedUnderfoot as error:
            out.append((None, error.message if _exists(root, path) else None))
        except OSError as error:
            out.append((None, f"cannot be read: {error.strerror or error}"))
    return out


def _exists(root: int, path: bytes) -> bool:
    try:
        os.stat(path, dir_fd=root, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
