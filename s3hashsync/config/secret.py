"""A secret that is named but not yet known: only `reveal` reads the variable or file, or runs the command.

Decides how each kind of secret is fetched, and that it is never shown. Knows nothing of what it opens.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from s3hashsync.errors import ConfigError, Fault

# A password manager may have to ask the person first; one that never answers must not hang a nightly run.
COMMAND_TIMEOUT_SECONDS = 300
MAX_SECRET_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Origin:
    """Where in which file something was said, for the faults that show only later."""

    file: str
    where: str
    line: int
    column: int

    def error(self, message: str, hint: str | None = None) -> ConfigError:
        return ConfigError(self.file, [Fault(self.where, self.line, self.column, message, hint)])


@dataclass(frozen=True, slots=True)
class Secret:
    """One of: the text itself, the name of a variable, the path of a file, or the words of a command."""

    kind: Literal["text", "env", "file", "command"]
    words: tuple[str, ...] = field(repr=False)
    origin: Origin = field(compare=False)

    def reveal(self, environ: Mapping[str, str]) -> str:
        """The secret itself, without the line end that editors and commands put behind it."""
        match self.kind:
            case "text":
                return self.words[0]
            case "env":
                revealed = self._from_variable(environ)
            case "file":
                revealed = self._from_file()
            case "command":
                revealed = self._from_command(environ)
        revealed = revealed.rstrip("\r\n")
        if not revealed:
            raise self.origin.error(f"the {_SAID[self.kind]} gives an empty secret")
        return revealed

    def _from_variable(self, environ: Mapping[str, str]) -> str:
        name = self.words[0]
        if name not in environ:
            raise self.origin.error(f"the variable {name} is not set", f"set {name} in the environment")
        return environ[name]

    def _from_file(self) -> str:
        path = self.words[0]
        try:
            with open(path, "rb") as file:
                return self._text(file.read(MAX_SECRET_BYTES + 1))
        except OSError as error:
            raise self.origin.error(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise self.origin.error(f"{path!r} is not a path") from error

    def _from_command(self, environ: Mapping[str, str]) -> str:
        program = self.words[0]
        try:
            # No shell, so that no character of an argument means anything. Standard error stays the person's.
            done = subprocess.run(
                self.words,
                stdout=subprocess.PIPE,
                env=dict(environ),
                timeout=COMMAND_TIMEOUT_SECONDS,
                check=False,
            )
        except OSError as error:
            raise self.origin.error(f"cannot run {program}: {error.strerror}") from error
        except ValueError as error:
            raise self.origin.error("is not a command that can be run") from error
        except subprocess.TimeoutExpired:
            # Not chained: the exception holds what the command has printed so far.
            raise self.origin.error(f"{program} took longer than {COMMAND_TIMEOUT_SECONDS} s") from None
        if done.returncode:
            raise self.origin.error(f"{program} failed with exit code {done.returncode}")
        return self._text(done.stdout)

    def _text(self, raw: bytes) -> str:
        if len(raw) > MAX_SECRET_BYTES:
            raise self.origin.error(f"the {_SAID[self.kind]} gives more than 64 KiB: that is no secret")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            # Not chained: the exception holds the bytes.
            raise self.origin.error(f"the {_SAID[self.kind]} gives bytes that are not UTF-8") from None


_SAID = {"text": "text", "env": "variable", "file": "file", "command": "command"}
