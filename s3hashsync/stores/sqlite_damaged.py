"""A damaged index file, put aside so that a new one can take its place.

Decides what counts as damaged, and the name that it gets. Deletes nothing. Knows nothing of how a new index is filled.
"""

from __future__ import annotations

import itertools
import os
from contextlib import closing, suppress

from s3hashsync.errors import Missing
from s3hashsync.stores.sqlite import LOGS, Damaged, SqliteIndex


def put_aside_if_damaged(path: str) -> str | None:
    """Give a damaged file another name, and say which. None where it is whole, not there, or another program's (that is found
    when it is opened)."""
    try:
        with closing(SqliteIndex(path)) as index:
            index.check()
    except Missing:
        return None
    except Damaged:
        names = (f"{path}.damaged{number or ''}" for number in itertools.count())
        aside = next(name for name in names if not os.path.lexists(name))
        # The file itself last: whoever is cut short finds it again.
        for end in ("-shm", *LOGS, ""):
            with suppress(FileNotFoundError):
                os.rename(path + end, aside + end)
        return aside
    return None
