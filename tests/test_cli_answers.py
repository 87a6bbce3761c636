"""What the commands answer where something is not as it should be: a run that was cut short, a place that is not the one it was,
a repository that cannot be written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from s3hashsync.disk.state_rows import FILE_NUMBER
from s3hashsync.errors import Interrupted, NoSpace
from s3hashsync.run.lease import read_source, write_facts
from s3hashsync.run.progress import Stop
from s3hashsync.stores.base import Attempt, Body, Stored
from s3hashsync.stores.sqlite import SqliteIndex
from tests.disks import fill, small_disk
from tests.faulty import Crash, Fault, FaultPlan, FaultyIndex, FaultyObjects, on
from tests.harness import SOURCE, House
from tests.program import Program


@pytest.fixture
def house(tmp_path: Path) -> House:
    made = House(tmp_path)
    made.init()
    return made


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as point:
        yield point


# status


def facts_of(house: House) -> tuple[int, int, bool]:
    with house.repository() as repository:
        facts = read_source(repository.index, SOURCE)
    assert facts is not None
    return facts.files, facts.size, facts.unfinished


class StopAfter(Stop):
    """Somebody presses Ctrl-C after the program has looked so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def __bool__(self) -> bool:
        self._looks -= 1
        return self._looks < 0


def acknowledged(house: House) -> tuple[int, int]:
    """By the local state."""
    with house.state() as state:
        sizes = [row.size for row in state.rows() if row.kind == FILE_NUMBER]
    return len(sizes), sum(sizes)


@pytest.mark.parametrize("looks", range(0, 60, 6))
def test_a_run_that_is_interrupted_says_what_it_has_stored(house: House, looks: int) -> None:
    for number in range(20):
        house.write(f"{number}.txt", f"content {number}")
    house.log_interval = 0
    house.stop = StopAfter(looks)
    try:
        house.backup()
    except Interrupted:
        if not house.state_path.exists() or not acknowledged(house)[0]:
            return
        assert facts_of(house) == (*acknowledged(house), True)
    house.again().backup()
    assert facts_of(house) == (20, sum(len(f"content {number}") for number in range(20)), False)


@pytest.mark.parametrize("nth", range(1, 8))
def test_a_run_that_dies_does_not_say_that_it_has_stored_everything(house: House, nth: int) -> None:
    """Also where it dies at the very end: then the next run, which has nothing to do, says so."""
    house.write("first.txt", "first")
    house.backup()
    for number in range(5):
        house.write(f"{number}.txt", f"content {number}")
    plan = FaultPlan([on("index.write", Fault.CRASH_BEFORE, nth)])
    dying = house.again(wrap=lambda objects, index: (FaultyObjects(objects, plan), FaultyIndex(index, plan)))
    with suppress(Crash):
        dying.backup()
    files, _, unfinished = facts_of(house)
    assert unfinished or files in (1, 6)
    assert files == 1 or not unfinished
    house.again().backup()
    assert facts_of(house) == (6, 50, False)


def test_a_run_that_finds_the_disk_full_says_what_it_has_stored(house: House) -> None:
    for number in range(5):
        house.write(f"{number}.txt", f"content {number}")
    house.log_interval = 0

    class Full(FaultyObjects):
        def put(self, stem: str, body: Body, attempt: Attempt) -> Stored:
            if len(list(self.versions("objects/"))) == 3:
                raise NoSpace("the disk is full")
            return super().put(stem, body, attempt)

    plan = FaultPlan()
    with pytest.raises(NoSpace):
        house.again(wrap=lambda objects, index: (Full(objects, plan), index)).backup()
    assert facts_of(house) == (*acknowledged(house), True)


def test_status_says_that_a_run_is_not_finished(program: Program) -> None:
    program("init")
    program("apply", "--yes")
    assert "cut short" not in program("status").stdout
    path = program.base / "repo" / "index.db"
    with closing(SqliteIndex(str(path))) as index:
        facts = read_source(index, "docs")
        assert facts is not None
        item = index.read(["source:docs"])["source:docs"]
        write_facts(index, replace(facts, files=0, size=0, unfinished=True), item.rev, os.urandom)
    assert "cut short" in program("status").stdout
    (line,) = [line for line in program.lines("status") if line["message_type"] == "source"]
    assert (line["files"], line["unfinished"]) == (0, True)
    program("apply", "--yes")
    assert "docs: 1 file, 2 B" in program("status").stdout
    assert "cut short" not in program("status").stdout


def test_a_rebuilt_index_knows_how_much_there_is(program: Program) -> None:
    program("init")
    program("apply", "--yes")
    said = program("status").stdout
    assert "1 file, 2 B" in said
    (program.base / "repo" / "index.db").unlink()
    program("rebuild", "--index", "--yes")
    assert "1 file, 2 B" in program("status").stdout


# Another host, and places that are not what they were


def test_planning_another_hosts_source_says_so(program: Program) -> None:
    program("init")
    program("apply", "--yes")
    assert "belongs to" not in program("plan").stderr
    config = program.base / "backup.yaml"
    config.write_text(config.read_text().replace("host: here", "host: there"))
    assert "docs belongs to host 'here'" in program("plan").stderr
    program("apply", "--yes", code=11)
    assert "--take-over" not in program("apply", "--yes", "--take-over").stderr


@pytest.fixture
def enrolled(program: Program) -> Program:
    """In an encrypted repository."""
    recipients = ", ".join(program("-q", "key", "generate", f"{n}.txt").stdout.strip() for n in range(2))
    config = program.base / "backup.yaml"
    config.write_text(config.read_text().replace("encryption: off", f"encryption: {{recipients: [{recipients}]}}"))
    program("init")
    return program


@pytest.mark.parametrize("emptied", [True, False])
def test_where_a_known_repository_is_gone_nobody_is_sent_to_init(enrolled: Program, emptied: bool) -> None:
    shutil.rmtree(enrolled.base / "repo")
    if emptied:
        (enrolled.base / "repo").mkdir()
    for words in (["plan"], ["apply", "--yes"], ["status"], ["restore", "--to", "out"], ["key", "list"], ["init"]):
        said = enrolled(*words, code=12).stderr
        assert "this host is enrolled in a repository" in said
        assert "is the disk mounted" in said
    assert (list((enrolled.base / "repo").iterdir()) == []) if emptied else not (enrolled.base / "repo").exists()


def test_a_refused_init_without_recipients_leaves_nothing(program: Program) -> None:
    config = program.base / "backup.yaml"
    config.write_text(config.read_text().replace("encryption: off", "encryption: {}"))
    assert "nobody who can open it" in program("init", code=2).stderr
    assert not (program.base / "repo").exists()


# doctor


def test_doctor_says_that_a_repository_cannot_be_written(tmp_path: Path, disk: Path, program: Program) -> None:
    config = tmp_path / "backup.yaml"
    config.write_text(config.read_text().replace(f"{tmp_path}/repo", f"{disk}/repo"))
    program("init")
    before = {path: path.stat().st_mtime_ns for path in disk.rglob("*") if path.is_file() and "index" not in path.name}
    assert "can be written" in program("doctor", "-v").stdout
    after = {path: path.stat().st_mtime_ns for path in disk.rglob("*") if path.is_file() and "index" not in path.name}
    assert before == after
    fill(disk)
    assert "no space left" in program("doctor", code=4).stdout
    (disk / "fill").unlink()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert program("doctor", code=4).stdout.count("no backup can be written") == 2


# restore


def test_the_estimate_of_a_restore_counts_whole_frames(program: Program) -> None:
    for number in range(40):
        (program.docs / f"{number}").write_bytes(os.urandom(20_000))
    program("init")
    program("apply", "--yes")
    for selection in (["docs:7"], ["docs:7", "docs:8"], ["docs"]):
        said = program("restore", *selection, "--to", "out" + selection[-1][-1]).stdout
        estimate, fetched = re.findall(r"fetche[sd] ([0-9.]+ \w+)", said)
        assert estimate == fetched, selection
