"""A folder as an object store: `objects/ab/<hash>.<attempt id>`, `packs/…` alike, and documents as plain
files.

Decides the layout below the folder. Versions are files that are never written twice; their suffix is the
attempt's id, so there are no markers, and a version that a crash left behind is found by its name. Knows
nothing of what the bytes mean, nor how they become durable (`stores.folder`).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from s3hashsync import errors
from s3hashsync.stores.base import Attempt, Body, Document, Stored, Upload, Version, check_size, pieces_of
from s3hashsync.stores.folder import TEMPORARY, Folder, sync_file, write_all
from s3hashsync.stores.local_upload import LocalUpload

SINGLE_PUT_LIMIT = 8 << 20
"""Above this a content is written in parts, so that it never lies in memory as a whole."""
CHUNK = 1 << 20
LOOK_EVERY = 86_400.0
STALE_AFTER = 86_400.0
"""Where locks may not be believed."""
NEARLY_FULL = 64 << 20
_TIDIED = f"{TEMPORARY}tidied"
_CONTENT_FOLDERS = ("objects", "packs")
_PLAIN = re.compile(r"[A-Za-z0-9_~=+-]+")
_COMPONENT = re.compile(r"(?!\.{1,2}(?:/|$)|\.tmp-)[^/\0]+")


def _checked(key: str) -> str:
    """A key becomes a path below the folder: nothing may lead out of it, nor look like a temporary file."""
    if not all(_COMPONENT.fullmatch(part) for part in key.split("/")):
        raise ValueError(f"not a key: {key!r}")
    return key


def _folder_of(stem: str) -> str:
    above, _, last = _checked(stem).rpartition("/")
    return f"{above}/{last[:2]}" if above in _CONTENT_FOLDERS else above


def _path_of(stem: str, version: str) -> str | None:
    """Where this version lies; None when no version of this store can have that name."""
    if _PLAIN.fullmatch(version) is None:
        return None
    folder, last = _folder_of(stem), stem.rpartition("/")[2]
    return f"{folder}/{last}.{version}" if folder else f"{last}.{version}"


def _checksum(digest: bytes) -> str:
    return f"sha256:{base64.b64encode(digest).decode()}"


class LocalObjects:
    """`stores.base.ObjectStore` over one folder. Opening never makes the folder unless `create` says so."""

    versioned = False
    single_put_limit = SINGLE_PUT_LIMIT

    def __init__(self, folder: str, *, create: bool = False) -> None:
        self._folder = Folder(folder, create=create)

    def close(self) -> None:
        self._folder.close()

    # contents

    def put(self, stem: str, body: Body, attempt: Attempt) -> Stored:
        path = _path_of(stem, attempt.id)
        if path is None:
            raise ValueError(f"not an attempt id: {attempt.id!r}")
        with self._folder.translating(f"write {stem}"):
            stored = self._write(path, pieces_of(body), attempt)
        return stored or self._first_one(stem, attempt.id)

    def _write(self, path: str, pieces: Sequence[bytes], attempt: Attempt) -> Stored | None:
        """None when the name is taken. The batch's durability is the barrier's. The checksum is that of the very bytes that were
        written."""
        digest, size = hashlib.sha256(), 0
        folder = os.path.dirname(path)
        fd, temporary = self._folder.temporary(folder)
        try:
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                write_all(fd, piece)
            self._folder.seal(fd, digest.digest())
            placed = self._folder.place(temporary, path)
        except BaseException:
            self._folder.remove(temporary)
            raise
        finally:
            os.close(fd)
        self._folder.note(folder)
        return Stored(attempt.id, size, _checksum(digest.digest())) if placed else None

    def _first_one(self, stem: str, attempt_id: str) -> Stored:
        """What an earlier put with this attempt id left."""
        found = self.find(stem, attempt_id)
        if found is None:
            raise errors.Corrupt(
                f"{stem}: what an earlier attempt stored is damaged",
                "run again: every attempt gets a name of its own",
            )
        return found

    def begin(self, stem: str, attempt: Attempt, size_hint: int) -> Upload:
        path = _path_of(stem, attempt.id)
        if path is None:
            raise ValueError(f"not an attempt id: {attempt.id!r}")
        with self._folder.translating(f"write {stem}"):
            return LocalUpload(self._folder, path, attempt.id)

    def resume(self, stem: str, attempt: Attempt, token: str) -> Upload | None:
        """Always None: writing a local file again is cheap, and what a dead process wrote may not have
        reached the disk."""
        return None

    def read(self, stem: str, version: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        path = _path_of(stem, version)
        if path is None:
            raise errors.Missing(f"{stem}: version {version} is not there")
        with self._folder.reading(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder.fd)
            try:
                yield from _chunks(fd, start, length)
            finally:
                os.close(fd)

    def versions(self, prefix: str) -> Iterator[Version]:
        for top in _CONTENT_FOLDERS:
            if not f"{top}/".startswith(prefix) and not prefix.startswith(f"{top}/"):
                continue
            wanted = prefix[len(top) + 1 :]
            with self._folder.translating(f"list {top}"):
                fans = sorted(self._folder.names(top))
            for fan in fans:
                if fan.startswith(wanted[:2]) or wanted.startswith(fan):
                    yield from self._versions_in(top, fan, wanted)

    def _versions_in(self, top: str, fan: str, wanted: str) -> Iterator[Version]:
        found: list[Version] = []
        with self._folder.translating(f"list {top}/{fan}"):
            for name in self._folder.names(f"{top}/{fan}"):
                last, _, version = name.rpartition(".")
                if name.startswith(TEMPORARY) or not last.startswith(wanted) or not _PLAIN.fullmatch(version):
                    continue
                # Deleted since the listing: rightly left out.
                if last and (info := self._folder.stat(f"{top}/{fan}/{name}")) is not None:
                    found.append(Version(f"{top}/{last}", version, info.st_size, info.st_mtime, False, False))
        found.sort(key=lambda one: (one.stem, one.modified))
        newest = {one.stem: one.version for one in found}
        for one in found:
            yield replace(one, is_latest=newest[one.stem] == one.version)

    def find(self, stem: str, attempt_id: str) -> Stored | None:
        """Found only when it is whole: a power failure before the barrier may have left a torn file under
        its final name."""
        path = _path_of(stem, attempt_id)
        if path is None:
            return None
        try:
            with self._folder.reading(path):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder.fd)
                try:
                    whole = self._folder.is_on_disk(fd)
                    size, digest = self._folder.digest(fd)
                    whole = whole and self._folder.is_whole(fd, digest)
                finally:
                    os.close(fd)
        except errors.Missing:
            return None
        # Whoever put it may have died before the barrier: ours covers it.
        self._folder.note(os.path.dirname(path))
        return Stored(attempt_id, size, _checksum(digest)) if whole else None

    def delete(self, stem: str, version: str) -> None:
        if (path := _path_of(stem, version)) is not None:
            self._delete(path)

    def _delete(self, path: str) -> None:
        with self._folder.translating(f"delete {path}"):
            self._folder.remove(path)
        self._folder.must_be_there()
        self._folder.note(os.path.dirname(path))

    def mark(self, stem: str) -> None:
        """Nothing: a store without versions has no markers."""

    def unmark(self, stem: str) -> None:
        """Nothing: a store without versions has no markers."""

    def barrier(self) -> None:
        self._folder.barrier()

    # documents

    def read_document(self, key: str) -> bytes:
        with self._folder.reading(key):
            fd = os.open(_checked(key), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder.fd)
            try:
                check_size(key, os.fstat(fd).st_size)
                return b"".join(_chunks(fd, 0, None))
            finally:
                os.close(fd)

    def documents(self, prefix: str, after: str = "") -> Iterator[Document]:
        yield from self._documents_in("", prefix, after)

    def _documents_in(self, folder: str, prefix: str, after: str) -> Iterator[Document]:
        """In the order of whole keys: a folder sorts as its name with a slash, so `a-b` comes before what
        is in `a`."""
        with self._folder.translating(f"list {folder or self._folder.path}"):
            found = [f"{folder}{name}" for name in self._folder.names(folder) if not name.startswith(TEMPORARY)]
            keys = sorted(f"{key}/" if self._folder.is_folder(key) else key for key in found)
        for key in keys:
            if not key.startswith(prefix) and not (key.endswith("/") and prefix.startswith(key)):
                continue
            if key.endswith("/"):
                if (key > after or after.startswith(key)) and key[:-1] not in _CONTENT_FOLDERS:
                    yield from self._documents_in(key, prefix, after)
            elif key > after and (info := self._folder.stat(key)) is not None:
                yield Document(key, info.st_size, info.st_mtime)

    def create_document(self, key: str, body: bytes) -> None:
        with self._folder.translating(f"write {key}"):
            if not self._write_document(_checked(key), body, replace=False):
                raise errors.AlreadyThere(f"{self._folder.path}: {key} is there already")

    def replace_document(self, key: str, body: bytes) -> None:
        with self._folder.translating(f"write {key}"):
            self._write_document(_checked(key), body, replace=True)

    def _write_document(self, key: str, body: bytes, *, replace: bool) -> bool:
        folder = os.path.dirname(key)
        fd, temporary = self._folder.temporary(folder)
        try:
            write_all(fd, body)
            sync_file(fd)
            if replace:
                self._folder.replace(temporary, key)
            elif not self._folder.place(temporary, key):
                return False
        except BaseException:
            self._folder.remove(temporary)
            raise
        finally:
            os.close(fd)
        self._folder.sync_folders({folder})
        return True

    def delete_document(self, key: str) -> None:
        self._delete(_checked(key))

    def forget_versions(self, key: str) -> None:
        """Nothing: a replaced file is gone."""

    def past_documents(self, prefix: str) -> Iterator[str]:
        return iter(())

    # what crashes leave

    def tidy(self) -> int:
        """Remove temporary files of dead processes, and say how many. Looks at most once a day, since it
        lists everything, unless room is short.

        Whoever writes a file holds a lock on it, however long it takes. Where locks may not be believed, or
        not across hosts, the file also has to be a day old."""
        with self._folder.translating("look for temporary files"):
            last = self._folder.stat(_TIDIED)
            looked = last is not None and 0 <= time.time() - last.st_mtime < LOOK_EVERY
            if looked and self._folder.has_room(NEARLY_FULL):
                return 0
            removed = self._tidy_below("")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            fd = os.open(_TIDIED, flags, 0o600, dir_fd=self._folder.fd)
            os.utime(fd)
            os.close(fd)
        return removed

    def _tidy_below(self, folder: str) -> int:
        removed = 0
        for name in self._folder.names(folder):
            path = f"{folder}{name}"
            if name.startswith(TEMPORARY) and path != _TIDIED:
                removed += self._remove_if_stale(path)
            elif folder.partition("/")[0] not in _CONTENT_FOLDERS or folder.count("/") == 1:
                removed += self._tidy_below(f"{path}/") if self._folder.is_folder(path) else 0
        return removed

    def _remove_if_stale(self, path: str) -> bool:
        info = self._folder.stat(path)
        if info is None or not (self._folder.batch or time.time() - info.st_mtime >= STALE_AFTER):
            return False
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._folder.fd)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._folder.remove(path)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True


def _chunks(fd: int, start: int, length: int | None) -> Iterator[bytes]:
    stop = None if length is None else start + length
    while stop is None or start < stop:
        chunk = os.pread(fd, CHUNK if stop is None else min(CHUNK, stop - start), start)
        if not chunk:
            return
        yield chunk
        start += len(chunk)
