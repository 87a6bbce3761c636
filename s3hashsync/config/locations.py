"""The places that a repository is kept at, and the paths of folders and files, as they are written.

Decides what an address means and which are refused. Knows nothing of whether anything is there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from s3hashsync.config.model import DynamoUrl, FolderUrl, IndexUrl, ObjectsUrl, S3Url, SqliteUrl
from s3hashsync.errors import UsageError

# S3 takes keys of 1,024 bytes; the longest that the program puts behind the prefix stays well below the rest.
MAX_PREFIX_BYTES = 512
_OBJECTS_HINT = "write s3://bucket/prefix, file:///folder or the path of a folder"
_INDEX_HINT = "write dynamodb://table, sqlite:///file or the path of a file"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# What other programs write; taken for a path, it would back up into a folder named `s3:`.
_OTHER_PROGRAMS = re.compile(r"(s3|file|sqlite|dynamodb|b2|gs|azure|sftp|ssh|rclone|rest|swift|https?):.*", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_TABLE = re.compile(r"[A-Za-z0-9_.-]{3,255}")


@dataclass(frozen=True, slots=True)
class Folder:
    """Where relative paths start, the folder of the configuration file, and the home that ~ stands for."""

    path: str
    home: str | None

    @classmethod
    def of(cls, file: str, environ: Mapping[str, str]) -> Folder:
        return cls(os.path.dirname(file), environ.get("HOME") or None)

    def absolute(self, written: str) -> str:
        """The absolute path, or a UsageError. Lexical, as a shell's `cd`: the disk is not asked."""
        if "\0" in written:
            raise UsageError("a path holds no \\0")
        if written.startswith("~"):
            written = self._at_home(written)
        joined = os.path.normpath(os.path.join(self.path, written))
        # POSIX keeps a double slash at the start, and nothing on Linux means anything else by it.
        return "/" + joined.lstrip("/") if joined.startswith("//") else joined

    def _at_home(self, written: str) -> str:
        start, _, rest = written.partition("/")
        if start != "~":
            raise UsageError(
                f"the home of another user ({start[:40]}) is not looked up",
                "write the whole path, or ./~… for a name that begins with ~",
            )
        if self.home is None or not self.home.startswith("/"):
            raise UsageError("~ needs HOME in the environment", "write the whole path")
        return os.path.join(self.home, rest.lstrip("/"))


def parse_objects(written: str, folder: Folder) -> ObjectsUrl:
    """The object store that an address names, or a UsageError."""
    scheme, rest = _split(written, _OBJECTS_HINT)
    if scheme == "s3":
        return _s3(rest)
    if scheme in ("file", None):
        return FolderUrl(folder.absolute(_from_root(rest, "file") if scheme else rest))
    raise UsageError(f"{scheme}:// is no place for objects", _OBJECTS_HINT)


def parse_index(written: str, folder: Folder) -> IndexUrl:
    """The index that an address names, or a UsageError."""
    scheme, rest = _split(written, _INDEX_HINT)
    if scheme == "dynamodb":
        if not _TABLE.fullmatch(rest):
            raise UsageError(
                "the name of a table is 3 to 255 letters, digits, dots, hyphens and underscores",
                "write dynamodb://table; the region is a key of its own",
            )
        return DynamoUrl(rest)
    if scheme in ("sqlite", None):
        path = _from_root(rest, "sqlite") if scheme else rest
        if path.endswith("/"):
            raise UsageError("an index is a file, and this is a folder", f"write {path[:200]}index.db")
        return SqliteUrl(folder.absolute(path))
    raise UsageError(f"{scheme}:// is no place for an index", _INDEX_HINT)


def _split(written: str, hint: str) -> tuple[str | None, str]:
    match = _SCHEME.fullmatch(written)
    if match:
        return match[1].lower(), match[2]
    if other := _OTHER_PROGRAMS.fullmatch(written):
        raise UsageError(f"{other[1]}: without // is no address", f"{hint}, or ./{other[1]}: for such a folder")
    return None, written


def _from_root(rest: str, scheme: str) -> str:
    if not rest.startswith("/"):
        hint = f"write {scheme}:///… with three slashes, or the path alone"
        raise UsageError(f"{scheme}:// takes an absolute path and no host", hint)
    return rest


def _s3(rest: str) -> S3Url:
    bucket, _, prefix = rest.partition("/")
    # Not repeated in the message: what is no bucket may be somebody's key (s3://key:secret@server/bucket).
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(
            "what follows s3:// is not the name of a bucket: 3 to 63 letters, digits, dots and hyphens",
            "write s3://bucket/prefix; servers and keys have keys of their own: endpoints, access_key_id",
        )
    prefix = prefix.strip("/")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise UsageError("a prefix holds no empty part, no . and no ..", "write s3://bucket/prefix")
    if any(ord(character) < 32 or ord(character) == 127 for character in prefix):
        raise UsageError("a prefix holds no control characters", None)
    if len(prefix.encode("utf-8", "surrogateescape")) > MAX_PREFIX_BYTES:
        raise UsageError(f"the prefix is longer than {MAX_PREFIX_BYTES} bytes", "take a shorter one")
    return S3Url(bucket, prefix)
