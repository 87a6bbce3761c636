"""Files that do not hold still while they are backed up: rewritten, truncated, replaced, some with their old times put back.

Whatever is stored must be what its name says; what was missed must be found by the next run.
"""

from __future__ import annotations

import hashlib
import os
import random
import tarfile
import threading
import time
from pathlib import Path

import pytest
import zstandard

from s3hashsync.codec.zstd import decode
from tests.program import Program

FILES = 30
SECONDS = 2
RUNS = 8


def disturb(folder: Path, stop: threading.Event) -> None:
    """Change files as fast as it goes, in every way that a program might."""
    noise = random.Random(1)
    while not stop.is_set():
        path = folder / f"f{noise.randrange(FILES)}"
        before = path.stat()
        match noise.randrange(5):
            case 0:
                path.write_bytes(noise.randbytes(200_000))
            case 1:
                with path.open("r+b") as file:
                    file.seek(noise.randrange(100_000))
                    file.write(noise.randbytes(5000))
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            case 2:
                os.truncate(path, noise.randrange(1, 200_000))
            case 3:
                other = path.with_suffix(".new")
                other.write_bytes(noise.randbytes(before.st_size))
                os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
                other.replace(path)
            case _:
                with path.open("ab") as file:
                    file.write(noise.randbytes(10))


def stored_contents(repository: Path) -> list[tuple[str, bytes]]:
    """Names and contents of all objects, and of all members of packs."""
    objects = [path for path in (repository / "objects").rglob("*") if path.is_file()]
    found = [(path.name.partition(".")[0], decode(path.read_bytes(), 1 << 30)) for path in objects]
    for path in (repository / "packs").rglob("*"):
        if path.is_file():
            frames = zstandard.ZstdDecompressor().stream_reader(path.read_bytes(), read_across_frames=True)
            with tarfile.open(fileobj=frames, mode="r|") as tar:
                found += [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("pack", ["off", "{below: 1MiB, size: 2MiB}"])
def test_nothing_is_stored_under_a_wrong_hash_and_the_next_run_converges(tmp_path: Path, pack: str) -> None:
    program = Program(tmp_path)
    config = tmp_path / "backup.yaml"
    config.write_text(config.read_text().replace("encryption:", f"  pack: {pack}\nencryption:"))
    for number in range(FILES):
        (program.docs / f"f{number}").write_bytes(random.Random(number).randbytes(200_000))
    program("init")
    stop = threading.Event()
    thread = threading.Thread(target=disturb, args=(program.docs, stop))
    thread.start()
    try:
        until, runs = time.monotonic() + SECONDS, 0
        while runs < RUNS or time.monotonic() < until:
            runs += 1
            done = program("apply", "--yes", code=None)
            assert done.returncode in (0, 3), done.stderr
    finally:
        stop.set()
        thread.join()
    program("apply", "--yes")
    stored = stored_contents(tmp_path / "repo")
    for name, content in stored:
        assert hashlib.sha256(content).hexdigest() == name
    program("restore", "docs", "--to", "out")
    names = {name for name, _ in stored}
    for path in program.docs.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() in names
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
