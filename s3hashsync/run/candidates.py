"""The files that may give a content its bytes, and their reading.

Decides that bytes count only when the file held still and their SHA-256 is what was planned. Knows nothing of where they go.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from s3hashsync.core.model import Entry, Sha256
from s3hashsync.core.value import value
from s3hashsync.disk.read import Facts, StableFile, open_stable
from s3hashsync.errors import ChangedUnderfoot


@value
class Candidate:
    """A path that holds (or held, when it was scanned) a content; `allowed`: the plan said that it may be uploaded. `sha256` is
    empty where the file could not be read: then nothing that is read from it counts."""

    entry: Entry
    sha256: Sha256
    allowed: bool = True


@value
class SourceFiles:
    """The files of one source; `root` is its open folder, `inodes`: whether its inodes mean anything. For any thread."""

    root: int
    inodes: bool = True

    def content(self, candidate: Candidate) -> bytes:
        """The whole content; raises `ChangedUnderfoot` unless it is the one that was planned, and `OSError`."""
        with self._open(candidate) as file:
            content = file.read()
        if hashlib.sha256(content).digest() != candidate.sha256:
            raise _changed(candidate)
        return content

    @contextmanager
    def chunks(self, candidate: Candidate) -> Iterator[Iterator[bytes]]:
        """The file's chunks; leaving the block raises `ChangedUnderfoot` when they were not the content that was planned."""
        digest = hashlib.sha256()

        def chunks() -> Iterator[bytes]:
            with self._open(candidate) as file:
                for chunk in file.chunks():
                    digest.update(chunk)
                    yield chunk

        iterator = chunks()
        try:
            yield iterator
            if digest.digest() != candidate.sha256:
                raise _changed(candidate)
        finally:
            iterator.close()  # type: ignore[attr-defined]

    def _open(self, candidate: Candidate) -> StableFile:
        return open_stable(candidate.entry.path, Facts.of(candidate.entry, inode=self.inodes), dir_fd=self.root)


def _changed(candidate: Candidate) -> ChangedUnderfoot:
    return ChangedUnderfoot(f"{os.fsdecode(candidate.entry.path)} changed while it was read", "it is left to the next run")
