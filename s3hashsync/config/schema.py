"""The schema of `backup.yaml`: where it is, and what a value violates in it.

Decides where the schema is and how its patterns are matched. Knows nothing of what it says.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from s3hashsync.config.faults import KeyPath, Value

Schema = Mapping[str, Any]
_NAME = "backup.schema.json"


@dataclass(frozen=True, slots=True)
class Violation:
    """One keyword of the schema that one value does not follow, and the part of the schema around it."""

    path: KeyPath
    keyword: str
    value: Value
    schema: Schema


def schema_text() -> str:
    """The schema as it is shipped: JSON text."""
    installed = resources.files("s3hashsync") / _NAME
    if installed.is_file():
        return installed.read_text(encoding="utf-8")
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(os.path.join(os.path.dirname(package), "schema", _NAME), encoding="utf-8") as file:
        return file.read()


@functools.cache
def schema() -> Schema:
    parsed: Schema = json.loads(schema_text())
    return parsed


def violations(value: Value) -> Iterator[Violation]:
    # As Any, because jsonschema and its stubs disagree on what an error holds.
    error: Any
    for error in _validator().iter_errors(value):
        yield Violation(tuple(error.absolute_path), error.validator, error.instance, error.schema)


@functools.cache
def _validator() -> Any:
    with_patterns: Any = extend
    return with_patterns(Draft202012Validator, {"pattern": _pattern})(schema())


def _pattern(_: object, pattern: str, instance: object, __: object) -> Iterator[ValidationError]:
    # JSON Schema's `$` is the end; Python's is also before a last line end, and `name: "docs\n"` would pass.
    exact = re.sub(r"\$$", r"\\Z", pattern)
    if isinstance(instance, str) and not re.search(exact, instance):
        yield ValidationError("does not match the pattern")
