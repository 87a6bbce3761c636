"""A plan for people and for programs.

Decides what is listed line by line and what is folded by folder. Matches every step exhaustively; changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import assert_never

import click

from s3hashsync.cli.output import Output, b64, plural, size_text, text_of
from s3hashsync.codec.names import display
from s3hashsync.core.model import Kind
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
        steps = list(islice(_of(plan, header.name), LINES + 1))
        hashed = f", {plural(header.files_hashed, 'file')} hashed" if header.files_hashed else ""
        output.info(
            f"{click.style(header.name, bold=True)}  {header.root}  "
            f"({plural(header.files, 'file')}, {size_text(header.files_bytes)}{hashed})"
        )
        if not steps:
            output.info("  no changes")
        elif len(steps) <= LINES or output.verbosity > 0:
            for step in sorted(_of(plan, header.name), key=path_of) if len(steps) <= LINES else _of(plan, header.name):
                output.info(_step_line(step))
        else:
            for line in _folded(_of(plan, header.name)):
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
    upload = (
        f"upload {size_text(totals.bytes_upload)} in {plural(totals.objects_put, 'object')}"
        if totals.objects_put
        else "nothing to upload"
    )
    excluded = f" ({totals.excluded:,} because they are excluded now)" if totals.excluded else ""
    writes = f", about {plural(totals.index_writes, 'index write')}" if totals.index_writes else ""
    return f"Plan: {actions}{excluded}; {upload}{writes}."


def _step_line(step: Step) -> str:
    symbol = step.symbol
    path = display(path_of(step)) or "."
    match step:
        case StoreContent() | AddName() | Undelete():
            detail = f"{size_text(step.entry.size)}, {step.reason.value}"
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


@dataclass(slots=True)
class _Sum:
    count: int = 0
    size: int = 0


def _folded(steps: Iterable[Step]) -> list[str]:
    """One line for each folder and action, as deep as still fits."""
    sums: dict[tuple[str, bytes, bytes], _Sum] = {}
    for step in steps:
        at = sums.setdefault(_fold_key(step), _Sum())
        at.count += 1
        at.size += size_of(step)
    depth = max((folder.count(b"/") + 1 for _, _, folder in sums), default=0)
    while len(sums) > LINES and depth > 0:
        depth -= 1
        sums = _shallower(sums, depth)
    lines = []
    for (symbol, origin, folder), total in sorted(sums.items(), key=lambda item: (item[0][2], item[0][0])):
        where = f"{display(folder)}/" if folder else "./"
        if symbol == ">":
            where = f"{display(origin) + '/' if origin else './'} -> {where}"
        text = f"  {symbol} {where}"
        lines.append(f"{_coloured(symbol, text)}  {plural(total.count, 'path')} {_NAMES[symbol]}, {size_text(total.size)}")
    return lines


def _fold_key(step: Step) -> tuple[str, bytes, bytes]:
    folder = path_of(step).rpartition(b"/")[0]
    if isinstance(step, MoveName):
        # A renamed folder is one line: what both paths end in is what did not change.
        old, new = step.origin.split(b"/"), path_of(step).split(b"/")
        if old[-1] != new[-1]:
            return step.symbol, b"/".join(old[:-1]), folder
        while len(old) > 1 and len(new) > 1 and old[-1] == new[-1]:
            old.pop()
            new.pop()
        return step.symbol, b"/".join(old), b"/".join(new)
    return step.symbol, b"", folder


def _shallower(sums: dict[tuple[str, bytes, bytes], _Sum], depth: int) -> dict[tuple[str, bytes, bytes], _Sum]:
    out: dict[tuple[str, bytes, bytes], _Sum] = {}
    for (symbol, origin, folder), total in sums.items():
        key = (symbol, b"/".join(origin.split(b"/")[:depth]), b"/".join(folder.split(b"/")[:depth]))
        at = out.setdefault(key, _Sum())
        at.count += total.count
        at.size += total.size
    return out


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
