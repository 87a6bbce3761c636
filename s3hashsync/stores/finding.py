"""What looking at a bucket or a table brought to light, and how looking and setting up may fail.

Decides that what a server does not know, and what may not be looked at, is a warning. Knows neither buckets
nor tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from s3hashsync.errors import Denied, StoreError, Unsupported
from s3hashsync.stores.aws import translated

Severity: TypeAlias = Literal["ok", "created", "warning", "refused"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `refused` breaks the invariants of the write protocol: nothing may be
    written or cleaned before it is put right."""

    severity: Severity
    what: str
    hint: str | None = None


def made(what: str, make: Callable[[], None]) -> list[Finding]:
    """Sets up one protection. Backups work without it, so a refusal is a warning; what may pass is raised."""
    try:
        with translated(f"setting up {what}"):
            make()
    except StoreError as error:
        if error.transient:
            raise
        return [Finding("warning", f"missing protection: {what} could not be set up: {error.message}", error.hint)]
    return [Finding("created", what)]


def looked(what: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        with translated(f"looking at {what}"):
            return list(look())
    except Unsupported:
        return [Finding("warning", f"missing protection: the server does not know {what}")]
    except Denied as error:
        return [Finding("warning", f"{what} could not be looked at: {error.message}", error.hint)]
