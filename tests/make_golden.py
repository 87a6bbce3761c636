"""Makes a golden repository: what a version of the program stored, to be opened by every later one.

    python tests/make_golden.py 2-plain-packed

Run by hand, once for a format, with the program of that format: `--code FOLDER` names a checkout of another version. Decides what
the trees of a golden repository hold, what its folder consists of, and how a tree is written down. What must hold of it is
`tests/test_golden.py`'s.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import stat
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.program import Program

GOLDEN = Path(__file__).parent / "golden"
STORED, MANIFEST, IDENTITY, HOST_KEY = "stored.tar.gz", "manifest.json", "identity.txt", "host-key.json"
SOURCES = ("docs", "photos")
HOST = "there"
"""Who wrote the last run."""
PASSPHRASE = "a passphrase that guards nothing"

CONFIG = """\
version: 1
repository:
  objects: {base}/repository
{pack}encryption: {encryption}
host: {host}
sources:
  - name: docs
    path: {base}/docs
  - name: photos
    path: {base}/photos
"""
PACKS = "{below: 1MiB, size: 1MiB}"
_LONG_AGO = 1_700_000_000
Line = dict[str, object]
Tree = list[Line]
Run = tuple[str, dict[str, Tree]]
"""A moment after it, and the trees by their sources."""
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}


@dataclass(frozen=True, slots=True)
class Form:
    """How a repository is made. `pack` None: the program of that time knows no packs."""

    pack: str | None
    encrypted: bool = False
    passphrase: bool = False

    def config(self, base: Path, host: str, encryption: str) -> str:
        pack = "" if self.pack is None else f"  pack: {self.pack}\n"
        return CONFIG.format(base=base, pack=pack, encryption=encryption, host=host)


FORMS = {
    "1-plain-objects": Form(pack=None),
    "2-plain-packed": Form(PACKS),
    "2-encrypted-packed": Form(PACKS, encrypted=True, passphrase=True),
    "2-encrypted-objects": Form("off", encrypted=True),
}

# The trees


def first_tree(base: Path) -> None:
    docs, photos = base / "docs", base / "photos"
    noise = random.Random(1)
    for folder in (docs / "letters" / "old", docs / "empty folder", docs / "copies", photos / "2023"):
        folder.mkdir(parents=True)
    (docs / "a.txt").write_text("a\n")
    (docs / "to go").write_bytes(noise.randbytes(500))
    (docs / "to move").write_bytes(noise.randbytes(500))
    (docs / "to change").write_text("before\n")
    (docs / "empty").touch()
    (docs / "letters" / "Brief an Jürgen.txt").write_text("Lieber Jürgen,\n")
    (docs / "letters" / "old" / "100% of it").write_text("a percent sign in its name\n")
    (docs / "new\nline").write_text("a name of two lines\n")
    _bytes_path(docs, b"not \xff utf-8").write_bytes(noise.randbytes(300))
    _bytes_path(docs, b"link to \xfe").symlink_to(os.fsdecode(b"somewhere \xfd"))
    (docs / "link").symlink_to("letters/old")
    (docs / "dangling").symlink_to("../nowhere")
    os.mkfifo(docs / "fifo")
    (docs / "one").write_text("one of two names of a file\n")
    os.link(docs / "one", docs / "letters" / "two")
    # More names than one record takes.
    for number in range(70):
        (docs / "copies" / f"copy {number}").write_text("the same in many places\n")
    # In packs: more than one frame, and what is too large for a pack.
    for number in range(4):
        (docs / f"long {number}").write_text(f"a line of the long file {number}\n" * 20_000)
    (docs / "large").write_text("a line of the large file\n" * 60_000)
    with open(docs / "sparse", "wb") as file:
        file.seek(200_000)
        file.write(b"behind a hole\n")
    os.setxattr(docs / "a.txt", "user.note", b"kept \x00\xff")
    os.setxattr(docs / "letters", "user.folder", b"too")
    (docs / "a.txt").chmod(0o640)
    (docs / "letters").chmod(0o750)
    (photos / "2023" / "one.jpg").write_bytes(noise.randbytes(2000))
    (photos / "a copy.txt").write_text("a\n")
    _set_times(base, 0)


def second_tree(base: Path) -> None:
    docs, photos = base / "docs", base / "photos"
    (docs / "to go").unlink()
    (docs / "to move").rename(docs / "empty folder" / "moved")
    _replace(docs / "to change", b"after, and longer\n")
    for number in range(5):
        (docs / "copies" / f"copy {number}").unlink()
    (docs / "copies" / "copy 70").write_text("the same in many places\n")
    (docs / "link").unlink()
    (docs / "link").write_text("a file where a link was\n")
    (docs / "a.txt").chmod(0o600)
    os.removexattr(docs / "letters", "user.folder")
    shutil.rmtree(photos / "2023")
    (photos / "2024").mkdir()
    (photos / "2024" / "two.jpg").write_bytes(random.Random(2).randbytes(2000))
    _set_times(base, 100_000)


def third_tree(base: Path) -> None:
    docs, photos = base / "docs", base / "photos"
    # What was removed before: nothing has to be stored for it.
    (docs / "back again").write_bytes(_random_of_first("to go"))
    (docs / "letters" / "two").unlink()
    (docs / "copies" / "copy 7").rename(docs / "copy outside")
    (photos / "late.jpg").write_bytes(random.Random(3).randbytes(1000))
    _set_times(base, 200_000)


def _random_of_first(name: str) -> bytes:
    noise = random.Random(1)
    return {name: noise.randbytes(500) for name in ("to go", "to move")}[name]


def _bytes_path(folder: Path, name: bytes) -> Path:
    return Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))


def _replace(path: Path, content: bytes) -> None:
    """By another inode, so that it is seen whatever the clock's grain."""
    beside = path.with_name("beside")
    beside.write_bytes(content)
    os.replace(beside, path)


def _set_times(base: Path, later: int) -> None:
    """From below, for whatever is written into a folder changes its time; what a run finds as it was keeps its own."""
    for source in SOURCES:
        paths = sorted((base / source).rglob("*"), key=os.fsencode, reverse=True)
        for number, path in enumerate([*paths, base / source]):
            if path.lstat().st_mtime > _LONG_AGO + 1_000_000 or path.is_dir():
                second = _LONG_AGO + later + number
                os.utime(path, ns=(second * 10**9, second * 10**9 + 123_456_789), follow_symlinks=False)


# A tree, written down


def manifest_of(root: Path, *, xattrs: bool = True) -> Tree:
    """Every path of a tree, the root too. Bytes that are not UTF-8 are escaped as Python does it."""
    first_names: dict[int, str] = {}
    paths = sorted([root, *root.rglob("*")], key=lambda path: os.fsencode(os.path.relpath(path, root)))
    return [_line(root, path, first_names, xattrs=xattrs) for path in paths]


def _line(root: Path, path: Path, first_names: dict[int, str], *, xattrs: bool) -> Line:
    there = path.lstat()
    name = os.path.relpath(path, root)
    line: Line = {"path": name, "type": _KINDS[stat.S_IFMT(there.st_mode)], "mtime_ns": there.st_mtime_ns}
    if stat.S_ISLNK(there.st_mode):
        line["target"] = os.readlink(path)
        return line
    line["mode"] = f"{stat.S_IMODE(there.st_mode):04o}"
    if stat.S_ISREG(there.st_mode):
        line |= {"size": there.st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        if there.st_nlink > 1:
            line["same_as"] = first_names.setdefault(there.st_ino, name)
    if xattrs:
        found = {n: os.getxattr(path, n).hex() for n in os.listxattr(path) if n.startswith("user.")}
        line |= {"xattrs": found} if found else {}
    return line


# A repository


def _identities(program: Program) -> list[str]:
    """Two, and the first one's text is kept."""
    from s3hashsync.codec.age import X25519Identity

    mine, other = X25519Identity.generate(os.urandom), X25519Identity.generate(os.urandom)
    text = f"# Made for a test: it guards nothing.\n{mine.secret_text()}\n"
    (program.base / IDENTITY).write_text(text)
    return [str(mine.recipient), str(other.recipient)]


def make(name: str, code: Path) -> None:
    form = FORMS[name]
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        base = Path(folder).resolve()
        program = Program(base)
        shutil.rmtree(program.docs)
        program.environment |= {"PYTHONPATH": str(code), "XDG_CONFIG_HOME": str(base / "config")}
        encryption = "off"
        if form.encrypted:
            phrase = f", passphrase: {PASSPHRASE}" if form.passphrase else ""
            encryption = f"{{recipients: [{', '.join(_identities(program))}]{phrase}}}"
        (base / "backup.yaml").write_text(form.config(base, "here", encryption))
        program("init")
        runs = _runs(program, lambda host: form.config(base, host, encryption))
        _write(name, program, runs, form)


def _runs(program: Program, config_for_host: Callable[[str], str]) -> list[Run]:
    runs: list[Run] = []
    for number, (change, words) in enumerate([(first_tree, ()), (second_tree, ()), (None, ("--take-over",)), (third_tree, ())]):
        if change is not None:
            change(program.base)
        if words:
            # Another host takes over, and writes down the whole state.
            (program.base / "backup.yaml").write_text(config_for_host(HOST))
        program("apply", "--yes", *words)
        print(f"run {number + 1} of 4")
        # So that a moment lies between two runs, and no file is as young as its backup.
        time.sleep(1.5)
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        time.sleep(1.5)
        if not words:
            runs.append((at, {source: manifest_of(program.base / source) for source in SOURCES}))
    return runs


def _write(name: str, program: Program, runs: list[Run], form: Form) -> None:
    target = GOLDEN / name
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    base = program.base
    (target / MANIFEST).write_text(_manifest(form, runs))
    if form.encrypted:
        (target / IDENTITY).write_text((base / IDENTITY).read_text())
        (host_key,) = (base / "config" / "s3hashsync" / "hosts").glob("*.json")
        (target / HOST_KEY).write_text(host_key.read_text().replace(str(base), "/golden"))
    with tarfile.open(target / STORED, "w:gz", compresslevel=9) as tar:
        for path in sorted(
            p for top in ("repository", "state") for p in (base / top).rglob("*") if p.is_file() and p.suffix != ".lock"
        ):
            member = tarfile.TarInfo(str(path.relative_to(base)))
            data = path.read_bytes()
            member.size, member.mode = len(data), 0o600
            tar.addfile(member, io.BytesIO(data))
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {size:,} bytes")


def _manifest(form: Form, runs: list[Run]) -> str:
    """JSON; a line for each path, and of the later trees only what is another."""
    before: dict[str, Tree] = {source: [] for source in SOURCES}
    told = []
    for at, trees in runs:
        for source, tree in trees.items():
            known = {str(line["path"]): line for line in before[source]}
            there = {str(line["path"]) for line in tree}
            changed = ",\n".join(json.dumps(line, separators=(",", ":")) for line in tree if known.get(str(line["path"])) != line)
            gone = json.dumps(sorted(known.keys() - there))
            told.append(f'{{"at":"{at}","source":"{source}","gone":{gone},"changed":[\n{changed}\n]}}')
        before = trees
    passphrase = json.dumps(PASSPHRASE if form.passphrase else None)
    encrypted = json.dumps(form.encrypted)
    return f'{{"encrypted":{encrypted},"passphrase":{passphrase},"runs":[\n' + ",\n".join(told) + "\n]}\n"


def trees_of(manifest: Path) -> list[Run]:
    """The runs of a golden repository, the newest last: a moment right behind each, and the trees as they were then."""
    runs: dict[str, dict[str, Tree]] = {}
    now: dict[str, dict[str, Line]] = {source: {} for source in SOURCES}
    for run in json.loads(manifest.read_text())["runs"]:
        tree = now[run["source"]]
        for path in run["gone"]:
            del tree[path]
        tree.update({line["path"]: line for line in run["changed"]})
        runs.setdefault(run["at"], {})[run["source"]] = sorted(tree.values(), key=lambda line: os.fsencode(str(line["path"])))
    return list(runs.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=FORMS)
    parser.add_argument("--code", type=Path, default=Path(__file__).resolve().parents[1], help="a checkout of the program")
    words = parser.parse_args()
    make(words.name, words.code.resolve())


if __name__ == "__main__":
    main()
