"""How much it costs to back up very many copies of one small file: one object, and all its names in few index writes.

    python benchmarks/copies.py [--files 100000] [--endpoint http://127.0.0.1:8000]

The embedded index always; with an endpoint also DynamoDB there (the contents stay in a folder, for they are one object). Decides
what is printed; measures with what the program itself reports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONTENT = b"the same small file, many times over\n" * 20
FILES_IN_FOLDER = 1000


def make(tree: str, files: int) -> None:
    for number in range(files):
        group, place = divmod(number, FILES_IN_FOLDER)
        folder = os.path.join(tree, f"folder-{group:04d}")
        if not place:
            os.makedirs(folder)
        with open(os.path.join(folder, f"copy-{place:04d}.txt"), "wb") as file:
            file.write(CONTENT)


class Repository:
    """One configuration in a folder of its own, and the program called with it."""

    def __init__(self, home: str, tree: str, index: Mapping[str, object]) -> None:
        os.makedirs(home)
        self._file = os.path.join(home, "backup.yaml")
        self._environment = {"PYTHONPATH": HERE, "XDG_STATE_HOME": os.path.join(home, "state")}
        configuration = {
            "version": 1,
            "repository": {"objects": "./repo", **index},
            "encryption": "off",
            "sources": [{"name": "copies", "path": tree}],
        }
        with open(self._file, "w", encoding="utf-8") as file:
            json.dump(configuration, file)
        self._run("init", "--yes")

    def _run(self, *arguments: str) -> str:
        command = (sys.executable, "-m", "s3hashsync", "-c", self._file, *arguments)
        done = subprocess.run(command, env={**os.environ, **self._environment}, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-2000:]}")
        return done.stdout

    def apply(self) -> tuple[float, dict[str, int]]:
        """Seconds, and the program's own summary."""
        began = time.perf_counter()
        lines = self._run("--json", "apply", "--yes", "--allow-mass-change").splitlines()
        took = time.perf_counter() - began
        summaries = [message for line in lines if (message := json.loads(line)).get("message_type") == "summary"]
        return took, summaries[-1]


def measure(name: str, repository: Repository, tree: str) -> None:
    """The first backup, and one after a single copy more and a single one less."""
    show(name, "first backup", *repository.apply())
    os.rename(os.path.join(tree, "folder-0000", "copy-0000.txt"), os.path.join(tree, "folder-0000", "moved.txt"))
    show(name, "one renamed", *repository.apply())
    os.rename(os.path.join(tree, "folder-0000", "moved.txt"), os.path.join(tree, "folder-0000", "copy-0000.txt"))


def show(name: str, what: str, took: float, summary: dict[str, int]) -> None:
    print(
        f"| {name} | {what} | {took:.1f} | {summary['objects_put']:,} | {summary['index_writes']:,} |"
        f" {summary['index_write_units']:,} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure many copies of one small file.")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--endpoint", help="of DynamoDB; credentials are found as the AWS programs find theirs")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--work", help="where the tree and the repositories go; default: the folder for temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="copies-", dir=options.work) as work:
        tree = os.path.join(work, "tree")
        make(tree, options.files)
        print(f"{options.files:,} copies of {len(CONTENT)} bytes\n")
        print("| index | run | seconds | objects | index writes | write units |\n|---|---|---:|---:|---:|---:|")
        measure("embedded", Repository(os.path.join(work, "embedded"), tree, {}), tree)
        if options.endpoint:
            table: dict[str, object] = {
                "index": f"dynamodb://copies-{os.getpid()}",
                "region": options.region,
                "endpoints": {"dynamodb": options.endpoint},
            }
            measure("DynamoDB", Repository(os.path.join(work, "dynamodb"), tree, table), tree)


if __name__ == "__main__":
    main()
