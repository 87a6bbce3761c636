"""A second process of this program, which reads files: hashing, and making frames of packs.

Decides how the two talk: over pipes, in messages of plain values, answers in the order of the questions. Python runs on one
core at a time; many small files keep it busy while another core idles. The helper ends when its input does, so also when this
process is killed. It knows nothing of repositories and holds no key.
"""

from __future__ import annotations

import marshal
import os
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, BinaryIO, TypeAlias

from s3hashsync.errors import S3HashSyncError
from s3hashsync.run.frames import DoesNotOpen, Frame, Wanted, make_frame
from s3hashsync.run.hashing import FileToHash, HashedFile, hash_files

WORTH_IT = 2000
"""For fewer files than this the helper is not worth its start."""

_PIPE_BYTES = 1 << 20
"""What a pipe may hold where the system lets one choose: a frame goes through it in one piece. With the 64 KiB of Linux it takes
seven, and each waits until a busy interpreter has time for it."""

_LENGTH = struct.Struct("<Q")
_START = "import sys; sys.path[:] = sys.argv[1:]; from s3hashsync.run.helper import serve; serve()"

Folder: TypeAlias = tuple[bytes, int, int]
"""A source's folder: its path, and device and inode, by which both processes mean the same."""


def folder_of(path: str, root: int) -> Folder:
    """The folder at `path`, which is open as `root`."""
    info = os.fstat(root)
    return os.fsencode(path), info.st_dev, info.st_ino


class Helper:
    """The other process, as this one sees it; started when it is first asked. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: deque[Future[Any]] = deque()
        self._reader: threading.Thread | None = None

    @property
    def started(self) -> bool:
        return self._process is not None

    def hash_files(self, folder: Folder, files: list[FileToHash], *, inodes: bool) -> Future[list[HashedFile]]:
        return self._ask(("hash", folder, files, inodes))

    def make_frame(self, folder: Folder, wanted: list[Wanted], *, verify: bool) -> Future[Frame]:
        return self._ask(("frame", folder, wanted, verify))

    def close(self) -> None:
        """What is not answered yet never will be."""
        with self._lock:
            process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        with suppress(OSError):
            process.stdin.close()
        if self._reader is not None:
            self._reader.join()
        process.wait()

    def _ask(self, question: Any) -> Future[Any]:
        body = marshal.dumps(question)
        answer: Future[Any] = Future()
        with self._lock:
            if self._process is None:
                self._start()
            assert self._process is not None
            assert self._process.stdin is not None
            self._asked.append(answer)
            # Where it has died the reader says so to all who wait; it may have done that a moment before this question.
            with suppress(OSError):
                self._process.stdin.write(_LENGTH.pack(len(body)) + body)
                self._process.stdin.flush()
        if self._ended:
            self._give_up()
        return answer

    def _give_up(self) -> None:
        """It has died: nobody waits for it any longer."""
        hint = "was it killed, or is memory short? run the same command again"
        with suppress(IndexError):
            while True:
                self._asked.popleft().set_exception(S3HashSyncError("the helper process that reads files has ended", hint))

    def _start(self) -> None:
        words = [sys.executable, "-c", _START, *sys.path]
        # A group of its own: a Ctrl-C in the terminal is for the process that asks, which decides what is still wanted.
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0, pipesize=_PIPE_BYTES
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), name="helper", daemon=True)
        self._reader.start()

    def _read(self, answers: BinaryIO) -> None:
        """Takes no lock: whoever asks may hold it while the pipe is full, until an answer was taken out of the other one."""
        try:
            while (body := _receive(answers)) is not None:
                kind, value = marshal.loads(body)
                answer = self._asked.popleft()
                if kind == "answer":
                    answer.set_result(value)
                else:
                    answer.set_exception(_FAILURES[kind](*value))
        except (ValueError, EOFError, TypeError, LookupError):
            # Not what the helper says: something else writes into its output. It is of no use any more.
            pass
        finally:
            self._ended = True
            self._give_up()


class HelperFrames:
    """`FrameMaker` in the helper."""

    def __init__(self, helper: Helper, folder: Folder, *, verify: bool = True) -> None:
        self._helper = helper
        self._folder = folder
        self._verify = verify

    def make(self, wanted: list[Wanted]) -> Future[Frame]:
        return self._helper.make_frame(self._folder, wanted, verify=self._verify)

    def close(self) -> None:
        """Nothing: the helper goes on."""


# In the helper


def serve() -> None:
    """Answers until the questions end."""
    # Whoever stops the whole service means the process that asks; this one ends when its questions do.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    roots: dict[Folder, int] = {}
    answers = sys.stdout.buffer
    while (body := _receive(sys.stdin.buffer)) is not None:
        kind, folder, items, option = marshal.loads(body)
        try:
            answer: Any = ("answer", _WORK[kind](_root(roots, folder), items, option))
        except DoesNotOpen as error:
            answer = ("does not open", (error.message, error.hint))
        except (S3HashSyncError, OSError) as error:
            answer = ("failed", (f"the helper process failed: {error}",))
        data = marshal.dumps(answer)
        try:
            answers.write(_LENGTH.pack(len(data)))
            answers.write(data)
            answers.flush()
        except BrokenPipeError:
            # Nobody waits for it any more; what is left in the buffer must not fail the exit.
            os._exit(0)


def _root(roots: dict[Folder, int], folder: Folder) -> int:
    if folder not in roots:
        path, device, inode = folder
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        info = os.fstat(root)
        if (info.st_dev, info.st_ino) != (device, inode):
            raise S3HashSyncError(f"{os.fsdecode(path)} is another folder than a moment ago")
        roots[folder] = root
    return roots[folder]


_WORK: dict[str, Callable[[int, Any, bool], object]] = {
    "hash": lambda root, files, inodes: hash_files(root, files, inodes=inodes),
    "frame": lambda root, wanted, verify: make_frame(root, wanted, verify=verify),
}
_FAILURES = {"does not open": DoesNotOpen, "failed": S3HashSyncError}


def _receive(source: BinaryIO) -> bytes | None:
    """The next message, None at the end."""
    head = source.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = source.read(length)
    return body if len(body) == length else None
