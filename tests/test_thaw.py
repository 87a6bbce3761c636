"""What lies in an archive class: named, with the command that thaws it, and restored once it is thawed.

Runs against ministack, the one server here that keeps storage classes.
"""

from __future__ import annotations

import os
import secrets
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3hashsync.codec.age import X25519Identity
from s3hashsync.stores.aws import connect
from tests import servers
from tests.aws_places import settings
from tests.harness import LEFT_OUT
from tests.program import Program

CONFIG = """\
version: 1
repository:
  objects: s3://{place}/home
  index: dynamodb://{place}
  region: us-east-1
  storage_class: DEEP_ARCHIVE
  pack: {pack}
  endpoints: {{s3: "{endpoint}", dynamodb: "{endpoint}"}}
encryption: {encryption}
host: here
sources:
  - name: docs
    path: {base}/docs
"""
PACKS = "{below: 8MiB, size: 64MiB}"


def encrypted(program: Program) -> str:
    """What the configuration says of it; the identity is at hand."""
    ours, other = X25519Identity.generate(os.urandom), X25519Identity.generate(os.urandom)
    program.environment["S3HASHSYNC_IDENTITY"] = ours.secret_text()
    return f"{{recipients: [{ours.recipient}, {other.recipient}]}}"


def can_be_read(client: Any, thing: dict[str, str]) -> bool:
    """To ask the server costs less than to try a restore."""
    try:
        client.get_object(**thing)
    except client.exceptions.InvalidObjectState:
        return False
    return True


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with servers.ministack() as url:
        yield url


@pytest.mark.parametrize(("pack", "sealed"), [("off", False), pytest.param(PACKS, False, marks=LEFT_OUT), (PACKS, True)])
def test_archived_files_wait_are_named_and_come_after_the_thaw(tmp_path: Path, endpoint: str, pack: str, sealed: bool) -> None:
    program, place = Program(tmp_path), f"cold-{secrets.token_hex(4)}"
    (program.docs / "empty").write_text("")
    if pack != "off":
        (program.docs / "b.txt").write_text("b\n")
    program.environment |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    encryption = encrypted(program) if sealed else "off"
    config = CONFIG.format(endpoint=endpoint, place=place, base=tmp_path, pack=pack, encryption=encryption)
    (tmp_path / "backup.yaml").write_text(config)
    program("init", "--yes")
    program("apply", "--yes")
    done = program("restore", "docs", "--to", "out", code=75)
    for file in program.docs.iterdir():
        assert (f"docs/{file.name}" in done.stdout) == (file.name != "empty")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["empty"]
    (command,) = [line for line in done.stderr.splitlines() if line.startswith("aws s3api restore-object")]
    words = shlex.split(command)
    option = {name: words[words.index(name) + 1] for name in ("--bucket", "--key", "--version-id")}
    client = connect(settings(endpoint)).s3()
    thing = {"Bucket": option["--bucket"], "Key": option["--key"], "VersionId": option["--version-id"]}
    (waiting,) = [line for line in program.lines("restore", "docs", "--to", "out", code=75) if "storage_class" in line]
    assert (f"home/{waiting['key']}", waiting["version"]) == (thing["Key"], thing["VersionId"])
    assert waiting["bytes"] == client.head_object(**thing)["ContentLength"]
    client.restore_object(**thing, RestoreRequest={"Days": 1, "GlacierJobParameters": {"Tier": "Bulk"}})
    deadline = time.monotonic() + 30
    while not can_be_read(client, thing) and time.monotonic() < deadline:
        time.sleep(0.1)
    program("restore", "docs", "--to", "out")
    for file in program.docs.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
