"""Repositories that earlier versions of the program wrote, in every format that there was: opened, restored and written to by the
present one. `tests/make_golden.py` made them; they are never changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import stat
import tarfile
from pathlib import Path

import pytest

from s3hashsync.stores.sqlite import SCHEMA_VERSION
from tests.make_golden import (
    FORMS,
    GOLDEN,
    HOST,
    HOST_KEY,
    IDENTITY,
    MANIFEST,
    SOURCES,
    STORED,
    Form,
    Run,
    Tree,
    manifest_of,
    trees_of,
)
from tests.program import Program

FOLDERS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
ENCRYPTED = [name for name in FOLDERS if FORMS[name].encrypted]


class Golden:
    """A copy of a golden repository, and the program beside it, on the host that wrote it last."""

    def __init__(self, base: Path, name: str) -> None:
        self.folder, self.base = GOLDEN / name, base
        self.form, self.runs = FORMS[name], trees_of(GOLDEN / name / MANIFEST)
        self.program = Program(base)
        shutil.rmtree(self.program.docs)
        with tarfile.open(self.folder / STORED) as tar:
            tar.extractall(base, filter="data")
        self.program.environment["XDG_CONFIG_HOME"] = str(base / "config")
        if self.form.encrypted:
            shutil.copy(self.folder / IDENTITY, base)
            (base / IDENTITY).chmod(0o600)
            self.program.environment["S3HASHSYNC_IDENTITY_FILE"] = str(base / IDENTITY)
            self.host_key.parent.mkdir(parents=True, mode=0o700)
            shutil.copy(self.folder / HOST_KEY, self.host_key)
            self.host_key.chmod(0o600)
        self.configure()

    @property
    def host_key(self) -> Path:
        repository = json.loads((self.base / "repository" / "repository.json").read_text())["id"]
        return self.base / "config" / "s3hashsync" / "hosts" / f"{repository}.json"

    def configure(self, pack: str | None = None) -> None:
        """`pack` None: nothing is said of packs."""
        encryption = "{}" if self.form.encrypted else "off"
        text = Form(pack, self.form.encrypted).config(self.base, HOST, encryption)
        (self.base / "backup.yaml").write_text(text)

    def restore(self, folder: Path, run: Run, *words: str) -> None:
        """Every source, and whether it is what it was."""
        self.program("restore", *SOURCES, "--to", str(folder), *words)
        for source in SOURCES:
            assert_is(folder / source, run[1][source])

    def lines(self, *words: str) -> list[dict[str, object]]:
        return self.program.lines(*words)

    def index_format(self) -> int:
        db = sqlite3.connect(self.base / "repository" / "index.db")
        try:
            return int(db.execute("PRAGMA user_version").fetchone()[0])
        finally:
            db.close()


def assert_is(root: Path, wanted: Tree) -> None:
    found = manifest_of(root, xattrs=has_xattrs(root))
    if not has_xattrs(root):
        wanted = [{key: value for key, value in line.items() if key != "xattrs"} for line in wanted]
    assert {str(line["path"]): line for line in found} == {str(line["path"]): line for line in wanted}


def has_xattrs(folder: Path) -> bool:
    """Not every file system takes those of users."""
    try:
        os.setxattr(folder, "user.probe", b"1")
        os.removexattr(folder, "user.probe")
    except OSError:
        return False
    return True


@pytest.fixture(params=FOLDERS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    return Golden(tmp_path, request.param)


def test_every_folder_is_whole() -> None:
    assert set(FOLDERS) == set(FORMS)
    for name in FOLDERS:
        wanted = {STORED, MANIFEST} | ({IDENTITY, HOST_KEY} if FORMS[name].encrypted else set())
        assert {path.name for path in (GOLDEN / name).iterdir()} == wanted, f"tests/golden/{name} is not whole"


def test_the_trees_have_of_everything() -> None:
    """Or less is tested than it says."""
    for name in FOLDERS:
        runs = trees_of(GOLDEN / name / MANIFEST)
        assert len(runs) == 3
        lines = [line for _, trees in runs for tree in trees.values() for line in tree]
        assert {line["type"] for line in lines} == {"file", "dir", "symlink", "fifo"}
        assert any("same_as" in line for line in lines)
        assert any("xattrs" in line for line in lines)
        assert any(line.get("size") == 0 for line in lines)
        assert any("\udcff" in str(line["path"]) for line in lines)
        first, last = runs[0][1]["docs"], runs[-1][1]["docs"]
        assert {str(line["path"]) for line in first} - {str(line["path"]) for line in last}
        hashes = [line["sha256"] for line in first if line.get("sha256")]
        assert max(hashes.count(one) for one in hashes) > 64, "names enough for an overflow item"


def test_it_is_stored_as_its_name_says(golden: Golden) -> None:
    number, encrypted, stored = re.fullmatch(r"(\d)-(plain|encrypted)-(objects|packed)", golden.folder.name).groups()  # type: ignore[union-attr]
    about = json.loads((golden.base / "repository" / "repository.json").read_text())
    assert about["encryption"] == ("age" if encrypted == "encrypted" else "off")
    assert golden.index_format() == int(number)
    assert (golden.base / "repository" / "packs").exists() == (stored == "packed")
    assert (golden.base / "repository" / "objects").exists()


def test_everything_is_listed(golden: Golden) -> None:
    for source in SOURCES:
        listed = {line["path"]: line for line in golden.lines("ls", "-R", source)}
        for line in golden.runs[-1][1][source]:
            path = str(line["path"])
            if path == "." or any(map(_is_surrogate, path)):
                continue
            there = listed[path]
            assert (there["type"], there["mtime_ns"]) == (line["type"], line["mtime_ns"])
            assert there["size"] == line.get("size", 0)


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def test_the_newest_and_every_earlier_run_are_restored(golden: Golden) -> None:
    golden.restore(golden.base / "newest", golden.runs[-1])
    for number, run in enumerate(golden.runs):
        golden.restore(golden.base / f"run {number}", run, "--at", run[0])


@pytest.mark.parametrize("state", ["of that version", "lost"])
def test_a_restored_tree_is_up_to_date(golden: Golden, state: str) -> None:
    golden.restore(golden.base, golden.runs[-1])
    if state == "lost":
        shutil.rmtree(golden.base / "state")
        golden.program("rebuild")
    plan = golden.lines("plan")[-1]
    assert {plan[key] for key in ("add", "change", "move", "copy", "remove", "undelete", "bytes_upload", "objects_put")} == {0}
    done = golden.lines("apply", "--yes")[-1]
    assert (done["objects_put"], done["errors"]) == (0, 0)
    golden.program("plan", "--detailed-exitcode", code=0)


def test_a_lost_index_is_made_anew(golden: Golden) -> None:
    for path in (golden.base / "repository").glob("index.db*"):
        path.unlink()
    golden.program("rebuild", "--index", "--yes")
    golden.restore(golden.base, golden.runs[-1])
    golden.restore(golden.base / "first", golden.runs[0], "--at", golden.runs[0][0])
    assert golden.lines("apply", "--yes")[-1]["objects_put"] == 0
    golden.program("plan", "--detailed-exitcode", code=0)


@pytest.mark.parametrize("pack", [None, "off"])
def test_what_is_added_leaves_the_old_contents_readable(golden: Golden, pack: str | None) -> None:
    golden.restore(golden.base, golden.runs[-1])
    golden.configure(pack)
    docs = golden.program.docs
    (docs / "added.txt").write_text("added by a later version\n")
    (docs / "added, long").write_text("a line of a long file that was added\n" * 10_000)
    (docs / "back again").unlink()
    (docs / "long 0").rename(docs / "long, moved")
    # One more, and one fewer, of those in overflow items.
    (docs / "copies" / "copy 80").write_text("the same in many places\n")
    (docs / "copies" / "copy 20").unlink()
    done = golden.lines("apply", "--yes")[-1]
    assert done["errors"] == 0
    assert golden.index_format() == SCHEMA_VERSION
    golden.program("plan", "--detailed-exitcode", code=0)
    now = {source: manifest_of(golden.base / source, xattrs=has_xattrs(golden.base)) for source in SOURCES}
    golden.restore(golden.base / "now", ("", now))
    for run in (golden.runs[0], golden.runs[-1]):
        golden.restore(golden.base / run[0], run, "--at", run[0])


@pytest.mark.parametrize("name", ENCRYPTED)
def test_a_new_host_is_enrolled_and_goes_on(name: str, tmp_path: Path) -> None:
    golden = Golden(tmp_path, name)
    golden.host_key.unlink()
    shutil.rmtree(golden.base / "state")
    golden.restore(golden.base, golden.runs[-1])
    golden.program("apply", "--yes", code=12)
    golden.program("key", "enroll")
    assert stat.S_IMODE(golden.host_key.stat().st_mode) == 0o600
    kept, restored = (json.loads(text.read_text()) for text in (golden.folder / HOST_KEY, golden.host_key))
    for key in ("fingerprint", "recipient", "hash_key", "epoch"):
        assert restored[key] == kept[key]
    assert golden.lines("apply", "--yes")[-1]["objects_put"] == 0


@pytest.mark.parametrize("name", ENCRYPTED)
def test_without_its_identity_nothing_is_read(name: str, tmp_path: Path) -> None:
    golden = Golden(tmp_path, name)
    del golden.program.environment["S3HASHSYNC_IDENTITY_FILE"]
    golden.program("ls", "docs", code=12)
    golden.program("restore", "docs", "--to", "out", code=12)


def test_a_passphrase_opens_it(tmp_path: Path) -> None:
    tried = 0
    for name in ENCRYPTED:
        passphrase = json.loads((GOLDEN / name / MANIFEST).read_text())["passphrase"]
        if passphrase is None:
            continue
        (tmp_path / name).mkdir()
        golden = Golden(tmp_path / name, name)
        del golden.program.environment["S3HASHSYNC_IDENTITY_FILE"]
        golden.program.environment["S3HASHSYNC_PASSPHRASE"] = passphrase
        golden.restore(golden.base, golden.runs[-1])
        tried += 1
    assert tried
