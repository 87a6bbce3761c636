"""How a path becomes a name in the index, and back.

Decides the percent-encoding and nothing else: a name is `<source>/` and the path, UTF-8 where the path is; every byte that is
not, and the escape character itself, is `%XX`. Knows nothing of records or disks.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from s3hashsync.core.model import StoredName


def stored_name(source: str, path: bytes) -> StoredName:
    """The name of `path` (bytes, relative to the root of `source`) as `file_names` holds it."""
    return StoredName(f"{source}/{escape(path)}")


def escape(path: bytes) -> str:
    """Text that is the path itself in the common case, reversible in every case."""
    try:
        return path.decode("utf-8").replace("%", "%25")
    except UnicodeDecodeError:
        text = path.replace(b"%", b"%25").decode("utf-8", "surrogateescape")
        return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)


def parse_name(name: StoredName) -> tuple[str, bytes]:
    """The source and the path that `stored_name` was given."""
    source, _, text = name.partition("/")
    return source, unquote_to_bytes(text) if "%" in text else text.encode("utf-8")


def display(path: bytes) -> str:
    """The path for a person: one line, nothing that moves the cursor, undecodable bytes as \\xNN."""
    text = path.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
