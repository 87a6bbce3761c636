"""The table of every key in docs/configuration.md, made of the schema. `python tests/config_table.py` writes it.

Decides how the table looks. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from s3hashsync.config import schema_text

Schema = Mapping[str, Any]
MANUAL = Path(__file__).parent.parent / "docs" / "configuration.md"
BEGIN = "<!-- keys: written by tests/config_table.py -->\n"
END = "<!-- end of keys -->\n"


def keys(part: Schema, defs: Schema, listed: set[str], prefix: str = "") -> Iterator[tuple[str, Schema, bool]]:
    """Every key with its part of the schema, references resolved, and whether its group requires it.

    The keys within a definition that several keys share are given once, for the first of these.
    """
    for name, below in part.get("properties", {}).items():
        shared = below.get("$ref", "").removeprefix("#/$defs/")
        resolved = {**_definition(shared, defs), **below} if shared else below
        yield prefix + name, resolved, name in part.get("required", ())
        if shared in listed:
            continue
        if shared:
            listed.add(shared)
        yield from keys(resolved, defs, listed, f"{prefix}{name}.")
        yield from keys(resolved.get("items", {}), defs, listed, f"{prefix}{name}[].")


def _definition(shared: str, defs: Schema) -> Schema:
    for part in shared.split("/"):
        defs = defs[part]
    return defs


def all_keys() -> list[tuple[str, Schema, bool]]:
    schema = json.loads(schema_text())
    return list(keys(schema, schema["$defs"], set()))


def table() -> str:
    rows = ["| key | what it says | default | examples |", "|---|---|---|---|"]
    for name, part, required in all_keys():
        cells = [f"`{name}`", part["description"], _default(part, required=required), _examples(part)]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _default(part: Schema, *, required: bool) -> str:
    if required:
        return "required"
    if "default" in part:
        return f"`{_written(part['default'])}`"
    return str(part.get("x-default", ""))


def _examples(part: Schema) -> str:
    # A group's examples are those of its keys, in the rows below it.
    if part.get("type") == "object" or "properties" in part.get("items", {}):
        return ""
    return ", ".join(f"`{_written(example)}`" for example in part["examples"])


def _written(value: object) -> str:
    """The value in YAML's flow style, as a person would write it."""
    match value:
        case bool():
            return "true" if value else "false"
        case list():
            return "[" + ", ".join(_quoted(item) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    return str(value)


def _quoted(item: object) -> str:
    text = _written(item)
    if "\\" in text:
        return f"'{text}'"
    return f'"{text}"' if text.startswith(("*", "!")) else text


def split_manual(text: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands after it."""
    before, begin, rest = text.partition(BEGIN)
    middle, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{MANUAL} has no place for the table")
    return before + begin, middle, end + after


if __name__ == "__main__":
    before, _, after = split_manual(MANUAL.read_text(encoding="utf-8"))
    MANUAL.write_text(before + table() + after, encoding="utf-8")
