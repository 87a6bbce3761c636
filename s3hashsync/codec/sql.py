"""Statements that take many rows at once.

Decides how many. Python gives its lock away at every step of SQLite: row by row, a busy thread beside it makes each row wait for
milliseconds; in one statement all rows are one step. Knows no database.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

_VALUES = 450
"""Every SQLite takes so many in one statement; more would only take memory."""


def insertions(into: str, rows: Sequence[Sequence[object]]) -> Iterator[tuple[str, list[object]]]:
    """Statements with their values: `into` ("INSERT INTO name") followed by these rows, all of one width."""
    if not rows:
        return
    row = f"({', '.join('?' * len(rows[0]))})"
    step = max(1, _VALUES // len(rows[0]))
    for start in range(0, len(rows), step):
        page = rows[start : start + step]
        yield f"{into} VALUES {', '.join([row] * len(page))}", list(chain.from_iterable(page))


def matches(before: str, values: Sequence[object]) -> Iterator[tuple[str, list[object]]]:
    """The same for `before` ("DELETE FROM name WHERE key") followed by IN and these values."""
    for start in range(0, len(values), _VALUES):
        page = list(values[start : start + _VALUES])
        yield f"{before} IN ({', '.join('?' * len(page))})", page
