"""The schema is the single description: the manual, the example file and the code say the same as it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import config_table
import pytest
import yaml
from jsonschema import Draft202012Validator

from s3hashsync.config import EncryptionSettings, FolderUrl, PackSettings, load, schema_text

ROOT = Path(__file__).parent.parent
KEYS = config_table.all_keys()
MANUAL_EXAMPLES = re.findall(r"^```yaml\n(version: 1\n.*?)^```", config_table.MANUAL.read_text("utf-8"), re.M | re.S)


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(json.loads(schema_text()))


def test_the_schema_of_a_checkout_is_the_one_that_is_packaged() -> None:
    assert schema_text() == (ROOT / "schema" / "backup.schema.json").read_text("utf-8")
    forced = '"schema/backup.schema.json" = "s3hashsync/backup.schema.json"'
    assert forced in (ROOT / "pyproject.toml").read_text("utf-8")


@pytest.mark.parametrize(("key", "part"), [(key, part) for key, part, _ in KEYS], ids=[key for key, _, _ in KEYS])
def test_every_key_is_described_and_its_examples_and_default_fit(key: str, part: config_table.Schema) -> None:
    assert part["description"].endswith(".")
    assert part["title"]
    assert part["examples"]
    fits = Draft202012Validator({**part, "$defs": json.loads(schema_text())["$defs"]})
    for example in [*part["examples"], *([part["default"]] if "default" in part else [])]:
        assert fits.is_valid(example), f"{key}: {example}"


def test_the_table_in_the_manual_is_that_of_the_schema() -> None:
    """If this fails: python tests/config_table.py."""
    _, written, _ = config_table.split_manual(config_table.MANUAL.read_text("utf-8"))
    assert written == config_table.table()


def test_the_table_has_a_row_for_every_key() -> None:
    rows = [line.split("`")[1] for line in config_table.table().splitlines()[2:]]
    assert rows == [key for key, _, _ in KEYS]
    assert {"version", "repository.endpoints.s3", "sources[].compare", "guards.mass_change_share"} <= set(rows)


def test_defaults_of_the_schema_are_those_of_the_code(tmp_path: Path) -> None:
    """A file that spells every default out comes to the same as one that says nothing."""
    groups: dict[str, dict[str, object]] = {"": {}, "repository": {}, "uploads": {}, "guards": {}, "sources[]": {}}
    for key, part, _ in KEYS:
        if "default" in part:
            group, _, name = key.rpartition(".")
            groups[group][name] = part["default"]
    short = {"version": 1, "repository": {"objects": "/b"}, "sources": [{"name": "docs", "path": "/d"}]}
    spelled = {
        **groups[""],
        "version": 1,
        "repository": {"objects": "/b", **groups["repository"]},
        "sources": [{"name": "docs", "path": "/d", **groups["sources[]"]}],
        "uploads": groups["uploads"],
        "guards": groups["guards"],
    }
    path = tmp_path / "backup.yaml"
    path.write_text(json.dumps(short))
    expected = load(str(path), {}, "box")
    path.write_text(json.dumps(spelled))
    assert load(str(path), {}, "box") == expected
    assert sum(len(group) for group in groups.values()) == sum("default" in part for _, part, _ in KEYS) > 10


def test_the_example_file_loads() -> None:
    config = load(str(ROOT / "backup.yaml.example"), {"HOME": "/home/user"}, "box")
    assert config.repository.objects == FolderUrl("/home/user/backups/s3hashsync")
    assert [source.path for source in config.sources] == ["/home/user/Documents"]
    assert config.encryption == "off"


def test_what_the_example_file_comments_out_loads_too(tmp_path: Path) -> None:
    """The S3 variant instead of the folder, encryption, and the second source."""
    text = (ROOT / "backup.yaml.example").read_text("utf-8")
    folder = re.search(r"^repository:\n(  .*\n)+", text, re.M)
    assert folder is not None
    text = text.replace(folder[0], "")
    text = text.replace("\nencryption: off", "")
    text = re.sub(r"^# (repository:|encryption:|  \w+:|    - age1)", r"\1", text, flags=re.M)
    text = re.sub(r"^  # (- name|  )", r"  \1", text, flags=re.M)
    path = tmp_path / "backup.yaml"
    path.write_text(text)
    config = load(str(path), {"HOME": "/home/user"}, "box")
    assert str(config.repository.objects) == "s3://my-backups/home"
    assert str(config.repository.index) == "dynamodb://my-backups"
    assert [source.name for source in config.sources] == ["documents", "pictures"]
    assert config.sources[1].exclude_larger_than == 4 * 2**30
    assert config.repository.pack == PackSettings(8 * 2**20, 64 * 2**20)
    assert isinstance(config.encryption, EncryptionSettings)
    assert len(config.encryption.recipients) == 2


@pytest.mark.parametrize("number", range(3))
def test_the_examples_of_the_manual_load(tmp_path: Path, number: int) -> None:
    path = tmp_path / "backup.yaml"
    path.write_text(MANUAL_EXAMPLES[number])
    config = load(str(path), {"HOME": "/home/user"}, "box")
    written = yaml.safe_load(MANUAL_EXAMPLES[number])["encryption"]
    assert config.encryption == (EncryptionSettings(tuple(written["recipients"])) if written else "off")


def test_the_manual_has_three_whole_examples() -> None:
    assert len(MANUAL_EXAMPLES) == 3
