"""The secrets of encrypted uploads that are under way in parts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from s3hashsync.codec.age import Seal, X25519Identity, new_seal
from s3hashsync.disk.seals import KeptSeal, SealFiles

ENCODER = "zstd 1"


def seal() -> Seal:
    return new_seal([X25519Identity.generate(os.urandom).recipient], os.urandom)


def found(files: SealFiles) -> KeptSeal:
    kept = files.find("ab12", ENCODER)
    assert kept is not None
    return kept


def test_a_seal_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    files, one = SealFiles(str(tmp_path / "photos")), seal()
    files.keep("ab12", one, ENCODER)
    assert found(files).seal == one
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files.drop("ab12")
    files.drop("ab12")
    assert files.find("ab12", ENCODER) is None


def test_another_encoder_may_not_use_it(tmp_path: Path) -> None:
    """It could make other bytes of the same content, and two texts under one key can be told apart."""
    files = SealFiles(str(tmp_path / "photos"))
    files.keep("ab12", seal(), ENCODER)
    assert files.find("ab12", "zstd 2") is None


def test_one_that_a_crash_cut_short_is_none(tmp_path: Path) -> None:
    files = SealFiles(str(tmp_path / "photos"))
    files.keep("ab12", seal(), ENCODER)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert files.find("ab12", ENCODER) is None


def test_no_other_bytes_may_be_sent_under_a_number(tmp_path: Path) -> None:
    """Whatever process asks."""
    files = SealFiles(str(tmp_path / "photos"))
    kept = files.keep("ab12", seal(), ENCODER)
    for again in (kept, kept, found(files)):
        assert again.may_send(1, b"one")
        assert again.may_send(12, b"twelve")
        assert not again.may_send(1, b"another")
    assert found(files).may_send(2, b"another")
    (path,) = tmp_path.iterdir()
    assert len(path.read_bytes().splitlines()) == 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_part_is_noted_durably_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = SealFiles(str(tmp_path / "photos")).keep("ab12", seal(), ENCODER)
    (path,) = tmp_path.iterdir()
    durable: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda _: durable.append(len(path.read_bytes().splitlines())))
    for number in (1, 2, 2, 1):
        kept.may_send(number, b"part")
    assert durable == [2, 3]


def test_a_line_that_a_crash_cut_short_counts_for_nothing(tmp_path: Path) -> None:
    """Its part was not sent."""
    files = SealFiles(str(tmp_path / "photos"))
    files.keep("ab12", seal(), ENCODER).may_send(1, b"one")
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    found(files).may_send(2, b"two")
    whole = path.read_bytes()
    for length in range(len(before), len(whole)):
        # A file may have grown before its bytes were written.
        for tail in (b"", b"\0" * (len(whole) - length)):
            path.write_bytes(whole[:length] + tail)
            kept = found(files)
            assert not kept.may_send(1, b"another")
            assert kept.may_send(2, b"other")
            assert not found(files).may_send(2, b"two")


def test_one_that_does_not_say_what_was_sent_is_none(tmp_path: Path) -> None:
    """A line is damaged, a part is there twice, or a version wrote it that kept no parts."""
    files = SealFiles(str(tmp_path / "photos"))
    files.keep("ab12", seal(), ENCODER).may_send(1, b"one")
    (path,) = tmp_path.iterdir()
    first, line = path.read_bytes().splitlines(keepends=True)
    for damaged in (first + b"\0" + line[1:], first + line + line, first[:-1], first + b"\n" + line):
        path.write_bytes(damaged)
        assert files.find("ab12", ENCODER) is None


def test_what_nobody_will_take_up_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    """A source's name may begin as another one's."""
    for name in ("photos", "photos.old", "photo"):
        SealFiles(str(tmp_path / name)).keep("ab12", seal(), ENCODER)
        SealFiles(str(tmp_path / name)).keep("cd34", seal(), ENCODER)
    (tmp_path / "photos.db").touch()
    SealFiles(str(tmp_path / "photos")).drop_all_but({"cd34"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "photo.ab12.seal",
        "photo.cd34.seal",
        "photos.cd34.seal",
        "photos.db",
        "photos.old.ab12.seal",
        "photos.old.cd34.seal",
    ]
