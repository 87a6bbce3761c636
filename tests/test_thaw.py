"""What lies in an archive class: named, with the command that thaws it, and restored once it is thawed.

Runs against ministack, the one server here that keeps storage classes.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from s3hashsync.stores.aws import connect
from tests import servers
from tests.aws_places import settings
from tests.program import Program

CONFIG = """\
version: 1
repository:
  objects: s3://cold/home
  index: dynamodb://cold
  region: us-east-1
  storage_class: DEEP_ARCHIVE
  endpoints: {{s3: "{endpoint}", dynamodb: "{endpoint}"}}
encryption: off
host: here
sources:
  - name: docs
    path: {base}/docs
"""


def test_archived_files_wait_are_named_and_come_after_the_thaw(tmp_path: Path) -> None:
    program = Program(tmp_path)
    (program.docs / "empty").write_text("")
    program.environment |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with servers.ministack() as endpoint:
        (tmp_path / "backup.yaml").write_text(CONFIG.format(endpoint=endpoint, base=tmp_path))
        program("init", "--yes")
        program("apply", "--yes")
        done = program("restore", "docs", "--to", "out", code=75)
        assert "docs/a.txt" in done.stdout
        assert (tmp_path / "out" / "empty").exists()
        assert not (tmp_path / "out" / "a.txt").exists()
        (command,) = [line for line in done.stderr.splitlines() if line.startswith("aws s3api restore-object")]
        words = shlex.split(command)
        option = {name: words[words.index(name) + 1] for name in ("--bucket", "--key", "--version-id")}
        connect(settings(endpoint)).s3().restore_object(
            Bucket=option["--bucket"],
            Key=option["--key"],
            VersionId=option["--version-id"],
            RestoreRequest={"Days": 1, "GlacierJobParameters": {"Tier": "Bulk"}},
        )
        deadline = time.monotonic() + 30
        while program("restore", "docs", "--to", "out", code=None).returncode == 75 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert (tmp_path / "out" / "a.txt").read_text() == "a\n"
