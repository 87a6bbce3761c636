"""The program in a process and a home of its own, as a person or a pipeline runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CONFIG = """\
version: 1
repository:
  objects: {base}/repo
encryption: off
host: here
sources:
  - name: docs
    path: {base}/docs
    exclude: ["*.tmp"]
"""


class Program:
    """The program with a home of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.docs = base / "docs"
        self.docs.mkdir()
        (self.docs / "a.txt").write_text("a\n")
        (base / "backup.yaml").write_text(CONFIG.format(base=base))
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "S3HASHSYNC"))},
            "HOME": str(base),
            "XDG_STATE_HOME": str(base / "state"),
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }

    def __call__(self, *words: str, code: int | None = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "s3hashsync", *words],
            cwd=self.base,
            env={**self.environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        if code is not None:
            assert done.returncode == code, (words, done.stdout, done.stderr)
        return done

    def lines(self, *words: str, code: int = 0) -> list[dict[str, object]]:
        return [json.loads(line) for line in self("--json", *words, code=code).stdout.splitlines()]
