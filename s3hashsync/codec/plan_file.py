"""A saved plan: zstd JSON lines, a header, one line a step, a footer with their number.

Decides the form. `steps_from` reads it again and again, so that a plan of any size costs no memory. Knows no folder: it is handed
bytes and gives bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, TypeVar, assert_never

import zstandard

from s3hashsync.codec.entries import (
    Json,
    entry_from_json,
    entry_to_json,
    get_bytes,
    get_int,
    get_text,
    hash_from_hex,
    put_bytes,
)
from s3hashsync.codec.location import decode_location, encode_location
from s3hashsync.core.model import ContentHash, Kind, RecordState, Sha256
from s3hashsync.core.plan import (
    AddName,
    ContentStep,
    ExcludeName,
    Expected,
    MoveName,
    NoteEntry,
    PlanHeader,
    Problem,
    Reason,
    RemoveName,
    SourceHeader,
    Step,
    StoreContent,
    Undelete,
    UpdateMetadata,
)
from s3hashsync.errors import Corrupt

FORMAT = 1
_CONTENT_STEPS: dict[str, type[AddName] | type[Undelete]] = {
    "add_name": AddName,
    "undelete": Undelete,
}
_T = TypeVar("_T")


def step_to_json(step: Step) -> Json:
    """One step as an object; `action` names its type."""
    match step:
        case StoreContent():
            return {**_content_step("store_content", step), "packed": step.packed}
        case AddName():
            return _content_step("add_name", step)
        case Undelete():
            return _content_step("undelete", step)
        case MoveName():
            out = _content_step("move_name", step)
            put_bytes(out, "origin", step.origin)
            return out
        case NoteEntry():
            return {**_head("note_entry", step), "entry": entry_to_json(step.entry), "drops": _hexes(step.drops)}
        case UpdateMetadata():
            return {
                **_head("update_metadata", step),
                "entry": entry_to_json(step.entry),
                "hash": step.hash.hex() if step.hash else None,
                "sha256": step.sha256.hex() if step.sha256 else None,
            }
        case RemoveName() | ExcludeName():
            return _removal(step)
        case _:
            assert_never(step)


def _head(action: str, step: Step) -> Json:
    return {"action": action, "source": step.source, "reason": step.reason.value}


def _content_step(action: str, step: ContentStep) -> Json:
    expects = step.expects
    return {
        **_head(action, step),
        "entry": entry_to_json(step.entry),
        "hash": step.hash.hex(),
        "sha256": step.sha256.hex() if step.sha256 else None,
        "drops": _hexes(step.drops),
        "expects": {
            "state": expects.state.value if expects.state else None,
            "location": encode_location(expects.location) if expects.location else None,
            "planned": expects.planned,
            "spill": expects.spill,
        },
    }


def _removal(step: RemoveName | ExcludeName) -> Json:
    out = _head("remove_name" if isinstance(step, RemoveName) else "exclude_name", step)
    put_bytes(out, "path", step.path)
    out |= {"type": step.kind.value, "size": step.size, "drops": _hexes(step.drops)}
    if isinstance(step, ExcludeName):
        out["rule"] = step.rule
    return out


def _hexes(hashes: Iterable[ContentHash]) -> list[str]:
    return [h.hex() for h in hashes]


def step_from_json(body: Json) -> Step:
    """The inverse of `step_to_json`; raises `Corrupt`."""
    action, source = get_text(body, "action"), get_text(body, "source")
    reason = _enum(Reason, body.get("reason"))
    drops = _hashes(body.get("drops", []))
    if action in ("remove_name", "exclude_name"):
        path, kind, size = get_bytes(body, "path"), _enum(Kind, body.get("type")), get_int(body, "size")
        if action == "remove_name":
            return RemoveName(source, path, kind, size, drops, reason)
        return ExcludeName(source, path, kind, size, drops, get_text(body, "rule"), reason)
    entry = entry_from_json(_object(body, "entry"))
    if action == "note_entry":
        return NoteEntry(source, entry, drops, reason)
    hash_ = hash_from_hex(body["hash"]) if body.get("hash") else None
    sha256 = Sha256(hash_from_hex(body["sha256"])) if body.get("sha256") else None
    if action == "update_metadata":
        return UpdateMetadata(source, entry, hash_, sha256, reason)
    if hash_ is None or (sha256 is None and action == "store_content"):
        raise Corrupt(f"the step {action!r} of the plan names no content")
    expects = _expected(_object(body, "expects"))
    if action == "move_name":
        return MoveName(source, entry, get_bytes(body, "origin"), hash_, sha256, drops, reason, expects)
    if action == "store_content" and sha256 is not None:
        return StoreContent(source, entry, hash_, sha256, drops, reason, expects, body.get("packed") is True)
    if action in _CONTENT_STEPS:
        return _CONTENT_STEPS[action](source, entry, hash_, sha256, drops, reason, expects)
    raise Corrupt(f"the plan holds a step {action!r} that this version does not know", "make a new plan")


def _expected(body: Json) -> Expected:
    state, location = body.get("state"), body.get("location")
    return Expected(
        _enum(RecordState, state) if state is not None else None,
        decode_location(str(location)) if location is not None else None,
        body.get("planned") is True,
        get_int(body, "spill", 0),
    )


def _object(body: Json, field: str) -> Json:
    value = body.get(field)
    if not isinstance(value, dict):
        raise Corrupt(f"the field {field!r} of the plan is missing")
    return value


def _enum(kind: Callable[[object], _T], value: object) -> _T:
    try:
        return kind(value)
    except ValueError:
        raise Corrupt(f"the plan holds {value!r}, which this version does not know", "make a new plan") from None


def _hashes(values: object) -> tuple[ContentHash, ...]:
    return tuple(hash_from_hex(value) for value in values) if isinstance(values, list) else ()


# The file


def write_plan(target: BinaryIO, header: PlanHeader, problems: Iterable[Problem], steps: Iterable[Step]) -> None:
    """Write the whole plan."""
    with zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(target, closefd=False) as out:
        out.write(_render(_header(header, problems)))
        count = 0
        for step in steps:
            out.write(_render(step_to_json(step)))
            count += 1
        out.write(_render({"end": True, "steps": count}))


def _render(body: Json) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def _header(header: PlanHeader, problems: Iterable[Problem]) -> Json:
    listed = []
    for problem in problems:
        item: Json = {"source": problem.source, "message": problem.message}
        put_bytes(item, "path", problem.path)
        listed.append(item)
    return {
        "s3hashsync": "plan",
        "format": FORMAT,
        "repository": header.repository,
        "incarnation": header.incarnation,
        "host": header.host,
        "made_at": header.made_at,
        "unconfigured": list(header.unconfigured),
        "pack_size": header.pack_size,
        "problems": listed,
        "sources": [{field: getattr(source, field) for field in SourceHeader.__dataclass_fields__} for source in header.sources],
    }


def read_header(source: BinaryIO) -> tuple[PlanHeader, tuple[Problem, ...]]:
    """Raises `Corrupt` for what is no plan."""
    body = next(_lines(source), None)
    if body is None or body.get("s3hashsync") != "plan":
        raise Corrupt("this file is not a plan", "make one: s3hashsync plan --out FILE")
    if get_int(body, "format") > FORMAT:
        raise Corrupt("the plan was made by a newer version", "use that version, or make a new plan")
    sources = body.get("sources")
    problems = body.get("problems")
    unconfigured = body.get("unconfigured")
    made_at = body.get("made_at")
    if not isinstance(sources, list) or not isinstance(problems, list) or not isinstance(unconfigured, list):
        raise Corrupt("the head of the plan is damaged", "make a new plan")
    header = PlanHeader(
        repository=get_text(body, "repository"),
        incarnation=get_text(body, "incarnation"),
        host=get_text(body, "host"),
        made_at=float(made_at) if isinstance(made_at, int | float) else 0.0,
        sources=tuple(_source(item) for item in sources),
        unconfigured=tuple(str(name) for name in unconfigured),
        pack_size=get_int(body, "pack_size", 0),
    )
    found = tuple(Problem(get_text(p, "source"), get_bytes(p, "path"), get_text(p, "message")) for p in problems)
    return header, found


def _source(body: Json) -> SourceHeader:
    texts = {field: get_text(body, field) for field in ("name", "root", "head")}
    numbers = {f: get_int(body, f) for f in SourceHeader.__dataclass_fields__ if f not in texts}
    return SourceHeader(**texts, **numbers)  # type: ignore[arg-type]


def read_steps(source: BinaryIO) -> Iterator[Step]:
    """Every step; raises `Corrupt` when the file is not whole."""
    lines = _lines(source)
    next(lines, None)
    for count, body in enumerate(lines):
        if body.get("end") is True:
            if get_int(body, "steps") != count:
                raise Corrupt("the plan is not whole", "make a new plan")
            return
        yield step_from_json(body)
    raise Corrupt("the plan is cut off", "make a new plan")


def _lines(source: BinaryIO) -> Iterator[Json]:
    rest = b""
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(source, closefd=False)
        while data := reader.read(1 << 18):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                body = json.loads(line)
                if not isinstance(body, dict):
                    raise ValueError("not an object")
                yield body
    except (zstandard.ZstdError, ValueError) as error:
        raise Corrupt(f"this file is not a plan ({error})", "make one: s3hashsync plan --out FILE") from None
    if rest:
        raise Corrupt("the plan is cut off", "make a new plan")
