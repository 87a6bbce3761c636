"""The program in a process and a home of its own, as a person or a pipeline runs it.

Most of a short command's time goes into starting Python and importing the program. So one process (`serve`) does that once, and
becomes a new process for every command: with its own folder, environment, arguments and standard streams, and Python's own way
out. With S3HASHSYNC_SLOW=1, or where a variable differs that Python reads as it starts, every command is a Python of its own.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).parent.parent
CONFIG = """\
version: 1
repository:
  objects: {base}/repo
encryption: off
host: here
sources:
  - name: docs
    path: {base}/docs
    exclude: ["*.tmp"]
"""


class Program:
    """The program with a home of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.docs = base / "docs"
        self.docs.mkdir()
        (self.docs / "a.txt").write_text("a\n")
        (base / "backup.yaml").write_text(CONFIG.format(base=base))
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "S3HASHSYNC"))},
            "HOME": str(base),
            "XDG_STATE_HOME": str(base / "state"),
            "PYTHONPATH": str(ROOT),
        }

    def __call__(self, *words: str, code: int | None = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        done = _run(words, str(self.base), {**self.environment, **(env or {})})
        assert "Traceback" not in done.stderr, done.stderr
        if code is not None:
            assert done.returncode == code, (words, done.stdout, done.stderr)
        return done

    def lines(self, *words: str, code: int = 0) -> list[dict[str, object]]:
        return [json.loads(line) for line in self("--json", *words, code=code).stdout.splitlines()]


def _run(words: Sequence[str], cwd: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if (server := _free_server(environment)) is not None:
            code = server.run(words, cwd, environment, (out, err))
        else:
            command = [sys.executable, "-m", "s3hashsync", *words]
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            code = subprocess.run(command, cwd=cwd, env=environment, check=False, **streams).returncode  # type: ignore[call-overload]
        return subprocess.CompletedProcess(words, code, _text(out), _text(err))


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()


class _Server:
    """`serve` in a process and a session of its own; one command at a time. It ends when this process does."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.read_at_start = _read_at_start(environment)
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.program"],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
        self._socket, self._answers = ours, ours.makefile("rb")

    def run(self, words: Sequence[str], cwd: str, environment: Mapping[str, str], streams: tuple[BinaryIO, BinaryIO]) -> int:
        """The exit code. Whatever comes between, a test's timeout too, ends the server: nobody would take its answer."""
        try:
            asked = json.dumps([words, cwd, dict(environment)]).encode()
            fds = array.array("i", [stream.fileno() for stream in streams])
            head = len(asked).to_bytes(4, "big")
            self._socket.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            self._socket.sendall(asked)
            return int(self._answers.readline())
        except BaseException:
            self.close()
            raise
        finally:
            self.lock.release()

    def close(self) -> None:
        global _server
        _server = None
        self._answers.close()
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


_server: _Server | None = None


def _free_server(environment: Mapping[str, str]) -> _Server | None:
    """With its lock; None where a process of its own is needed."""
    global _server
    if os.environ.get("S3HASHSYNC_SLOW"):
        return None
    if _server is None:
        _server = _Server()
        atexit.register(_server.close)
    fits = _read_at_start(environment) == _server.read_at_start
    return _server if fits and _server.lock.acquire(blocking=False) else None


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(("PYTHON", "LC_", "LANG", "TZ"))}


# In the other process


def serve() -> None:
    """Answers every request with the command's exit code. Comes back in the process of a command, which is to run it, and at the
    end, with nothing to run."""
    from s3hashsync.cli import app  # noqa: F401

    gc.freeze()
    connection = socket.socket(fileno=os.dup(0))
    for request, fds in _requests(connection):
        pid = os.fork()
        if not pid:
            connection.close()
            _become(request, fds)
            return
        for fd in fds:
            os.close(fd)
        _, status = os.waitpid(pid, 0)
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    sys.argv = []


def _requests(connection: socket.socket) -> Iterator[tuple[bytes, list[int]]]:
    while True:
        head, fds, _, _ = socket.recv_fds(connection, 4, 2)
        if not head:
            return
        size, request = int.from_bytes(head, "big"), b""
        while len(request) < size:
            request += connection.recv(size - len(request))
        yield request, fds


def _become(request: bytes, fds: Sequence[int]) -> None:
    """Everything that a new process has of its own."""
    words, cwd, environment = json.loads(request)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for fd, wanted in zip(fds, (1, 2), strict=True):
        os.dup2(fd, wanted)
        os.close(fd)
    sys.argv = ["s3hashsync", *words]


if __name__ == "__main__":
    serve()
    if sys.argv:
        from s3hashsync.cli import entry_point

        entry_point()
