"""Whatever a file holds, loading it gives a Config or a ConfigError with at least one fault, and nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from s3hashsync.config import Config, load, parse_duration, parse_size
from s3hashsync.errors import ConfigError, Fault, UsageError

CASES = sorted((Path(__file__).parent / "config_cases").glob("*.yaml"))
VALID = Path(__file__).parent.parent / "backup.yaml.example"
ENVIRON = {"HOME": "/home/user", "A": "a"}

# What YAML, the variables and the keys are made of: plain random text hardly ever gets past the first character.
SYNTAX = """
version repository objects index sources name path exclude exclude_regex compare encryption off 1 30d 5MiB ~ null
s3://b dynamodb://t file:///x &a *a <<: !!int !!set !!str !x ${A} ${B} ${A:-x} ${ $$ - ? | > [ ] { } , : " ' # --- ...
age1replacemereplacemereplacemereplacemereplacemereplacq6pn0et AGE-SECRET-KEY-1NEVER 8MiB 64MiB 600MiB
%YAML %TAG 0x_ 0b 1:30 .nan -.inf \\UFFFFFFFF \\ud800 \\0 @ ` = _
"""
KEYS = """
version repository objects index endpoints s3 pack below size access_key_id session_token env command file
encryption recipients passphrase identity host_key host sources name path exclude exclude_regex compare
exclude_larger_than uploads threads verify guards mass_change_share log_interval keep_deleted storage_class
"""
FRAGMENTS = st.sampled_from(SYNTAX.split())
SPACES = st.sampled_from(["\n", " ", "  ", "\n  ", "\n  - ", ": ", "\t", "\r", "\u2028", "\x85", ""])
YAMLISH = st.lists(st.one_of(FRAGMENTS, SPACES, st.text(max_size=3)), max_size=40).map("".join)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), FRAGMENTS, st.just(10**400))
SCHEMA_KEYS = st.sampled_from(KEYS.split())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(SCHEMA_KEYS, FRAGMENTS), inner, max_size=6)),
    max_leaves=25,
)
# The folder is the same for all examples on purpose: each of them writes the whole file anew.
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def load_raw(folder: Path, raw: bytes) -> None:
    path = folder / "backup.yaml"
    path.write_bytes(raw)
    config, faults = load_or_faults(path)
    if config is None:
        assert faults
        assert all(fault.line >= 1 and fault.column >= 1 and fault.message for fault in faults)
    else:
        assert config.sources
        assert all(source.name and source.path.startswith("/") for source in config.sources)
        pack = config.repository.pack
        assert pack is None or 0 < pack.below <= pack.size


def load_or_faults(path: Path) -> tuple[Config | None, Sequence[Fault]]:
    try:
        return load(str(path), ENVIRON, "box"), ()
    except ConfigError as error:
        return None, error.faults


@RELAXED
@given(raw=st.binary(max_size=60))
@example(raw=b'"\\UFFFFFFFF"')
@example(raw=b"!!int ''")
def test_any_bytes(tmp_path: Path, raw: bytes) -> None:
    load_raw(tmp_path, raw)


@RELAXED
@given(text=YAMLISH)
def test_any_text_that_looks_like_yaml(tmp_path: Path, text: str) -> None:
    load_raw(tmp_path, text.encode("utf-8", "surrogatepass"))


@RELAXED
@given(value=st.dictionaries(SCHEMA_KEYS, VALUES, max_size=8))
def test_any_document_with_our_keys(tmp_path: Path, value: object) -> None:
    load_raw(tmp_path, json.dumps(value).encode())


GROUPS = st.fixed_dictionaries(
    {},
    optional={
        "encryption": st.one_of(SCALARS, st.dictionaries(SCHEMA_KEYS, VALUES, max_size=5)),
        "uploads": st.one_of(SCALARS, st.dictionaries(st.sampled_from(["threads", "verify"]), SCALARS)),
    },
)
SIZES = st.sampled_from(["0B", "1B", "100KiB", "1MiB", "30MiB", "64MiB", "65MiB", "512MiB", "1GiB", 5, None, ""])
PACKS = st.one_of(SCALARS, st.dictionaries(st.sampled_from(["below", "size"]), SIZES))
CLASSES = st.sampled_from(["STANDARD", "GLACIER", "DEEP_ARCHIVE", "none"])


@RELAXED
@given(groups=GROUPS, pack=PACKS, storage_class=CLASSES)
def test_any_packs_and_any_encryption(tmp_path: Path, groups: dict[str, object], pack: object, storage_class: str) -> None:
    repository = {"objects": "/b", "pack": pack, "storage_class": storage_class}
    sources = [{"name": "docs", "path": "/d"}]
    load_raw(tmp_path, json.dumps({"version": 1, "repository": repository, "sources": sources, **groups}).encode())


@RELAXED
@given(data=st.data(), insert=st.one_of(FRAGMENTS, SPACES))
def test_a_good_file_damaged_anywhere(tmp_path: Path, data: st.DataObject, insert: str) -> None:
    text = data.draw(st.sampled_from([VALID, *CASES])).read_bytes()
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 5))
    load_raw(tmp_path, text[:at] + insert.encode("utf-8", "surrogatepass") + text[at + cut :])


@given(text=st.text(max_size=12), parse=st.sampled_from([parse_duration, parse_size]))
def test_quantities_are_parsed_or_refused(text: str, parse: Callable[[str], int]) -> None:
    with contextlib.suppress(UsageError):
        assert parse(text) >= 0


@given(number=st.integers(0, 1000), unit=st.sampled_from("smhdwy"))
def test_longer_is_more(number: int, unit: str) -> None:
    assert parse_duration(f"{number}{unit}") == number * parse_duration(f"1{unit}")


@pytest.mark.parametrize("levels", [5, 30, 2_000])
def test_alias_bombs_end_soon(tmp_path: Path, levels: int) -> None:
    """Lists, groups and merges that double at every level."""
    for line in ("[*a{0}, *a{0}]", "{{x: *a{0}, y: *a{0}}}", "{{<<: [*a{0}, *a{0}]}}"):
        lines = ["a0: &a0 {z: 1}", *(f"a{n}: &a{n} {line.format(n - 1)}" for n in range(1, levels))]
        load_raw(tmp_path, "\n".join(lines).encode())
