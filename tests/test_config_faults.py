"""Every kind of fault: `config_cases/NAME.yaml` is loaded, and `NAME.faults` says what is reported, with hints.

After a change of words: `python tests/test_config_faults.py` writes the `.faults` files again; read their diff.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from s3hashsync.config import load
from s3hashsync.errors import ConfigError, ExitCode

CASES = Path(__file__).parent / "config_cases"
WITH_SECRETS = sorted([*CASES.glob("credentials*.yaml"), *CASES.glob("encryption*.yaml")])
ENVIRON = {"HOME": "/home/user", "EMPTY": "", "EIGHT": "8"}


def report(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(str(path), ENVIRON, "box")
    lines = []
    for fault in caught.value.faults:
        lines.append(str(fault))
        if fault.hint:
            lines.append(f"    {fault.hint}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("case", sorted(CASES.glob("*.yaml")), ids=lambda case: case.stem)
def test_the_faults_of_a_file(case: Path) -> None:
    assert report(case) == case.with_suffix(".faults").read_text(encoding="utf-8")


def test_no_case_is_without_its_file() -> None:
    assert {case.stem for case in CASES.glob("*.faults")} == {case.stem for case in CASES.glob("*.yaml")} != set()


@pytest.mark.parametrize("case", WITH_SECRETS, ids=lambda case: case.stem)
@pytest.mark.parametrize("secret", ["1234567890", "t0k3n", "s3cr3t", "'show", "nevernever"])
def test_no_fault_repeats_a_secret(case: Path, secret: str) -> None:
    assert secret not in report(case).lower()


def test_a_missing_file(tmp_path: Path) -> None:
    assert report(tmp_path / "backup.yaml").startswith("there is no such file\n    name another with -c")


def test_a_folder(tmp_path: Path) -> None:
    assert report(tmp_path) == f"this is a folder, not a file\n    name the file in it: {tmp_path}/backup.yaml\n"


def test_an_impossible_name() -> None:
    with pytest.raises(ConfigError) as caught:
        load("a\0b", ENVIRON, "box")
    assert [str(fault) for fault in caught.value.faults] == ["no file can have this name"]


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "backup.yaml"
    path.write_text("#" * (1024 * 1024 + 1))
    assert report(path) == "the file is larger than 1 MiB\n"


def test_a_long_variable_repeated_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "backup.yaml"
    path.write_text("version: 1\nrepository: {objects: /b}\nsources: [{name: a, path: '" + "${X}" * 10_000 + "'}]\n")
    with pytest.raises(ConfigError) as caught:
        load(str(path), {"X": "x" * 100_000}, "box")
    assert "too long once its variables are replaced" in str(caught.value.faults[0])


def test_the_error_counts_its_faults_and_is_one_of_usage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(CASES / "names_twice.yaml"), ENVIRON, "box")
    assert caught.value.message.endswith("names_twice.yaml: 1 fault in the configuration")
    assert caught.value.exit_code == ExitCode.USAGE


if __name__ == "__main__":
    for case in CASES.glob("*.yaml"):
        case.with_suffix(".faults").write_text(report(case), encoding="utf-8")
