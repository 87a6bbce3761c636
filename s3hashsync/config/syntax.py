"""From text to YAML nodes, or to the one fault that says where the text is not YAML.

Decides how deep a file may nest and how the parser's words are put. Knows nothing of what the nodes mean.
"""

from __future__ import annotations

import yaml

from s3hashsync.config.faults import FaultLog, Place

MAX_DEPTH = 40
Node = yaml.nodes.Node

_QUOTES = "put a text that begins with one of * & ! % @ ` in quotes"
# The first of these found in the parser's message, or in the line, says what most often is behind it.
_HINTS = (
    (r"'\t' that cannot start", "indent with spaces, not with tabs"),
    ("cannot start any token", _QUOTES),
    ("while scanning an alias", _QUOTES),
    ("while scanning an anchor", _QUOTES),
    ("undefined alias", _QUOTES),
    ("found undefined tag handle", _QUOTES),
    ("expected a single document", "keep one document in a file: take the line --- out"),
    ("mapping values are not allowed", "put a text that holds a colon and a space in quotes"),
    ("unknown escape character", "in double quotes \\ begins an escape: use single quotes"),
    ("expected <block end>", "check that this line is indented as the lines that belong with it"),
    ("could not find expected ':'", "write key: value, with a space after the colon"),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader, but its recursion is bounded."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, "the nesting is too deep", self.get_mark())
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def compose(text: str, log: FaultLog) -> Node | None:
    """The root node; None for an empty file, and for one that is not YAML, which is then in the log."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        _unprintable(text, error, log)
        return None
    try:
        root: Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        _marked(text, error, log)
        return None
    except (ValueError, OverflowError):
        # PyYAML turns an escape such as "\UFFFFFFFF" into a character without looking.
        mark = loader.get_mark()
        place = Place(mark.line + 1, mark.column + 1)
        log.at_place((), place, "not YAML: an escape that stands for no character", None)
        return None
    return root


def _unprintable(text: str, error: yaml.reader.ReaderError, log: FaultLog) -> None:
    before = text[: error.position]
    place = Place(before.count("\n") + 1, len(before) - before.rfind("\n"))
    log.at_place((), place, f"not YAML: the character U+{ord(text[error.position]):04X} may not stand in a file", None)


def _marked(text: str, error: yaml.MarkedYAMLError, log: FaultLog) -> None:
    mark = error.problem_mark or error.context_mark
    place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
    said = ", ".join(part for part in (error.context, error.problem) if part)
    lines = text.splitlines()
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    hint = next((hint for sign, hint in _HINTS if sign in said), None)
    if "${" in line and ("flow" in said or "expected <block end>" in said):
        hint = "inside [ ] and { } put a text with ${…} in quotes"
    log.at_place((), place, f"not YAML: {said[:200]}", hint)
