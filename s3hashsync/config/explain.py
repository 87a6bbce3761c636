"""The schema's verdict in plain words, each at the key that it is about.

Decides how a violation is said; what is expected comes from the schema's own titles. Never shows a secret.
Knows nothing of YAML.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from s3hashsync.config.faults import FaultLog, Value
from s3hashsync.config.schema import Schema, Violation, schema, violations


def check(value: Value, log: FaultLog) -> None:
    """Report everything in which the value is not as the schema describes it."""
    for violation in violations(value):
        if violation.keyword == "additionalProperties":
            _unknown_keys(violation, log)
        elif violation.keyword == "required":
            _missing_keys(violation, log)
        else:
            _value_fault(violation, log)


def _unknown_keys(violation: Violation, log: FaultLog) -> None:
    known = list(violation.schema["properties"])
    for name in violation.value if isinstance(violation.value, dict) else ():
        if name not in known:
            log.at_key((*violation.path, name), f"unknown key {name[:60]}", _meant_key(name, known))


def _meant_key(name: str, known: list[str]) -> str:
    # A key that another group has exactly stands in the wrong place; a similar one is less likely.
    parents = [parent for parent, key in _all_keys(schema(), "") if key == name]
    if parents:
        return "it belongs " + " or ".join(f"under {parent}" if parent else "to the top" for parent in parents)
    return _meant(name, known) or "the keys here are " + ", ".join(known)


def _meant(name: str, known: Iterable[str]) -> str | None:
    folded = {key.lower(): key for key in known}
    near = difflib.get_close_matches(name[:80].lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return f"did you mean {folded[near[0]]}?" if near else None


def _all_keys(part: Schema, parent: str) -> Iterator[tuple[str, str]]:
    for key, below in part.get("properties", {}).items():
        yield parent, key
        yield from _all_keys(below, f"{parent}.{key}" if parent else key)
        yield from _all_keys(below.get("items", {}), f"{parent}.{key}" if parent else key)


def _missing_keys(violation: Violation, log: FaultLog) -> None:
    group = violation.value if isinstance(violation.value, dict) else {}
    for name in violation.schema["required"]:
        if name not in group:
            example = violation.schema["properties"][name]["examples"][0]
            hint = f"for example {name}: {example}" if isinstance(example, str | int) else None
            log.at_value((*violation.path, name), "this key is missing", hint)


def _value_fault(violation: Violation, log: FaultLog) -> None:
    part = violation.schema
    written = log.places.value(violation.path).written
    if part.get("writeOnly"):
        # A secret of the wrong type is still a secret: neither the message nor the hint repeats it.
        written = None
        found = _kind(violation.value)
    else:
        found = _found(violation.value, written)
    message = f"expected {part.get('title')}, found {found}"
    if violation.value is not None:
        message = part.get("errorMessage", message)
    log.at_value(violation.path, message, _hint(violation, written))


def _kind(value: Value) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "a group of keys" if value else "an empty group of keys"
        case str():
            return "a text" if value else "an empty text"


def _found(value: Value, written: str | None) -> str:
    match value:
        case bool():
            word = "true" if value else "false"
            return word if written in (None, word) else f"{written}, which YAML reads as {word}"
        case int() | float():
            return f"the number {(written or str(value))[:40]}"
        case str() if value and not ("://" in value and "@" in value):  # else it may hold a password
            return f"the text {value[:60]!r}"
    return _kind(value)


def _hint(violation: Violation, written: str | None) -> str | None:
    part, value = violation.schema, violation.value
    own: str | None = part.get("x-hint")
    if value is None:
        return "give it a value, or take the key out"
    if violation.keyword == "enum" and isinstance(value, str) and not own:
        return _meant(value, part["enum"]) or "one of " + ", ".join(part["enum"])
    if violation.keyword != "type":
        return own
    return _type_hint(value, part, written) or own


_BYTES = 10_000


def _type_hint(value: Value, part: Schema, written: str | None) -> str | None:
    """What turns a value of the wrong type into one of the right type, where that can be told."""
    if isinstance(value, str):
        if part["type"] == "array":
            return "write a list: one text a line behind a dash, or between [ and ]"
        if part["type"] in ("integer", "number", "boolean"):
            return "write it without quotes; a variable always gives a text"
    if isinstance(value, int | float) and "string" in part["type"]:
        if "x-unit" not in part:
            return f'put it in quotes: "{written[:60]}"' if written else "put it in quotes"
        if type(value) is int and 0 <= value < 10**9:
            # Who writes a size as so large a number counts in bytes.
            unit = "B" if part["x-unit"] == "MiB" and value >= _BYTES else part["x-unit"]
            return f"write {value}{unit}, or with another unit"
    return None
