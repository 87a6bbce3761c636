"""`make demo`: the main job from beginning to end on the embedded repository, with the program's own output.

Backs up a copy of Python's standard library, changes it, shows each plan, applies it, restores and compares. Ends with an
error when anything is not as it should be.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path.cwd() / ".demo"
SOURCE = HERE / "library"
CONFIG = f"""\
version: 1
repository:
  objects: {HERE}/repository
encryption: off
host: demo
sources:
  - name: library
    path: {SOURCE}
    exclude: ["__pycache__/", "*.pyc"]
"""


def main() -> None:
    prepare()
    run("init")
    title("The first plan, and applying it")
    run("apply", "--yes")
    title("A second plan right after: nothing to do")
    run("plan", "--detailed-exitcode")

    title("A new file, an edit, a renamed folder, a copy, a deleted file")
    (SOURCE / "new.txt").write_text("something new\n")
    with (SOURCE / "argparse.py").open("a") as file:
        file.write("# edited\n")
    (SOURCE / "json").rename(SOURCE / "json-renamed")
    shutil.copy2(SOURCE / "bisect.py", SOURCE / "bisect-copy.py")
    (SOURCE / "cmd.py").unlink()
    run("plan", "--out", str(HERE / "changes.plan"), code=0)
    run("apply", str(HERE / "changes.plan"))

    title("The deleted file comes back: undeleted, not uploaded")
    (SOURCE / "cmd.py").write_bytes(Path(sysconfig.get_path("stdlib"), "cmd.py").read_bytes())
    run("apply", "--yes")

    title("Restore, and compare with the source")
    run("restore", "library", "--to", str(HERE / "restored"))
    compare(SOURCE, HERE / "restored")
    run("status")
    print(f"\nThe demo is done: source and restored copy are the same. Look around in {HERE}.")


def prepare() -> None:
    if HERE.exists():
        shutil.rmtree(HERE)
    HERE.mkdir(mode=0o700)
    library = sysconfig.get_path("stdlib")
    ignored = shutil.ignore_patterns("site-packages", "test", "tests", "idlelib", "lib-dynload", "__pycache__", "config-*")
    shutil.copytree(library, SOURCE, symlinks=True, ignore=ignored)
    (HERE / "backup.yaml").write_text(CONFIG)


def title(text: str) -> None:
    print(f"\n== {text} ==", flush=True)


def run(*words: str, code: int = 0) -> None:
    print(f"\n$ s3hashsync {' '.join(words).replace(str(HERE), '.demo')}", flush=True)
    environment = os.environ | {"S3HASHSYNC_CONFIG": str(HERE / "backup.yaml"), "XDG_STATE_HOME": str(HERE / "state")}
    done = subprocess.run([sys.executable, "-m", "s3hashsync", *words], env=environment, check=False)
    if done.returncode != code:
        sys.exit(f"the demo failed: s3hashsync {' '.join(words)} ended with {done.returncode}, expected {code}")


def compare(left: Path, right: Path) -> None:
    """Every file the backup does not exclude, byte for byte, with mode and modification time."""
    files = 0
    for folder, folders, names in os.walk(left):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            if name.endswith(".pyc"):
                continue
            path = Path(folder) / name
            other = right / path.relative_to(left)
            same = other.exists() and filecmp.cmp(path, other, shallow=False)
            now, then = path.lstat(), other.lstat() if other.exists() else None
            if not same or then is None or (now.st_mode, now.st_mtime_ns) != (then.st_mode, then.st_mtime_ns):
                sys.exit(f"the demo failed: {path.relative_to(left)} is not what it was")
            files += 1
    extra = [p for p in right.rglob("*") if not (left / p.relative_to(right)).exists()]
    if extra:
        sys.exit(f"the demo failed: {extra[0]} should not be there")
    print(f"{files:,} files compared: all the same.", flush=True)


if __name__ == "__main__":
    main()
