"""`${VAR}`, `${VAR:-default}` and `$$` in a text.

Decides what is replaced. Knows nothing of files; the environment is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

MAX_LENGTH = 1024 * 1024
_TOKEN = re.compile(r"\$\$|\$\{([^}]*)\}|\$\{")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)

Report = Callable[[str, str | None], None]


def expand(text: str, environ: Mapping[str, str], report: Report) -> str:
    """The text with its variables replaced; whatever cannot be replaced is reported and left as it is."""
    if "$" not in text:
        return text
    pieces: list[str] = []
    done = length = 0
    for token in _TOKEN.finditer(text):
        pieces += [text[done : token.start()], _value(token, environ, report)]
        done = token.end()
        length += len(pieces[-1])
        # Else a small file that repeats a long variable would fill the memory.
        if length > MAX_LENGTH:
            report("is too long once its variables are replaced", None)
            return text
    return "".join([*pieces, text[done:]])


def _value(token: re.Match[str], environ: Mapping[str, str], report: Report) -> str:
    if token[0] == "$$":
        return "$"
    if token[1] is None:
        report("${ has no closing }", "write $${ for the characters themselves")
        return token[0]
    variable = _VARIABLE.fullmatch(token[1])
    if variable is None or "${" in (variable[2] or ""):
        report(
            f"{token[0][:60]} is not a variable",
            "write ${NAME} or ${NAME:-default}, not nested, and $${ for the characters themselves",
        )
        return token[0]
    name, default = variable[1], variable[2]
    # As in a shell: `:-` also stands in for a variable that is set but empty.
    if default is not None:
        return environ.get(name) or default
    if name not in environ:
        report(
            f"the variable {name} is not set",
            f"set {name} in the environment, or write ${{{name}:-default}}",
        )
        return token[0]
    return environ[name]
