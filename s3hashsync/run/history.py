"""Run logs: what each run changed, in segments of zstd JSON lines, chained by the one before.

Decides the lines, the keys and which chain counts. A source's logs alone rebuild its state and its index, and are all that a
restore without the program needs. Knows nothing of plans; the executor hands it entries.

A segment is: a header line, then a line for every path that changed (an entry with its content's location, or a removal), then a
footer with the number of lines, so that a cut segment is noticed. `was` names the hashes that the path was under and is taken
from after the segment is stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import zstandard

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
from s3hashsync.codec.zstd import LEVEL
from s3hashsync.core.model import Content, ContentHash, Entry, Sha256
from s3hashsync.disk.metadata import group_name, owner_name
from s3hashsync.errors import AlreadyThere, Corrupt, Missing
from s3hashsync.stores.base import ObjectReader, ObjectStore

FORMAT = 1
CHANGES = "changes"
CHECKPOINT = "checkpoint"
_BUFFER = 1 << 16
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False)


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


@dataclass(frozen=True, slots=True)
class Present:
    """A path is there now, with this content (None: it has none of its own)."""

    entry: Entry
    hash: ContentHash | None
    sha256: Sha256 | None
    content: Content | None
    was: tuple[ContentHash, ...] = ()


@dataclass(frozen=True, slots=True)
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
    """A run id that sorts after the segment `newest` (a key, or ""), whatever this host's clock says."""
    stamp = datetime.fromtimestamp(now, UTC)
    last = newest.rpartition("/")[2].partition("-")[0]
    if last:
        after = datetime.fromisoformat(last).timestamp() + 1
        stamp = datetime.fromtimestamp(max(now, after), UTC)
    return f"{stamp:%Y%m%dT%H%M%SZ}-{suffix}"


class SegmentWriter:
    """Lines go in, compressed, so that memory holds the compressed segment and a few lines alone."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj()
        self._parts: list[bytes] = []
        self._buffer = bytearray()
        self.lines = 0

    def add(self, line: Line) -> None:
        self._write(_line(line))
        self.lines += 1

    def finish(self, header: SegmentHeader) -> bytes:
        """The segment. The header is known only at the end, so it is a frame of its own in front: zstd frames concatenate."""
        self._write({"end": True, "lines": self.lines})
        self._flush()
        self._parts.append(self._compressor.flush())
        head = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(_render(_header(header)))
        return head + b"".join(self._parts)

    def _write(self, body: Json) -> None:
        self._buffer += _render(body)
        # Handing over a line costs more than compressing it.
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        if data := self._compressor.compress(self._buffer):
            self._parts.append(data)
        self._buffer.clear()


def _render(body: Json) -> bytes:
    return _ENCODER.encode(body).encode("utf-8", "surrogatepass") + b"\n"


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


def read_header(objects: ObjectReader, key: str) -> SegmentHeader:
    """Raises `Missing` or `Corrupt`."""
    return _parse_header(key, _json(key, next(_text_lines(key, objects.read_document(key)), b"")))


def read_segment(objects: ObjectReader, key: str) -> tuple[SegmentHeader, Iterator[Line]]:
    """The header, and the lines one by one; reading them to the end raises `Corrupt` when the segment is not whole."""
    lines = _text_lines(key, objects.read_document(key))
    return _parse_header(key, _json(key, next(lines, b""))), _read_lines(key, lines)


def _read_lines(key: str, lines: Iterator[bytes]) -> Iterator[Line]:
    for count, text in enumerate(lines):
        body = _json(key, text)
        if body.get("end") is True:
            if get_int(body, "lines") != count or next(lines, None) is not None:
                raise Corrupt(f"the run-log segment {key} is not whole")
            return
        yield _parse_line(body)
    raise Corrupt(f"the run-log segment {key} is cut off")


def _text_lines(key: str, data: bytes) -> Iterator[bytes]:
    rest = b""
    place = 0
    try:
        while place < len(data):
            decompressor = zstandard.ZstdDecompressor().decompressobj(write_size=1 << 18)
            while place < len(data) and not decompressor.eof:
                piece = data[place : place + (1 << 16)]
                place += len(piece)
                *lines, rest = (rest + decompressor.decompress(piece)).split(b"\n")
                yield from lines
            place -= len(decompressor.unused_data)
            if not decompressor.eof:
                raise Corrupt(f"the run-log segment {key} is cut off")
    except zstandard.ZstdError as error:
        raise Corrupt(f"the run-log segment {key} is damaged ({error})") from None
    if rest:
        raise Corrupt(f"the run-log segment {key} is cut off")


def _json(key: str, text: bytes) -> dict[str, object]:
    try:
        body = json.loads(text)
    except ValueError:
        raise Corrupt(f"the run-log segment {key} is damaged: a line is not JSON") from None
    if not isinstance(body, dict):
        raise Corrupt(f"the run-log segment {key} is damaged: a line is not an object")
    return body


def _parse_header(key: str, body: dict[str, object]) -> SegmentHeader:
    if body.get("s3hashsync") != "run-log":
        raise Corrupt(f"{key} is not a run-log segment")
    if get_int(body, "format") > FORMAT:
        raise Corrupt(f"the run-log segment {key} has a newer format", "use a newer s3hashsync")
    time = body.get("time")
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
        time=float(time) if isinstance(time, int | float) else 0.0,
        scanned_ns=get_int(body, "scanned_ns", 0),
    )


def _parse_line(body: dict[str, object]) -> Line:
    was_field = body.get("was", [])
    was = tuple(hash_from_hex(h) for h in was_field) if isinstance(was_field, list) else ()
    if body.get("removed") is True:
        return Removed(get_bytes(body, "path"), was)
    entry = entry_from_json(body)
    hash_ = hash_from_hex(body["hash"]) if "hash" in body else None
    sha256 = Sha256(hash_from_hex(body["sha256"])) if "sha256" in body else None
    content_field = body.get("content")
    content = None
    if hash_ is not None and isinstance(content_field, dict):
        content = content_from_json(hash_, entry.size, content_field)
    return Present(entry, hash_, sha256, content, was)


def newest_key(objects: ObjectReader, source: str, after: str = "") -> str:
    """The last segment of the source by its key, or `after` when there is none later."""
    last = after
    for document in objects.documents(segments_prefix(source), after):
        last = document.key
    return last


def all_segments(objects: ObjectReader, head: str) -> Iterator[tuple[str, SegmentHeader]]:
    """Every segment from `head` back to the beginning of the source, newest first; ends where an old one is gone."""
    key = head
    while key:
        try:
            header = read_header(objects, key)
        except Missing:
            return
        yield key, header
        key = header.previous


def sources_with_logs(objects: ObjectReader) -> Sequence[str]:
    """The sources that have run logs, by listing them; the index is not asked."""
    names: dict[str, None] = {}
    for document in objects.documents("runs/"):
        parts = document.key.split("/")
        if len(parts) == 3:
            names[parts[1]] = None
    return sorted(names)
