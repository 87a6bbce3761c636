"""The whole program against real servers: S3 by versitygw, the index by DynamoDB Local.

What the embedded stores cannot show: version ids, delete markers, requests that two hosts send at once, processes killed in
the middle of them. Stock tools are the oracle of what is stored.
"""

from __future__ import annotations

import hashlib
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

from s3hashsync.core.model import Record, RecordState
from s3hashsync.run.lease import PREFIX
from s3hashsync.stores.aws import connect
from s3hashsync.stores.dynamodb import DynamoIndex
from s3hashsync.stores.s3 import S3Objects
from tests.aws_places import settings
from tests.program import Program
from tests.servers import ACCESS_KEY, REGION, SECRET_KEY

ROUNDS = int(os.environ.get("S3HASHSYNC_ROUNDS", "10"))
KILLS = int(os.environ.get("S3HASHSYNC_KILLS", "20"))

CONFIG = """\
version: 1
repository:
  objects: s3://{bucket}/home
  index: dynamodb://{table}
  region: {region}
  endpoints: {{s3: "{s3}", dynamodb: "{dynamodb}"}}
encryption: off
host: {host}
log_interval: 1s
sources:
  - name: {source}
    path: {base}/docs
"""


class Cloud:
    """A bucket and a table of their own, and hosts that use them."""

    def __init__(self, s3: str, dynamodb: str) -> None:
        self.s3, self.dynamodb = s3, dynamodb
        self.bucket, self.table = f"e2e-{secrets.token_hex(6)}", f"e2e-{secrets.token_hex(6)}"

    def host(self, base: Path, name: str, source: str) -> Program:
        base.mkdir(parents=True, exist_ok=True)
        program = Program(base)
        text = CONFIG.format(
            bucket=self.bucket,
            table=self.table,
            region=REGION,
            s3=self.s3,
            dynamodb=self.dynamodb,
            host=name,
            source=source,
            base=base,
        )
        (base / "backup.yaml").write_text(text)
        program.environment |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": REGION}
        return program

    def objects(self) -> S3Objects:
        return S3Objects(connect(settings(self.s3)).s3(), self.bucket, "home", versioned=True)

    def records(self) -> dict[bytes, Record]:
        index = DynamoIndex(connect(settings(self.dynamodb)).dynamodb(), self.table)
        try:
            return {bytes(item.hash): item for item in index.scan() if isinstance(item, Record)}
        finally:
            index.close()

    def versions(self) -> dict[str, list[str]]:
        out: dict[str, list[str]] = {}
        for version in self.objects().versions("objects/"):
            if not version.is_marker:
                out.setdefault(version.stem, []).append(version.version)
        return out


@pytest.fixture
def cloud(versitygw: str, dynamodb_local: str) -> Cloud:
    return Cloud(versitygw, dynamodb_local)


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


def assert_consistent(cloud: Cloud) -> None:
    """Every live or trash record's version exists and holds its content; every name stands under one content."""
    versions, objects = cloud.versions(), cloud.objects()
    for hash_, record in cloud.records().items():
        if record.state in (RecordState.LIVE, RecordState.TRASH):
            version = record.content.location.version
            stem = f"objects/{hash_.hex()}"
            assert version in versions.get(stem, []), f"{stem} has lost its version"
            stored = b"".join(objects.read(stem, version))
            plain = subprocess.run(["zstd", "-dcq"], input=stored, capture_output=True, check=True).stdout
            assert hashlib.sha256(plain).digest() == hash_


def test_a_tree_round_trips_and_goes_to_one_version_each(cloud: Cloud, tmp_path: Path) -> None:
    host = cloud.host(tmp_path / "a", "a", "docs")
    fill(host.docs, 1)
    host("init", "--yes")
    host("apply", "--yes")
    assert host.lines("plan")[-1]["message_type"] == "change_summary"
    host("plan", "--detailed-exitcode", code=0)
    assert all(len(found) == 1 for found in cloud.versions().values())
    assert_consistent(cloud)
    (host.docs / "d1").rename(host.docs / "moved")
    done = host.lines("apply", "--yes")[-1]
    assert (done["bytes_uploaded"], done["objects_put"]) == (0, 0)
    host("restore", "docs", "--to", "out")
    assert contents(host.base / "out") == contents(host.docs)


def test_deleted_content_is_marked_and_comes_back_without_an_upload(cloud: Cloud, tmp_path: Path) -> None:
    host = cloud.host(tmp_path / "a", "a", "docs")
    (host.docs / "b").write_bytes(b"b")
    host("init", "--yes")
    host("apply", "--yes")
    (host.docs / "b").unlink()
    host("apply", "--yes")
    stem = f"objects/{hashlib.sha256(b'b').hexdigest()}"
    (marker,) = [v for v in cloud.objects().versions(stem) if v.is_marker]
    assert marker.is_latest
    (host.docs / "b").write_bytes(b"b")
    assert host.lines("apply", "--yes")[-1]["objects_put"] == 0
    assert [v.is_marker for v in cloud.objects().versions(stem)] == [False]
    assert_consistent(cloud)


def test_a_large_file_goes_in_parts_and_comes_back(cloud: Cloud, tmp_path: Path) -> None:
    host = cloud.host(tmp_path / "a", "a", "docs")
    noise = random.Random(7)
    (host.docs / "large").write_bytes(b"".join(noise.randbytes(1 << 20) for _ in range(70)))
    host("init", "--yes")
    host("apply", "--yes")
    host("restore", "docs:large", "--to", "out")
    assert (host.base / "out" / "large").read_bytes() == (host.docs / "large").read_bytes()


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
    assert_consistent(cloud)
    host("apply", "--yes", "--allow-mass-change")
    host("plan", "--detailed-exitcode", code=0)
    assert_consistent(cloud)
    twice = {stem: found for stem, found in cloud.versions().items() if len(found) > 1}
    assert not twice, f"stored twice: {twice}"
    host("restore", "docs", "--to", "out")
    assert contents(host.base / "out") == contents(host.docs)


def test_two_hosts_with_the_same_content_at_once_lose_nothing(cloud: Cloud, tmp_path: Path) -> None:
    hosts = [cloud.host(tmp_path / name, name, f"docs-{name}") for name in ("a", "b")]
    hosts[0]("init", "--yes")
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
                record = records[hashlib.sha256(body).digest()]
                assert record.state is RecordState.LIVE
                assert f"docs-{name}/{path}" in record.names
    assert_consistent(cloud)


def test_a_take_over_keeps_every_file(cloud: Cloud, tmp_path: Path) -> None:
    old, new = cloud.host(tmp_path / "old", "old", "docs"), cloud.host(tmp_path / "new", "new", "docs")
    fill(old.docs, 5, 30)
    old("init", "--yes")
    old("apply", "--yes")
    shutil.rmtree(new.docs)
    shutil.copytree(old.docs, new.docs)
    new("apply", "--yes", code=11)
    assert new.lines("apply", "--yes", "--take-over")[-1]["objects_put"] == 0
    new("plan", "--detailed-exitcode", code=0)
    (old.docs / "later").write_text("later")
    old("apply", "--yes", code=11)


def test_a_lost_table_is_made_anew(cloud: Cloud, tmp_path: Path) -> None:
    host = cloud.host(tmp_path / "a", "a", "docs")
    fill(host.docs, 9, 40)
    host("init", "--yes")
    host("apply", "--yes")
    client = connect(settings(cloud.dynamodb)).dynamodb()
    client.update_table(TableName=cloud.table, DeletionProtectionEnabled=False)
    client.delete_table(TableName=cloud.table)
    host("plan", code=10)
    host("rebuild", "--index", "--yes")
    # A new index is not believed to have every name: the next apply writes them again, and uploads nothing.
    assert host.lines("apply", "--yes")[-1]["objects_put"] == 0
    host("plan", "--detailed-exitcode", code=0)
    assert_consistent(cloud)
    assert client.get_item(TableName=cloud.table, Key={"hash": {"S": f"{PREFIX}docs"}})["Item"]


def test_wrong_places_and_keys_are_one_message_each(cloud: Cloud, tmp_path: Path) -> None:
    host = cloud.host(tmp_path / "a", "a", "docs")
    assert "init" in host("plan", code=10).stderr
    host("init", "--yes")
    for key, value in (("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")):
        done = host("plan", code=1, env={key: value})
        assert done.stderr.count("error:") == 1
        assert "credentials" in done.stderr
