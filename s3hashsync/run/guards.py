"""The guards before anything is compared: a root that is missing, empty or not mounted, a disk inside a source that is not
mounted.

Decides what is refused, and what is remembered of mount points after a finished run: a disk that is not mounted looks like a
folder from which everything was deleted. `rebuild` on purpose forgets it. Knows nothing of single files.
"""

from __future__ import annotations

import json
import os
import stat as stats

from s3hashsync.codec.names import display
from s3hashsync.config import SourceSettings
from s3hashsync.disk.state import State
from s3hashsync.disk.tree import Seen, WalkOptions, check_root, why
from s3hashsync.errors import Refused

_ROOT = "mount"
_INSIDE = "mounts"
_SEEN = "mounts_seen"


class MountPoints:
    """Collects the mount points that a walk comes by, the topmost of each file system inside the source."""

    def __init__(self) -> None:
        self._device: int | None = None
        self._inside: tuple[bytes, int] | None = None
        self.paths: list[bytes] = []

    def see(self, item: Seen) -> None:
        """Every path of the walk, in its order, the root first."""
        device = item.stat.st_dev
        if device == self._device or not stats.S_ISDIR(item.stat.st_mode):
            return
        if self._device is None:
            self._device = device
        elif self._inside is None or self._inside[1] != device or not item.path.startswith(self._inside[0] + b"/"):
            self._inside = item.path, device
            self.paths.append(item.path)


def check_source(source: SourceSettings, state: State) -> None:
    """Refused for a root that is missing, empty, or no longer a mount point as it was."""
    facts = check_root(os.fsencode(source.path))
    files = state.count_files()
    backed_up = f", but {files:,} files are backed up from it" if files else ""
    if state.note(_ROOT) == "1" and not facts.is_mount:
        raise Refused(f"{source.path} is no longer a mount point{backed_up}", _hint(source))
    if facts.empty and not source.allow_empty:
        raise Refused(
            f"{source.path} is empty{backed_up}",
            f"is the disk mounted? to back up an empty folder on purpose: allow_empty: true in source {source.name}",
        )


def check_inside(source: SourceSettings, state: State, seen: MountPoints, options: WalkOptions) -> None:
    """Refused when a folder inside the source was a mount point and is none now, unless it is excluded. One that is gone
    altogether was removed on purpose: nobody removes the place where he mounts his disk."""
    root = os.fsencode(source.path)
    for path in _stored(state, _INSIDE):
        if path in seen.paths or source.one_file_system or not _is_plain_folder(os.path.join(root, path)):
            continue
        if not why(root, path, options)[-1].excluded:
            raise Refused(f"{source.path}/{display(path)} is no longer a mount point, but was backed up as one", _hint(source))
    _note(state, _SEEN, json.dumps([path.decode("latin-1") for path in seen.paths]))


def _is_plain_folder(path: bytes) -> bool:
    return os.path.isdir(path) and not os.path.islink(path) and not os.path.ismount(path)


def remember_mounts(source: SourceSettings, state: State) -> None:
    """After a finished run: what is mounted now has to be mounted next time."""
    _note(state, _ROOT, "1" if os.path.ismount(os.path.realpath(source.path)) else "0")
    _note(state, _INSIDE, state.note(_SEEN))


def kept_facts(state: State) -> dict[str, str]:
    """What a rebuild of the state by itself does not forget: these are facts about the disk, whatever the repository says."""
    return {name: value for name in (_ROOT, _INSIDE) if (value := state.note(name))}


def _note(state: State, name: str, value: str) -> None:
    """A note is a durable write: only where something changed."""
    if state.note(name) != value:
        state.set_note(name, value)


def _stored(state: State, name: str) -> list[bytes]:
    return [path.encode("latin-1") for path in json.loads(state.note(name) or "[]")]


def _hint(source: SourceSettings) -> str:
    return f"is the disk mounted? if it is gone for good: s3hashsync rebuild {source.name}"
