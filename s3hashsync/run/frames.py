"""Frames of packs: files are read, hashed and compressed, many at once.

Decides that a file which is not what was planned is left out. Knows nothing of packs and their order. What is asked for and what
comes back are plain tuples, for they may travel between processes (`run.helper`).
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeAlias

from s3hashsync.codec.pack import FrameBuilder
from s3hashsync.core.model import ContentHash, Sha256
from s3hashsync.disk.read import Facts, open_stable
from s3hashsync.errors import ChangedUnderfoot

Wanted: TypeAlias = tuple[ContentHash, Sha256, bytes, int, int, int]
"""A content and the file that should hold it: hash, SHA-256, path, size, mtime (ns), inode."""

Frame: TypeAlias = tuple[bytes, int, list[tuple[ContentHash, int, int]]]
"""The compressed frame, its tar bytes, and the members that are in it: hash, offset, size."""


class FrameMaker(Protocol):
    """Makes frames, one after the other."""

    def make(self, wanted: list[Wanted]) -> Future[Frame]: ...

    def close(self) -> None: ...


def make_frame(root: int, wanted: list[Wanted], *, inodes: bool) -> Frame:
    """The frame of these files below the open folder `root`; `inodes`: whether inodes mean anything there."""
    builder = FrameBuilder()
    for hash_, sha256, path, size, mtime_ns, inode in wanted:
        try:
            with open_stable(path, Facts(size, mtime_ns, inode if inodes else None), dir_fd=root) as file:
                content = file.read()
        except (ChangedUnderfoot, OSError):
            continue
        if hashlib.sha256(content).digest() == sha256:
            builder.add(hash_, content)
    taken = builder.take()
    members = [(member.hash, member.offset, member.size) for member in taken.members]
    return taken.compress(), len(taken.tar), members


class ThreadFrames:
    """`FrameMaker` in this process."""

    def __init__(self, root: int, *, inodes: bool) -> None:
        self._root = root
        self._inodes = inodes
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="frames")

    def make(self, wanted: list[Wanted]) -> Future[Frame]:
        return self._pool.submit(make_frame, self._root, wanted, inodes=self._inodes)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
