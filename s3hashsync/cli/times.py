"""A moment on the command line: a date, a date and a time, or how long ago. Decides the forms; knows no clock."""

from __future__ import annotations

from datetime import datetime

import click

from s3hashsync.config import parse_duration
from s3hashsync.errors import S3HashSyncError, UsageError


def parse_moment(text: str, now: float) -> float:
    """Epoch seconds. `2026-11-01` is the end of that day; times without a zone are this machine's; `3d` is three days ago."""
    text = text.strip()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            return now - parse_duration(text)
        except S3HashSyncError:
            raise UsageError(
                f"{text!r} is no moment", "write 2026-11-01, 2026-11-01T18:30, 2026-11-01T18:30Z, or 3d for three days ago"
            ) from None
    if len(text) <= 10:
        moment = moment.replace(hour=23, minute=59, second=59, microsecond=999999)
    return moment.timestamp()


def moment_text(time: float) -> str:
    """A moment for a person: local time, seconds. A file's time may lie beyond what a calendar holds."""
    try:
        return f"{datetime.fromtimestamp(time).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return f"@{time:.0f}"


at_option = click.option("--at", metavar="TIME", help="As of this time: 2026-11-01, 2026-11-01T18:30, or 3d (ago).")
