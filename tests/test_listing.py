"""ls, find, history and diff: what the run logs tell, and what they told before."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from s3hashsync.errors import Incomplete, UsageError
from s3hashsync.run import backup
from s3hashsync.run.listing import Change, compare, find_contents, find_paths, list_paths, runs, versions
from tests.harness import SOURCE, House


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path).init()


@pytest.fixture
def aged(house: House) -> House:
    """Three runs, a hundred seconds apart: at +0, +100, +200 of the house's clock."""
    for name in ("a", "folder/b", "folder/deep/c", "folder-x"):
        house.write(name, f"first {name}")
    house.backup()
    house.write("a", "second")
    (house.source / "folder-x").unlink()
    at(house, 100).backup()
    os.chmod(house.source / "folder/b", 0o600)
    house.write("new", "third")
    (house.source / "folder/deep/c").unlink()
    os.symlink("b", house.source / "folder/deep/c")
    at(house, 200).backup()
    return house


def at(house: House, seconds: float) -> House:
    return house.again(ahead=house.ahead + seconds)


def listed(house: House, selection: str, when: float | None = None, *, recursive: bool = False) -> list[bytes]:
    with house.job() as job:
        return [one.entry.path for one in list_paths(job, selection, when, recursive=recursive)]


def test_ls(aged: House) -> None:
    assert listed(aged, SOURCE) == [b"a", b"folder", b"new"]
    assert listed(aged, f"{SOURCE}:folder") == [b"folder/b", b"folder/deep"]
    assert listed(aged, f"{SOURCE}:folder", recursive=True) == [b"folder/b", b"folder/deep", b"folder/deep/c"]
    assert listed(aged, f"{SOURCE}:folder/b") == [b"folder/b"]
    assert listed(aged, f"{SOURCE}:**/c") == [b"folder/deep/c"]
    assert listed(aged, SOURCE, aged.clock() + 50) == [b"a", b"folder", b"folder-x"]
    assert len(listed(aged, SOURCE, recursive=True)) == 6


def test_ls_of_nothing(aged: House) -> None:
    for selection, message in ((f"{SOURCE}:nothing", "there is no"), ("nobody", "no backup of a source")):
        with pytest.raises(UsageError, match=message):
            listed(aged, selection)
    (aged.source / "void").mkdir()
    at(aged, 300).backup()
    assert listed(aged, f"{SOURCE}:void") == []


def test_find(aged: House) -> None:
    music = replace(aged, source_name="music")
    music.write("x/b", "first folder/b")
    music.backup()
    with aged.job() as job:
        assert [(one.source, one.entry.path) for one in find_paths(job, "b")] == [("music", b"x/b"), (SOURCE, b"folder/b")]
        assert [one.entry.path for one in find_paths(job, "folder/*")] == [b"folder/b", b"folder/deep"]
        assert [one.entry.path for one in find_paths(job, "?")] == [b"x", b"x/b", b"a", b"folder/b", b"folder/deep/c"]
        hashes = {found.hash for found in find_paths(job, "b")}
        assert len(hashes) == 1
        digits = hashes.pop().hex()[:12].upper()  # type: ignore[union-attr]
        assert [found.source for found in find_contents(job, digits)] == ["music", SOURCE]
        with pytest.raises(UsageError):
            find_contents(job, "xyz")
        assert [found.entry.path for found in find_paths(job, "folder-*", aged.clock() + 50)] == [b"folder-x"]


def test_find_by_the_sha256_where_the_hash_is_a_keyed_one(tmp_path: Path) -> None:
    house = House(tmp_path, encryption=True).init()
    house.write("a", "content")
    house.backup()
    digits = hashlib.sha256(b"content").hexdigest()
    with house.job() as job:
        (found,) = find_contents(job, digits)
        assert found.hash is not None
        assert found.hash.hex() != digits
        assert [one.entry.path for one in find_contents(job, found.hash.hex()[:16])] == [b"a"]


def test_find_says_what_it_could_not_search(aged: House) -> None:
    replace(aged, source_name="music").write("x/b", "b")
    replace(aged, source_name="music").backup()
    (log,) = (aged.folder / "repository/runs/music").iterdir()
    log.chmod(0o600)
    log.write_bytes(b"nonsense")
    with aged.job() as job:
        found = find_paths(job, "b")
        assert next(found).source == SOURCE
        with pytest.raises(Incomplete, match="music"):
            next(found)


def test_history_of_a_source(aged: House) -> None:
    with aged.job() as job:
        facts = list(runs(job, SOURCE))
    assert [(one.present, one.removed, one.host) for one in facts] == [(5, 0, "laptop"), (2, 1, "laptop"), (7, 0, "laptop")]
    assert [one.time for one in facts] == sorted((one.time for one in facts), reverse=True)


def test_history_of_a_path(aged: House) -> None:
    with aged.job() as job:
        assert [one.entry.size if one.entry else None for one in versions(job, f"{SOURCE}:a")] == [6, 7]
        assert [one.entry.size if one.entry else None for one in versions(job, f"{SOURCE}:folder-x")] == [None, 14]
        b = list(versions(job, f"{SOURCE}:folder/b"))
        assert next(one.entry.mode for one in b if one.entry) == 0o600
        assert len({one.hash for one in b}) == 1
        with pytest.raises(UsageError, match="never was"):
            list(versions(job, f"{SOURCE}:nothing"))


def test_a_checkpoint_is_no_new_version(aged: House) -> None:
    aged.forget_state()
    with at(aged, 300).job() as job, backup.planned(job):
        pass
    with aged.state() as state:
        state.set_note("checkpoint", "1")
    at(aged, 300).backup()
    with aged.job() as job:
        assert next(runs(job, SOURCE)).checkpoint
        assert len(list(versions(job, f"{SOURCE}:a"))) == 2
    assert listed(aged, SOURCE) == [b"a", b"folder", b"new"]
    assert listed(aged, SOURCE, aged.clock() + 50) == [b"a", b"folder", b"folder-x"]


def test_diff(aged: House) -> None:
    with aged.job() as job:
        found = {(d.change, d.path) for d in compare(job, SOURCE, aged.clock() + 50, aged.clock() + 150)}
        assert found == {(Change.CHANGED, b"a"), (Change.REMOVED, b"folder-x"), (Change.METADATA, b"")}
        found = {(d.change, d.path) for d in compare(job, SOURCE, aged.clock() + 150)}
        assert found >= {(Change.METADATA, b"folder/b"), (Change.ADDED, b"new"), (Change.CHANGED, b"folder/deep/c")}
        everything = list(compare(job, SOURCE, 1000.0))
        assert {d.change for d in everything} == {Change.ADDED}
        assert len(everything) == 7
        assert list(compare(job, SOURCE, aged.clock() + 250)) == []
