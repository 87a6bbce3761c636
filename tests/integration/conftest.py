"""Servers for the integration tests: each starts once and serves them all.

These tests are collected only when they are asked for (`pytest -m integration`, as `make integration` does).
A server that is not installed is then an error, never a skip.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.install_servers import tools_folder

HERE = Path(__file__).parent
# The tools in the versions that were installed for these tests.
os.environ["PATH"] = f"{tools_folder()}:{os.environ['PATH']}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    wanted = str(config.getoption("-m", ""))
    asked_for = "integration" in wanted and "not integration" not in wanted
    return None if asked_for else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def versitygw() -> Iterator[str]:
    with servers.versitygw() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def dynamodb_local() -> Iterator[str]:
    with servers.dynamodb_local() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def ministack() -> Iterator[str]:
    with servers.ministack() as endpoint:
        yield endpoint
