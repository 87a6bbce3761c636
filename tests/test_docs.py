"""The manual against the program: commands are run exactly as printed, and what `--help` shows is described.

A block that begins with ```sh is run; ```console and ```text are for people. (The page on recovery is run by `test_recovery.py`.)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest
import yaml

from s3hashsync.cli.app import cli
from s3hashsync.stores.iam import Place, Role, policy
from tests.recovery import script_of

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture
def environment(tmp_path: Path) -> Mapping[str, str]:
    """A home of its own, and `s3hashsync` on PATH."""
    home, programs = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    programs.mkdir()
    shim = programs / "s3hashsync"
    shim.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m s3hashsync "$@"\n')
    shim.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "XDG_", "S3HASHSYNC_"))}
    return kept | {"HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}


def run(script: str, environment: Mapping[str, str], cwd: Path) -> str:
    done = subprocess.run(
        ["bash", "-eu", "-c", script], env=environment, cwd=cwd, capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


# Run as printed


@needs_bash
def test_quick_start_runs_as_printed(environment: Mapping[str, str], tmp_path: Path) -> None:
    said = run(script_of(ROOT / "README.md"), environment, tmp_path)
    sample = re.search(
        r"^## What the plan shows\n+```text\n.*?\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert sample is not None
    assert sample[1] in said
    assert "\nthe same\n" in said
    assert said.rstrip().endswith("the same again")


# What --help shows is described


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli, info_name="s3hashsync")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command


def common_options() -> set[str]:
    return {option for parameter in cli.params if isinstance(parameter, click.Option) for option in parameter.opts}


def section(name: str) -> str:
    text = (DOCS / "commands.md").read_text()
    match = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"docs/commands.md has no section {name!r}"
    return match[1]


def test_every_command_and_option_is_described() -> None:
    shared = section("Options of every command")
    for option in sorted(common_options()):
        assert f"`{option}" in shared, option
    missing = []
    for name, command in commands():
        said = section(name)
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                names = [*parameter.opts, *parameter.secondary_opts]
                missing += [f"{name} {o}" for o in names if o not in common_options() and f"`{o}" not in said]
    assert not missing


def test_no_command_is_described_that_is_not_there() -> None:
    text = (DOCS / "commands.md").read_text()
    there = {name for name, _ in commands()}
    described = {title for title in re.findall(r"^## (.*)$", text, re.MULTILINE) if title.islower() and " " not in title}
    assert described == there


def test_no_option_is_described_that_is_not_there() -> None:
    for name, command in commands():
        known = {o for p in command.params if isinstance(p, click.Option) for o in [*p.opts, *p.secondary_opts]}
        known |= common_options() | {"--help", "-h"}
        rows = re.findall(r"^\| `(-[^`]*)`", section(name), re.MULTILINE)
        for row in rows:
            assert {part.split(" ")[0] for part in row.split(", ")} <= known, f"{name}: {row}"


@needs_bash
def test_the_readme_shows_help_as_it_is(environment: Mapping[str, str], tmp_path: Path) -> None:
    said = run("s3hashsync --help", {**environment, "COLUMNS": "80"}, tmp_path)
    block = re.search(r"^## Commands\n.*?^```text\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    assert block[1] == said


def test_the_readme_shows_the_backup_policy_as_it_is() -> None:
    blocks = re.findall(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert policy(Role.BACKUP, Place("my-backups", "home", "my-backups")) + "\n" in blocks


# The pages themselves


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target) if target else page
        assert file.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_json_blocks_are_json(page: Path) -> None:
    for block in re.findall(r"^```json\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        json.loads(block)


@pytest.mark.parametrize("file", ["compose.yaml", "docs/pipelines/github-actions.yml", "docs/pipelines/gitlab-ci.yml"])
def test_pipelines_are_yaml(file: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / file).read_text()), dict)


@needs_bash
def test_the_configuration_in_compose_is_valid(environment: Mapping[str, str], tmp_path: Path) -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    (tmp_path / "backup.yaml").write_text(compose["configs"]["backup"]["content"])
    run("s3hashsync validate", environment, tmp_path)


@needs_bash
@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "aws.md"], ids=lambda page: page.name)
def test_configurations_of_the_manual_are_valid(page: Path, environment: Mapping[str, str], tmp_path: Path) -> None:
    """Whole files; excerpts have no version."""
    for block in re.findall(r"^ *```yaml\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
        body = yaml.safe_load(block)
        if "version" in body:
            (tmp_path / "backup.yaml").write_text(yaml.safe_dump(body))
            run("s3hashsync validate", environment, tmp_path)
