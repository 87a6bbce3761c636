"""The secrets of encrypted uploads that are under way in parts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from s3hashsync.codec.age import Seal, X25519Identity, new_seal
from s3hashsync.disk.seals import SealFiles

ENCODER = "zstd 1"


def seal() -> Seal:
    return new_seal([X25519Identity.generate(os.urandom).recipient], os.urandom)


def test_a_seal_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    files, one = SealFiles(str(tmp_path / "photos")), seal()
    files.keep("ab12", one, ENCODER)
    assert files.find("ab12", ENCODER) == one
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
