"""Whether a path has to be looked at again: pure rules over stat fields.

Decides what counts as changed. Knows neither disks nor databases.
"""

from __future__ import annotations

RACY_NS = 60 * 1_000_000_000
"""A file touched less than a minute before the scan may change again without a new time (coarse clocks, mapped files)."""

ALL_FIELDS = frozenset({"size", "mtime", "ctime", "inode"})


def is_racy(mtime_ns: int, ctime_ns: int, scanned_ns: int) -> bool:
    """Whether a file has to be hashed again next time, whatever its stat says then. A far future mtime alone is not racy."""
    oldest = scanned_ns - RACY_NS
    return ctime_ns >= oldest or oldest <= mtime_ns <= scanned_ns + RACY_NS
