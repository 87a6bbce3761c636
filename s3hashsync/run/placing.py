"""Takes the steps of a restore of one source: folders in order, files in a few threads (what lies in packs pack by pack), and the
folders' metadata at the end.

Decides what failure belongs to one file and which one ends the restore. What may go wrong at any instruction leaves no wrong
file: a file gets its name only when its bytes have been verified. Knows nothing of how steps came about.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import assert_never

from s3hashsync.codec.zstd import decode_head
from s3hashsync.core.model import PackAt, Sha256
from s3hashsync.core.plan import Problem
from s3hashsync.core.restore_plan import (
    Conflict,
    CopyFile,
    FileStep,
    Keep,
    LinkFile,
    MakeDirectory,
    PlaceFile,
    PlaceSpecial,
    PlaceSymlink,
    RestoreRules,
    RestoreStep,
    Unchanged,
    UseDirectory,
    Wanted,
    compile_restore,
    rank,
)
from s3hashsync.disk.place import Outcome, Placer
from s3hashsync.disk.snapshot import PackFrame, Snapshot, WorkRow
from s3hashsync.disk.target import Target
from s3hashsync.errors import Archived, Corrupt, Interrupted, NoSpace, S3HashSyncError
from s3hashsync.run.backup import Job
from s3hashsync.run.contents import Contents
from s3hashsync.run.pack_reading import Run, runs
from s3hashsync.run.tally import Tally

_GROUP_FILES = 16
_GROUP_BYTES = 4 << 20
_READERS = 4
_FRAMES = 3
"""So many packs are read at once from a network, and so many frames of each wait to be placed: this bounds the memory."""


_NO_FRAME = memoryview(b"")


def _is_verified() -> None:
    """Nothing is left to be said: it was checked before, or there is nothing in it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a restore: what is to be restored, and the folder it goes to."""

    source: str
    target: bytes
    snapshot: Snapshot
    rules: RestoreRules

    def step(self, work: WorkRow) -> RestoreStep:
        row = work.row
        wanted = Wanted(self.source, row.entry, row.sha256, row.content, work.mate, work.twin, work.blocked)
        return compile_restore(wanted, work.there, self.rules)


class Placing:
    """One source. A context manager."""

    def __init__(self, job: Job, part: Part, contents: Contents, tally: Tally) -> None:
        self._job = job
        self._part = part
        self._contents = contents
        self._tally = tally
        self._placer = self._new_placer()
        self._pool = ThreadPoolExecutor(max(1, job.threads), thread_name_prefix="restore")
        readers = min(_READERS, max(1, job.threads // 2))
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="packs")
        self._own = threading.local()
        self._opened: list[tuple[Placer, Target]] = []
        self._running: set[Future[None]] = set()
        self._group: list[FileStep] = []
        self._failed = threading.Event()
        # Paths that do not hold what the snapshot says, so that nothing may be linked to them, or finished.
        self._unusable: set[bytes] = set()

    def __enter__(self) -> Placing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._failed.set()
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)
        for placer, target in self._opened:
            placer.close()
            target.__exit__()
        self._placer.close()

    def _new_placer(self) -> Placer:
        return Placer(self._part.target, overwrite=self._part.rules.overwrite)

    def run(self, steps: Iterable[RestoreStep]) -> None:
        """All steps; raises `Interrupted` when what was under way is done."""
        now = 0
        for step in steps:
            if self._job.stop:
                break
            if rank(step) != now:
                now = rank(step)
                self._drain()
            self._take(step)
        self._drain()
        self._job.stop.check()

    def run_packed(self) -> None:
        """What comes out of packs, in their order."""
        for run in runs(self._part.snapshot.frames()):
            if self._job.stop:
                break
            self._running.add(self._readers.submit(self._read, run))
            while len(self._running) > 2 * _READERS:
                self._reap()
        self._drain()
        self._job.stop.check()

    def finish(self, folders: Iterable[RestoreStep]) -> None:
        """The metadata of folders, what is inside before what it is in."""
        for step in folders:
            made = isinstance(step, MakeDirectory) or (isinstance(step, UseDirectory) and step.finish)
            if made and step.entry.path not in self._unusable:
                self._alone(step, lambda step=step: self._placer.finish_dir(step.entry.path, step.entry))  # type: ignore[misc]
        self._placer.sync()

    def _take(self, step: RestoreStep) -> None:
        path, entry, summary = step.entry.path, step.entry, self._tally.summary
        match step:
            case MakeDirectory() | UseDirectory():
                claim = isinstance(step, UseDirectory) and step.claim
                claim = claim or (isinstance(step, MakeDirectory) and not path)
                if self._alone(step, lambda: self._placer.make_dir(path, claim=claim)):
                    summary.directories += 1
            case PlaceFile() | CopyFile():
                self._submit(step)
            case LinkFile():
                self._link(step)
            case PlaceSymlink():
                summary.links += self._is_placed(step, lambda: self._placer.place_symlink(path, entry))
            case PlaceSpecial():
                summary.special += self._is_placed(step, lambda: self._placer.place_special(path, entry))
            case Keep():
                summary.files_kept += 1
                self._note_unusable(step)
            case Unchanged():
                summary.files_unchanged += 1
            case Conflict():
                self._note_unusable(step)
                self._tally.problem(Problem(step.source, path, step.reason.value))
            case _:
                assert_never(step)

    # In this thread

    def _alone(self, step: RestoreStep, act: Callable[[], object]) -> bool:
        try:
            act()
        except S3HashSyncError as error:
            self._failure(step, error)
            self._unusable.add(step.entry.path)
            return False
        finally:
            self._tally.warn(step.source, self._placer)
        return True

    def _is_placed(self, step: RestoreStep, act: Callable[[], Outcome]) -> bool:
        outcomes: list[Outcome] = []
        self._alone(step, lambda: outcomes.append(act()))
        if outcomes == [Outcome.KEPT]:
            self._tally.kept(step)
        return outcomes == [Outcome.PLACED]

    def _link(self, step: LinkFile) -> None:
        if step.to in self._unusable:
            # Its mate is not what it should be: the file gets its content for itself.
            with Target(self._part.target) as target:
                self._file(step, self._placer, target)
            self._tally.warn(step.source, self._placer)
            return
        placed = self._is_placed(step, lambda: self._placer.place_hardlink(step.entry.path, step.to))
        self._tally.summary.links += placed
        self._job.progress.advance(int(placed), 0)

    def _note_unusable(self, step: RestoreStep) -> None:
        if step.entry.links > 1:
            self._unusable.add(step.entry.path)

    def _failure(self, step: RestoreStep, error: S3HashSyncError) -> None:
        """What belongs to this path is noted; what would meet every other one too is raised."""
        if isinstance(error, NoSpace | Interrupted):
            raise error
        self._tally.problem(Problem(step.source, step.entry.path, error.message), error)

    # In the pool

    def _submit(self, step: PlaceFile | CopyFile) -> None:
        """On a disk handing over costs more than a small file; against a network each one waits by itself."""
        self._group.append(step)
        small = len(self._group) < _GROUP_FILES and sum(one.entry.size for one in self._group) < _GROUP_BYTES
        if self._job.threads <= 2 and small:
            return
        self._hand_over()

    def _hand_over(self) -> None:
        group, self._group = self._group, []
        if group:
            self._running.add(self._pool.submit(self._files, group))
        while len(self._running) > 2 * self._job.threads:
            self._reap()

    def _reap(self) -> None:
        done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                future.result()
            except BaseException:
                self._failed.set()
                raise

    def _drain(self) -> None:
        self._hand_over()
        while self._running:
            self._reap()

    def _files(self, group: list[FileStep]) -> None:
        placer, target = self._hands()
        for step in group:
            if self._job.stop or self._failed.is_set():
                return
            try:
                self._file(step, placer, target)
            finally:
                self._tally.warn(step.source, placer)

    def _read(self, run: Run) -> None:
        placing: deque[Future[None]] = deque()
        for frame, data in self._contents.packs.frames(run):
            if self._job.stop or self._failed.is_set():
                break
            placing.append(self._pool.submit(self._frame, frame, data))
            if len(placing) > _FRAMES:
                placing.popleft().result()
        for future in placing:
            future.result()

    def _frame(self, frame: PackFrame, data: bytes) -> None:
        """The files of one frame; its bytes are opened no further than they are wanted."""
        placer, target = self._hands()
        tar = memoryview(decode_head(data, frame.reach))
        for work in self._part.snapshot.members(frame):
            if self._job.stop or self._failed.is_set():
                return
            step = self._part.step(work)
            assert isinstance(step, PlaceFile)
            try:
                self._file(step, placer, target, tar)
            finally:
                self._tally.warn(step.source, placer)

    def _hands(self) -> tuple[Placer, Target]:
        """A placer is for one thread."""
        hands: tuple[Placer, Target] | None = getattr(self._own, "hands", None)
        if hands is None:
            hands = self._own.hands = self._new_placer(), Target(self._part.target)
            self._opened.append(hands)
        return hands

    def _file(self, step: FileStep, placer: Placer, target: Target, frame: memoryview = _NO_FRAME) -> None:
        """`frame`: what was read of the frame that holds the file's content."""
        try:
            member = self._member(step, frame)
            if member is not None:
                outcome = placer.place_file(step.entry.path, step.entry, (member,), _is_verified)
            else:
                outcome = self._content(step, placer, target)
        except Archived:
            assert step.content is not None
            self._note_unusable(step)
            what = f"waits for a thaw ({step.content.storage_class or 'archive'})"
            self._tally.archived(Problem(step.source, step.entry.path, what), step.content)
        except S3HashSyncError as error:
            self._note_unusable(step)
            self._failure(step, error)
        else:
            if outcome is Outcome.PLACED:
                self._tally.placed(1, step.entry.size)
            else:
                self._note_unusable(step)
                self._tally.kept(step)

    def _member(self, step: FileStep, frame: memoryview) -> memoryview | None:
        """The file's content, if it is in the frame and right. Otherwise it is asked for by itself: then the index is heard, and
        an error has a name."""
        content = step.content
        if not frame or content is None or not isinstance(content.location, PackAt):
            return None
        member = frame[content.location.offset : content.location.offset + content.size]
        found = Sha256(hashlib.sha256(member).digest())
        return member if len(member) == content.size and self._contents.is_right(found, content, step.sha256) else None

    def _content(self, step: FileStep, placer: Placer, target: Target) -> Outcome:
        path, entry = step.entry.path, step.entry
        content, contents = step.content, self._contents
        if content is None or not entry.size:
            return placer.place_file(path, entry, (), _is_verified)
        if isinstance(step, CopyFile):
            copy = _Copy(target, step.origin, lambda found: contents.is_right(found, content, step.sha256))
            try:
                return placer.place_file(path, entry, copy.chunks(), copy.verify)
            except Corrupt:
                pass  # The origin was not restored, or is another file now.
        outcomes: list[Outcome] = []

        def place(chunks: Iterator[bytes], verify: Callable[[], None]) -> None:
            outcomes.append(placer.place_file(path, entry, chunks, verify))

        contents.deliver(content, step.sha256, place)
        return outcomes[-1]


class _Copy:
    """The bytes of a file in the target, of which `is_right` knows the SHA-256."""

    def __init__(self, target: Target, path: bytes, is_right: Callable[[Sha256], bool]) -> None:
        self._target = target
        self._path = path
        self._is_right = is_right
        self._digest = hashlib.sha256()

    def chunks(self) -> Iterator[bytes]:
        try:
            for chunk in self._target.chunks(self._path):
                self._digest.update(chunk)
                yield chunk
        except OSError as error:
            raise Corrupt(f"it cannot be read: {error.strerror or error}") from error

    def verify(self) -> None:
        if not self._is_right(Sha256(self._digest.digest())):
            raise Corrupt("it is another file")
