"""A damaged index file, put aside so that a new one can take its place.

Decides what counts as damaged, and the name that it gets. Deletes nothing. Knows nothing of how a new index is filled.
"""

from __future__ import annotations

import itertools
import os
from contextlib import closing, suppress

from s3hashsync.errors import Corrupt, Missing
from s3hashsync.stores.sqlite import APPLICATION_ID, LOGS, Damaged, SqliteIndex


def put_aside_if_damaged(path: str) -> str | None:
    """Give a damaged file another name, and say which. None where it is whole, not there, or another program's (that is found
    when it is opened)."""
    try:
        with closing(SqliteIndex(path)) as index:
            index.check()
    except Missing:
        return None
    except Damaged as error:
        if not _is_ours(path):
            raise Corrupt(
                f"{error.message}, and nothing says that it was an index of s3hashsync",
                "check index: in the configuration; if it was one, give the file another name, and run this again",
            ) from None
        names = (f"{path}.damaged{number or ''}" for number in itertools.count())
        aside = next(name for name in names if not os.path.lexists(name))
        # The file itself last: whoever is cut short finds it again.
        for end in ("-shm", *LOGS, ""):
            with suppress(FileNotFoundError):
                os.rename(path + end, aside + end)
        return aside
    return None


def _is_ours(path: str) -> bool:
    """By the mark in its header, by a header that a failing disk has emptied, or by the repository in whose folder it lies. In a
    file of somebody else nothing of that is found."""
    if os.path.exists(os.path.join(os.path.dirname(path), "repository.json")):
        return True
    with open(path, "rb") as file:
        head = file.read(100)
    return not head.strip(b"\0") or head[68:72] == APPLICATION_ID.to_bytes(4, "big")
