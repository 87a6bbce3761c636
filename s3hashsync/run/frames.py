"""Frames of packs: files are read, hashed and compressed, many at once; and opened again before the frame counts.

Decides that a file whose content is not what was planned is left out. Knows nothing of packs and their order. What is asked for
and what comes back are plain tuples, for they may travel between processes (`run.helper`).
"""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeAlias

from s3hashsync.codec.pack import FrameBuilder, Uncompressed, decode_frame
from s3hashsync.core.model import ContentHash, Sha256
from s3hashsync.disk.read import read_small
from s3hashsync.errors import ChangedUnderfoot, Corrupt

Wanted: TypeAlias = tuple[ContentHash, Sha256, bytes, int]
"""A content and the file that should hold it: hash, SHA-256, path, size."""

Frame: TypeAlias = tuple[bytes, int, list[tuple[ContentHash, int, int]], bytes]
"""The compressed frame, its tar bytes, the members that are in it (hash, offset, size), and the frame's own SHA-256, taken before
it was opened again: what has it later is what was opened."""


_ENOUGH = 2
"""So many frames in the making keep another process busy until it is asked again."""


class FrameMaker(Protocol):
    """Makes frames, one after the other."""

    def make(self, wanted: list[Wanted]) -> Future[Frame]: ...

    def close(self) -> None: ...


def make_frame(root: int, wanted: list[Wanted], *, verify: bool) -> Frame:
    """The frame of these files below the open folder `root`; `verify`: `DoesNotOpen` when it does not open to what was read."""
    builder = FrameBuilder()
    for hash_, sha256, path, size in wanted:
        try:
            content = read_small(path, size, dir_fd=root)
        except (ChangedUnderfoot, OSError):
            continue
        if hashlib.sha256(content).digest() == sha256:
            builder.add(hash_, content)
    taken = builder.take()
    data = taken.compress()
    digest = hashlib.sha256(data).digest()
    if verify:
        _check_opens(data, taken, {hash_: sha256 for hash_, sha256, _, _ in wanted})
    members = [(member.hash, member.offset, member.size) for member in taken.members]
    return data, len(taken.tar), members, digest


def _check_opens(frame: bytes, taken: Uncompressed, sha256: dict[ContentHash, Sha256]) -> None:
    """Open the frame as a restore would, and compare every content by its hash."""
    try:
        tar = memoryview(decode_frame(frame, len(taken.tar)))
    except Corrupt as error:
        raise failing(error.message) from error
    for member in taken.members:
        if hashlib.sha256(tar[member.offset : member.offset + member.size]).digest() != sha256[member.hash]:
            raise failing(f"content {member.hash.hex()} comes out of it as another one")


class DoesNotOpen(Corrupt):
    """What was made a moment ago is not what was read: this machine fails."""


def failing(what: str) -> DoesNotOpen:
    return DoesNotOpen(
        f"a pack that was made a moment ago does not open again ({what}): nothing of it was sent",
        "does this machine's memory fail? test it before you trust any backup of it",
    )


class ThreadFrames:
    """`FrameMaker` in this process."""

    def __init__(self, root: int, *, verify: bool = True) -> None:
        self._root = root
        self._verify = verify
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="frames")

    def make(self, wanted: list[Wanted]) -> Future[Frame]:
        return self._pool.submit(make_frame, self._root, wanted, verify=self._verify)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class SharedFrames:
    """`FrameMaker` by two: `away` has enough to do always; `here` takes a share while whoever sets `idle` waits for frames."""

    def __init__(self, away: FrameMaker, here: FrameMaker, idle: threading.Event) -> None:
        self._away = away
        self._here = here
        self._idle = idle
        self._asked: list[Future[Frame]] = []

    def make(self, wanted: list[Wanted]) -> Future[Frame]:
        self._asked = [future for future in self._asked if not future.done()]
        if len(self._asked) >= _ENOUGH and self._idle.is_set():
            return self._here.make(wanted)
        future = self._away.make(wanted)
        self._asked.append(future)
        return future

    def close(self) -> None:
        self._away.close()
        self._here.close()
