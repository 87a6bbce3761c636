"""What effects cost in requests: pure arithmetic on the rules of the write protocol.

Decides how many names a record holds and how many travel together, and from that how many index writes a plan takes. Knows no
prices.
"""

from __future__ import annotations

NAMES_IN_RECORD = 64
"""Further names of a content go to overflow items."""

NAMES_AT_ONCE = 50_000
"""How many names of one content are written together at most: what one batch may hold in memory."""

DEEPEST = 4
"""The longest prefix of an overflow item, in hexadecimal digits."""


def spill_length(names: int, at_least: int = 1) -> int:
    """The prefix length at which this many new names make about a record's worth an overflow item at most."""
    length = max(at_least, 1)
    while length < DEEPEST and names > 16**length * NAMES_IN_RECORD:
        length += 1
    return length


def index_writes(names: int, spill: int = 0) -> int:
    """About how many index items are written when a content gets this many names. `spill`: the prefix length of its overflow
    items (0: it has none yet)."""
    if spill == 0 and names <= NAMES_IN_RECORD:
        return 1
    writes, length, left = (1, 1, names - NAMES_IN_RECORD) if spill == 0 else (0, spill, names)
    while left > 0:
        now = min(left, NAMES_AT_ONCE)
        length = spill_length(now, length)
        items = 16**length
        # The overflow items that are hit when `now` names fall into them at random, and the record that lists them.
        writes += round(items * (1 - (1 - 1 / items) ** now)) + 1
        left -= now
    return writes
