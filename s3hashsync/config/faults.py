"""The list of everything wrong with a file, and the places that each fault is shown at.

Decides which faults are worth saying: not twice the same, and no consequence of one already said at that key. No secret key of
age is repeated, wherever in the file it was put.
Knows nothing of YAML or of the schema.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from s3hashsync.errors import Fault

Value: TypeAlias = "str | int | float | bool | list[Value] | dict[str, Value] | None"
KeyPath = tuple[str | int, ...]
_SECRET_KEY = re.compile(r"(AGE-SECRET-KEY-)[0-9A-Z-]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value or key stands, from 1, and how it was written there, if it is a scalar."""

    line: int
    column: int
    written: str | None = None


@dataclass(slots=True)
class Places:
    values: dict[KeyPath, Place] = field(default_factory=dict)
    keys: dict[KeyPath, Place] = field(default_factory=dict)

    def value(self, path: KeyPath) -> Place:
        """The place of the value, or of the nearest group around it that is written in the file."""
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, Place(1, 1))

    def key(self, path: KeyPath) -> Place:
        return self.keys.get(path) or self.value(path)


class FaultLog:
    """Collects in stages: a path faulted in one stage takes no more faults in the stages after it."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._faults: dict[tuple[int, int, str], Fault] = {}
        self._open: set[KeyPath] = set()
        self._closed: set[KeyPath] = set()

    def next_stage(self) -> None:
        self._closed |= self._open

    def is_faulted(self, path: KeyPath) -> bool:
        return path in self._open or path in self._closed

    def at_value(self, path: KeyPath, message: str, hint: str | None = None) -> None:
        self.at_place(path, self.places.value(path), message, hint)
        self._open.add(path)

    def at_key(self, path: KeyPath, message: str, hint: str | None = None) -> None:
        self.at_place(path, self.places.key(path), message, hint)
        self._open.add(path)

    def at_place(self, path: KeyPath, place: Place, message: str, hint: str | None) -> None:
        """Beside the value at the path, not about it: that takes further faults."""
        if path in self._closed:
            return
        message, key = _without_secret_keys(message), _without_secret_keys(where(path))
        # An alias shows the same text at many paths: it is one fault, where it is written.
        self._faults.setdefault((place.line, place.column, message), Fault(key, place.line, place.column, message, hint))

    def faults(self) -> list[Fault]:
        return sorted(self._faults.values(), key=lambda fault: (fault.line, fault.column))


def _without_secret_keys(text: str) -> str:
    return _SECRET_KEY.sub(r"\1…", text)


def where(path: KeyPath) -> str:
    """`sources[0].path`: list positions count from 0, as in jq and Terraform."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part[:80]}" if text else part[:80]
    return text
