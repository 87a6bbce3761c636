"""A plan in few lines: how many paths of each folder have which fate, and of how many bytes.

Decides how steps are folded by folder. Filled while a plan is totalled, so that a large plan is not gone through once more to be
shown. Knows no terminal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from s3hashsync.core.model import Kind
from s3hashsync.core.steps import ExcludeName, MoveName, RemoveName, Step, path_of, size_of

Key: TypeAlias = tuple[str, bytes, bytes]
"""Symbol, folder that a move came from (b"" otherwise), folder."""


@dataclass(slots=True)
class Sum:
    """Paths, and the bytes of their contents."""

    count: int = 0
    size: int = 0


@dataclass(slots=True)
class Outline:
    """The steps of one source. `files_removed`: files that the plan removes or newly excludes."""

    steps: int = 0
    files_removed: int = 0
    _sums: dict[Key, Sum] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        self.steps += 1
        if isinstance(step, RemoveName | ExcludeName) and step.kind is Kind.FILE:
            self.files_removed += 1
        key = _fold_key(step)
        at = self._sums.get(key)
        if at is None:
            at = self._sums[key] = Sum()
        at.count += 1
        at.size += size_of(step)

    def folded(self, lines: int) -> list[tuple[Key, Sum]]:
        """As deep as still fits into so many lines, by folder."""
        sums = self._sums
        depth = max((folder.count(b"/") + 1 for _, _, folder in sums), default=0)
        while len(sums) > lines and depth > 0:
            depth -= 1
            sums = _shallower(sums, depth)
        return sorted(sums.items(), key=lambda item: (item[0][2], item[0][0]))


def _fold_key(step: Step) -> Key:
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


def _shallower(sums: dict[Key, Sum], depth: int) -> dict[Key, Sum]:
    out: dict[Key, Sum] = {}
    for (symbol, origin, folder), total in sums.items():
        key = (symbol, b"/".join(origin.split(b"/")[:depth]), b"/".join(folder.split(b"/")[:depth]))
        at = out.setdefault(key, Sum())
        at.count += total.count
        at.size += total.size
    return out
