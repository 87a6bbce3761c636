"""Exclude rules with gitignore's meaning: which path is left out of the backup, and by which line.

Decides precedence: an ignore file deeper in the tree beats one above it, all of them beat the `exclude` of
the configuration, and within one level the last pattern that matches decides. `exclude_regex` always
excludes. Knows no disk: the walk hands in the lines that it found, and asks for a folder before it asks for
what lies in it; an excluded folder is not entered, and that is why a negation below it never acts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from pathspec import PathSpec
from pathspec.pattern import RegexPattern

from s3hashsync.core.wildmatch import literal_folders, parse_line, to_regex

ORIGIN_EXCLUDE = "exclude"
ORIGIN_REGEX = "exclude_regex"

_CHUNK_PATTERNS = 400
_CHUNK_LENGTH = 20_000
"""What one compiled set may hold, in patterns and in characters: re2 refuses what is too large for it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line that excludes or includes: its text, the list or file it stands in, its place there."""

    text: str
    origin: str
    line: int

    def __str__(self) -> str:
        return f"{self.origin}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`rule` is the line that decided, which may be one that includes; None when no line says anything."""

    excluded: bool
    rule: Rule | None


@dataclass(frozen=True, slots=True)
class DeadNegation:
    """`rule` can never act, because `by` excludes `folder`, in which everything lies that it could match."""

    rule: Rule
    folder: bytes
    by: Rule


NOT_EXCLUDED = Verdict(False, None)

_Spec: TypeAlias = PathSpec[RegexPattern]


def _engine() -> tuple[str, str]:
    """pathspec's backend, and how it writes the very end (Python's `$` matches before a newline too)."""
    try:
        PathSpec([RegexPattern(re.compile("a"), True)], backend="re2")
    except Exception:  # noqa: BLE001 - whatever makes re2 unusable, the other engine gives the same answers
        return "simple", r"\Z"
    return "re2", "$"


_BACKEND, _END = _engine()


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Patterns that are matched together. `lines[i]` is the place of the i-th in its file."""

    spec: _Spec
    lines: tuple[int, ...]
    negates: bool


@dataclass(frozen=True, slots=True)
class _Compiled:
    """The lines of one folder. Last chunk first. What names folders alone is not even tried on files."""

    files: tuple[_Chunk, ...]
    folders: tuple[_Chunk, ...]


@lru_cache(maxsize=512)
def _compile(lines: tuple[bytes, ...]) -> _Compiled:
    """Kept, for trees where many folders have the same ignore file."""
    files: list[tuple[int, RegexPattern]] = []
    folders: list[tuple[int, RegexPattern]] = []
    for number, line in enumerate(lines, 1):
        glob = parse_line(line)
        regex = to_regex(glob, _END) if glob else None
        if glob is None or regex is None:
            continue
        pattern = RegexPattern(re.compile(regex), not glob.negated)
        folders.append((number, pattern))
        if not glob.folders_only:
            files.append((number, pattern))
    all_folders = _chunks(folders)
    return _Compiled(_chunks(files) if len(files) < len(folders) else all_folders, all_folders)


def _chunks(patterns: Sequence[tuple[int, RegexPattern]]) -> tuple[_Chunk, ...]:
    parts: list[list[tuple[int, RegexPattern]]] = []
    room = 0
    for number, pattern in patterns:
        length = len(pattern.regex.pattern) if pattern.regex else 0
        if not parts or length > room or len(parts[-1]) == _CHUNK_PATTERNS:
            parts.append([])
            room = _CHUNK_LENGTH
        parts[-1].append((number, pattern))
        room -= length
    return tuple(_chunk(part) for part in reversed(parts))


def _chunk(part: Sequence[tuple[int, RegexPattern]]) -> _Chunk:
    spec: _Spec = PathSpec([pattern for _, pattern in part], backend=_BACKEND)
    negates = any(not pattern.include for _, pattern in part)
    return _Chunk(spec, tuple(number for number, _ in part), negates)


@dataclass(frozen=True, slots=True)
class _Level:
    """The lines that hold in one folder and below. `skip`: how much of a path lies above it."""

    skip: int
    origin: str
    lines: tuple[bytes, ...]
    compiled: _Compiled

    def rule(self, chunk: _Chunk, index: int) -> Rule:
        number = chunk.lines[index]
        return Rule(_text(self.lines[number - 1]), self.origin, number)


class _Test(NamedTuple):
    """One look at a path. `plain`: no negation in here can undo what a later look would say."""

    skip: int
    plain: bool
    spec: _Spec


class Rules:
    """The rules that hold in one folder. Immutable: `enter` gives those of a folder inside."""

    __slots__ = ("_file_tests", "_folder_tests", "_levels", "_regexes", "empty")

    def __init__(self, exclude: Sequence[str | bytes] = (), exclude_regex: Sequence[str] = ()) -> None:
        lines = tuple(line if isinstance(line, bytes) else _raw(line) for line in exclude)
        self._regexes = tuple(re.compile(regex) for regex in exclude_regex)
        self._set_levels(_level(0, ORIGIN_EXCLUDE, lines))

    def _set_levels(self, levels: tuple[_Level, ...]) -> None:
        self._levels = levels
        self._file_tests = _tests([(level.skip, level.compiled.files) for level in levels])
        self._folder_tests = _tests([(level.skip, level.compiled.folders) for level in levels])
        self.empty = not levels and not self._regexes

    def enter(self, folder: bytes, ignore_files: Sequence[tuple[bytes, bytes]]) -> Rules:
        """The rules in `folder` (relative to the root), given name and content of its ignore files.

        A later ignore file beats an earlier one.
        """
        prefix = folder + b"/" if folder else b""
        deeper: tuple[_Level, ...] = ()
        for name, content in ignore_files:
            deeper = _level(len(prefix), _text(prefix + name), split_lines(content)) + deeper
        if not deeper:
            return self
        entered = Rules.__new__(Rules)
        entered._regexes = self._regexes
        entered._set_levels(deeper + self._levels)
        return entered

    def excluded(self, path: bytes, *, is_dir: bool) -> bool:
        """Whether this path is excluded, given that no folder above it is."""
        for regex in self._regexes:
            if regex.search(_text(path)):
                return True
        for skip, plain, spec in self._folder_tests if is_dir else self._file_tests:
            text = path[skip:].decode("latin-1")
            if plain:
                if spec.match_file(text):
                    return True
            elif (include := spec.check_file(text).include) is not None:
                return include
        return False

    def verdict(self, path: bytes, *, is_dir: bool) -> Verdict:
        """What `excluded` says, with the line that decided."""
        for number, regex in enumerate(self._regexes, 1):
            if regex.search(_text(path)):
                return Verdict(True, Rule(regex.pattern, ORIGIN_REGEX, number))
        for level in self._levels:
            text = path[level.skip :].decode("latin-1")
            for chunk in level.compiled.folders if is_dir else level.compiled.files:
                result = chunk.spec.check_file(text)
                if result.include is not None and result.index is not None:
                    return Verdict(result.include, level.rule(chunk, result.index))
        return NOT_EXCLUDED


def split_lines(content: bytes) -> tuple[bytes, ...]:
    """The lines of an ignore file. git skips the mark that some editors put at the beginning of UTF-8."""
    return tuple(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"))


def dead_negations(exclude: Sequence[str | bytes]) -> list[DeadNegation]:
    """Negations in the configuration's `exclude` that never act, as far as that list alone can prove it.

    Proven is: the pattern names, without wildcards, a folder that everything it matches lies in, and the list
    as a whole excludes that folder. (An ignore file in the tree could still include the folder again.)
    """
    rules = Rules(exclude)
    dead = []
    for number, given in enumerate(exclude, 1):
        line = given if isinstance(given, bytes) else _raw(given)
        glob = parse_line(line)
        if glob is None or not glob.negated:
            continue
        for folder in literal_folders(glob):
            verdict = rules.verdict(folder, is_dir=True)
            if verdict.excluded and verdict.rule is not None:
                dead.append(DeadNegation(Rule(_text(line), ORIGIN_EXCLUDE, number), folder, verdict.rule))
                break
    return dead


def _tests(levels: Sequence[tuple[int, tuple[_Chunk, ...]]]) -> tuple[_Test, ...]:
    found = [_Test(skip, not chunk.negates, chunk.spec) for skip, chunks in levels for chunk in chunks]
    if found:
        # Behind the last look a negation has nothing to undo, and pathspec's plain match is faster.
        found[-1] = found[-1]._replace(plain=True)
    return tuple(found)


def _level(skip: int, origin: str, lines: tuple[bytes, ...]) -> tuple[_Level, ...]:
    """Nothing for lines without a pattern: they must cost nothing in the walk."""
    compiled = _compile(lines)
    return (_Level(skip, origin, lines, compiled),) if compiled.folders else ()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
