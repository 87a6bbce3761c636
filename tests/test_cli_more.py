"""What people run into by accident: odd streams, odd places for output, and sources that hold the program's own files."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s3hashsync.cli.render import totals_line
from s3hashsync.core.plan import total
from tests.program import Program


@pytest.fixture
def program(tmp_path: Path) -> Program:
    made = Program(tmp_path)
    made("init")
    return made


def redirected(program: Program, command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The program behind a shell's redirections; `s3hashsync` stands for it."""
    line = command.replace("s3hashsync", f"{sys.executable} -m s3hashsync", 1)
    done = subprocess.run(
        ["sh", "-c", line], cwd=cwd or program.base, env=program.environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


@full
@pytest.mark.parametrize("words", ["plan", "--json plan", "apply --yes", "schema", "--help", "validate"])
def test_output_that_cannot_be_written_is_an_error(program: Program, words: str) -> None:
    done = redirected(program, f"s3hashsync {words} > /dev/full")
    assert done.returncode == 1
    assert "No space left" in done.stderr


@full
def test_a_message_that_cannot_be_written_does_not_change_the_code(program: Program) -> None:
    assert redirected(program, "s3hashsync plan nosuch 2> /dev/full").returncode == 2
    assert redirected(program, "s3hashsync --json plan nosuch > /dev/full").returncode == 2


def test_without_a_stdin_there_is_nobody_to_ask(program: Program) -> None:
    done = redirected(program, "s3hashsync apply <&-")
    assert done.returncode == 2
    assert "nobody to ask" in done.stderr


def test_a_working_folder_that_is_gone_is_said(program: Program) -> None:
    gone = program.base / "gone"
    gone.mkdir()
    done = redirected(program, f"rmdir {gone}; s3hashsync --json why x -c {program.base}/backup.yaml", cwd=gone)
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert said["message_type"] == "exit_error"
    assert "working folder" in said["message"]


def test_an_interrupt_while_the_program_is_loaded_leaves_no_traceback(program: Program) -> None:
    for delay in (0.05, 0.1, 0.15, 0.2):
        process = subprocess.Popen(
            [sys.executable, "-c", "from s3hashsync.cli import entry_point; print('on', flush=True); entry_point()", "plan"],
            cwd=program.base,
            env=program.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        assert "Traceback" not in said
        assert process.returncode in (0, 130, -signal.SIGINT)


def on_a_terminal(program: Program, *words: str) -> tuple[int, int]:
    """The program with a terminal of its own; answers its process id and the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(program.base)
        os.execve(sys.executable, [sys.executable, "-m", "s3hashsync", *words], program.environment)
    return pid, terminal


def read_until(terminal: int, wanted: str | None, again: bytes = b"") -> str:
    """`again` is typed once more whenever nothing has come for a while."""
    said = b""
    # Linux answers with an error, not with an end, when the other side of a terminal is gone.
    with contextlib.suppress(OSError):
        while wanted is None or wanted.encode() not in said:
            while again and not select.select([terminal], [], [], 2.0)[0]:
                os.write(terminal, again)
            if not (data := os.read(terminal, 4096)):
                break
            said += data
    return said.decode()


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 4), (b"\n", 4), (b"\x03", 130), (b"y\n", 0)])
def test_the_question_takes_one_answer(program: Program, answer: bytes, code: int) -> None:
    pid, terminal = on_a_terminal(program, "apply")
    read_until(terminal, "Apply this plan?")
    os.write(terminal, answer)
    # A signal between the question and the system's waiting for an answer is noticed only with the next one.
    said = read_until(terminal, None, again=answer if answer == b"\x03" else b"")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert ("nothing was done" in said) == (code != 0)
    os.close(terminal)


def test_the_second_interrupt_does_not_say_that_nothing_was_done() -> None:
    script = """
import click, sys
from s3hashsync.cli import app
def interrupted(context):
    context.stop.set()
    raise KeyboardInterrupt
app.Context.config = interrupted
sys.exit(app.run(["apply"], app.Context()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "nothing was done" not in done.stderr
    assert "interrupted" in done.stderr


def test_a_plan_never_takes_the_place_of_a_device_or_a_folder(program: Program) -> None:
    pipe = program.base / "pipe"
    os.mkfifo(pipe)
    for out in (pipe, program.docs, program.base / "nowhere" / "plan"):
        done = program("plan", "--out", str(out), code=2)
        assert "cannot write the plan" in done.stderr
        assert "to add" not in done.stdout, "it is said before anything is hashed"
    assert pipe.is_fifo()


def test_a_broken_plan_is_named(program: Program) -> None:
    (program.base / "torn").write_bytes(b"nonsense")
    assert "torn: this file is not a plan" in program("show", "torn", code=1).stderr


def test_a_mistyped_plan_is_not_called_a_source(program: Program) -> None:
    done = program("apply", "nightly.plan", code=2)
    assert "neither a source" in done.stderr
    assert "docs" in done.stderr


def test_what_could_not_be_read_is_not_called_up_to_date() -> None:
    assert "up to date" in totals_line(total(()), complete=True)
    assert "up to date" not in totals_line(total(()), complete=False)


@pytest.mark.parametrize("command", ["validate", "doctor"])
def test_a_source_that_holds_the_repository_and_the_state_leaves_them_out_and_says_so(program: Program, command: str) -> None:
    config = program.base / "backup.yaml"
    config.write_text(config.read_text().replace(f"path: {program.docs}", f"path: {program.base}"))
    program("init")
    (program.base / "repo" / "mine.txt").write_text("not the program's\n")
    program("apply", "--yes")
    program("apply", "--yes")
    paths = [str(line["path"]) for line in program.lines("ls", "-R", "docs")]
    assert "repo/mine.txt" in paths
    assert "docs/a.txt" in paths
    assert not [path for path in paths if path.startswith(("repo/objects", "repo/index.db", "repo/runs", "state/s3hashsync"))]
    said = program(command)
    assert "left out of the backup" in said.stderr + said.stdout
    assert "excluded" in program("why", "repo/objects").stdout


def test_a_source_beside_the_repository_is_not_warned_of(program: Program) -> None:
    assert "warning" not in program("validate").stderr


def test_a_fault_without_a_line_stands_apart_from_the_file(program: Program) -> None:
    assert "nope.yaml: there is no such file" in program("-c", "nope.yaml", "plan", code=2).stderr


def test_init_where_no_folder_can_be_made_does_not_say_init(program: Program) -> None:
    config = program.base / "backup.yaml"
    config.write_text(config.read_text().replace("/repo", "/proc/self/nope/repo"))
    config.write_text(config.read_text().replace(str(program.base) + "/proc", "/proc"))
    done = program("init", code=None)
    assert done.returncode != 0
    assert "s3hashsync init" not in done.stderr


def test_an_endpoint_that_is_no_address_is_said(program: Program) -> None:
    config = program.base / "backup.yaml"
    config.write_text(config.read_text().replace(f"objects: {program.base}/repo", "objects: s3://some-bucket\n  index: ./i.db"))
    env = {"AWS_ENDPOINT_URL_S3": "nonsense", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    done = program("plan", code=1, env=env)
    assert "nonsense" in done.stderr
    assert "hint: write https://" in done.stderr


def test_a_repository_that_may_only_be_read_can_be_restored_from(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program("init")
    program("apply", "--yes")
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "repo", copy)
    mounted = subprocess.run(["mount", "--bind", copy, tmp_path / "repo"], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path / "repo"], check=True)
        program("ls", "docs")
        program("restore", "docs", "--to", "out")
        assert (tmp_path / "out" / "a.txt").read_text() == "a\n"
        (program.docs / "b.txt").write_text("b\n")
        assert program("apply", "--yes", code=1).stderr.count("error:") == 1
    finally:
        subprocess.run(["umount", "-l", tmp_path / "repo"], check=True)


def test_a_file_that_vanished_since_its_plan_was_saved_is_named(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program("init")
    (program.docs / "b.txt").write_text("b\n")
    program("plan", "--out", "p.plan")
    (program.docs / "b.txt").unlink()
    assert "docs/b.txt: is gone since the plan was made" in program("apply", "p.plan", code=3).stderr
