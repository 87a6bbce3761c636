"""Where tests keep their files, and how long one may take."""

from __future__ import annotations

import os

import pytest

from tests.memory import fast_folder

RAISED = ("S3HASHSYNC_SLOW", "S3HASHSYNC_KILLS", "S3HASHSYNC_LIVES", "S3HASHSYNC_ROUNDS")
LONG = 3600.0
INTEGRATION = 600.0


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
