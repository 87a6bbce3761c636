"""Exclude rules: the cases of the manual, the line that decides, negations that never act, odd names and sizes."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3hashsync.core.ignore import (
    NOT_EXCLUDED,
    DeadNegation,
    Rule,
    Rules,
    Verdict,
    dead_negations,
    split_lines,
)

CASES = Path(__file__).parent / "ignore_cases" / "cases.txt"
GIT = shutil.which("git")


@dataclass
class Case:
    title: str
    exclude: list[bytes] = field(default_factory=list)
    files: dict[bytes, list[bytes]] = field(default_factory=dict)
    paths: dict[bytes, bool] = field(default_factory=dict)


def _cases() -> list[Case]:
    cases: list[Case] = []
    for line in CASES.read_bytes().split(b"\n"):
        word, _, rest = line.partition(b" ")
        if word == b"==":
            cases.append(Case(rest.decode()))
        elif word == b"exclude":
            cases[-1].exclude.append(rest)
        elif word == b"file":
            path, _, text = rest.partition(b" ")
            cases[-1].files.setdefault(path, []).append(text)
        elif word in (b"+", b"-"):
            cases[-1].paths[rest] = word == b"+"
    return cases


def backed_up(rules: Rules, files: dict[bytes, list[bytes]], path: bytes) -> bool:
    """As the walk asks: each folder from the top, with its ignore file, then the file."""
    names = path.split(b"/")
    for depth in range(len(names)):
        folder = b"/".join(names[:depth])
        own = folder + b"/.gitignore" if folder else b".gitignore"
        if own in files:
            rules = rules.enter(folder, [(b".gitignore", b"\n".join(files[own]))])
        if rules.excluded(b"/".join(names[: depth + 1]), is_dir=depth < len(names) - 1):
            return False
    return True


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.title)
def test_case(case: Case) -> None:
    rules = Rules(case.exclude)
    assert {path: backed_up(rules, case.files, path) for path in case.paths} == case.paths


@pytest.mark.skipif(GIT is None, reason="git is the oracle")
@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.title)
def test_git_agrees(case: Case, tmp_path: Path) -> None:
    subprocess.run([str(GIT), "init", "-q", str(tmp_path)], check=True, capture_output=True)
    (tmp_path / ".git" / "info").mkdir(exist_ok=True)
    (tmp_path / ".git" / "info" / "exclude").write_bytes(b"".join(line + b"\n" for line in case.exclude))
    root = os.fsencode(tmp_path)
    contents = dict.fromkeys(case.paths, b"") | {p: b"\n".join(lines) for p, lines in case.files.items()}
    for path, content in contents.items():
        os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
        with open(os.path.join(root, path), "wb") as file:
            file.write(content)
    command = [str(GIT), "-c", "core.excludesFile=", "ls-files", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout.split(b"\0")
    assert {path: path in listed for path in case.paths} == case.paths


def test_the_verdict_names_the_line() -> None:
    rules = Rules(["# mine", "*.tmp", "!keep.tmp"], ["~$", "^secret/"])
    inner = rules.enter(b"sub", [(b".gitignore", b"\n*.bak\n"), (b".backupignore", b"!old.bak")])
    assert rules.verdict(b"a.tmp", is_dir=False) == Verdict(True, Rule("*.tmp", "exclude", 2))
    assert rules.verdict(b"keep.tmp", is_dir=False) == Verdict(False, Rule("!keep.tmp", "exclude", 3))
    assert rules.verdict(b"keep.tmp~", is_dir=False) == Verdict(True, Rule("~$", "exclude_regex", 1))
    assert inner.verdict(b"sub/x.bak", is_dir=False) == Verdict(True, Rule("*.bak", "sub/.gitignore", 2))
    assert inner.verdict(b"sub/old.bak", is_dir=False) == Verdict(False, Rule("!old.bak", "sub/.backupignore", 1))
    assert inner.verdict(b"sub/x.tmp", is_dir=False).excluded
    assert rules.verdict(b"other", is_dir=False) == NOT_EXCLUDED
    assert str(Rule("*.bak", "sub/.gitignore", 2)) == "sub/.gitignore:2: *.bak"


def test_entering_changes_nothing_above_and_costs_nothing_without_patterns() -> None:
    rules = Rules(["*.o"])
    inner = rules.enter(b"x", [(b".gitignore", b"*.txt")])
    assert inner.excluded(b"x/a.txt", is_dir=False)
    assert not rules.excluded(b"x/a.txt", is_dir=False)
    assert rules.enter(b"x", [(b".gitignore", b"# nothing\n\n")]) is rules
    assert Rules().empty
    assert Rules(["# nothing", ""]).empty
    assert not Rules([], ["x"]).empty
    assert not inner.empty


def test_a_regex_always_excludes_and_sees_text() -> None:
    rules = Rules(["!*"], [r"\.~lock\..*#$", "^d\u00e9j\u00e0/."])
    assert rules.excluded(b"x/.~lock.a.odt#", is_dir=False)
    assert rules.excluded("d\u00e9j\u00e0/vu".encode(), is_dir=True)
    assert not rules.excluded("d\u00e9j\u00e0".encode(), is_dir=True)
    assert not rules.excluded(b"x/\xff", is_dir=False)


def test_names_that_are_not_utf_8() -> None:
    rules = Rules([b"\xff*", "caf\u00e9", "\udc80x", "[\u00e9]z"])
    assert rules.excluded(b"d/\xff\xfe", is_dir=False)
    assert rules.excluded("caf\u00e9".encode(), is_dir=False)
    assert rules.excluded(b"\x80x", is_dir=False)
    assert rules.excluded(b"\xa9z", is_dir=False)  # a class is one byte, as in git
    assert not rules.excluded(b"caf\xe9", is_dir=False)


@pytest.mark.parametrize("count", [399, 400, 401, 5000])
def test_many_patterns(count: int) -> None:
    """More than fit into one compiled set; later ones win over earlier ones across the sets."""
    lines = [f"/some/folder/name-{number}*" for number in range(count)]
    rules = Rules([*lines, "!/some/folder/name-1"])
    for number in (0, 2, count // 2, count - 1):
        assert rules.excluded(b"some/folder/name-%d" % number, is_dir=False)
    assert not rules.excluded(b"some/folder/name-1", is_dir=False)
    assert not rules.excluded(b"some/folder/other", is_dir=False)
    verdict = rules.verdict(b"some/folder/name-%d" % (count - 1), is_dir=False)
    assert verdict.rule is not None
    assert verdict.rule.line <= count


def test_a_pattern_of_many_stars_ends() -> None:
    rules = Rules(["*a*a*a*a*b", "a**/**/**/**/c"])
    assert not rules.excluded(b"a" * 60, is_dir=False)


@pytest.mark.parametrize(
    "line",
    ["?" * 8192, "[!a]" * 2048, "a" * 8192, "**/" * 2700 + "x", "*?" * 4000, "*a" * 4000, "x" * 1_000_000, "?/**/a/" * 1000],
)
def test_no_line_is_too_much(line: str) -> None:
    """Ignore files come with the tree: no line of theirs may stop the backup."""
    rules = Rules(["first", line, "last", *["?" * 200 + str(number) for number in range(300)]])
    assert rules.excluded(b"last", is_dir=False)
    assert rules.excluded(b"first", is_dir=False)
    assert not rules.excluded(b"a/b/c", is_dir=False)


def test_lines_of_a_file() -> None:
    assert split_lines(b"\xef\xbb\xbfa\nb") == (b"a", b"b")
    assert Rules().enter(b"", [(b"i", b"\xef\xbb\xbf*.o\r\n*.x")]).excluded(b"a.o", is_dir=False)


@pytest.mark.parametrize(
    ("exclude", "dead"),
    [
        (["/cache/", "!/cache/keep/"], [(2, b"cache", 1)]),
        (["/cache/*", "!/cache/keep/"], []),
        (["!/cache/keep/", "/cache/"], [(1, b"cache", 2)]),
        (["/*", "!/src/keep"], [(2, b"src", 1)]),
        (["/*", "!/src", "/src/*", "!/src/keep"], []),
        (["/a/b/", "!/a/b/c/d*"], [(2, b"a/b", 1)]),
        (["*", "!x/**/y"], [(2, b"x", 1)]),
        (["*.d/", "!/conf.d/keep"], [(2, b"conf.d", 1)]),
        (["*.d", "!/conf.d/", "!/conf.d/keep"], []),
        (["/cache/", "!keep"], []),
        (["/cache/", "!*/keep"], []),
        (["/cache/", "!/cach[e]/keep"], []),
        (["cache/file", "!/cache/file"], []),
        (["/cache", "!/cache"], []),
        (["# /cache/", "!/cache/keep"], []),
    ],
)
def test_negations_that_never_act(exclude: list[str], dead: list[tuple[int, bytes, int]]) -> None:
    expected = [
        DeadNegation(Rule(exclude[n - 1], "exclude", n), folder, Rule(exclude[by - 1], "exclude", by)) for n, folder, by in dead
    ]
    assert dead_negations(exclude) == expected


@given(st.binary(max_size=12), st.binary(min_size=1, max_size=12), st.booleans())
def test_any_line_and_any_name(line: bytes, name: bytes, is_dir: bool) -> None:
    rules = Rules([line.replace(b"\n", b"")])
    path = name.replace(b"\0", b"x")
    assert rules.excluded(path, is_dir=is_dir) is rules.verdict(path, is_dir=is_dir).excluded
