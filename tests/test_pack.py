"""Packs as they are made: what lies where, what is left out, and that stock tools open them."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from s3hashsync.codec.pack import END, FRAME_BYTES, FrameBuilder, Uncompressed, decode_frame, end_frame, hashes_of, padded
from s3hashsync.core.model import ContentHash, Entry, Kind, Sha256
from s3hashsync.disk.spool import Spool
from s3hashsync.errors import Corrupt, NoSpace, S3HashSyncError
from s3hashsync.run import helper as helper_module
from s3hashsync.run import packing
from s3hashsync.run.candidates import Candidate
from s3hashsync.run.frames import DoesNotOpen, FrameMaker, ThreadFrames
from s3hashsync.run.helper import Helper, HelperFrames, folder_of
from s3hashsync.run.keyring import NoKeys
from s3hashsync.run.packing import Pack, PackedContent, Packer, PackLimits, PackPorts
from s3hashsync.run.progress import Silent


def hash_of(content: bytes) -> ContentHash:
    return ContentHash(hashlib.sha256(content).digest())


# The tar and its frames


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=30))
def test_python_s_tarfile_reads_every_member(contents: list[bytes]) -> None:
    builder = FrameBuilder()
    for content in contents:
        builder.add(hash_of(content), content)
    taken = builder.take()
    with tarfile.open(fileobj=io.BytesIO(taken.tar + END), mode="r:") as tar:
        found = tar.getmembers()
        assert [(m.name, m.size, m.mode, m.isreg()) for m in found] == [(hash_of(c).hex(), len(c), 0o600, True) for c in contents]
        for member, place, content in zip(found, taken.members, contents, strict=True):
            assert place.offset == member.offset_data
            assert taken.tar[place.offset : place.offset + place.size] == content


@pytest.mark.parametrize("size", [0o77777777777, 8 << 20, 511, 512, 513])
def test_the_header_holds_any_size_that_is_packed(size: int) -> None:
    from s3hashsync.codec.pack import tar_header

    info = tarfile.TarInfo.frombuf(tar_header(hash_of(b""), size), "utf-8", "strict")
    assert (info.size, info.mode, info.type, info.uid, info.mtime) == (size, 0o600, tarfile.REGTYPE, 0, 0)


def test_a_frame_holds_what_was_added_and_nothing_else() -> None:
    builder = FrameBuilder()
    builder.add(hash_of(b"x"), bytes(512))
    taken = builder.take()
    frame = taken.compress()
    assert builder.size == 0
    assert decode_frame(frame, len(taken.tar)) == taken.tar
    for wrong in (len(taken.tar) - 1, len(taken.tar) + 1):
        with pytest.raises(Corrupt):
            decode_frame(frame, wrong)


def test_damaged_frames_and_lists_are_refused() -> None:
    builder = FrameBuilder()
    builder.add(hash_of(b"x"), b"x")
    taken = builder.take()
    frame = taken.compress()
    for at in range(len(frame)):
        damaged = frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]
        try:
            # The frame's header has a bit that means nothing.
            assert decode_frame(damaged, len(taken.tar)) == taken.tar
        except Corrupt:
            continue
    with pytest.raises(Corrupt):
        hashes_of(bytes(33))


# Making packs of files


class Folder:
    """Files, and what a plan would know of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY)

    def write(self, name: str, content: bytes) -> tuple[ContentHash, Candidate]:
        (self.path / name).write_bytes(content)
        info = (self.path / name).stat()
        entry = Entry(
            name.encode(), Kind.FILE, len(content), info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev, 0o600, 0, 0
        )
        return hash_of(content), Candidate(entry, Sha256(hash_of(content)))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    os.close(made.fd)


STORED: dict[str, bytes] = {}


def packer_of(frames: FrameMaker, limits: PackLimits) -> Packer:
    def store(pack: Pack) -> None:
        STORED[pack.id] = b"".join(pack.body)

    return Packer(PackPorts(frames, NoKeys(), random.Random(1).randbytes, Silent(), store, threading.Event()), limits)


@pytest.fixture(params=["threads", "helper"])
def packer(folder: Folder, request: pytest.FixtureRequest) -> Iterator[Packer]:
    """Frames made in this process and in another one."""
    helper = Helper()
    frames: FrameMaker = ThreadFrames(folder.fd)
    if request.param == "helper":
        frames = HelperFrames(helper, folder_of(str(folder.path), folder.fd))
    limits = PackLimits(1 << 20, str(folder.path))
    made = packer_of(frames, limits)
    yield made
    made.stop()
    helper.close()


def member(pack: Pack, hash_: ContentHash) -> bytes:
    """As a restore reads it: its frame alone."""
    place = pack.contents[hash_]
    frame = STORED[pack.id][place.frame_offset : place.frame_offset + place.frame_length]
    tar = zstandard.ZstdDecompressor().decompress(frame)
    return tar[place.offset : place.offset + place.size]


def test_a_pack_is_closed_by_what_is_stored_in_it(folder: Folder, packer: Packer) -> None:
    """Compressible contents: many more bytes go in than are stored. In the order in which they came."""
    line = b"".join(b"line %d of something that can be compressed\n" % n for n in range(3000))
    noise = random.Random(2)
    wanted = {}
    for n in range(400):
        hash_, candidate = folder.write(f"{n}", line[: 100 + 200 * n] + noise.randbytes(9000))
        wanted[hash_] = candidate
        packer.add(hash_, candidate)
        if packer.full:
            break
    pack = packer.close().result()
    # Frames that are on their way count by the ratio of those before them.
    assert 900_000 < pack.body.size < 4_000_000
    assert sum(place.size for place in pack.contents.values()) > 2 * pack.body.size
    assert list(pack.contents) == list(wanted)
    for hash_ in wanted:
        assert hash_of(member(pack, hash_)) == hash_
    assert not packer.full
    assert packer.close().result().id != pack.id


def test_stock_tools_open_a_pack(folder: Folder, packer: Packer, tmp_path: Path) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("there is no zstd program")
    contents = [b"", b"small", bytes(700_000), random.Random(3).randbytes(600_000), b"x" * 513]
    for n, content in enumerate(contents):
        packer.add(*folder.write(f"{n}", content))
    (tmp_path / "pack").write_bytes(STORED[packer.close().result().id])
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run("zstd -dqc pack | tar x -C out", shell=True, cwd=tmp_path, check=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {hash_of(c).hex(): c for c in contents}


def test_a_file_that_changed_underfoot_is_left_out(folder: Folder, packer: Packer) -> None:
    kept, gone, other, touched = (folder.write(name, name.encode()) for name in ("kept", "gone", "other", "touched"))
    (folder.path / "gone").unlink()
    (folder.path / "other").write_bytes(b"OTHER")
    os.utime(folder.path / "touched", ns=(1, 1))
    for each in (kept, gone, other, touched):
        packer.add(*each)
    pack = packer.close().result()
    # Other times alone do not matter: it is the content that goes under its hash.
    assert list(pack.contents) == [kept[0], touched[0]]
    assert kept[0].hex().encode() in opened(pack)
    assert other[0].hex().encode() not in opened(pack)


def opened(pack: Pack) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(STORED[pack.id]), read_across_frames=True) as frames:
        return frames.read()


def test_frames_end_at_the_first_member_end_at_or_after_a_mebibyte(folder: Folder, packer: Packer) -> None:
    noise = random.Random(5)
    for n in range(30):
        packer.add(*folder.write(f"{n}", noise.randbytes(100_000)))
    lengths = {place.frame_offset: 0 for place in packer_contents(packer)}
    assert len(lengths) == 3


def packer_contents(packer: Packer) -> list[PackedContent]:
    places = list(packer.close().result().contents.values())
    by_frame: dict[int, int] = {}
    for place in places:
        by_frame[place.frame_offset] = max(by_frame.get(place.frame_offset, 0), place.offset + padded(place.size))
    *full, _ = by_frame.values()
    assert all(FRAME_BYTES <= size < FRAME_BYTES + 101_000 for size in full)
    return places


@pytest.mark.parametrize("where", ["frame", "end"])
def test_a_pack_that_does_not_open_again_is_not_sent(
    folder: Folder, packer: Packer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A bit flips in memory after the content was read."""

    class Flipped(Spool):
        def append(self, piece: bytes) -> None:
            body = bytearray(piece)
            if (where == "end") == (piece == end_frame()):
                body[len(body) // 2] ^= 4
            super().append(bytes(body))

    monkeypatch.setattr(packing, "Spool", Flipped)
    packer.add(*folder.write("a", random.Random(4).randbytes(5000)))
    with pytest.raises(Corrupt, match="nothing of it was sent"):
        packer.close().result()


@pytest.mark.parametrize("packer", ["threads"], indirect=True)
def test_a_wrong_place_for_a_content_is_found(folder: Folder, packer: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contents of one length whose places are exchanged: sizes and checksums of the frame are right."""
    take = FrameBuilder.take

    def exchanged(builder: FrameBuilder) -> Uncompressed:
        taken = take(builder)
        first, second = taken.members
        return replace(taken, members=(replace(first, hash=second.hash), replace(second, hash=first.hash)))

    monkeypatch.setattr(FrameBuilder, "take", exchanged)
    packer.add(*folder.write("a", b"first!"))
    packer.add(*folder.write("b", b"second"))
    with pytest.raises(Corrupt, match=r"comes out of it as another one.*nothing of it was sent"):
        packer.close().result()


@pytest.mark.parametrize("packer", ["threads"], indirect=True)
def test_a_frame_that_does_not_open_again_is_not_sent(folder: Folder, packer: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
    compress = Uncompressed.compress

    def flipped(taken: Uncompressed) -> bytes:
        data = bytearray(compress(taken))
        data[len(data) // 2] ^= 4
        return bytes(data)

    monkeypatch.setattr(Uncompressed, "compress", flipped)
    packer.add(*folder.write("a", random.Random(4).randbytes(5000)))
    with pytest.raises(Corrupt, match="nothing of it was sent"):
        packer.close().result()


def test_a_full_disk_ends_the_packing_and_hangs_nothing(folder: Folder, packer: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Spool):
        def append(self, piece: bytes) -> None:
            raise NoSpace("no space left")

    monkeypatch.setattr(packing, "Spool", Full)
    noise = random.Random(7)

    def pack() -> None:
        for n in range(60):
            packer.add(*folder.write(f"{n}", noise.randbytes(300_000)))
        packer.close().result()

    with pytest.raises(NoSpace):
        pack()


# The other process


def test_a_frame_that_the_helper_cannot_open_again_is_not_sent(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "from s3hashsync.codec import pack; pack.Uncompressed.compress = lambda taken: taken.tar; "
    monkeypatch.setattr(helper_module, "_START", helper_module._START.replace("serve()", broken + "serve()"))
    helper = Helper()
    frames = HelperFrames(helper, folder_of(str(folder.path), folder.fd))
    packer = packer_of(frames, PackLimits(1 << 20, str(folder.path)))
    packer.add(*folder.write("a", b"a"))
    with pytest.raises(DoesNotOpen, match="nothing of it was sent") as caught:
        packer.close().result()
    assert "memory" in str(caught.value.hint)
    assert str(caught.value).count("a moment ago") == 1
    packer.stop()
    helper.close()


def test_a_helper_that_dies_is_an_error_and_no_hang(folder: Folder) -> None:
    helper = Helper()
    frames = HelperFrames(helper, folder_of(str(folder.path), folder.fd))
    hash_, candidate = folder.write("a", b"a")
    entry = candidate.entry
    wanted = [(hash_, candidate.sha256, entry.path, entry.size)]
    assert frames.make(wanted).result()[2] == [(hash_, 512, 1)]
    assert helper._process is not None
    helper._process.kill()
    helper._process.wait()
    for _ in range(3):
        with pytest.raises(S3HashSyncError, match="helper process"):
            frames.make(wanted).result(timeout=30)
    helper.close()


def test_questions_and_answers_that_fill_both_pipes_do_not_wait_for_each_other(folder: Folder) -> None:
    helper = Helper()
    frames = HelperFrames(helper, folder_of(str(folder.path), folder.fd))
    hash_, candidate = folder.write("a", random.Random(6).randbytes(300_000))
    entry = candidate.entry
    one = (hash_, candidate.sha256, entry.path, entry.size)
    missing = [(hash_, candidate.sha256, b"x" * 4000, 1)] * 20
    answers = [frames.make([one, *missing]) for _ in range(60)]
    assert all(len(answer.result(timeout=60)[2]) == 1 for answer in answers)
    helper.close()


def test_a_helper_ends_with_the_process_that_asks(tmp_path: Path) -> None:
    """kill -9 leaves nobody behind."""
    code = (
        "import os, sys\n"
        "from s3hashsync.run.helper import Helper, folder_of\n"
        "helper = Helper()\n"
        "folder = folder_of(sys.argv[1], os.open(sys.argv[1], os.O_RDONLY))\n"
        "helper.hash_files(folder, [], inodes=True).result()\n"
        "print(helper._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -9
    for _ in range(100):
        if not Path(f"/proc/{int(done.stdout)}").exists():
            return
        time.sleep(0.1)
    pytest.fail("the helper is still there")


def test_another_folder_at_the_same_path_is_refused(folder: Folder, tmp_path: Path) -> None:
    helper = Helper()
    path, device, inode = folder_of(str(folder.path), folder.fd)
    with pytest.raises(S3HashSyncError, match="another folder"):
        helper.hash_files((path, device, inode + 1), [], inodes=True).result()
    helper.close()
