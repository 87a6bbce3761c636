"""One line of an ignore file as a regular expression with exactly git's meaning.

Decides what a pattern matches. Knows nothing of precedence, of folders above, or of where the line came from.

pathspec translates patterns too, but differs from git in corners that real ignore files reach (folder-only
negations, character classes, escapes, trailing spaces and tabs, names with newlines), so the translation is
done here, after git's `parse_path_pattern`, `match_basename`, `match_pathname` and `wildmatch`; pathspec is
given the result. As in git, everything is bytes: `?` is one byte, not one letter. Bytes are carried as
latin-1 text, which both of pathspec's engines take.
"""

from __future__ import annotations

from dataclasses import dataclass

SLASH = 0x2F
LONGEST = 8192
"""Bytes in a line. Here git would go on; but whoever may write an ignore file must not stop the backup with it."""

_SPECIAL = frozenset(b"*?[\\")
_ALL = frozenset(range(1, 256))
_SPACE = frozenset(b" \t\n\r")  # git's own ctype: no vertical tab, no form feed
_ALPHA = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DIGIT = frozenset(b"0123456789")
_PRINT = frozenset(range(0x20, 0x7F))
_CLASSES: dict[bytes, frozenset[int]] = {
    b"alnum": _ALPHA | _DIGIT,
    b"alpha": _ALPHA,
    b"blank": frozenset(b" \t"),
    b"cntrl": frozenset([*range(0x20), 0x7F]),
    b"digit": _DIGIT,
    b"graph": _PRINT - _SPACE,
    b"lower": frozenset(range(0x61, 0x7B)),
    b"print": _PRINT,
    b"punct": _PRINT - _SPACE - _ALPHA - _DIGIT,
    b"space": _SPACE,
    b"upper": frozenset(range(0x41, 0x5B)),
    b"xdigit": frozenset(b"0123456789abcdefABCDEF"),
}


class _NeverMatchesError(Exception):
    """The pattern is broken in a way that makes git match nothing with it."""


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern taken apart. `by_name`: it is compared with the last component alone, at any depth."""

    body: bytes
    negated: bool
    folders_only: bool
    by_name: bool


def parse_line(line: bytes) -> Glob | None:
    """None for what is no pattern: an empty line, a comment, and a line that no path is long enough for."""
    if not line or line.startswith(b"#") or len(line) > LONGEST:
        return None
    body = _without_trailing_spaces(line.removesuffix(b"\r").partition(b"\0")[0])
    negated = body.startswith(b"!")
    body = body[1:] if negated else body
    folders_only = body.endswith(b"/")
    body = body[:-1] if folders_only else body
    return Glob(body, negated, folders_only, by_name=b"/" not in body) if body else None


def to_regex(glob: Glob, end: str) -> str | None:
    """An expression to search for in a path in latin-1; `end` is the engine's own way to say "the very end".

    None when nothing can ever match.
    """
    try:
        if glob.by_name:
            return "(?:^|/)" + _translate(glob.body) + end
        body = glob.body.removeprefix(b"/")
        literal = _literal_length(body)
        # git compares the part before the first wildcard as it is, and hands the rest to wildmatch. So `**`
        # right behind it stands at the beginning, and `foo**/bar` matches foobar and foox/y/bar, whatever the
        # documentation says.
        return "^" + _escape(body[:literal]) + _translate(body[literal:]) + end
    except _NeverMatchesError:
        return None


def literal_folders(glob: Glob) -> list[bytes]:
    """Folders that everything this pattern matches lies in, from the top, up to the first wildcard."""
    if glob.by_name:
        return []
    folders: list[bytes] = []
    components = glob.body.removeprefix(b"/").split(b"/")[:-1]
    for component in components:
        if not component or _literal_length(component) < len(component):
            break
        folders.append(folders[-1] + b"/" + component if folders else component)
    return folders


def _without_trailing_spaces(line: bytes) -> bytes:
    """Spaces alone, not tabs, and not those that a backslash protects."""
    kept = position = 0
    while position < len(line):
        if line[position] == 0x5C:
            if position + 1 == len(line):
                return line
            position += 1
            kept = position + 1
        elif line[position] != 0x20:
            kept = position + 1
        position += 1
    return line[:kept]


def _literal_length(body: bytes) -> int:
    return next((at for at, byte in enumerate(body) if byte in _SPECIAL), len(body))


def _escape(literal: bytes) -> str:
    return "".join(chr(b) if b in _ALPHA or b in _DIGIT else f"\\x{b:02x}" for b in literal)


def _translate(pattern: bytes) -> str:
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        if char == b"*":
            text, at = _stars(pattern, at)
        elif char == b"?":
            text, at = "[^/]", at + 1
        elif char == b"[":
            members, at = _bracket(pattern, at + 1)
            text = _class(members)
        else:
            at += char == b"\\"
            if at == len(pattern):
                raise _NeverMatchesError
            text, at = _escape(pattern[at : at + 1]), at + 1
        parts.append(text)
    return "".join(parts)


def _stars(pattern: bytes, start: int) -> tuple[str, int]:
    at = start
    while pattern[at : at + 1] == b"*":
        at += 1
    rest = pattern[at:]
    own_component = start == 0 or pattern[start - 1] == SLASH
    if at - start < 2 or not own_component or (rest and not rest.startswith((b"/", b"\\/"))):
        return "[^/]*", at
    if rest.startswith(b"/"):
        # `**/**/` says no more than `**/`, but an engine that goes back and forth would never end with it.
        while pattern[at + 1 : at + 4] == b"**/":
            at += 3
        return "(?s:.*/)?", at + 1
    return "(?s:.*)", at


def _bracket(pattern: bytes, at: int) -> tuple[frozenset[int], int]:
    """The bytes that a bracket expression admits, and the place behind it."""
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    members: set[int] = set()
    previous = first = None
    while first is None or pattern[at : at + 1] != b"]":
        first = at if first is None else first
        char = _byte(pattern, at)
        following = pattern[at + 1 : at + 2]
        if char == 0x2D and previous is not None and following not in (b"", b"]"):
            at += 2 if following == b"\\" else 1
            members.update(range(previous, _byte(pattern, at) + 1))
            previous = None
        elif char == 0x5B and following == b":":
            named, at = _named_class(pattern, at)
            members |= named
            previous = None if len(named) != 1 else 0x5B
        else:
            at += char == 0x5C
            previous = _byte(pattern, at)
            members.add(previous)
        at += 1
    # No bracket ever matches a slash.
    return (_ALL - members if negated else frozenset(members)) - {SLASH}, at + 1


def _named_class(pattern: bytes, at: int) -> tuple[frozenset[int], int]:
    """`[:digit:]`, and the place of its last byte; an opening bracket as it is where no `:]` follows."""
    close = pattern.find(b"]", at + 2)
    if close < 0:
        raise _NeverMatchesError
    if close == at + 2 or pattern[close - 1] != 0x3A:
        return frozenset([0x5B]), at
    members = _CLASSES.get(pattern[at + 2 : close - 1])
    if members is None:
        raise _NeverMatchesError
    return members, close


def _byte(pattern: bytes, at: int) -> int:
    if at >= len(pattern):
        raise _NeverMatchesError
    return pattern[at]


def _class(members: frozenset[int]) -> str:
    wanted = sorted(members - {0})
    if not wanted:
        raise _NeverMatchesError
    runs: list[list[int]] = []
    for byte in wanted:
        if runs and runs[-1][1] == byte - 1:
            runs[-1][1] = byte
        else:
            runs.append([byte, byte])
    return "[" + "".join(f"\\x{low:02x}-\\x{high:02x}" for low, high in runs) + "]"
