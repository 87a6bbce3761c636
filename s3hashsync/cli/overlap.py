"""What a source holds of the program's own: its repository, and the local state that changes with every run.

Decides what is said of it. The walk leaves it out by itself (`wiring.own_paths`); this is so that nobody has to find that out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from s3hashsync.config import Config
from s3hashsync.wiring import own_paths


def overlaps(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each path of the program's own that lies in a source."""
    for source in config.sources:
        root = os.path.realpath(source.path)
        for path in own_paths(config, environ):
            there = os.path.realpath(path)
            if os.path.lexists(there) and there.startswith(root.rstrip("/") + "/"):
                yield f"source {source.name} holds {path}, which belongs to this program: it is left out of the backup"
