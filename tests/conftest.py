"""Where tests keep their files, the folder that goes when a test does, and how long one may take."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.memory import fast_folder

RAISED = ("S3HASHSYNC_SLOW", "S3HASHSYNC_KILLS", "S3HASHSYNC_LIVES", "S3HASHSYNC_ROUNDS", "S3HASHSYNC_WORLDS")
LONG = 3600.0
INTEGRATION = 600.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """Goes with the test: pytest keeps those of the last runs, and memory is dear."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        yield Path(name)


def pytest_configure(config: pytest.Config) -> None:
    """In memory, where there is such a folder: waiting for a disk takes most of the time of thousands of small syncs."""
    folder = fast_folder()
    if folder is not None and config.getoption("basetemp") is None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What pyproject.toml says is for the usual tests: who asks for more repetitions has more patience."""
    raised = any(os.environ.get(name) for name in RAISED)
    for item in items:
        if raised:
            item.add_marker(pytest.mark.timeout(LONG))
        elif "integration" in item.path.parts:
            item.add_marker(pytest.mark.timeout(INTEGRATION))
