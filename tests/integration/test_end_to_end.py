"""The whole program against real servers: S3 by versitygw, the index by DynamoDB Local.

What the embedded stores cannot show: version ids, delete markers, requests that two hosts send at once, processes killed in
the middle of them. Stock tools are the oracle of what is stored.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s3hashsync.core.model import RecordState
from s3hashsync.run.lease import PREFIX
from s3hashsync.stores.aws import connect
from tests.aws_places import settings
from tests.cloud import FORMS, OBJECTS, SEALED_OBJECTS, SEALED_PACKS, Cloud
from tests.program import Program

ROUNDS = int(os.environ.get("S3HASHSYNC_ROUNDS", "10"))
KILLS = int(os.environ.get("S3HASHSYNC_KILLS", "20"))


@pytest.fixture(params=[OBJECTS, SEALED_PACKS], ids=str)
def cloud(request: pytest.FixtureRequest, versitygw: str, dynamodb_local: str, tmp_path: Path) -> Cloud:
    """The two forms that have the least in common, where a test does not choose."""
    return Cloud((versitygw, dynamodb_local), request.param, tmp_path)


def fill(folder: Path, seed: int, count: int = 120) -> None:
    """Files of many sizes, some the same, in folders."""
    noise = random.Random(seed)
    for number in range(count):
        path = folder / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(noise.randbytes(noise.choice([1, 30, 3000, 50_000])) if number % 5 else b"the same in many places\n")


def change(folder: Path, noise: random.Random) -> None:
    """Some of everything: new, edited, moved, copied, deleted."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in noise.sample(files, 12):
        match noise.randrange(4):
            case 0:
                path.write_bytes(noise.randbytes(2000))
            case 1:
                path.rename(path.with_name(f"moved-{noise.getrandbits(40):x}"))
            case 2:
                shutil.copy2(path, path.with_name(f"copy-{noise.getrandbits(40):x}"))
            case _:
                path.unlink()
    for _ in range(10):
        (folder / f"new-{noise.getrandbits(40):x}").write_bytes(noise.randbytes(4000))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def restored(cloud: Cloud, host: Program, *words: str) -> dict[str, bytes]:
    out = host.base / f"out-{secrets.token_hex(4)}"
    host("restore", *words, "--to", str(out), *cloud.opening)
    return contents(out)


def stored_below(cloud: Cloud) -> dict[str, list[str]]:
    return cloud.versions("objects/") | cloud.versions("packs/")


@pytest.mark.parametrize("cloud", FORMS, indirect=True, ids=str)
def test_a_tree_round_trips_and_goes_to_one_version_each(cloud: Cloud, tmp_path: Path) -> None:
    host = cloud.host(tmp_path / "a", "a", "docs")
    fill(host.docs, 1)
    (host.docs / "not small").write_bytes(random.Random(1).randbytes(300_000))
    host("init", "--yes")
    host("apply", "--yes")
    assert host.lines("plan")[-1]["message_type"] == "change_summary"
    host("plan", "--detailed-exitcode", code=0)
    stored = stored_below(cloud)
    assert all(len(found) == 1 for found in stored.values())
    assert len(cloud.versions("packs/")) in ((1, 2) if cloud.form.packed else (0,)), "1.3 MB in packs of about 1 MiB"
    assert len(cloud.versions("objects/")) == (1 if cloud.form.packed else len(cloud.records()))
    assert sorted(cloud.assert_whole()) == sorted(cloud.records()), "everything once"
    (host.docs / "d1").rename(host.docs / "moved")
    done = host.lines("apply", "--yes")[-1]
    assert (done["bytes_uploaded"], done["objects_put"]) == (0, 0)
    assert stored_below(cloud) == stored
    assert restored(cloud, host, "docs") == contents(host.docs)


def test_deleted_content_comes_back_without_an_upload(cloud: Cloud, tmp_path: Path) -> None:
    """An object is marked as deleted; a pack never is, for others are in it."""
    host = cloud.host(tmp_path / "a", "a", "docs")
    (host.docs / "b").write_bytes(b"b")
    host("init", "--yes")
    host("apply", "--yes")
    hash_ = cloud.hash_of(b"b")
    (host.docs / "b").unlink()
    host("apply", "--yes")
    assert cloud.records()[hash_].state is RecordState.TRASH
    stems = list(stored_below(cloud))
    assert [stem for stem in stems if any(cloud.markers(stem))] == ([] if cloud.form.packed else [f"objects/{hash_.hex()}"])
    (host.docs / "b").write_bytes(b"b")
    assert host.lines("apply", "--yes")[-1]["objects_put"] == 0
    assert not any(any(cloud.markers(stem)) for stem in stems)
    assert cloud.records()[hash_].state is RecordState.LIVE
    cloud.assert_whole()


@pytest.mark.parametrize("cloud", [OBJECTS, SEALED_OBJECTS], indirect=True, ids=str)
def test_a_large_file_goes_in_parts_and_comes_back(cloud: Cloud, tmp_path: Path) -> None:
    host = cloud.host(tmp_path / "a", "a", "docs")
    noise = random.Random(7)
    (host.docs / "large").write_bytes(b"".join(noise.randbytes(1 << 20) for _ in range(70)))
    host("init", "--yes")
    host("apply", "--yes")
    assert cloud.hash_of((host.docs / "large").read_bytes()) in cloud.assert_whole()
    assert restored(cloud, host, "docs:large")["large"] == (host.docs / "large").read_bytes()


def test_killed_runs_converge_and_store_nothing_twice(cloud: Cloud, tmp_path: Path) -> None:
    host = cloud.host(tmp_path / "a", "a", "docs")
    fill(host.docs, 3)
    host("init", "--yes")
    noise = random.Random(11)
    began = time.monotonic()
    host("apply", "--yes")
    whole = time.monotonic() - began
    for _ in range(KILLS):
        change(host.docs, noise)
        process = subprocess.Popen(
            [sys.executable, "-m", "s3hashsync", "-q", "apply", "--yes"],
            cwd=host.base,
            env=host.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(noise.uniform(0.3, max(whole, 1.0)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    cloud.assert_whole()
    host("apply", "--yes", "--allow-mass-change")
    host("plan", "--detailed-exitcode", code=0)
    stored = cloud.assert_whole()
    assert len(stored) == len(set(stored)), "a content is stored twice"
    assert all(len(versions) == 1 for versions in stored_below(cloud).values())
    assert restored(cloud, host, "docs") == contents(host.docs)


def test_two_hosts_with_the_same_content_at_once_lose_nothing(cloud: Cloud, tmp_path: Path) -> None:
    hosts = [cloud.host(tmp_path / name, name, f"docs-{name}") for name in ("a", "b")]
    hosts[0]("init", "--yes")
    cloud.enroll(hosts[1])
    for number in range(ROUNDS):
        for host in hosts:
            for child in host.docs.iterdir():
                shutil.rmtree(child) if child.is_dir() else child.unlink()
            fill(host.docs, seed=number // 2, count=25)
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "s3hashsync", "-q", "apply", "--yes", "--allow-mass-change"],
                cwd=host.base,
                env=host.environment,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for host in hosts
        ]
        for process in running:
            assert process.communicate()[1] == b""
            assert process.returncode == 0
        for host in hosts:
            host("plan", "--detailed-exitcode", code=0)
        records = cloud.records()
        for host, name in zip(hosts, ("a", "b"), strict=True):
            for path, body in contents(host.docs).items():
                hash_ = cloud.hash_of(body)
                assert records[hash_].state is RecordState.LIVE
                assert cloud.name_of(host, f"docs-{name}", path, hash_) in records[hash_].names
    cloud.assert_whole()
    for host, name in zip(hosts, ("a", "b"), strict=True):
        assert restored(cloud, host, f"docs-{name}") == contents(host.docs)


def test_a_take_over_keeps_every_file(cloud: Cloud, tmp_path: Path) -> None:
    old, new = cloud.host(tmp_path / "old", "old", "docs"), cloud.host(tmp_path / "new", "new", "docs")
    fill(old.docs, 5, 30)
    old("init", "--yes")
    old("apply", "--yes")
    shutil.rmtree(new.docs)
    shutil.copytree(old.docs, new.docs)
    if cloud.form.encrypted:
        new("apply", "--yes", code=12)
        cloud.enroll(new)
    new("apply", "--yes", code=11)
    assert new.lines("apply", "--yes", "--take-over")[-1]["objects_put"] == 0
    new("plan", "--detailed-exitcode", code=0)
    (old.docs / "later").write_text("later")
    old("apply", "--yes", code=11)


def test_a_lost_state_is_made_anew(cloud: Cloud, tmp_path: Path) -> None:
    host = cloud.host(tmp_path / "a", "a", "docs")
    fill(host.docs, 4, 40)
    host("init", "--yes")
    host("apply", "--yes")
    stored = stored_below(cloud)
    shutil.rmtree(host.base / "state")
    host("rebuild", *cloud.opening)
    host("plan", "--detailed-exitcode", code=0)
    shutil.rmtree(host.base / "state")
    # Where nothing is at hand that opens the run logs, the index says enough.
    (host.docs / "new").write_text("after the loss\n")
    assert host.lines("apply", "--yes")[-1]["bytes_uploaded"] == len("after the loss\n")
    host("plan", "--detailed-exitcode", code=0)
    assert len(stored_below(cloud)) == len(stored) + 1, "the new one alone"
    assert restored(cloud, host, "docs") == contents(host.docs)


def test_a_lost_table_is_made_anew(cloud: Cloud, tmp_path: Path) -> None:
    host = cloud.host(tmp_path / "a", "a", "docs")
    fill(host.docs, 9, 40)
    host("init", "--yes")
    host("apply", "--yes")
    client = connect(settings(cloud.dynamodb)).dynamodb()
    client.update_table(TableName=cloud.table, DeletionProtectionEnabled=False)
    client.delete_table(TableName=cloud.table)
    host("plan", code=10)
    host("rebuild", "--index", "--yes", *cloud.opening)
    # A new index is not believed to have every name: the next apply writes them again, and uploads nothing.
    assert host.lines("apply", "--yes")[-1]["objects_put"] == 0
    host("plan", "--detailed-exitcode", code=0)
    cloud.assert_whole()
    assert client.get_item(TableName=cloud.table, Key={"hash": {"S": f"{PREFIX}docs"}})["Item"]
    assert restored(cloud, host, "docs") == contents(host.docs)


@pytest.mark.parametrize("cloud", [OBJECTS], indirect=True, ids=str)
def test_wrong_places_and_keys_are_one_message_each(cloud: Cloud, tmp_path: Path) -> None:
    host = cloud.host(tmp_path / "a", "a", "docs")
    assert "init" in host("plan", code=10).stderr
    host("init", "--yes")
    for key, value in (("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")):
        done = host("plan", code=1, env={key: value})
        assert done.stderr.count("error:") == 1
        assert "credentials" in done.stderr
