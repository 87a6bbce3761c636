"""What a source should not hold: the repository that it is backed up to, and the local state that changes with every run.

Decides what is warned of, and the rule that would leave it out. Leaves nothing out by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from s3hashsync.config import Config, FolderUrl, SqliteUrl
from s3hashsync.disk.tree import why
from s3hashsync.run.gather import walk_options
from s3hashsync.wiring import state_folder

_REPOSITORY = "the repository itself"
_REPOSITORY_WHY = "every run would back up what the run before stored"
_STATE = "the local state of this program"
_STATE_WHY = "it changes while it is read, so that no run would end well"


def overlaps(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    """A warning for each part of the program's own that a source holds and no rule leaves out."""
    own = list(_own(config, environ))
    for source in config.sources:
        root = os.path.realpath(source.path)
        if not os.path.isdir(root):
            continue
        for what, reason, path, rule_end in own:
            relative = os.path.relpath(path, root)
            if relative == os.curdir:
                yield f"source {source.name} is {what}: name another folder"
            elif relative.split(os.sep)[0] != os.pardir:
                judged = why(os.fsencode(root), os.fsencode(relative + rule_end), walk_options(source))
                if not judged[-1].excluded:
                    rule = f"/{relative}{rule_end}"
                    yield f'source {source.name} holds {what}, {path}: {reason}; exclude: ["{rule}"]'


def _own(config: Config, environ: Mapping[str, str]) -> Iterable[tuple[str, str, str, str]]:
    repository = config.repository
    folder = os.path.realpath(repository.objects.path) if isinstance(repository.objects, FolderUrl) else None
    if folder is not None:
        yield _REPOSITORY, _REPOSITORY_WHY, folder, "/"
    if isinstance(repository.index, SqliteUrl):
        index = os.path.realpath(repository.index.path)
        if folder is None or not index.startswith(folder + os.sep):
            yield "the index of the repository", _STATE_WHY, index, "*"
    yield _STATE, _STATE_WHY, os.path.realpath(os.path.dirname(state_folder(environ, "x"))), "/"
