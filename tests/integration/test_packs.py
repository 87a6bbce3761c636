"""How many requests packs cost, counted by the server: versitygw's own log of what it was asked for."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.cloud import PACKS, SEALED_PACKS, Cloud
from tests.program import Program
from tests.recovery import picture

FILES, SIZE = 3000, 8 << 10
MIB = 1 << 20
PACK = 8 * MIB
_REQUEST = re.compile(r"\bs3_(?P<operation>\w+) (?P<key>.*?) /(?P<bucket>[^/? ]*)")


class AccessLog:
    """What the server was asked for since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = 0

    def requests(self, bucket: str) -> Counter[str]:
        """By operation and kind of key: `GetObject packs`."""
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        new, self._seen = lines[self._seen :], len(lines)
        found = (_REQUEST.search(line) for line in new)
        return Counter(f"{m['operation']} {_kind(m['key'])}" for m in found if m and m["bucket"] == bucket)


def _kind(key: str) -> str:
    return key.removeprefix("home/").partition("/")[0]


class Filled:
    """A backup of many small files that hardly shrink, and what it cost."""

    def __init__(self, cloud: Cloud, log: AccessLog, folder: Path) -> None:
        self.cloud, self.log = cloud, log
        self.host: Program = cloud.host(folder / "host", "a", "docs")
        noise = random.Random(1)
        for number in range(FILES):
            path = self.host.docs / f"d{number % 30}" / f"f{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(noise.randbytes(SIZE))
        self.host("init", "--yes")
        log.requests(cloud.bucket)
        self.apply = self.host.lines("apply", "--yes")[-1]
        self.asked = log.requests(cloud.bucket)
        self.packs = len(cloud.versions("packs/"))
        self.stored = sum(len(cloud.read(stem, version)) for stem, (version,) in cloud.versions("packs/").items())
        log.requests(cloud.bucket)

    def restore(self, selection: str, to: str) -> tuple[dict[str, object], Counter[str]]:
        """What the program says of it, and what the server was asked for."""
        said = self.host.lines("restore", selection, "--to", to, *self.cloud.opening)[-1]
        asked = self.log.requests(self.cloud.bucket)
        gets = asked["GetObject packs"] + asked["GetObject objects"]
        assert said["requests"] == gets, "the program counts what the server counts"
        return said, asked


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, AccessLog]]:
    log = AccessLog(tmp_path_factory.mktemp("versitygw") / "access.log")
    with servers.versitygw(access_log=log.path) as endpoint:
        yield endpoint, log


@pytest.fixture(scope="module", params=[PACKS, SEALED_PACKS], ids=str)
def filled(
    request: pytest.FixtureRequest,
    logged: tuple[str, AccessLog],
    dynamodb_local: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Filled:
    endpoint, log = logged
    folder = tmp_path_factory.mktemp("filled")
    cloud = Cloud((endpoint, dynamodb_local), request.param, folder, pack=f"{{below: 256KiB, size: {PACK // MIB}MiB}}")
    return Filled(cloud, log, folder)


def test_many_files_go_in_few_puts(filled: Filled) -> None:
    assert filled.stored >= FILES * SIZE
    assert filled.asked["PutObject packs"] == filled.packs == filled.apply["objects_put"]
    assert filled.packs <= -(-filled.stored // PACK)
    assert filled.asked["PutObject objects"] == 0
    # Every other one is a run log, or a question that does not depend on how many files there are.
    assert sum(filled.asked.values()) <= filled.packs + 20, filled.asked


def test_many_files_come_back_in_few_gets(filled: Filled) -> None:
    said, asked = filled.restore("docs", "out")
    assert asked["GetObject packs"] <= -(-filled.stored // PACK) + filled.packs
    assert asked["GetObject objects"] == 0
    assert asked["GetObject runs"] == filled.asked["PutObject runs"], "each segment is fetched once"
    # The headers of packs are read with what follows them, and nothing is read twice.
    assert int(str(said["bytes_fetched"])) <= filled.stored + filled.packs * 64 * 1024
    assert picture(filled.host.base / "out") == picture(filled.host.docs)


def test_a_folder_comes_from_where_it_lies(filled: Filled) -> None:
    said, asked = filled.restore("docs:d7", "folder")
    assert said["files_restored"] == FILES // 30
    # They lie one behind the other: at most in two packs, each with a header.
    assert asked["GetObject packs"] <= 4
    assert int(str(said["bytes_fetched"])) < FILES // 30 * SIZE + 2 * 1.3 * MIB
    assert picture(filled.host.base / "folder" / "d7") == picture(filled.host.docs / "d7")


def test_files_from_all_over_never_cost_more_than_everything(filled: Filled) -> None:
    said, asked = filled.restore("docs:**/f*7", "part")
    assert said["files_restored"] == FILES // 10
    assert asked["GetObject packs"] <= -(-filled.stored // PACK) + filled.packs
    assert int(str(said["bytes_fetched"])) <= filled.stored + filled.packs * 64 * 1024


@pytest.mark.parametrize("number", [0, 1500, FILES - 1])
def test_one_file_takes_at_most_three_small_gets(filled: Filled, number: int) -> None:
    path = f"d{number % 30}/f{number}"
    said, asked = filled.restore(f"docs:{path}", f"one-{number}")
    assert 1 <= asked["GetObject packs"] <= 3
    assert int(str(said["bytes_fetched"])) < 1.3 * MIB
    assert (filled.host.base / f"one-{number}" / path).read_bytes() == (filled.host.docs / path).read_bytes()
