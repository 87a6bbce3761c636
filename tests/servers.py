"""Starts and stops the servers that tests run against, each on a free port of this machine.

Decides command lines, credentials and how long to wait until a server answers. Knows nothing of what is
tested. A server is stopped by its own process id; its log and its data lie in a temporary folder that goes
with it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.install_servers import dynamodb_local_folder, ministack_program, versitygw_binary

ACCESS_KEY = "testaccesskey"
SECRET_KEY = "testsecretkey0123456789"
REGION = "us-east-1"
READY_WITHIN = 60.0


class ServerMissingError(Exception):
    """The server is not installed: `python tests/install_servers.py` does that."""


@dataclass(frozen=True, slots=True)
class Program:
    """One server's command line and where it runs."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def versitygw(*, versions: bool = True, access_log: Path | None = None) -> Iterator[str]:
    """A real S3 server over a folder, with versions or without. `access_log`: a file that gets a line for every request."""
    binary = versitygw_binary()
    if not binary.exists():
        raise ServerMissingError("versitygw")
    with tempfile.TemporaryDirectory(prefix="versitygw-") as folder:
        port = free_port()
        older, data = Path(folder, "versions"), Path(folder, "data")
        older.mkdir()
        data.mkdir()
        arguments = ["--port", f"127.0.0.1:{port}", "--region", REGION, "--quiet"]
        arguments += ["--access-log", str(access_log)] if access_log else []
        store = ["posix", *(["--versioning-dir", str(older)] if versions else []), str(data)]
        keys = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
        with _running(Program("versitygw", [str(binary), *arguments, *store], keys, Path(folder)), port) as url:
            yield url


@contextmanager
def dynamodb_local() -> Iterator[str]:
    """Amazon's own DynamoDB in memory. It listens on every address of the machine; it cannot be told
    otherwise."""
    program = dynamodb_local_folder()
    if program is None:
        raise ServerMissingError("DynamoDB Local")
    port = free_port()
    options = ["-inMemory", "-port", str(port), "-disableTelemetry"]
    command = [
        "java",
        "-Xmx512m",
        "-Djava.library.path=./DynamoDBLocal_lib",
        "-jar",
        "DynamoDBLocal.jar",
        *options,
    ]
    with _running(Program("dynamodb-local", command, {}, program), port) as url:
        yield url


@contextmanager
def ministack() -> Iterator[str]:
    """S3 and DynamoDB in one process; knows archive classes and thaws in seconds."""
    program = ministack_program()
    if program is None:
        raise ServerMissingError("ministack")
    with tempfile.TemporaryDirectory(prefix="ministack-") as folder:
        port = free_port()
        environment = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "HOME": folder, "TMPDIR": folder}
        with _running(Program("ministack", [program], environment, Path(folder)), port) as url:
            yield url


@contextmanager
def _running(program: Program, port: int) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            program.command,
            env=os.environ | program.environment,
            cwd=program.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            if not _answers(process, url):
                log.seek(0)
                said = log.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"{program.name} did not start:\n{said}")
            yield url
        finally:
            _stop(process)


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    """Any HTTP answer will do, a refusal too: then somebody listens and speaks."""
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
        return
    process.kill()
    process.wait()
