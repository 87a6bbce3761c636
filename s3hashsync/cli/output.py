"""What reaches the person or the program that called: text on stdout, errors and progress on stderr, or JSON lines on stdout.

Decides the form of messages. `message_type` follows restic's vocabulary; `format_version` is in the first line.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping

import click

from s3hashsync.codec.names import display
from s3hashsync.core.plan import Problem
from s3hashsync.errors import ConfigError, ExitCode, S3HashSyncError

FORMAT_VERSION = 1


class Output:
    """Where everything is printed. `verbosity`: -1 quiet, 0 normal, 1 verbose."""

    def __init__(self, *, as_json: bool, verbosity: int) -> None:
        self.as_json = as_json
        self.verbosity = verbosity
        self._first = True

    def text(self, line: str = "") -> None:
        """For people; nothing in JSON mode."""
        if not self.as_json:
            click.echo(line)

    def info(self, line: str) -> None:
        """For people who did not ask for quiet."""
        if not self.as_json and self.verbosity >= 0:
            click.echo(line)

    def warning(self, line: str) -> None:
        if self.as_json:
            self.message("warning", message=line)
        else:
            click.echo(f"{click.style('warning:', fg='yellow')} {line}", err=True)

    def message(self, message_type: str, **fields: object) -> None:
        """For programs; nothing in text mode."""
        if not self.as_json:
            return
        body: dict[str, object] = {"message_type": message_type}
        if self._first:
            body["format_version"] = FORMAT_VERSION
            self._first = False
        sys.stdout.write(json.dumps(body | fields, ensure_ascii=True) + "\n")
        sys.stdout.flush()

    def problem(self, problem: Problem, during: str) -> None:
        item = f"{problem.source}/{display(problem.path)}" if problem.path else problem.source
        if self.as_json:
            self.message("error", error={"message": problem.message}, during=during, item=item, **b64(problem.path))
        else:
            click.echo(f"{click.style('error:', fg='red')} {item}: {problem.message}", err=True)

    def failure(self, error: S3HashSyncError) -> None:
        """The one message that ends the program."""
        if self.as_json:
            fields: dict[str, object] = {"code": int(error.exit_code), "message": error.message}
            if error.hint:
                fields["hint"] = error.hint
            if isinstance(error, ConfigError):
                fields["faults"] = [
                    {"where": f.where, "line": f.line, "column": f.column, "message": f.message, "hint": f.hint}
                    for f in error.faults
                ]
            self.message("exit_error", **fields)
            return
        if isinstance(error, ConfigError):
            for fault in error.faults:
                # `file:line:column:` without spaces is what editors jump to; without a line it is only a name.
                gap = "" if fault.line else " "
                click.echo(f"{click.style('error:', fg='red')} {error.file}:{gap}{fault}", err=True)
                if fault.hint:
                    click.echo(f"{click.style('hint:', fg='cyan')} {fault.hint}", err=True)
            return
        if error.exit_code is ExitCode.INTERRUPTED:
            click.echo(error.message, err=True)
        else:
            click.echo(f"{click.style('error:', fg='red')} {error.message}", err=True)
        if error.hint:
            click.echo(f"{click.style('hint:', fg='cyan')} {error.hint}", err=True)


def b64(path: bytes, field: str = "path") -> Mapping[str, str]:
    """The sibling field of a path that is not UTF-8; nothing for one that is."""
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        return {f"{field}_b64": base64.b64encode(path).decode("ascii")}
    return {}


def text_of(path: bytes) -> str:
    return path.decode("utf-8", "replace")


def size_text(count: float) -> str:
    """Bytes for a person: 1023 B, 1.5 KiB, 3.2 GiB."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} PiB"


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 file`, `2,345 files`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration_text(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
