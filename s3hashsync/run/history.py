"""Run logs: what each run changed, in segments of JSON lines, chained by the one before.

Decides the lines, the keys, and that a segment counts under its own key alone. A source's logs alone rebuild its state and its
index, and are all that a restore without the program needs. Knows nothing of plans; the executor hands it entries. How lines
become bytes is `run.segments`.

A segment is: a header line, then a line for every path that changed (an entry with its content's location, or a removal), then a
footer with the number of lines, so that a cut segment is noticed. `was` names the hashes that the path was under and is taken
from after the segment is stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import orjson

from s3hashsync.codec.entries import (
    Json,
    content_from_json,
    content_to_json,
    entry_from_json,
    entry_to_json,
    get_bytes,
    get_int,
    get_text,
    hash_from_hex,
    put_bytes,
)
from s3hashsync.core.model import Content, ContentHash, Entry, Sha256
from s3hashsync.core.value import value
from s3hashsync.disk.metadata import group_name, owner_name
from s3hashsync.errors import AlreadyThere, Corrupt, Missing
from s3hashsync.run.keyring import Keyring
from s3hashsync.run.repository import Repository
from s3hashsync.run.segments import LineWriter, believed_lines
from s3hashsync.stores.base import ObjectReader, ObjectStore

FORMAT = 1
CHANGES = "changes"
CHECKPOINT = "checkpoint"
# What the configuration allows. A name out of a bucket becomes a folder's name: nothing else may.
SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Whatever else lies beside the segments (a file manager's notes, a copy) must not pass for the newest of them.
_SEGMENT_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}\.[0-9]{6}")

_PUT_THERE = "somebody put it there: look at the older versions of that object, and at who may write to the store"


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """`time` is when the segment was closed, epoch seconds; `scanned_ns` when the scan began that saw these paths; `previous` is
    the key of the segment before, "" for the first of a source."""

    kind: str
    repository: str
    incarnation: str
    source: str
    root: str
    host: str
    run: str
    number: int
    previous: str
    time: float
    scanned_ns: int


@value
class Present:
    """A path is there now, with this content (None: it has none of its own). `sha256` is None beside a hash where the writer knew
    the keyed hash alone: a file that could not be read since its state was made anew from an encrypted repository's index."""

    entry: Entry
    hash: ContentHash | None
    sha256: Sha256 | None
    content: Content | None
    was: tuple[ContentHash, ...] = ()


@value
class Removed:
    """A path is gone."""

    path: bytes
    was: tuple[ContentHash, ...] = ()


Line = Present | Removed


def segments_prefix(source: str) -> str:
    return f"runs/{source}/"


def segment_key(source: str, run: str, number: int) -> str:
    return f"{segments_prefix(source)}{run}.{number:06d}"


def new_run_id(now: float, newest: str, suffix: str) -> str:
    """A run id that sorts after the segment `newest` (a key, or ""), whatever this host's clock says. Raises `Corrupt` where
    there is none, for the calendar ends."""
    stamp = datetime.fromtimestamp(now, UTC)
    last = newest.rpartition("/")[2].partition("-")[0]
    if last:
        try:
            after = datetime.fromisoformat(last).timestamp() + 1
            stamp = datetime.fromtimestamp(max(now, after), UTC)
        except (ValueError, OverflowError):
            raise Corrupt(f"the run-log segment {newest} has a time that no run can follow", _PUT_THERE) from None
    return f"{stamp:%Y%m%dT%H%M%SZ}-{suffix}"


class SegmentWriter:
    """Lines of one segment of `source`."""

    def __init__(self, keys: Keyring, source: str) -> None:
        self._out = LineWriter(keys, source)
        self.lines = 0

    def add(self, line: Line) -> None:
        self._out.add(_render(_line(line)))
        self.lines += 1

    def finish(self, header: SegmentHeader) -> bytes:
        """The bytes to store."""
        self._out.add(_render({"end": True, "lines": self.lines}))
        return self._out.finish(_render(_header(header)))


def _render(body: Json) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:
        # Text that is not UTF-8 (a path in a configuration, a user's name): JSON has escapes for it.
        return json.dumps(body, separators=(",", ":")).encode("ascii")


def _header(header: SegmentHeader) -> Json:
    return {
        "s3hashsync": "run-log",
        "format": FORMAT,
        "kind": header.kind,
        "repository": header.repository,
        "incarnation": header.incarnation,
        "source": header.source,
        "root": header.root,
        "host": header.host,
        "run": header.run,
        "number": header.number,
        "previous": header.previous,
        "time": header.time,
        "scanned_ns": header.scanned_ns,
    }


def _line(line: Line) -> Json:
    if isinstance(line, Removed):
        out: Json = {}
        put_bytes(out, "path", line.path)
        out["removed"] = True
    else:
        out = entry_to_json(line.entry)
        for field, name in (("user", owner_name(line.entry.uid)), ("group", group_name(line.entry.gid))):
            if name:
                out[field] = name
        if line.hash is not None:
            out["hash"] = line.hash.hex()
        if line.sha256 is not None:
            out["sha256"] = line.sha256.hex()
        if line.content is not None:
            out["content"] = content_to_json(line.content)
    if line.was:
        out["was"] = [h.hex() for h in line.was]
    return out


def store_segment(objects: ObjectStore, key: str, body: bytes) -> None:
    """Create-only. A segment found under its own key with the same bytes is ours: the put had succeeded."""
    try:
        objects.create_document(key, body)
    except AlreadyThere:
        if objects.read_document(key) != body:
            raise Corrupt(
                f"somebody else wrote the run-log segment {key}", "are two hosts configured with the same host: name?"
            ) from None


def read_header(repository: Repository, key: str) -> SegmentHeader:
    """Raises `Missing`, `Corrupt`, or `WrongKey`."""
    return _opened(repository, key)[0]


def read_segment(repository: Repository, key: str) -> tuple[SegmentHeader, Iterator[Line]]:
    """The header, and the lines one by one; reading them to the end raises `Corrupt` when the segment is not whole."""
    header, lines = _opened(repository, key)
    return header, _read_lines(key, lines, encrypted=repository.keys.encrypted)


def _opened(repository: Repository, key: str) -> tuple[SegmentHeader, Iterator[bytes]]:
    """A segment that somebody copied to another key, or from another repository, is genuine in itself: so it says where it
    belongs, and counts nowhere else."""
    data = repository.segments.read(repository.objects, key)
    source = key.removeprefix("runs/").rpartition("/")[0]
    lines = believed_lines(repository.keys, source, key, data)
    header = _parse_header(key, _json(key, next(lines, b"")))
    if key != segment_key(header.source, header.run, header.number):
        raise Corrupt(
            f"the run-log segment {key} says that it is segment {header.number} of run {header.run} of source {header.source}",
            _PUT_THERE,
        )
    if header.repository != repository.identity.id:
        raise Corrupt(f"the run-log segment {key} belongs to another repository ({header.repository})")
    if header.previous and not (header.previous.startswith(segments_prefix(source)) and header.previous < key):
        # Whoever follows the chain comes to its end.
        raise Corrupt(
            f"the run-log segment {key} does not belong to the log of source {source}: {header.previous!r} is not before it"
        )
    return header, lines


def _read_lines(key: str, lines: Iterator[bytes], *, encrypted: bool) -> Iterator[Line]:
    for count, text in enumerate(lines):
        body = _json(key, text)
        if body.get("end") is True:
            if get_int(body, "lines") != count or next(lines, None) is not None:
                raise Corrupt(f"the run-log segment {key} is not whole")
            return
        yield _parse_line(key, body, encrypted=encrypted)
    raise Corrupt(f"the run-log segment {key} is cut off")


def _json(key: str, text: bytes) -> Json:
    try:
        body = orjson.loads(text)
    except ValueError:
        body = _unusual(key, text)
    if not isinstance(body, dict):
        raise Corrupt(f"the run-log segment {key} is damaged: a line is not an object")
    if isinstance(body.get("mtime"), float) or isinstance(body.get("ctime"), float):
        # The quick parser makes that of a number beyond 64 bits: a time after the year 2262, or before 1677.
        return dict(json.loads(text))
    return body


def _unusual(key: str, text: bytes) -> object:
    """A line that the quick parser refuses: it may hold half a surrogate pair, as a host's name for an owner can."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Corrupt(f"the run-log segment {key} is damaged: a line is not JSON") from None


def _parse_header(key: str, body: Json) -> SegmentHeader:
    if body.get("s3hashsync") != "run-log":
        raise Corrupt(f"{key} is not a run-log segment")
    if get_int(body, "format") > FORMAT:
        raise Corrupt(f"the run-log segment {key} has a newer format", "use a newer s3hashsync")
    return SegmentHeader(
        kind=get_text(body, "kind"),
        repository=get_text(body, "repository"),
        incarnation=get_text(body, "incarnation"),
        source=get_text(body, "source"),
        root=get_text(body, "root", ""),
        host=get_text(body, "host", ""),
        run=get_text(body, "run"),
        number=get_int(body, "number"),
        previous=get_text(body, "previous"),
        time=_time(key, body.get("time")),
        scanned_ns=get_int(body, "scanned_ns", 0),
    )


def _time(key: str, time: object) -> float:
    """JSON has larger numbers than a float, and those than a calendar, which has to show it."""
    if not isinstance(time, int | float):
        return 0.0
    try:
        datetime.fromtimestamp(time, UTC)
        return float(time)
    except (ValueError, OverflowError, OSError):
        raise Corrupt(f"the run-log segment {key} is damaged: its time is in no calendar") from None


def _parse_line(key: str, body: Json, *, encrypted: bool) -> Line:
    try:
        return _line_of(body, encrypted=encrypted)
    except Corrupt as error:
        raise Corrupt(f"the run-log segment {key} is damaged: {error.message}") from None


def _line_of(body: Json, *, encrypted: bool) -> Line:
    was_field = body.get("was", [])
    was = tuple(hash_from_hex(h) for h in was_field) if isinstance(was_field, list) else ()
    if body.get("removed") is True:
        return Removed(get_bytes(body, "path"), was)
    entry = entry_from_json(body)
    hash_ = hash_from_hex(body["hash"]) if "hash" in body else None
    sha256 = Sha256(hash_from_hex(body["sha256"])) if "sha256" in body else None
    if sha256 is None and hash_ is not None and not encrypted:
        # There the hash is the SHA-256.
        sha256 = Sha256(bytes(hash_))
    content_field = body.get("content")
    content = None
    if hash_ is not None and isinstance(content_field, dict):
        content = content_from_json(hash_, entry.size, content_field)
    return Present(entry, hash_, sha256, content, was)


def is_there(objects: ObjectReader, key: str) -> bool:
    """Whether this segment is in the store, by a listing: it is not read."""
    if _SEGMENT_NAME.fullmatch(key.rpartition("/")[2]) is None:
        return False
    number = int(key[-6:])
    before = f"{key[:-6]}{number - 1:06d}" if number else key[:-6]
    return any(document.key == key for document in islice(objects.documents(key, before), 1))


def segment_keys(objects: ObjectReader, source: str, after: str = "") -> Iterator[str]:
    """The segments of the source that sort after `after`, by their keys alone, the oldest first."""
    prefix = segments_prefix(source)
    for document in objects.documents(prefix, after):
        if _SEGMENT_NAME.fullmatch(document.key.removeprefix(prefix)):
            yield document.key


def newest_key(objects: ObjectReader, source: str, after: str = "") -> str:
    """The last segment of the source by its key, or `after` when there is none later."""
    last = after
    for key in segment_keys(objects, source, after):
        last = key
    return last


def all_segments(repository: Repository, head: str) -> Iterator[tuple[str, SegmentHeader]]:
    """Every segment from `head` back to the beginning of the source, newest first; ends where an old one is gone."""
    key = head
    while key:
        try:
            header = read_header(repository, key)
        except Missing:
            return
        yield key, header
        key = header.previous


def sources_with_logs(objects: ObjectReader) -> Sequence[str]:
    """The sources that have run logs, by listing them; the index is not asked. Whoever may write one key can write any name into
    it, and these names are printed, on the recovery sheet too: what no configuration allows is no source."""
    names: dict[str, None] = {}
    for document in objects.documents("runs/"):
        parts = document.key.split("/")
        if len(parts) == 3 and SOURCE_NAME.fullmatch(parts[1]) and _SEGMENT_NAME.fullmatch(parts[2]):
            names[parts[1]] = None
    return sorted(names)
