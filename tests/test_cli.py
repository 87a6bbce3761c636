"""The command line as a person and a program meet it: exit codes, messages, JSON lines. Every command runs in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from s3hashsync.run.backup import planned
from s3hashsync.run.saved_plan import save
from tests.harness import House
from tests.program import Program


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture
def ready(program: Program) -> Program:
    program("init")
    return program


def test_without_a_repository_the_code_is_10_and_the_hint_names_init(program: Program) -> None:
    done = program("plan", code=10)
    assert "no repository" in done.stderr
    assert "init" in done.stderr


def test_init_is_repeatable(program: Program) -> None:
    program("init")
    assert "There already" in program("init").stdout


def test_apply_wants_yes_where_nobody_can_be_asked(ready: Program) -> None:
    done = ready("apply", code=2)
    assert "--yes" in done.stderr
    assert not list((ready.base / "repo" / "objects").rglob("*.*")) if (ready.base / "repo" / "objects").exists() else True


def test_plan_writes_nothing_to_the_repository(ready: Program) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in (ready.base / "repo").rglob("*") if not p.name.startswith("index.db"))
    ready("plan")
    after = sorted((p, p.stat().st_mtime_ns) for p in (ready.base / "repo").rglob("*") if not p.name.startswith("index.db"))
    assert before == after


def test_detailed_exit_codes(ready: Program) -> None:
    ready("plan", "--detailed-exitcode", code=2)
    ready("apply", "--yes")
    ready("plan", "--detailed-exitcode", code=0)
    (ready.base / "backup.yaml").write_text("version: 2\n")
    ready("plan", "--detailed-exitcode", code=1)
    ready("plan", code=2)


def test_plan_json_ends_with_the_change_summary(ready: Program) -> None:
    lines = ready.lines("plan")
    assert lines[0]["format_version"] == 1
    assert [line["message_type"] for line in lines] == ["planned_change", "planned_change", "change_summary"]
    summary = lines[-1]
    expected = {"add": 2, "change": 0, "move": 0, "copy": 0, "remove": 0, "undelete": 0, "metadata": 0}
    assert {key: summary[key] for key in expected} == expected
    assert (summary["bytes_upload"], summary["objects_put"], summary["index_writes"]) == (2, 1, 2)
    assert (summary["packed"], summary["packs"]) == (1, 1)


def test_apply_json_ends_with_the_summary(ready: Program) -> None:
    summary = ready.lines("apply", "--yes")[-1]
    assert summary["message_type"] == "summary"
    assert summary["bytes_uploaded"] == 2
    assert summary["objects_put"] == 1
    # The record, and the list of the pack's members.
    assert summary["index_writes"] == 2
    assert summary["files_hashed"] == 1
    assert summary["bytes_hashed"] == 2
    assert summary["errors"] == 0
    assert isinstance(summary["duration_seconds"], float)


def test_json_failures_are_one_exit_error(program: Program) -> None:
    (line,) = program.lines("plan", code=10)
    assert line["message_type"] == "exit_error"
    assert line["code"] == 10
    assert line["hint"]


def test_a_second_apply_does_nothing(ready: Program) -> None:
    ready("apply", "--yes")
    assert "up to date" in ready("apply", "--yes").stdout


def test_actions_of_a_changed_tree(ready: Program) -> None:
    (ready.docs / "folder").mkdir()
    for name in ("one", "two"):
        (ready.docs / "folder" / name).write_text(f"content of {name}\n")
    ready("apply", "--yes")
    (ready.docs / "folder").rename(ready.docs / "renamed")
    (ready.docs / "copy").write_text("a\n")
    (ready.docs / "a.txt").write_text("another\n")
    summary = ready.lines("plan")[-1]
    assert (summary["move"], summary["copy"], summary["change"]) == (2, 1, 1)
    assert summary["bytes_upload"] == len("another\n")
    done = ready.lines("apply", "--yes")[-1]
    assert done["objects_put"] == 1


def test_a_moved_folder_uploads_nothing(ready: Program) -> None:
    (ready.docs / "top").mkdir()
    for number in range(20):
        (ready.docs / "top" / f"f{number}").write_text(f"{number}")
    ready("apply", "--yes")
    (ready.docs / "top").rename(ready.docs / "other")
    done = ready.lines("apply", "--yes")[-1]
    assert (done["bytes_uploaded"], done["objects_put"]) == (0, 0)


def test_touch_uploads_nothing(ready: Program) -> None:
    ready("apply", "--yes")
    os.utime(ready.docs / "a.txt", ns=(1, 1))
    done = ready.lines("apply", "--yes")[-1]
    assert (done["bytes_uploaded"], done["objects_put"], done["index_writes"]) == (0, 0, 0)


def test_ten_copies_are_one_object(ready: Program) -> None:
    for number in range(9):
        (ready.docs / f"copy{number}").write_text("a\n")
    assert ready.lines("apply", "--yes")[-1]["objects_put"] == 1


def test_deleted_content_is_undeleted_free(ready: Program) -> None:
    ready("apply", "--yes")
    (ready.docs / "a.txt").unlink()
    (ready.docs / "other").write_text("so that the folder is not empty\n")
    ready("apply", "--yes")
    (ready.docs / "a.txt").write_text("a\n")
    assert ready.lines("plan")[-1]["undelete"] == 1
    done = ready.lines("apply", "--yes")[-1]
    assert done["objects_put"] == 0


def test_a_saved_plan_is_private_does_what_it_says_and_goes_stale(ready: Program) -> None:
    ready("plan", "--out", "p.plan")
    assert (ready.base / "p.plan").stat().st_mode & 0o777 == 0o600
    shown = ready.lines("show", "p.plan")
    assert shown == ready.lines("plan")
    (ready.docs / "later.txt").write_text("not in the plan\n")
    ready("apply", "p.plan")
    assert [line["path"] for line in ready.lines("ls", "docs")] == ["a.txt"]
    assert "stale" in ready("apply", "p.plan", code=4).stderr


def test_a_saved_plan_is_written_into_nothing_that_lies_there(tmp_path: Path) -> None:
    victim, plan = tmp_path / "victim", tmp_path / "p.plan"
    victim.write_text("precious")
    (tmp_path / f"p.plan.{os.getpid()}.tmp").symlink_to(victim)
    with House(tmp_path / "house").init().job() as job, planned(job) as work:
        save(work.plan, str(plan))
    assert victim.read_text() == "precious"
    assert (plan.is_symlink(), plan.stat().st_mode & 0o777) == (False, 0o600)


def test_a_saved_plan_that_is_cut_or_no_plan_is_refused(ready: Program) -> None:
    ready("plan", "--out", "p.plan")
    data = (ready.base / "p.plan").read_bytes()
    (ready.base / "cut.plan").write_bytes(data[: len(data) // 2])
    (ready.base / "no.plan").write_text("hello")
    for name in ("cut.plan", "no.plan"):
        ready("apply", name, code=1)
        ready("show", name, code=1)


def test_a_saved_plan_never_uploads_what_it_did_not_say(ready: Program) -> None:
    ready("apply", "--yes")
    (ready.docs / "new.txt").write_text("new\n")
    ready("plan", "--out", "p.plan")
    (ready.docs / "new.txt").write_text("changed since\n")
    done = ready("apply", "p.plan", code=3)
    assert "new.txt" in done.stderr
    assert [line["path"] for line in ready.lines("ls", "docs")] == ["a.txt"]


def test_mass_removal_needs_a_word(ready: Program) -> None:
    for number in range(150):
        (ready.docs / f"f{number}").write_text(str(number))
    ready("apply", "--yes")
    for number in range(150):
        (ready.docs / f"f{number}").unlink()
    assert "--allow-mass-change" in ready("plan").stderr
    ready("apply", "--yes", code=4)
    ready("apply", "--yes", "--allow-mass-change")


def test_a_missing_root_is_refused_and_nothing_is_removed(ready: Program) -> None:
    ready("apply", "--yes")
    ready.docs.rename(ready.base / "elsewhere")
    assert "missing" in ready("apply", "--yes", code=4).stderr
    ready.docs.mkdir()
    done = ready("apply", "--yes", code=4)
    assert "empty, but 1 files are backed up" in done.stderr
    assert [line["path"] for line in ready.lines("ls", "docs")] == ["a.txt"]


def test_newly_excluded_paths_are_shown_with_their_rule(ready: Program) -> None:
    (ready.docs / "b.log").write_text("log\n")
    ready("apply", "--yes")
    config = ready.base / "backup.yaml"
    config.write_text(config.read_text().replace('"*.tmp"', '"*.log"'))
    removed = [line for line in ready.lines("plan") if line.get("symbol") == "x"]
    assert [(line["path"], "*.log" in str(line["rule"])) for line in removed] == [("b.log", True)]


AS_ANOTHER_USER = """
import os, sys
from s3hashsync.cli.app import Context, run
# Everything is imported before the rights are given up: another user may not be able to read this checkout.
run(["-q", "plan"], Context()), run(["-q", "apply"], Context())
if os.geteuid() == 0:
    for folder, folders, files in os.walk("."):
        for name in [".", *folders, *files]:
            os.chown(os.path.join(folder, name), 65534, 65534, follow_symlinks=False)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(run(["apply", "--yes"], Context()))
"""


def test_unreadable_files_are_named_and_keep_what_is_known() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        ready = Program(Path(folder))
        ready("init")
        ready("apply", "--yes")
        os.chmod(ready.docs / "a.txt", 0)
        os.utime(ready.docs / "a.txt", ns=(5, 5))
        environment = {**ready.environment, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", AS_ANOTHER_USER]
        done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 3, done.stderr
        assert "docs/a.txt: cannot be read: Permission denied" in done.stderr
        if os.geteuid() == 0:
            for path in [ready.base, *ready.base.rglob("*")]:
                os.chown(path, 0, 0, follow_symlinks=False)
        assert [line["path"] for line in ready.lines("ls", "docs")] == ["a.txt"]


def test_restore_keeps_what_is_there_unless_told(ready: Program) -> None:
    ready("apply", "--yes")
    out = ready.base / "out"
    out.mkdir()
    (out / "a.txt").write_text("mine\n")
    ready("restore", "docs", "--to", "out")
    assert (out / "a.txt").read_text() == "mine\n"
    ready("restore", "docs", "--to", "out", "--overwrite")
    assert (out / "a.txt").read_text() == "a\n"


def test_damaged_objects_are_named_and_not_placed(ready: Program) -> None:
    config = ready.base / "backup.yaml"
    config.write_text(config.read_text().replace("encryption:", "  pack: off\nencryption:"))
    (ready.docs / "b.txt").write_text("b\n")
    ready("apply", "--yes")
    (victim, *_) = [p for p in (ready.base / "repo" / "objects").rglob("*") if p.is_file()]
    victim.chmod(0o600)
    victim.write_bytes(victim.read_bytes()[:-1])
    done = ready("restore", "docs", "--to", "out", code=3)
    assert "error:" in done.stderr
    assert len(list((ready.base / "out").iterdir())) == 1


def test_unknown_names_are_usage_errors(ready: Program) -> None:
    assert "the sources are: docs" in ready("plan", "nope", code=2).stderr
    assert "No such command" in ready("nope", code=2).stderr
    assert "No such option" in ready("plan", "--nope", code=2).stderr
    ready("restore", "docs", code=2)


def test_configuration_faults_come_at_once_with_line_and_column(program: Program) -> None:
    (program.base / "backup.yaml").write_text("version: 1\nrepository: {objects: 3}\nsources: []\nnope: 1\n")
    done = program("validate", code=2)
    assert done.stderr.count("error:") >= 3
    assert f"{program.base}/backup.yaml:2:23" in done.stderr or "backup.yaml:2:23" in done.stderr


def test_why_names_the_rule(ready: Program) -> None:
    (ready.docs / "x.tmp").write_text("")
    assert "*.tmp" in ready("why", "docs/x.tmp").stdout
    assert "not excluded" in ready("why", "docs/a.txt").stdout
    ready("why", "/nowhere", code=2)


def test_an_encrypted_choice_is_needed_for_a_bucket(program: Program) -> None:
    config = program.base / "backup.yaml"
    text = config.read_text().replace("encryption: off\n", "")
    text = text.replace(f"objects: {program.base}/repo", "objects: s3://bucket/x\n  index: dynamodb://table\n  region: us-east-1")
    config.write_text(text)
    assert "encryption" in program("init", "--yes", code=2).stderr


def test_a_dead_network_is_one_clear_message(program: Program) -> None:
    config = program.base / "backup.yaml"
    text = config.read_text().replace(
        f"objects: {program.base}/repo",
        'objects: s3://bucket/x\n  index: dynamodb://table\n  region: us-east-1\n  endpoints: {s3: "http://127.0.0.1:9"}',
    )
    config.write_text(text)
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    done = program("plan", code=1, env=keys)
    assert done.stderr.count("error:") == 1
    assert "127.0.0.1:9" in done.stderr


def test_a_host_of_another_name_is_locked_out_until_it_takes_over(ready: Program) -> None:
    ready("apply", "--yes")
    config = ready.base / "backup.yaml"
    config.write_text(config.read_text().replace("host: here", "host: there"))
    (ready.docs / "b").write_text("b")
    elsewhere = {"XDG_STATE_HOME": str(ready.base / "state2")}
    assert "--take-over" in ready("apply", "--yes", code=11, env=elsewhere).stderr
    ready("apply", "--yes", "--take-over", env=elsewhere)
    assert "up to date" in ready("plan", env=elsewhere).stdout


def test_lost_state_and_lost_index_are_rebuilt_without_uploads(ready: Program) -> None:
    ready("apply", "--yes")
    for path in (ready.base / "state").rglob("*.db*"):
        path.unlink()
    assert "up to date" in ready("plan").stdout
    for path in (ready.base / "repo").glob("index.db*"):
        path.unlink()
    assert "rebuild --index" in ready("plan", code=4).stderr
    assert "rebuild --index" in ready("init", code=4).stderr
    ready("rebuild", "--index", "--yes")
    # A new index is not believed to have every name: the next apply writes them again, and uploads nothing.
    done = ready.lines("apply", "--yes")[-1]
    assert (done["objects_put"], done["index_writes"]) == (0, 1)
    assert "up to date" in ready("plan").stdout
    ready("restore", "docs", "--to", "out")
    assert (ready.base / "out" / "a.txt").read_text() == "a\n"


def test_completion_and_schema_print(program: Program) -> None:
    assert "_S3HASHSYNC_COMPLETE" in program("completion", "bash").stdout
    assert json.loads(program("schema").stdout)["$schema"]


def test_a_mistyped_option_never_looks_like_changes(ready: Program) -> None:
    ready("plan", "--detailed-exitcode", "--nonsense", code=1)
    ready("plan", "--nonsense", code=2)
