"""Durations and sizes as people write them.

Decides the units. Knows nothing of which key they are written for.
"""

from __future__ import annotations

import re
from fractions import Fraction

from s3hashsync.errors import UsageError

DAY = 86_400
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": DAY, "w": 7 * DAY, "y": 365 * DAY}
_BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
# Longer ones would leave what the index can hold once they are added to the time.
MAX_DURATION_SECONDS = 1_000 * _SECONDS["y"]
MAX_SIZE_BYTES = 2**63 - 1

_DURATION = re.compile(r"([0-9]{1,12})([smhdwy])")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([kMGT]?B|[KMGT]iB)")


def parse_duration(text: str) -> int:
    """The seconds of `90s`, `2m`, `12h`, `30d`, `2w` or `1y` (365 days); a UsageError for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"{text[:40]!r} is not a duration", "write 30d: a whole number and s, m (minutes), h, d, w or y")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds > MAX_DURATION_SECONDS:
        raise UsageError(f"{text} is too long", "the longest is 1000y")
    return seconds


def parse_size(text: str) -> int:
    """The bytes of `100MiB`, `1.5GB` or `512B`, rounded down; a UsageError for anything else."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text[:40]!r} is not a size",
            "write 100MiB: a number and B, kB, MB, GB, TB, KiB, MiB, GiB or TiB",
        )
    size = int(Fraction(match[1]) * _BYTES[match[2]])
    if size > MAX_SIZE_BYTES:
        raise UsageError(f"{text} is too large", "the largest is below 8388608TiB")
    return size
