"""What a person names on the command line: `SOURCE`, `SOURCE:PATH` or `SOURCE:GLOB`, and which paths that means.

Decides the meaning of a glob over whole paths: `*` and `?` stay within one component, `**` as a component of its own stands for
any number of them; nothing else is special, so that names with brackets can be typed as they are. Knows nothing of where paths
come from."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from s3hashsync.errors import UsageError

Matcher = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Selection:
    """`pattern` is relative to the source's root, without slashes at its ends; b"" is the whole source."""

    source: str
    pattern: bytes = b""

    def __str__(self) -> str:
        return f"{self.source}:{self.pattern.decode('utf-8', 'backslashreplace')}" if self.pattern else self.source


def parse_selection(text: str) -> Selection:
    """Raises `UsageError` where no source is named. Bytes that are not UTF-8 are kept as the shell handed them over."""
    source, _, pattern = text.partition(":")
    if not source:
        raise UsageError(f"{text!r} names no source", "write SOURCE, SOURCE:PATH or SOURCE:GLOB")
    return Selection(source, pattern.encode("utf-8", "surrogateescape").strip(b"/"))


def is_glob(pattern: bytes) -> bool:
    return b"*" in pattern or b"?" in pattern


def path_matcher(pattern: bytes, *, below: bool) -> Matcher:
    """Whether a whole path matches; with `below` also whatever lies in a folder that matches."""
    regex = re.compile(_regex(_text(pattern)) + ("(?:/.*)?" if below else ""), re.DOTALL)
    return lambda path: regex.fullmatch(_text(path)) is not None


def name_matcher(pattern: bytes) -> Matcher:
    """As `find` means it: a pattern without a slash is compared with the last component, at any depth."""
    pattern = pattern.strip(b"/")
    if b"/" in pattern:
        return path_matcher(pattern, below=False)
    matches = path_matcher(pattern, below=False)
    return lambda path: matches(path.rpartition(b"/")[2])


def _text(path: bytes) -> str:
    # So that `?` is one letter, and one byte only where the bytes are no letters.
    return path.decode("utf-8", "surrogateescape")


def _regex(pattern: str) -> str:
    out = ""
    components = pattern.split("/")
    for number, component in enumerate(components):
        last = number == len(components) - 1
        if component == "**":
            out += ".*" if last else "(?:.*/)?"
        else:
            out += "".join(_character(c) for c in re.sub(r"\*+", "*", component)) + ("" if last else "/")
    return out


def _character(character: str) -> str:
    return {"*": "[^/]*", "?": "[^/]"}.get(character) or re.escape(character)
