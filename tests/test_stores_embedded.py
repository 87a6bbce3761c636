"""The embedded stores under the conformance suites, and what only they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3hashsync.stores.local import LocalObjects
from s3hashsync.stores.sqlite import SqliteIndex
from tests.conformance.index import IndexSuite, MakeIndex
from tests.conformance.objects import MakeObjects, ObjectStoreSuite


class TestLocalObjects(ObjectStoreSuite):
    keeps_storage_class = False
    resumes = False

    @pytest.fixture
    def make_objects(self, tmp_path: Path) -> MakeObjects:
        return lambda: LocalObjects(str(tmp_path / "repository"), create=True)


class TestSqliteIndex(IndexSuite):
    @pytest.fixture
    def make_index(self, tmp_path: Path) -> MakeIndex:
        return lambda: SqliteIndex(str(tmp_path / "index.db"), create=True)
