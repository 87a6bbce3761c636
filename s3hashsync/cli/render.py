"""A plan for people and for programs.

Decides what is listed line by line and what is folded by folder. Matches every step exhaustively; changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

import click

from s3hashsync.cli.output import Output, b64, plural, size_text, text_of
from s3hashsync.codec.names import display
from s3hashsync.core.model import Kind
from s3hashsync.core.outline import Outline
from s3hashsync.core.plan import (
    AddName,
    ExcludeName,
    MoveName,
    NoteEntry,
    Plan,
    RemoveName,
    Step,
    StoreContent,
    Totals,
    Undelete,
    UpdateMetadata,
    path_of,
    size_of,
)

LINES = 60
_COLOURS = {"+": "green", "=": "green", "~": "yellow", ">": "cyan", "^": "green", "m": None, "-": "red", "x": "red"}
_NAMES = {
    "+": "new",
    "=": "stored already",
    "~": "changed",
    ">": "moved",
    "^": "undeleted",
    "m": "metadata",
    "-": "removed",
    "x": "excluded now",
}


def print_plan(output: Output, plan: Plan) -> None:
    """The diff, the totals, and what else a person should know before applying it."""
    for header in plan.header.sources:
        outline = plan.outline(header.name)
        hashed = f", {plural(header.files_hashed, 'file')} hashed" if header.files_hashed else ""
        output.info(
            f"{click.style(header.name, bold=True)}  {header.root}  "
            f"({plural(header.files, 'file')}, {size_text(header.files_bytes)}{hashed})"
        )
        if not outline.steps:
            output.info("  no changes")
        elif outline.steps <= LINES or output.verbosity > 0:
            steps = _of(plan, header.name)
            for step in sorted(steps, key=path_of) if outline.steps <= LINES else steps:
                output.info(_step_line(step))
        else:
            for line in _folded(outline):
                output.info(line)
    for name in plan.header.unconfigured:
        output.info(f"note: source {name} is in the repository but not in the configuration; it is kept as it is")
    output.text(totals_line(plan.totals, complete=not plan.problems))


def _of(plan: Plan, source: str) -> Iterator[Step]:
    return (step for step in plan.steps() if step.source == source)


def totals_line(totals: Totals, *, complete: bool) -> str:
    if not totals.steps:
        return "No changes: the backup is up to date." if complete else "No changes in what could be read."
    parts = [
        (totals.add, "add"),
        (totals.change, "change"),
        (totals.move, "move"),
        (totals.copy, "copy"),
        (totals.undelete, "undelete"),
        (totals.metadata, "metadata"),
        (totals.remove, "remove"),
    ]
    actions = ", ".join(f"{count:,} to {word}" if word != "metadata" else f"{count:,} metadata" for count, word in parts if count)
    upload = "nothing to upload"
    if totals.objects_put:
        about = "at most " if totals.packs > 1 else ""
        upload = f"upload {size_text(totals.bytes_upload)} in {about}{objects_text(totals.objects_put, totals.packs)}"
    excluded = f" ({totals.excluded:,} because they are excluded now)" if totals.excluded else ""
    writes = f", about {plural(totals.index_writes, 'index write')}" if totals.index_writes else ""
    return f"Plan: {actions}{excluded}; {upload}{writes}."


def objects_text(objects: int, packs: int) -> str:
    """What was, or will be, put; `objects` counts the packs, too."""
    alone = objects - packs
    parts = [plural(alone, "object")] if alone or not packs else []
    return " and ".join([*parts, plural(packs, "pack")] if packs else parts)


def _step_line(step: Step) -> str:
    symbol = step.symbol
    path = display(path_of(step)) or "."
    match step:
        case StoreContent() | AddName() | Undelete():
            packed = ", packed" if isinstance(step, StoreContent) and step.packed else ""
            detail = f"{size_text(step.entry.size)}, {step.reason.value}{packed}"
        case MoveName():
            path = f"{display(step.origin)} -> {path}"
            detail = f"{size_text(step.entry.size)}"
        case NoteEntry():
            detail = _kind_text(step.entry.kind) + (f", {step.reason.value}" if step.symbol == "~" else "")
        case UpdateMetadata():
            detail = "" if step.entry.kind is Kind.FILE else _kind_text(step.entry.kind)
        case RemoveName():
            detail = size_text(step.size) if step.kind is Kind.FILE else _kind_text(step.kind)
        case ExcludeName():
            detail = step.rule or "excluded"
        case _:
            assert_never(step)
    return _coloured(symbol, f"  {symbol} {path}") + (f"  ({detail})" if detail else "")


def _kind_text(kind: Kind) -> str:
    return {
        Kind.FILE: "empty file",
        Kind.DIRECTORY: "folder",
        Kind.SYMLINK: "symlink",
        Kind.FIFO: "fifo",
        Kind.SOCKET: "socket",
        Kind.CHARACTER_DEVICE: "character device",
        Kind.BLOCK_DEVICE: "block device",
    }[kind]


def _coloured(symbol: str, text: str) -> str:
    return click.style(text, fg=_COLOURS.get(symbol))


def _folded(outline: Outline) -> Iterator[str]:
    """One line for each folder and action."""
    for (symbol, origin, folder), total in outline.folded(LINES):
        where = f"{display(folder)}/" if folder else "./"
        if symbol == ">":
            where = f"{display(origin) + '/' if origin else './'} -> {where}"
        text = f"  {symbol} {where}"
        yield f"{_coloured(symbol, text)}  {plural(total.count, 'path')} {_NAMES[symbol]}, {size_text(total.size)}"


# For programs

_ACTIONS = {
    StoreContent: "store",
    AddName: "link",
    Undelete: "undelete",
    MoveName: "move",
    NoteEntry: "note",
    UpdateMetadata: "metadata",
    RemoveName: "remove",
    ExcludeName: "exclude",
}


def step_fields(step: Step) -> dict[str, object]:
    """One `planned_change`."""
    path = path_of(step)
    fields: dict[str, object] = {
        "action": _ACTIONS[type(step)],
        "symbol": step.symbol,
        "source": step.source,
        "path": text_of(path),
        **b64(path),
        "size": size_of(step),
        "reason": step.reason.value,
    }
    match step:
        case StoreContent() | AddName() | Undelete() | MoveName():
            fields |= {"type": step.entry.kind.value, "hash": step.hash.hex()}
            fields["expects"] = step.expects.state.value if step.expects.state else None
            if isinstance(step, StoreContent):
                fields["packed"] = step.packed
            if isinstance(step, MoveName):
                fields |= {"from": text_of(step.origin), **b64(step.origin, "from")}
        case NoteEntry() | UpdateMetadata():
            fields["type"] = step.entry.kind.value
        case RemoveName() | ExcludeName():
            fields["type"] = step.kind.value
            if isinstance(step, ExcludeName):
                fields["rule"] = step.rule
        case _:
            assert_never(step)
    return fields


def totals_fields(totals: Totals) -> dict[str, object]:
    """`change_summary`."""
    return {
        "add": totals.add,
        "change": totals.change,
        "move": totals.move,
        "copy": totals.copy,
        "remove": totals.remove,
        "undelete": totals.undelete,
        "metadata": totals.metadata,
        "bytes_upload": totals.bytes_upload,
        "objects_put": totals.objects_put,
        "index_writes": totals.index_writes,
        "packed": totals.packed,
        "packs": totals.packs,
    }


def emit_plan(output: Output, plan: Plan) -> None:
    for step in plan.steps():
        output.message("planned_change", **step_fields(step))
    output.message(
        "change_summary",
        **totals_fields(plan.totals),
        unconfigured_sources=list(plan.header.unconfigured),
        errors=len(plan.problems),
    )
