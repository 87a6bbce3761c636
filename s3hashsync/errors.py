"""The one error tree: every failure a person can meet, with its exit code, a hint, and whether trying again may help.

Decides how failures are named. Knows nothing of what was being done: whoever raises says what, where and what to do.
Vendor errors never leave `stores/`; they are translated to `StoreError`s there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0
    ERROR = 1
    USAGE = 2
    INCOMPLETE = 3
    REFUSED = 4
    NO_REPOSITORY = 10
    LOCKED = 11
    WRONG_KEY = 12
    THAW_PENDING = 75
    INTERRUPTED = 130


class S3HashSyncError(Exception):
    """A failure with a message that says what and where, and a hint that says what to do."""

    exit_code: ExitCode = ExitCode.ERROR
    transient: bool = False

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(S3HashSyncError):
    """The command line asks for something that cannot be."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a configuration file; line and column count from 1, 0 when unknown."""

    where: str
    line: int
    column: int
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        place = f"{self.line}:{self.column}: " if self.line else ""
        return f"{place}{self.where}: {self.message}" if self.where else f"{place}{self.message}"


class ConfigError(S3HashSyncError):
    """All faults of a configuration at once."""

    exit_code = ExitCode.USAGE

    def __init__(self, file: str, faults: Sequence[Fault]) -> None:
        count = f"{len(faults)} fault" + ("s" if len(faults) != 1 else "")
        super().__init__(f"{file}: {count} in the configuration", None)
        self.file = file
        self.faults = tuple(faults)


class Refused(S3HashSyncError):
    """A guard said no: nothing was done."""

    exit_code = ExitCode.REFUSED


class Incomplete(S3HashSyncError):
    """Finished, but some files or steps were not done; each has been named."""

    exit_code = ExitCode.INCOMPLETE


class NoRepository(S3HashSyncError):
    """There is no repository at the place that the configuration names."""

    exit_code = ExitCode.NO_REPOSITORY


class Locked(S3HashSyncError):
    """Another process or host works on this source."""

    exit_code = ExitCode.LOCKED


class WrongKey(S3HashSyncError):
    """The repository is encrypted to somebody else, or its key is missing."""

    exit_code = ExitCode.WRONG_KEY


class ThawPending(S3HashSyncError):
    """What was asked for lies in an archive class and is not thawed yet."""

    exit_code = ExitCode.THAW_PENDING


class Interrupted(S3HashSyncError):
    """The person, or the system, asked to stop; what was acknowledged stays."""

    exit_code = ExitCode.INTERRUPTED


class ChangedUnderfoot(S3HashSyncError):
    """A file did not hold still while it was read; it is left to the next run."""


class Corrupt(S3HashSyncError):
    """Bytes are not what their hash, checksum or format says."""


class StoreError(S3HashSyncError):
    """A store did not do what it was asked."""


class Unreachable(StoreError):
    """The network or the service does not answer, is too busy, or broke in the middle: it may work again soon."""

    transient = True


class Denied(StoreError):
    """The credentials are wrong, missing or expired, or lack the right."""


class Missing(StoreError):
    """What was named is not there (a proven absence, not a failure to look)."""


class AlreadyThere(StoreError):
    """A create-only write found its key taken."""


class Archived(StoreError):
    """The version lies in an archive class and has to be thawed before it can be read."""


class NoSpace(StoreError):
    """The disk or the quota is full."""


class Unsupported(StoreError):
    """The server does not know this operation."""
