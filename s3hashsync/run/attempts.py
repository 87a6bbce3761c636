"""Putting under an attempt id, whatever is put: what is needed for it, and what a dead process left under one.

Decides that what cannot be read is not there. An attempt is written down durably before it is made, by whoever makes it
(`run.uploads`, `run.stored_packs`). Knows nothing of contents and packs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from s3hashsync.core.value import value
from s3hashsync.disk.seals import SealFiles
from s3hashsync.disk.state import State
from s3hashsync.errors import Denied, StoreError
from s3hashsync.run.repository import Repository
from s3hashsync.stores.base import Attempt, Stored

_ID_BYTES = 8


@value
class UploadSettings:
    """How contents are stored. `now` in whole epoch seconds; `verify`: everything is opened again before it is sent; `seals`:
    where the secrets of unfinished uploads lie."""

    storage_class: str
    threads: int
    now: Callable[[], int]
    entropy: Callable[[int], bytes]
    seals: SealFiles
    verify: bool = True


@dataclass(slots=True)
class UploadTally:
    """What was stored, for the summary. Counted from many threads, and an addition to an attribute is no single step: under
    the lock."""

    objects: int = 0
    packs: int = 0
    bytes_stored: int = 0
    bytes_read: int = 0
    adopted: int = 0
    index_writes: int = 0
    index_units: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class UploadPorts:
    """Where a run stores, what it remembers of it, and what it counts."""

    repository: Repository
    state: State
    settings: UploadSettings
    tally: UploadTally = field(default_factory=UploadTally)

    def new_id(self) -> str:
        return self.settings.entropy(_ID_BYTES).hex()

    def attempt(self, id_: str) -> Attempt:
        return Attempt(id_, self.settings.storage_class)

    def found(self, stem: str, id_: str) -> Stored | None:
        """What a dead process left under this attempt. What cannot be read is not there: it is stored anew."""
        try:
            return self.repository.objects.find(stem, id_)
        except StoreError as error:
            if error.transient or isinstance(error, Denied):
                raise
            return None
