"""What is backed up under generated ignore rules is what git would list. git is the oracle, file by file and line
by line; one repository holds many cases, each in a folder of its own with its own ignore files."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from s3hashsync.core.ignore import Rules
from s3hashsync.disk.tree import Excluded, Seen, WalkOptions, walk

GIT = shutil.which("git")
pytestmark = pytest.mark.skipif(GIT is None, reason="git is the oracle")

CASES = 1500
NAMES = [
    b"a", b"b", b"foo", b"bar", b"foobar", b"foo.txt", b"bar.o", b"#hash", b"!bang", b"sp ", b" lead", b"t\t", b"x y",
    b"\xc3\xa9t\xc3\xa9", b"\xff\xfe", b"[x]", b"a]", b"a-b", b"A", b"B1", b"0", b"new\nline", b"back\\slash",
    b"star*", b"q?", b".hidden", b"keep", b"cache", b"tail\r", b"c^", b"\x0bvt", b"del\x7f", b"ab", b"aab",
]  # fmt: skip
PIECES = [
    b"*", b"?", b"**", b"a", b"b", b"foo", b"bar", b".txt", b".o", b"[ab]", b"[!a]", b"[^b]", b"[a-f]", b"[]a]",
    b"[!]a]", b"[a-]", b"[--0]", b"[\\]a]", b"[\\a-\\c]", b"[[:alpha:]]", b"[![:digit:]]", b"[[:space:]x]",
    b"[[:punct:]]", b"[[:cntrl:]]", b"[[:nope:]]", b"[[:al", b"[", b"[a", b"]", b"\\*", b"\\?", b"\\[", b"\\a", b"\\\\",
    b"\xc3\xa9", b"\xc3", b"\xff", b"?\xa9", b"keep", b"cache", b"A", b"[[:upper:]]", b"[[:graph:]]", b"[b-a]",
    b"[a/b]", b"[!/]", b"[[.a.]]", b"[[:]", b"x y", b"\t", b"\r", b"***", b"[z-a]a", b"[[:alpha:]-z]", b"[[a]",
    b"[[:xdigit:][:blank:]]", b"[[:print:]]", b"[\xc3\xa9]", b"[\x80-\xff]", b"-", b"#", b"!",
]  # fmt: skip


ODD_PATTERNS = [
    b"", b"#", b"# comment", b"!", b"/", b"//", b"!/", b" ", b"\\", b"\\ ", b"\\#hash", b"\\!bang", b"*", b"/*",
    b"!*/", b"*/", b"**", b"**/", b"/**", b"!**/", b"**/*", b"!/**/", b"foo\\", b"a\\/b", b"**\\/b", b"foo**/bar",
    b"a/b**", b"foo**", b"/foo**bar", b"/**/b", b"a/**/b", b"/a/**", b"***/b", b"a/***/b",
]  # fmt: skip


def _byte_class(byte: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"[" + byte + b"]", b"[!" + byte + b"]", b"[" + byte + b"-z]", b"[!0-9]", b"[^\\" + byte + b"x]"])


def _near(name: bytes, rng: random.Random) -> bytes:
    """A pattern that is likely to match the name."""
    parts = [name[at : at + 1] for at in range(len(name))]
    for _ in range(rng.randint(0, 2)):
        at = rng.randrange(len(parts))
        byte = name[at : at + 1]
        parts[at] = rng.choice([b"*", b"?", b"**", b"\\" + byte, _byte_class(byte, rng), byte + b"*", rng.choice(PIECES)])
    return b"".join(parts)


def _component(rng: random.Random, names: list[bytes]) -> bytes:
    kind = rng.random()
    if kind < 0.65:
        return _near(rng.choice(names), rng)
    if kind < 0.8:
        return rng.choice([b"*", b"**", b"?", b"*.txt", b"*.o", b"[a-f]*", b"*a*", b"***"])
    return b"".join(rng.choice(PIECES) for _ in range(rng.randint(1, 3)))


def _pattern(rng: random.Random, names: list[bytes]) -> bytes:
    if rng.random() < 0.04:
        return rng.choice(ODD_PATTERNS)
    pattern = b"/".join(_component(rng, names) for _ in range(rng.choice([1, 1, 1, 1, 2, 2, 3])))
    if pattern.startswith((b"#", b"!")) and rng.random() < 0.5:
        pattern = b"\\" + pattern
    pattern = (b"!" if rng.random() < 0.3 else b"") + (b"/" if rng.random() < 0.25 else b"") + pattern
    pattern += b"/" if rng.random() < 0.25 else b""
    return pattern + rng.choice([b""] * 16 + [b" ", b"  ", b"\\ ", b"\\  ", b"\t", b" \t", b"\r", b" \r", b"\\"])


def _ignore_file(rng: random.Random, names: list[bytes], most: int) -> bytes:
    lines = [_pattern(rng, names) for _ in range(rng.randint(1, most))]
    mark = b"\xef\xbb\xbf" if rng.random() < 0.03 else b""
    return mark + b"\n".join(lines) + (b"\n" if rng.random() < 0.8 else b"")


def _write_case(rng: random.Random, root: bytes) -> None:
    names = rng.sample(NAMES, 9)
    folders = [root]
    os.mkdir(root)
    for _ in range(rng.randint(3, 8)):
        folder = rng.choice(folders) + b"/" + rng.choice(names)
        if not os.path.lexists(folder):
            os.mkdir(folder)
            folders.append(folder)
    for _ in range(rng.randint(8, 22)):
        path = rng.choice(folders) + b"/" + rng.choice(names)
        if not os.path.lexists(path):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    for folder in folders:
        if folder is root or rng.random() < 0.3:
            with open(folder + b"/.gitignore", "wb") as file:
                file.write(_ignore_file(rng, names, 7 if folder is root else 3))


def _git(repository: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    assert GIT is not None
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(repository),
        "GIT_CONFIG_NOSYSTEM": "1",
        "LC_ALL": "C",
    }
    done = subprocess.run([GIT, *arguments], cwd=repository, input=stdin, capture_output=True, check=False, env=environment)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def _listed_by_git(repository: Path) -> list[bytes]:
    listed = _git(repository, "ls-files", "--others", "--exclude-standard", "-z")
    return sorted(listed.split(b"\0")[:-1])


def _backed_up(root: bytes, options: WalkOptions) -> tuple[list[bytes], list[tuple[bytes, bool, str]]]:
    """The files, and everything excluded: (path, whether a folder, rule)."""
    files, excluded = [], []
    for item in walk(root, options):
        if isinstance(item, Excluded):
            excluded.append((item.path, item.is_dir, item.reason))
        else:
            assert isinstance(item, Seen), item
            if not os.path.isdir(os.path.join(root, item.path)):
                files.append(item.path)
    return sorted(files), excluded


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("oracle")
    tree = path / "tree"
    tree.mkdir()
    _git(tree, "init", "-q", "--separate-git-dir", str(path / "git"))
    (tree / ".git").unlink()
    for number in range(CASES):
        _write_case(random.Random(number), os.fsencode(tree) + b"/case%04d" % number)
    (tree / ".git").write_text(f"gitdir: {path / 'git'}\n")
    return tree


OPTIONS = WalkOptions(rules=Rules(["/.git"]), ignore_files=(b".gitignore",), report_excluded=True)


def test_generated_rules_mean_what_they_mean_to_git(repository: Path) -> None:
    ours, excluded = _backed_up(os.fsencode(repository), OPTIONS)
    theirs = _listed_by_git(repository)
    assert _differences(ours, theirs, repository) == []
    assert len(excluded) > CASES
    assert len(ours) > CASES


def _differences(ours: list[bytes], theirs: list[bytes], repository: Path) -> list[str]:
    found = []
    for path in sorted(set(ours) ^ set(theirs))[:20]:
        case = path.split(b"/")[0]
        rules = (Path(os.fsdecode(os.fsencode(repository) + b"/" + case)) / ".gitignore").read_bytes()
        found.append(f"{'only ours' if path in set(ours) else 'only git'}: {path!r}: {rules!r}")
    return found


def test_the_deciding_line_is_the_one_that_git_names(repository: Path) -> None:
    _, excluded = _backed_up(os.fsencode(repository), OPTIONS)
    excluded = [item for item in excluded if item[0] != b".git"]
    # check-ignore looks the type of a path up by itself
    asked = b"\0".join(path for path, _, _ in excluded) + b"\0"
    answer = _git(repository, "check-ignore", "--no-index", "-v", "-n", "-z", "--stdin", stdin=asked).split(b"\0")
    wrong = []
    for number, (path, _, reason) in enumerate(excluded):
        source, line = answer[4 * number], answer[4 * number + 1]
        assert answer[4 * number + 3] == path
        if not os.fsencode(reason).startswith(source + b":" + line + b": "):
            wrong.append((path, reason, source, line))
    assert wrong[:10] == []


def test_each_case_alone_with_its_first_lines_in_the_configuration(repository: Path) -> None:
    """The root's own lines are one list whether they stand in `exclude` or in the root's ignore file."""
    listed: dict[bytes, list[bytes]] = {}
    for path in _listed_by_git(repository):
        case, _, inner = path.partition(b"/")
        if inner:
            listed.setdefault(case, []).append(inner)
    for number in range(0, CASES, 5):
        case = b"case%04d" % number
        root = os.fsencode(repository) + b"/" + case
        own = root + b"/.gitignore"
        with open(own, "rb") as file:
            content = file.read()
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        half = len(lines) // 2
        try:
            with open(own, "wb") as file:
                file.write(b"\n".join(lines[half:]))
            options = WalkOptions(rules=Rules(lines[:half]), ignore_files=(b".gitignore",))
            ours, _ = _backed_up(root, options)
        finally:
            with open(own, "wb") as file:
                file.write(content)
        assert ours == sorted(listed.get(case, [])), (case, content)


@pytest.mark.slow
@pytest.mark.skipif("re2" not in sys.modules, reason="this is the engine that the tests above used")
def test_without_re2_the_answers_are_the_same(repository: Path) -> None:
    code = (
        "import sys; sys.modules['re2'] = None\n"
        "import os\n"
        "from tests_oracle import OPTIONS, _backed_up\n"
        "from s3hashsync.core import ignore\n"
        "assert ignore._BACKEND == 'simple'\n"
        "sys.stdout.buffer.write(b'\\0'.join(_backed_up(os.fsencode(sys.argv[1]), OPTIONS)[0]))\n"
    ).replace("tests_oracle", Path(__file__).stem)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code, str(repository)], capture_output=True, check=True, env=environment)
    assert done.stdout.split(b"\0") == _listed_by_git(repository)
