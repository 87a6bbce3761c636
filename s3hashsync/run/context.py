"""What applying one source works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from s3hashsync.core.plan import SourceHeader
from s3hashsync.disk.state import State
from s3hashsync.run.lease import Lease
from s3hashsync.run.ledger import Ledger
from s3hashsync.run.packing import Packer
from s3hashsync.run.progress import Progress, Stop
from s3hashsync.run.repository import Repository
from s3hashsync.run.uploads import Uploader


@dataclass(frozen=True, slots=True)
class RunContext:
    """`packer` None: every content becomes an object. `strict`: a saved plan,
    which may not do more than it says."""

    repository: Repository
    header: SourceHeader
    host: str
    state: State
    lease: Lease
    ledger: Ledger
    uploader: Uploader
    packer: Packer | None
    progress: Progress
    stop: Stop
    now: Callable[[], float]
    log_interval: float
    strict: bool = False
