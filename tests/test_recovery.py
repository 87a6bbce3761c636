"""Recovery without the program: the page as it is printed, and the recovery kit, with stock tools alone.

The repositories are made by the program; what restores them is `bash` with a PATH that holds no Python.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from s3hashsync.run import history
from tests.program import Program
from tests.recovery import (
    CONFIG,
    FORMS,
    ROOT,
    Form,
    back_up,
    encryption_of,
    identity_file,
    needs_tools,
    picture,
    run,
    script_of,
    stock_path,
)

pytestmark = [needs_tools, pytest.mark.stock_tools]


def forms(*wanted: Form) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("made", wanted, indirect=True, ids=str)


# What restores is tried in all four forms; what needs one word of the form or none, in fewer, for each costs a repository.
PLAIN, SEALED = FORMS[0], FORMS[-1]
opposites, plain, encrypted = forms(PLAIN, SEALED), forms(PLAIN), forms(SEALED)


class Kept:
    """A repository in a folder, and a shell to recover it in."""

    def __init__(self, base: Path, form: Form, passphrase: str = "") -> None:
        self.base, self.form = base, form
        self.program = Program(base)
        encryption, self.identity = encryption_of(form, base)
        if passphrase:
            encryption = encryption.replace("}", f", passphrase: {passphrase}}}")
        (base / "backup.yaml").write_text(CONFIG.format(base=base, pack=form.pack, encryption=encryption))
        self.program("init")
        back_up(self.program)
        self.repository, self.docs = base / "repo", self.program.docs
        self.shell = {"PATH": stock_path(base / "bin"), "HOME": str(base), "TMPDIR": str(base)}
        self.options = ["-i", self.identity] if form.encrypted else []

    def kit(self) -> Path:
        """Made once: only tests of the command itself have to run it again."""
        if not (self.base / "kit").exists():
            self.program("recovery-kit", "kit")
        return self.base / "kit"

    def script(self, name: str, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[bytes]:
        return run([str(self.base / "kit" / name), *words], self.shell | environment, self.base, code=code)

    def segments(self) -> list[Path]:
        return sorted((self.repository / "runs" / "docs").iterdir())


@pytest.fixture(scope="module", params=FORMS, ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """One of each form; tests that change it take a copy."""
    return Kept(tmp_path_factory.mktemp("recovery"), request.param)


@pytest.fixture
def kept(made: Kept) -> Kept:
    return made


# The page


def page(kept: Kept, back: Path, **places: str) -> subprocess.CompletedProcess[bytes]:
    environment = kept.shell | {
        "REPOSITORY": str(kept.repository),
        "SOURCE": "docs",
        "TARGET": str(back),
        "IDENTITY": kept.identity,
        **places,
    }
    return subprocess.run(
        ["bash", "-eu", "-c", script_of(ROOT / "docs" / "recovery.md")], env=environment, cwd=kept.base, capture_output=True
    )


def test_the_page_restores_everything_as_printed(kept: Kept, tmp_path: Path) -> None:
    done = page(kept, tmp_path / "back")
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stderr == b""
    assert b"everything is restored and its SHA-256 is right" in done.stdout
    assert done.stdout.count(b"\nruns/docs/") == 2, "the walk did not end at the checkpoint"
    assert picture(tmp_path / "back") == picture(kept.docs)
    if kept.form.encrypted:
        assert f"fingerprint {about(kept)['fingerprint']}" in done.stdout.decode(errors="replace")


def test_the_page_has_stored_what_its_form_says(kept: Kept) -> None:
    """Otherwise the tests above prove less than they seem to."""
    assert (kept.repository / "packs").exists() == kept.form.packed
    assert (kept.repository / "objects").exists()
    assert (kept.repository / "keys").exists() == kept.form.encrypted
    stored = next((kept.repository / "objects").glob("*/*")).read_bytes()
    assert stored.startswith(b"age-encryption.org/v1\n") == kept.form.encrypted


def about(kept: Kept) -> dict[str, str]:
    read: dict[str, str] = json.loads((kept.repository / "repository.json").read_bytes())
    return read


def changed_copy(kept: Kept, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept.repository, tmp_path / "copy"))


@opposites
def test_the_page_notices_a_damaged_object(kept: Kept, tmp_path: Path) -> None:
    copy = changed_copy(kept, tmp_path)
    for stored in copy.glob("objects/*/*"):
        stored.write_bytes(stored.read_bytes()[:-50])
    done = page(kept, tmp_path / "back", REPOSITORY=str(copy))
    assert b"damaged" in done.stderr
    assert b"everything is restored" not in done.stdout


# The kit


def test_the_kit_restores_everything(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    back = tmp_path / "back"
    done = kept.script("restore-source.sh", *kept.options, "docs", str(back))
    assert b"their SHA-256 is right" in done.stderr
    assert b"warning" not in done.stderr
    assert picture(back) == picture(kept.docs)
    assert list(kept.base.glob("s3hashsync-recovery.*")) == [], "keys or logs were left in the clear"


def test_the_kit_lists_and_restores_one_content(kept: Kept) -> None:
    kept.kit()
    assert kept.script("list-source.sh").stdout == b"docs\n"
    lines = kept.script("list-source.sh", *kept.options, "docs").stdout.decode(errors="replace").splitlines()
    (found,) = [line for line in lines if line.endswith(' "letters/07"')]
    sha256, hash_, location, _ = found.split(" ")
    assert location.startswith("1p:" if kept.form.packed else "1o:")
    assert (sha256 == hash_) is not kept.form.encrypted
    content = kept.script("restore-object.sh", *kept.options, hash_, location).stdout
    assert content == (kept.docs / "letters" / "07").read_bytes()


@opposites
def test_the_kit_goes_back_in_time_and_restores_a_part(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    first = kept.segments()[0].name.partition("-")[0]
    kept.script("restore-source.sh", *kept.options, "-a", first, "docs", str(tmp_path / "first"))
    assert (tmp_path / "first" / "gone.txt").read_text() == "soon gone\n"
    assert (tmp_path / "first" / "letters" / "one.txt").read_text() == "one\n" * 5000
    kept.script("restore-source.sh", *kept.options, "-p", "letters", "docs", str(tmp_path / "part"))
    assert os.listdir(tmp_path / "part") == ["letters"]
    assert picture(tmp_path / "part" / "letters") == picture(kept.docs / "letters")


@plain
def test_the_kit_refuses_what_cannot_be_meant(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    back = tmp_path / "back"
    for script, words in (("restore-source.sh", [str(back)]), ("list-source.sh", [])):
        done = kept.script(script, *kept.options, "-p", "leters", "docs", *words, code=1)
        assert b"there is no path leters in docs" in done.stderr
        for time in ("yesterday", "2026-01-31", "20260131T020000"):
            done = kept.script(script, *kept.options, "-a", time, "docs", *words, code=1)
            assert b"YYYYMMDDTHHMMSSZ" in done.stderr
            assert time.encode() in done.stderr
        done = kept.script(script, *kept.options, "-a", "20010101T000000Z", "docs", *words, code=1)
        oldest = kept.segments()[0].name.partition("-")[0]
        assert f"nothing of docs is as old as 20010101T000000Z: its oldest run log is of {oldest}".encode() in done.stderr
        assert b"a source dosc" in kept.script(script, *kept.options, "dosc", *words, code=1).stderr
    assert not back.exists() or os.listdir(back) == []


@opposites
def test_the_kit_says_that_a_hash_is_not_one(kept: Kept) -> None:
    kept.kit()
    lines = kept.script("list-source.sh", *kept.options, "docs").stdout.decode(errors="replace").splitlines()
    (found,) = [line for line in lines if line.endswith(' "letters/07"')]
    sha256, hash_, location, _ = found.split(" ")
    wrong = [(hash_[::-1], location), (hash_, "1x:nothing"), (hash_, "-")]
    wrong += [(sha256, location)] if sha256 != hash_ else []
    for words in wrong:
        done = kept.script("restore-object.sh", *kept.options, *words, code=1)
        assert done.stdout == b""
        assert f"no content {words[0]} at {words[1]}".encode() in done.stderr
        assert b"list-source.sh prints SHA-256, hash and location" in done.stderr
        assert (b"the hash is not the SHA-256" in done.stderr) == kept.form.encrypted


@opposites
def test_the_kit_finds_contents_whose_place_another_line_says(kept: Kept, tmp_path: Path) -> None:
    """Of the same hash: a host whose state was made anew does not always know it. It may not know the SHA-256 either."""
    kept.kit()
    copy = changed_copy(kept, tmp_path)
    last = max((copy / "runs" / "docs").iterdir())
    lines = opened_lines(kept, last)
    checkpoint = [json.loads(line) for segment in kept.segments() for line in opened_lines(kept, segment)]
    entry = next(line for line in reversed(checkpoint) if line.get("path") == "letters/07")
    short = {key: value for key, value in entry.items() if key not in ("content", "sha256")}
    planted = [json.dumps(short | {"path": name}).encode() + b"\n" for name in ("one more", "and another")]
    written(kept, last, [lines[0], *planted, *lines[1:]])
    back = tmp_path / "back"
    kept.script("restore-source.sh", "--unchecked", *kept.options, "docs", str(back), REPOSITORY=str(copy))
    for name in ("one more", "and another", "letters/07"):
        assert (back / name).read_bytes() == (kept.docs / "letters" / "07").read_bytes()
    assert not os.path.samefile(back / "one more", back / "and another")


@plain
def test_nothing_in_a_log_is_run(kept: Kept, tmp_path: Path) -> None:
    """`bash` runs what stands in an index when it calculates."""
    kept.kit()
    copy = changed_copy(kept, tmp_path)
    last = max((copy / "runs" / "docs").iterdir())
    lines = opened_lines(kept, last)
    entry = next(json.loads(line) for line in lines if b'"later.txt"' in line)
    for fields in (["size"], ["mtime"], ["hash", "mode", "sha256", "uid"]):
        trap = tmp_path / f"run-{fields[0]}"
        planted = [entry | {"path": f"planted {field}", field: f"PATH[$(id>{trap})]"} for field in fields]
        written(kept, last, [lines[0], *(json.dumps(one).encode() + b"\n" for one in planted), *lines[1:]])
        words = [*kept.options, "docs", str(tmp_path / f"back-{fields[0]}")]
        kept.script("restore-source.sh", *words, REPOSITORY=str(copy), code=0 if fields == ["mtime"] else 1)
        assert not trap.exists()


@opposites
def test_the_kit_names_what_is_damaged_and_restores_the_rest(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    copy = changed_copy(kept, tmp_path)
    (large,) = [path for path in copy.glob("objects/*/*") if path.stat().st_size > 250_000]
    large.unlink()
    back = tmp_path / "back"
    done = kept.script("restore-source.sh", *kept.options, "docs", str(back), REPOSITORY=str(copy), code=1)
    assert b"damaged or missing" in done.stderr
    assert b"error: 1 could not be restored" in done.stderr
    expected = {path: what for path, what in picture(kept.docs).items() if not path.startswith(b"not ")}
    assert picture(back) == expected


@opposites
def test_the_kit_keeps_out_of_a_folder_in_use_and_of_another_repository(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    assert b"is not empty" in kept.script("restore-source.sh", *kept.options, "docs", str(kept.docs), code=1).stderr
    copy = changed_copy(kept, tmp_path)
    other = about(kept) | {"id": "0" * 32}
    (copy / "repository.json").write_text(json.dumps(other))
    assert b"another repository" in kept.script("list-source.sh", "docs", REPOSITORY=str(copy), code=1).stderr
    other = about(kept) | {"encryption": "off" if kept.form.encrypted else "age"}
    (copy / "repository.json").write_text(json.dumps(other))
    assert b"encryption" in kept.script("list-source.sh", "docs", REPOSITORY=str(copy), code=1).stderr


@opposites
def test_the_kit_notices_a_segment_that_is_not_what_its_name_says(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    copy = changed_copy(kept, tmp_path)
    first, *_, last = sorted((copy / "runs" / "docs").iterdir())
    last.write_bytes(first.read_bytes())
    done = kept.script("list-source.sh", *kept.options, "docs", REPOSITORY=str(copy), code=1)
    assert b"is not what its name says" in done.stderr


def test_the_scripts_know_segments_and_sources_as_the_program_does() -> None:
    common = (ROOT / "s3hashsync" / "recovery" / "common.sh").read_text()
    for name, rule in (("SEGMENT_NAME", history._SEGMENT_NAME), ("SOURCE_NAME", history.SOURCE_NAME)):
        assert f"{name}='^{rule.pattern}$'\n" in common


@plain
def test_what_has_no_segments_name_is_not_the_newest_one(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    copy = changed_copy(kept, tmp_path)
    logs = copy / "runs" / "docs"
    for name in (
        "20990101T000000Z-00000000.000001~",
        "20990101T000000Z-copy.000001",
        "Thumbs.db",
        "zz\n20990101T000000Z-00000000.000001",
    ):
        (logs / name).write_text("not a segment")
    (logs / "zz").mkdir()
    kept.script("restore-source.sh", "docs", str(tmp_path / "kit"), REPOSITORY=str(copy))
    assert picture(tmp_path / "kit") == picture(kept.docs)
    done = page(kept, tmp_path / "page", REPOSITORY=str(copy))
    assert (done.returncode, done.stderr) == (0, b"")
    assert picture(tmp_path / "page") == picture(kept.docs)
    for segment in kept.segments():
        (logs / segment.name).unlink()
    done = kept.script("list-source.sh", "docs", REPOSITORY=str(copy), code=1)
    assert b"there are no run logs of a source docs" in done.stderr


def naming_before(kept: Kept, copy: Path, name: str) -> None:
    """The newest segment says that this one comes before it."""
    last = kept.segments()[-1]
    lines = opened_lines(kept, last)
    header = json.loads(lines[0]) | {"kind": "changes", "previous": f"runs/docs/{name}"}
    written(kept, copy / "runs" / "docs" / last.name, [json.dumps(header).encode() + b"\n", *lines[1:]])


def assert_left(kept: Kept, copy: Path, back: Path, said: bytes) -> None:
    """The kit stops there, and so does the page."""
    done = kept.script("list-source.sh", "docs", REPOSITORY=str(copy), code=1)
    assert b"does not belong to the log of docs" in done.stderr
    assert said in page(kept, back, REPOSITORY=str(copy)).stderr


@plain
def test_the_segment_before_is_no_path_to_elsewhere(kept: Kept, tmp_path: Path) -> None:
    """What is opened is written beside the others, under the name that a log says."""
    kept.kit()
    copy = changed_copy(kept, tmp_path)
    before = kept.segments()[-2]
    (copy / "runs" / "docs" / "!" / "up").mkdir(parents=True)
    shutil.copy(before, copy / "runs" / "docs" / "!" / before.name)
    naming_before(kept, copy, f"!/up/../{before.name}")
    assert_left(kept, copy, tmp_path / "page", b"cannot be one")


@plain
def test_a_log_that_goes_in_a_circle_is_left(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    copy = changed_copy(kept, tmp_path)
    naming_before(kept, copy, kept.segments()[-1].name)
    assert_left(kept, copy, tmp_path / "page", b"in a circle")


@encrypted
def test_a_stray_file_beside_the_keys_is_none(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    copy = changed_copy(kept, tmp_path)
    for name in ("copy.age", "1 (2).age"):
        (copy / "keys" / name).write_text("not a key")
    kept.script("restore-source.sh", *kept.options, "docs", str(tmp_path / "kit"), REPOSITORY=str(copy))
    assert picture(tmp_path / "kit") == picture(kept.docs)
    done = page(kept, tmp_path / "page", REPOSITORY=str(copy))
    assert (done.returncode, done.stderr) == (0, b"")
    assert picture(tmp_path / "page") == picture(kept.docs)


# Names on a terminal

ODD = '\x1b]0;title\x07 \x9b31m \u202egnp \u2028 \x7f \xa0 \U000e0041 ü 😀 \\ "\n'
SHOWN = r"\u001b]0;title\u0007 \u009b31m \u202egnp \u2028 \u007f \u00a0 \udb40\udc41 ü 😀"


def assert_quiet(said: bytes) -> None:
    """Nothing in it but lines of what can be seen."""
    assert all(line.isprintable() for line in said.decode().splitlines()), said


@opposites
def test_no_name_reaches_the_terminal_as_it_is(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    copy = changed_copy(kept, tmp_path)
    last = max((copy / "runs" / "docs").iterdir())
    lines = opened_lines(kept, last)
    entry = next(json.loads(line) for line in lines if b'"later.txt"' in line)
    planted = [entry | {"path": f"{ODD}/whole"}, entry | {"path": f"{ODD}/damaged", "sha256": "0" * 64}]
    planted += [entry | {"path": f"../{ODD}"}, entry | {"path": "odd", "sha256": "\x1b[2J", "hash": "\x9b2J"}]
    planted += [{"type": "file", "path": ODD * 9, "mode": "0600", "mtime": 0, "uid": 0, "gid": 0, "size": 0}]
    planted += [{"type": "symlink", "path": f"{ODD * 9}/link", "mode": "0777", "mtime": 0, "uid": 0, "gid": 0, "target": "x"}]
    written(kept, last, [lines[0], *(json.dumps(one).encode() + b"\n" for one in planted), *lines[1:]])
    (copy / "runs" / ODD.replace("/", "")).mkdir()
    done = kept.script("list-source.sh", REPOSITORY=str(copy))
    assert done.stdout == b"docs\n"
    options = ["--unchecked", *kept.options]
    done = kept.script("list-source.sh", *options, "docs", REPOSITORY=str(copy))
    assert_quiet(done.stdout + done.stderr)
    (line,) = [line for line in done.stdout.decode().splitlines() if line.endswith('/whole"')]
    assert SHOWN in line
    assert json.loads(line.split(" ", 3)[3]) == f"{ODD}/whole"
    done = kept.script("restore-source.sh", *options, "docs", str(tmp_path / "kit"), REPOSITORY=str(copy), code=1)
    assert_quiet(done.stdout + done.stderr)
    assert f'{SHOWN} \\ "\\u000a/damaged\n' in done.stderr.decode()
    for why in ("refused: {}/../", "could not be made: {}/", "refused: {}/"):
        assert why.format(tmp_path / "kit") + SHOWN in done.stderr.decode()
    assert (tmp_path / "kit" / ODD / "whole").read_bytes() == (kept.docs / "later.txt").read_bytes()
    done = kept.script("restore-source.sh", *options, "-p", "\x1b[2J", "docs", str(tmp_path / "none"), code=1)
    assert b"there is no path \\u001b[2J in docs" in done.stderr
    done = page(kept, tmp_path / "page", REPOSITORY=str(copy))
    assert b"?]0;title? ?31m ?gnp ? ?" in done.stdout
    assert all(character not in done.stdout.decode() for character in "\x1b\x9b\u202e\u2028")


@plain
def test_a_name_that_is_not_utf8_is_listed_and_restored(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    assert b'"not \xef\xbf\xbd utf-8"\n' in kept.script("list-source.sh", "docs").stdout
    for number, name in enumerate((b"not \xff utf-8", "not \ufffd utf-8".encode())):
        back = tmp_path / str(number)
        kept.script("restore-source.sh", "-p", os.fsdecode(name), "docs", str(back))
        assert os.listdir(os.fsencode(back)) == [b"not \xff utf-8"]


# What somebody else has written


def opened_lines(kept: Kept, segment: Path) -> list[bytes]:
    stored = segment.read_bytes()
    if kept.form.encrypted:
        stored = subprocess.run(["age", "-d", "-i", epochs(kept)], input=stored, capture_output=True, check=True).stdout
    return subprocess.run(["zstd", "-dc"], input=stored, capture_output=True, check=True).stdout.splitlines(keepends=True)


def epochs(kept: Kept) -> Path:
    """What `keys/1.age` holds; an adversary who forges has its recipient alone."""
    path = kept.base / "epochs.txt"
    keys = [str(kept.repository / "keys" / "1.age")]
    path.write_bytes(subprocess.run(["age", "-d", "-i", kept.identity, *keys], capture_output=True, check=True).stdout)
    return path


def written(kept: Kept, segment: Path, lines: list[bytes]) -> None:
    parts = [lines[0], b"".join(lines[1:])]
    stored = b"".join(subprocess.run(["zstd", "-qc"], input=part, capture_output=True, check=True).stdout for part in parts)
    segment.write_bytes(sealed(kept, stored))


def sealed(kept: Kept, data: bytes) -> bytes:
    if not kept.form.encrypted:
        return data
    (recipient,) = [line.split(": ")[1] for line in epochs(kept).read_text().splitlines() if line.startswith("# recipient")]
    return subprocess.run(["age", "-r", recipient], input=data, capture_output=True, check=True).stdout


@encrypted
def test_a_forged_log_is_noticed(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    copy = changed_copy(kept, tmp_path)
    last = max((copy / "runs" / "docs").iterdir())
    lines = opened_lines(kept, last)
    assert any(b"later.txt" in line for line in lines)
    written(kept, last, [line.replace(b"later.txt", b"other.txt") for line in lines])
    done = kept.script("restore-source.sh", *kept.options, "docs", str(tmp_path / "kit"), REPOSITORY=str(copy), code=1)
    assert b"was written by somebody else" in done.stderr
    assert os.listdir(tmp_path / "kit") == []
    assert b"is forged" in page(kept, tmp_path / "page", REPOSITORY=str(copy)).stderr
    believing = ["--unchecked", *kept.options, "docs", str(tmp_path / "believing")]
    assert b"it is not checked who wrote" in kept.script("restore-source.sh", *believing, REPOSITORY=str(copy)).stderr
    assert (tmp_path / "believing" / "other.txt").exists()


@encrypted
def test_forged_keys_of_a_source_are_noticed(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    copy = changed_copy(kept, tmp_path)
    keys = copy / "keys" / "sources" / "docs.age"
    opened = subprocess.run(["age", "-d", "-i", epochs(kept), str(keys)], capture_output=True, check=True).stdout
    keys.write_bytes(sealed(kept, json.dumps(json.loads(opened) | {"log_key": "0" * 64}).encode()))
    done = kept.script("list-source.sh", *kept.options, "docs", REPOSITORY=str(copy), code=1)
    assert b"keys/sources/docs.age was written by somebody else" in done.stderr
    assert b"the keys of docs are forged" in page(kept, tmp_path / "page", REPOSITORY=str(copy)).stderr


@opposites
def test_without_openssl_it_is_said_that_logs_are_believed(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    tools = shutil.copytree(kept.base / "bin", tmp_path / "bin", symlinks=True)
    (tools / "openssl").unlink()
    done = kept.script("restore-source.sh", *kept.options, "docs", str(tmp_path / "back"), PATH=str(tools))
    assert (b"openssl is not installed" in done.stderr) == kept.form.encrypted
    assert picture(tmp_path / "back") == picture(kept.docs)


@opposites
def test_paths_never_lead_out_of_the_target(kept: Kept, tmp_path: Path) -> None:
    """Logs that are believed, for nobody has to know a key to write them."""
    kept.kit()
    copy = changed_copy(kept, tmp_path)
    last = max((copy / "runs" / "docs").iterdir())
    lines = opened_lines(kept, last)
    outside = tmp_path / "outside"
    outside.mkdir()
    entry = next(json.loads(line) for line in lines if b'"later.txt"' in line)
    link = {"type": "symlink", "mtime": 0, "mode": "0777", "uid": os.getuid(), "gid": os.getgid()}
    planted = [
        entry | {"path": "../outside/file"},
        entry | {"path": "letters/../../outside/file"},
        link | {"path": "../outside/link", "target": "x"},
        link | {"path": "trap", "target": str(outside)},
        link | {"path": "trap/link", "target": "x"},
        link | {"path": "trap/deep/link", "target": "x"},
    ]
    written(kept, last, [lines[0], *(json.dumps(one).encode() + b"\n" for one in planted), *lines[1:]])
    back = tmp_path / "back"
    words = ["--unchecked", *kept.options, "docs", str(back)]
    done = kept.script("restore-source.sh", *words, REPOSITORY=str(copy), code=1)
    assert done.stderr.count(b"refused: ") >= 3
    assert os.listdir(outside) == []
    assert b"everything is restored" not in page(kept, tmp_path / "page", REPOSITORY=str(copy)).stdout
    assert os.listdir(outside) == []
    assert (back / "later.txt").read_bytes() == (kept.docs / "later.txt").read_bytes()


# What opens a repository


@encrypted
def test_another_identity_opens_nothing(kept: Kept, tmp_path: Path) -> None:
    kept.kit()
    other, _ = identity_file(tmp_path)
    done = kept.script("list-source.sh", "-i", str(other), "docs", code=1)
    assert b"does not open keys/1.age" in done.stderr


@encrypted
def test_lost_keys_are_taken_from_the_kit(kept: Kept, tmp_path: Path) -> None:
    kept.program("recovery-kit", "--with-keys", str(tmp_path / "kit"))
    stored = {
        path.relative_to(kept.repository): path.read_bytes() for path in (kept.repository / "keys").rglob("*") if path.is_file()
    }
    assert {path: (tmp_path / "kit" / path).read_bytes() for path in stored} == stored
    copy = changed_copy(kept, tmp_path)
    shutil.rmtree(copy / "keys")
    script = str(tmp_path / "kit" / "restore-source.sh")
    words = [script, *kept.options, "docs", str(tmp_path / "back")]
    done = run(words, kept.shell | {"REPOSITORY": str(copy)}, tmp_path)
    assert b"those beside this script are taken" in done.stderr
    assert picture(tmp_path / "back") == picture(kept.docs)


def test_a_passphrase_opens_it_on_a_terminal(tmp_path: Path) -> None:
    kept = Kept(tmp_path, Form(encrypted=True, packed=True), passphrase="correct horse")
    kept.kit()
    assert "the passphrase" in (tmp_path / "kit" / "RECOVERY.txt").read_text()
    command = [str(tmp_path / "kit" / "restore-source.sh"), "docs", str(tmp_path / "back")]
    typed(command, kept.shell, "correct horse")
    assert picture(tmp_path / "back") == picture(kept.docs)
    places = {"REPOSITORY": str(kept.repository), "SOURCE": "docs", "TARGET": str(tmp_path / "page")}
    typed(["bash", "-eu", "-c", script_of(ROOT / "docs" / "recovery.md")], kept.shell | places, "correct horse")
    assert picture(tmp_path / "page") == picture(kept.docs)


def typed(command: list[str], environment: dict[str, str], answer: str) -> None:
    """Run it on a terminal, on which the answer is typed when a passphrase is asked for."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(command[0], command, environment)
    said = b""
    answered = False
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # Linux's way of saying that the other end is closed
            break
        if not piece:
            break
        said += piece
        if not answered and b"nter passphrase" in said:
            os.write(terminal, answer.encode() + b"\n")
            answered = True
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, said.decode(errors="replace")


# The files of a kit


@opposites
def test_a_kit_is_public_complete_and_the_same_again(kept: Kept) -> None:
    kit = kept.kit()
    sheet = (kit / "RECOVERY.txt").read_text()
    for said in (about(kept)["id"], str(kept.repository), "docs", "hold a secret"):
        assert said in sheet
    assert "not on PyPI" in sheet
    assert "pip install ./s3hashsync" in sheet
    # What names a place is as long as that.
    assert max(len(line) for line in sheet.splitlines() if "/" not in line) <= 100
    everything = b"".join(path.read_bytes() for path in kit.iterdir())
    if kept.form.encrypted:
        secret = Path(kept.identity).read_text().splitlines()[-1]
        assert secret.startswith("AGE-SECRET-KEY-1")
        assert secret.encode() not in everything
        assert " ".join(about(kept)["fingerprint"][at : at + 4] for at in range(0, 20, 4)) in sheet
        for recipient in json.loads((kept.repository / "keys" / "recipients.json").read_bytes())["recipients"]:
            assert recipient in sheet
    modes = {path.name: path.stat().st_mode & 0o777 for path in kit.iterdir()}
    assert modes == {name: 0o755 if "-" in name else 0o644 for name in modes}
    (done,) = kept.program.lines("recovery-kit", "kit")
    assert (done["message_type"], done["written"]) == ("recovery_kit", [])
    assert done["unchanged"] == sorted(modes)


@plain
def test_a_kit_is_never_written_over_something_else(kept: Kept, tmp_path: Path) -> None:
    folder = tmp_path / "kit"
    folder.mkdir()
    (tmp_path / "mine").write_text("mine")
    (folder / "RECOVERY.txt").symlink_to(tmp_path / "mine")
    (folder / "common.sh").write_text("old")
    done = kept.program("recovery-kit", str(folder), code=4)
    assert "RECOVERY.txt" in done.stderr
    assert "common.sh" in done.stderr
    assert sorted(os.listdir(folder)) == ["RECOVERY.txt", "common.sh"]
    kept.program("recovery-kit", "--force", str(folder))
    assert not (folder / "RECOVERY.txt").is_symlink()
    assert (tmp_path / "mine").read_text() == "mine"
    assert (folder / "restore-source.sh").exists()


@opposites
def test_the_configuration_of_a_kit_restores(kept: Kept, tmp_path: Path) -> None:
    """With the program, on a machine that never made a backup."""
    kit = kept.kit()
    assert yaml.safe_load((kit / "restore.yaml").read_text())["sources"][0]["name"] == "docs"
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    machine = Program(fresh)
    identity = ["--identity", kept.identity] if kept.form.encrypted else []
    machine("-c", str(kit / "restore.yaml"), "restore", "docs", "--to", "back", *identity)
    assert picture(fresh / "back") == picture(kept.docs)
