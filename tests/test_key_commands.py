"""Encryption as a person and a pipeline meet it: `init`, `key`, `--identity`, what is asked, and what is never said."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest

from s3hashsync.cli.app import Context, run
from s3hashsync.cli.keys import key_command
from s3hashsync.codec import age
from s3hashsync.codec.age import Passphrase, X25519Identity
from s3hashsync.codec.key_files import digest_of, parse_epoch, parse_recipients
from s3hashsync.errors import Denied
from s3hashsync.stores.local import LocalObjects
from tests.program import Program

ROOT = Path(__file__).parent.parent
ENCRYPTED = """\
version: 1
repository:
  objects: {base}/repo
encryption:
{encryption}host: {host}
sources:
  - name: docs
    path: {base}/docs
"""
WORD = "correct horse battery staple"


class Sealed(Program):
    """The program with people who can open what it stores. Every word that it says is kept."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.environment.pop("XDG_CONFIG_HOME", None)
        self.said: list[str] = []
        self.people = {name: X25519Identity.generate(os.urandom) for name in ("ann", "ben", "eve")}
        for name, identity in self.people.items():
            path = base / f"{name}.txt"
            path.write_text(f"# {name}\n{identity.secret_text()}\n")
            path.chmod(0o600)
        self.configure("ann", "ben")

    def recipient(self, name: str) -> str:
        return str(self.people[name].recipient)

    def configure(self, *names: str, more: str = "", host: str = "here") -> None:
        recipients = f"  recipients: [{', '.join(map(self.recipient, names))}]\n" if names else ""
        self.write_encryption(recipients + more, host)

    def write_encryption(self, lines: str, host: str = "here") -> None:
        text = ENCRYPTED.format(base=self.base, encryption=lines, host=host)
        (self.base / "backup.yaml").write_text(text.replace("encryption:\nhost", "host"))

    def __call__(self, *words: str, code: int | None = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Within this process: most of what a command takes is to begin one."""
        out, err, before, cwd = io.StringIO(), io.StringIO(), dict(os.environ), os.getcwd()
        os.environ.clear()
        os.environ.update({**self.environment, **(env or {})})
        os.chdir(self.base)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                done = run(list(words), Context())
        finally:
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(before)
        self.said += [out.getvalue(), err.getvalue()]
        assert code is None or done == code, (words, done, out.getvalue(), err.getvalue())
        return subprocess.CompletedProcess(words, done, out.getvalue(), err.getvalue())

    @property
    def hosts(self) -> Path:
        return self.base / ".config" / "s3hashsync" / "hosts"

    @property
    def host_file(self) -> Path:
        (file,) = self.hosts.glob("*.json")
        return file

    def new_machine(self) -> None:
        """What is lost with a disk: keys and states."""
        for folder in (".config", "state"):
            shutil.rmtree(self.base / folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are made within this process; at a terminal it is a process of its own, with the true work factor."""
    monkeypatch.setattr(Passphrase.__init__, "__defaults__", (4,))


@pytest.fixture
def sealed(tmp_path: Path) -> Sealed:
    return Sealed(tmp_path)


@pytest.fixture
def ready(sealed: Sealed) -> Sealed:
    sealed("init")
    return sealed


def trees(ready: Sealed, *folders: str) -> list[dict[str, bytes]]:
    return [
        {str(p.relative_to(ready.base / f)): p.read_bytes() for p in (ready.base / f).rglob("*") if p.is_file()} for f in folders
    ]


# init


def test_init_says_the_fingerprint_who_can_open_it_and_that_this_host_is_enrolled(sealed: Sealed) -> None:
    said = sealed("init").stdout
    fingerprint = json.loads((sealed.base / "repo" / "repository.json").read_text())["fingerprint"]
    assert " ".join(fingerprint[at : at + 4] for at in range(0, 20, 4)) in said
    assert all(sealed.recipient(name) in said for name in ("ann", "ben"))
    assert "on paper" in said
    assert str(sealed.host_file) in said
    again = sealed.lines("init")[-1]
    assert (again["new"], again["encryption"], again["fingerprint"], again["enrolled"]) == (False, "age", fingerprint, True)


def test_one_recipient_takes_a_word(sealed: Sealed) -> None:
    sealed.configure("ann")
    done = sealed("init", code=2)
    assert "--one-recipient" in done.stderr
    assert not (sealed.base / "repo").exists()
    sealed("init", "--one-recipient")
    sealed("init")


def test_a_passphrase_may_take_the_place_of_the_second_recipient(sealed: Sealed) -> None:
    sealed.configure("ann", more="  passphrase: {env: BACKUP_WORD}\n")
    sealed("init", code=2)
    sealed("init", env={"BACKUP_WORD": WORD})
    sealed("init")
    sealed("apply", "--yes")
    sealed("ls", "docs", env={"BACKUP_WORD": WORD})
    sealed("ls", "docs", env={"S3HASHSYNC_PASSPHRASE": WORD})
    assert "passphrase does not open" in sealed("ls", "docs", code=12, env={"BACKUP_WORD": "wrong"}).stderr
    sealed("ls", "docs", code=12)
    assert sealed.lines("key", "list")[-1]["passphrases"] == 1


def test_nobody_to_open_it_is_a_usage_error(sealed: Sealed) -> None:
    for lines in ("  passphrase: {env: HOME}\n", "  identity: {env: HOME}\n"):
        sealed.write_encryption(lines)
        assert "nobody who can open it" in sealed("init", code=2).stderr
    sealed.configure("ann", "ben")
    sealed("init")


def test_a_folder_without_a_word_about_encryption_is_not_encrypted_and_says_so(sealed: Sealed) -> None:
    sealed.write_encryption("")
    done = sealed("init")
    assert "nothing is encrypted" in done.stdout
    sealed("apply", "--yes")
    assert not (sealed.base / "repo" / "keys").exists()
    sealed("key", "list", code=4)


def test_a_bucket_needs_a_word_about_encryption(sealed: Sealed) -> None:
    config = sealed.base / "backup.yaml"
    sealed.write_encryption("")
    config.write_text(config.read_text().replace(f"{sealed.base}/repo\n", "s3://bucket\n  index: dynamodb://table\n"))
    assert "encryption: off" in sealed("init", "--yes", code=2).stderr


@pytest.mark.parametrize("command", [("init",), ("plan",), ("apply", "--yes"), ("ls", "docs"), ("key", "list"), ("status",)])
def test_whether_it_is_encrypted_is_fixed(ready: Sealed, command: tuple[str, ...]) -> None:
    config = ready.base / "backup.yaml"
    head, _, rest = config.read_text().partition("encryption:\n")
    config.write_text(f"{head}encryption: off\nhost:{rest.partition('host:')[2]}")
    done = ready(*command, code=4)
    assert "encrypted" in done.stderr
    assert "hint:" in done.stderr


def test_whoever_gives_an_identity_expects_encryption(sealed: Sealed) -> None:
    """A new machine knows nothing of the repository: one without encryption may have taken its place."""
    sealed.write_encryption("")
    sealed("init")
    sealed("apply", "--yes")
    restore = ("restore", "docs", "--to", "out")
    for words, env in (((*restore, "--identity", "ann.txt"), {}), (restore, {"S3HASHSYNC_PASSPHRASE": WORD})):
        assert "says that nothing is encrypted" in sealed(*words, code=12, env=env).stderr
    assert not (sealed.base / "out").exists()
    config = sealed.base / "backup.yaml"
    config.write_text(config.read_text().replace("host:", "encryption: off\nhost:"))
    sealed(*restore, env={"S3HASHSYNC_PASSPHRASE": WORD})


@pytest.mark.parametrize("command", [("init",), ("plan",), ("restore", "docs", "--to", "out"), ("rebuild", "--index", "--yes")])
def test_a_plain_repository_stays_plain(sealed: Sealed, command: tuple[str, ...]) -> None:
    sealed.write_encryption("")
    sealed("init")
    sealed("apply", "--yes")
    sealed.configure("ann", "ben")
    assert "was made without" in sealed(*command, code=4).stderr


def test_a_configuration_without_a_word_takes_the_repository_as_it_is(ready: Sealed) -> None:
    ready.write_encryption("")
    ready("init")
    ready("apply", "--yes")
    ready("restore", "docs", "--to", "out", "--identity", "ann.txt")
    assert trees(ready, "docs") == trees(ready, "out")


def test_init_never_makes_another_repository_where_this_host_knows_one(ready: Sealed) -> None:
    shutil.rmtree(ready.base / "repo")
    assert str(ready.host_file) in ready("init", code=12).stderr
    ready.write_encryption("")
    assert str(ready.host_file) in ready("init", code=12).stderr
    ready.host_file.unlink()
    ready("init")


# Writing needs the host's keys, reading the identity


def test_a_host_writes_and_does_not_read(ready: Sealed) -> None:
    ready("apply", "--yes")
    (ready.docs / "b.txt").write_text("b\n")
    ready("plan")
    ready("apply", "--yes")
    for words in (("ls", "docs"), ("find", "*"), ("history", "docs"), ("restore", "--to", "out"), ("diff", "docs", "1h")):
        done = ready(*words, code=12)
        assert "--identity" in done.stderr
        ready(*words, "--identity", "ben.txt")
    assert trees(ready, "docs") == trees(ready, "out/docs")


def test_a_restore_needs_no_host_key_file(ready: Sealed) -> None:
    ready("apply", "--yes")
    ready.new_machine()
    ready.write_encryption("")
    ready("restore", "docs", "--to", "out", "--identity", "ann.txt")
    assert trees(ready, "docs") == trees(ready, "out")
    assert not ready.hosts.exists()


def test_a_new_machine_is_enrolled_once(ready: Sealed) -> None:
    ready("apply", "--yes")
    ready.new_machine()
    for words in (("plan",), ("apply", "--yes")):
        assert "key enroll" in ready(*words, code=12).stderr
    ready("key", "enroll", code=12)
    said = ready("key", "enroll", "--identity", "ann.txt").stdout
    assert "Keys of sources: docs." in said
    assert ready.host_file.stat().st_mode & 0o777 == 0o600
    assert ready.hosts.stat().st_mode & 0o777 == 0o700
    (ready.docs / "b.txt").write_text("b\n")
    ready("apply", "--yes")
    ready("apply", "--yes")
    ready("restore", "docs", "--to", "out", "--identity", "ann.txt")
    assert trees(ready, "docs") == trees(ready, "out")


def test_a_host_with_other_keys_of_a_source_is_not_enrolled_again(ready: Sealed) -> None:
    """The repository was put back to an earlier day, and another machine has begun the source anew."""
    for kept in ("repo", ".config"):
        shutil.copytree(ready.base / kept, ready.base / "earlier" / kept)
    ready("apply", "--yes")
    shutil.move(ready.base / ".config", ready.base / "this machine")
    for gone in ("repo", "state"):
        shutil.rmtree(ready.base / gone)
    for kept in ("repo", ".config"):
        shutil.move(ready.base / "earlier" / kept, ready.base / kept)
    ready("apply", "--yes")
    shutil.rmtree(ready.base / ".config")
    shutil.move(ready.base / "this machine", ready.base / ".config")
    before = ready.host_file.read_bytes()
    done = ready("key", "enroll", "--identity", "ann.txt", code=12)
    assert "other keys of source docs" in done.stderr
    assert "move keys/sources/docs.age away" in done.stderr
    assert f"move {ready.host_file} away" in done.stderr
    assert ready.host_file.read_bytes() == before


def test_a_lost_index_is_made_anew_with_the_identity(ready: Sealed) -> None:
    ready("apply", "--yes")
    for file in (ready.base / "repo").glob("index.db*"):
        file.unlink()
    ready("rebuild", "--index", "--yes", code=12)
    for file in (ready.base / "repo").glob("index.db*"):
        file.unlink()
    assert ready.lines("rebuild", "--index", "--yes", "--identity", "ann.txt")[-1]["live"] == 1
    ready("apply", "--yes")
    ready("restore", "docs", "--to", "out", "--identity", "ann.txt")
    assert trees(ready, "docs") == trees(ready, "out")


def test_the_host_key_file_may_lie_elsewhere(sealed: Sealed) -> None:
    sealed.configure("ann", "ben", more="  host_key: secret/host.json\n")
    sealed("init")
    sealed("apply", "--yes")
    assert (sealed.base / "secret" / "host.json").stat().st_mode & 0o777 == 0o600
    assert not sealed.hosts.exists()
    (sealed.base / "secret" / "host.json").unlink()
    sealed("plan", code=12)
    sealed("key", "enroll", "--identity", "ann.txt")
    sealed("plan")


def test_an_exchanged_repository_is_refused(ready: Sealed) -> None:
    ready("apply", "--yes")
    document = ready.base / "repo" / "repository.json"
    genuine = json.loads(document.read_text())
    for other in (
        genuine | {"encryption": "off", "hash": "sha256"},
        genuine | {"fingerprint": "00" * 10},
        genuine | {"id": "cd" * 16},
    ):
        document.write_text(json.dumps(other))
        for words in (("apply", "--yes"), ("ls", "docs", "--identity", "ann.txt")):
            done = ready(*words, code=12)
            assert "not the one that this host was enrolled in" in done.stderr
    document.write_text(json.dumps(genuine))
    ready("apply", "--yes")


# Identities


def test_the_first_identity_that_is_there_counts(ready: Sealed) -> None:
    ready("apply", "--yes")
    ann, ben, eve = (str(ready.base / f"{name}.txt") for name in ("ann", "ben", "eve"))
    text = (ready.base / "ann.txt").read_text()
    ready("ls", "docs", env={"S3HASHSYNC_IDENTITY_FILE": ann})
    ready("ls", "docs", env={"S3HASHSYNC_IDENTITY": text})
    ready("ls", "docs", "--identity", ben, env={"S3HASHSYNC_IDENTITY_FILE": eve})
    ready("ls", "docs", env={"S3HASHSYNC_IDENTITY_FILE": eve, "S3HASHSYNC_IDENTITY": text}, code=12)
    ready("ls", "docs", env={"S3HASHSYNC_IDENTITY": text, "S3HASHSYNC_PASSPHRASE": "wrong"})
    ready.configure("ann", "ben", more="  identity: {file: ben.txt}\n")
    ready("ls", "docs")
    ready("ls", "docs", env={"S3HASHSYNC_PASSPHRASE": "wrong"}, code=12)
    ready.configure("ann", "ben", more="  identity: {env: NOT_SET}\n")
    assert "--identity" in ready("ls", "docs", code=12).stderr


def test_a_wrong_identity_says_whose_the_repository_is(ready: Sealed) -> None:
    ready("apply", "--yes")
    done = ready("ls", "docs", "--identity", "eve.txt", code=12)
    assert "this identity does not open the repository" in done.stderr
    for name in ("ann", "ben", "eve"):
        assert ready.recipient(name) in done.stderr
    (line,) = ready.lines("ls", "docs", "--identity", "eve.txt", code=12)
    assert (line["message_type"], line["code"]) == ("exit_error", 12)


def test_identity_files_that_are_none(ready: Sealed) -> None:
    ready("apply", "--yes")
    (ready.base / "bad.txt").write_text(f"AGE-SECRET-KEY-1{'Q' * 58}\n")
    (ready.base / "public.txt").write_text(ready.recipient("ann"))
    (ready.base / "folder").mkdir()
    for name, code in (("missing.txt", 2), ("bad.txt", 2), ("public.txt", 2), ("folder", 2)):
        done = ready("ls", "docs", "--identity", name, code=code)
        assert name in done.stderr
        assert "Q" * 58 not in done.stderr


@pytest.mark.parametrize("text", ["-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn\n", "ssh-ed25519 AAAA me\n"])
def test_an_ssh_key_is_no_identity(ready: Sealed, text: str) -> None:
    (ready.base / "id").write_text(text)
    done = ready("key", "drill", "--identity", "id", code=2)
    assert "SSH key" in done.stderr
    assert "key generate" in done.stderr


def test_secrets_that_are_no_text_are_named(ready: Sealed) -> None:
    ready("apply", "--yes")
    no_text = os.fsdecode(b"\xff\xfe")
    ready.configure("ann", "ben", more="  identity: {env: BACKUP_IDENTITY}\n")
    for name, env in (("encryption.identity", "BACKUP_IDENTITY"), ("S3HASHSYNC_IDENTITY", "S3HASHSYNC_IDENTITY")):
        assert name in ready("ls", "docs", env={env: no_text}, code=2).stderr
    ready.configure("ann", "ben", more="  passphrase: {env: BACKUP_WORD}\n")
    for env in ("BACKUP_WORD", "S3HASHSYNC_PASSPHRASE"):
        ready("ls", "docs", env={env: no_text}, code=12)
    ready("ls", "docs", "--identity", no_text, code=2)


def test_rebuild_does_not_make_do_without_the_identity_that_it_was_given(ready: Sealed) -> None:
    ready("apply", "--yes")
    ready("rebuild", "--identity", "eve.txt", code=12)
    ready("rebuild", env={"S3HASHSYNC_IDENTITY_FILE": "eve.txt"}, code=12)
    ready("rebuild", "--identity", "missing.txt", code=2)
    ready("rebuild", "--identity", "ann.txt")
    ready("rebuild")


def test_an_identity_that_others_can_read_is_warned_of(ready: Sealed) -> None:
    ready("apply", "--yes")
    assert "warning" not in ready("ls", "docs", "--identity", "ann.txt").stderr
    (ready.base / "ann.txt").chmod(0o644)
    assert "chmod 600" in ready("ls", "docs", "--identity", "ann.txt").stderr


def test_a_protected_identity_file_takes_its_passphrase(ready: Sealed) -> None:
    ready("apply", "--yes")
    text = (ready.base / "ann.txt").read_bytes()
    path = ready.base / "protected.age"
    path.write_bytes(age.encrypt(text, (Passphrase(WORD, work_factor=4),), os.urandom))
    path.chmod(0o600)
    assert "protected by a passphrase" in ready("ls", "docs", "--identity", str(path), code=12).stderr
    ready("ls", "docs", "--identity", str(path), env={"S3HASHSYNC_PASSPHRASE": WORD})
    ready("ls", "docs", "--identity", str(path), env={"S3HASHSYNC_PASSPHRASE": "no"}, code=12)


# key


def test_generate_makes_an_identity_once(sealed: Sealed) -> None:
    recipient = sealed("key", "generate", "new.txt").stdout.splitlines()[0]
    path = sealed.base / "new.txt"
    assert path.stat().st_mode & 0o777 == 0o600
    (identity,) = age.parse_identities(path.read_text())
    assert str(identity.recipient) == recipient
    before = path.read_bytes()
    assert "never overwritten" in sealed("key", "generate", "new.txt", code=2).stderr
    assert path.read_bytes() == before
    assert sealed.lines("key", "generate")[-1]["recipient"] in (sealed.base / "s3hashsync-identity.txt").read_text()


def test_generate_protects_the_file(sealed: Sealed) -> None:
    assert "nobody to ask" in sealed("key", "generate", "p.age", "--passphrase", code=2).stderr
    assert not (sealed.base / "p.age").exists()
    recipient = sealed("-q", "key", "generate", "p.age", "--passphrase", env={"S3HASHSYNC_PASSPHRASE": WORD}).stdout.strip()
    (identity,) = age.parse_identities(age.decrypt((sealed.base / "p.age").read_bytes(), (Passphrase(WORD),)).decode())
    assert str(identity.recipient) == recipient


@pytest.mark.skipif(shutil.which("age") is None, reason="needs age")
def test_age_reads_what_generate_and_init_wrote(ready: Sealed) -> None:
    ready("apply", "--yes")
    ready("key", "generate", "new.txt")
    ready.people["new"] = age.parse_identities((ready.base / "new.txt").read_text())[0]
    ready("key", "add", ready.recipient("new"), "--identity", "ann.txt")

    def opened(identity: Path, file: Path) -> bytes:
        return subprocess.run(["age", "-d", "-i", str(identity), str(file)], capture_output=True, check=True).stdout

    epoch = ready.base / "epoch.txt"
    epoch.write_bytes(opened(ready.base / "new.txt", ready.base / "repo" / "keys" / "1.age"))
    source = json.loads(opened(epoch, ready.base / "repo" / "keys" / "sources" / "docs.age"))
    assert source["source"] == "docs"


def test_list_needs_no_identity_and_is_checked_with_one(ready: Sealed) -> None:
    (line,) = ready.lines("key", "list")
    assert line["recipients"] == [ready.recipient("ann"), ready.recipient("ben")]
    assert (line["epoch"], line["passphrases"], line["checked"], line["enrolled"]) == (1, 0, False, True)
    assert "with --identity it is checked" in ready("key", "list").stdout
    assert "authentic" in ready("key", "list", "--identity", "ben.txt").stdout
    path = ready.base / "repo" / "keys" / "recipients.json"
    path.write_text(path.read_text().replace(ready.recipient("ben"), ready.recipient("eve")))
    assert ready.recipient("eve") in ready("key", "list").stdout
    assert "MAC" in ready("key", "list", "--identity", "ann.txt", code=12).stderr


def test_add_and_remove(ready: Sealed) -> None:
    ready("apply", "--yes")
    ready("key", "add", ready.recipient("eve"), code=12)
    ready("key", "add", code=2)
    ready("key", "add", "age1nobody", "--identity", "ann.txt", code=2)
    said = ready("key", "add", ready.recipient("eve"), "--identity", "ann.txt").stdout
    assert f"+ {ready.recipient('eve')}" in said
    assert "key sync takes this back" in said
    ready("ls", "docs", "--identity", "eve.txt")
    assert "at hand" in ready("key", "remove", ready.recipient("eve"), "--identity", "eve.txt", code=4).stderr
    said = ready("key", "remove", ready.recipient("eve"), ready.recipient("ben"), "--identity", "ann.txt").stdout
    assert "kept a copy" in said
    for name in ("eve", "ben"):
        ready("ls", "docs", "--identity", f"{name}.txt", code=12)
    assert "last recipient" in ready("key", "remove", ready.recipient("ann"), "--identity", "ann.txt", code=4).stderr
    ready("ls", "docs", "--identity", "ann.txt")


def test_add_says_everybody_who_can_open_it_now(ready: Sealed) -> None:
    said = ready("key", "add", ready.recipient("eve"), "--identity", "ann.txt").stdout
    assert all(f"the identity of {ready.recipient(name)}" in said for name in ("ann", "ben", "eve"))
    assert "Tried: the identity file ann.txt." in said


def test_whoever_is_not_there_cannot_be_removed(ready: Sealed) -> None:
    before = trees(ready, "repo/keys")
    for words in ((ready.recipient("eve"),), ("--passphrase",), (ready.recipient("ben"), ready.recipient("eve"))):
        done = ready("key", "remove", *words, "--identity", "ann.txt", code=2)
        assert all(ready.recipient(name) in done.stderr for name in ("ann", "ben"))
    assert trees(ready, "repo/keys") == before


def test_a_removal_that_was_cut_short_is_ended_by_the_same_command(ready: Sealed) -> None:
    keys, ben = ready.base / "repo" / "keys", ready.recipient("ben")
    old = (keys / "1.age").read_bytes()
    ready("key", "remove", ben, "--identity", "ann.txt")
    (keys / "1.age").write_bytes(old)
    # The list of that very change, as it stood beside both files.
    root = parse_epoch(age.decrypt(old, (ready.people["ann"],)), "keys/1.age").root
    listed = parse_recipients((keys / "recipients.json").read_bytes()).stated
    both = replace(listed, describes={**listed.describes, digest_of(old): listed.recipients})
    (keys / "recipients.json").write_bytes(both.render(root))
    assert "cut short" in ready("key", "list").stderr
    ready("key", "remove", ben, "--identity", "ann.txt")
    ready("key", "drill", "--identity", "ben.txt", code=12)
    assert "cut short" not in ready("key", "list").stderr


def test_old_versions_that_a_removal_has_left_are_ended_by_the_same_command(
    ready: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = ["keys/1.1.age", "keys/1.age"]
    monkeypatch.setattr(LocalObjects, "past_documents", lambda self, prefix: iter(list(old)))
    monkeypatch.setattr(LocalObjects, "forget_versions", lambda self, key: old.remove(key))
    for words in ((ready.recipient("eve"),), ("--passphrase",)):
        old[:] = ["keys/1.1.age", "keys/1.age"]
        assert "earlier change" in ready("key", "remove", *words, "--identity", "ann.txt").stderr
        assert old == []
        ready("key", "remove", *words, "--identity", "ann.txt", code=2)
    ready("key", "drill", "--identity", "ben.txt")


@pytest.mark.parametrize("words", [("key", "list"), ("doctor",)], ids=" ".join)
def test_old_versions_of_key_files_are_shown(ready: Sealed, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    said = ready(*words)
    assert "old versions" not in said.stdout + said.stderr
    old = ["keys/1.1.age", "keys/2.age", "keys/recipients.json", "keys/sources/docs.age", "keys/\x1b[2J"]
    monkeypatch.setattr(LocalObjects, "past_documents", lambda self, prefix: iter(list(old)))
    monkeypatch.setattr(LocalObjects, "forget_versions", lambda self, key: old.remove(key))
    said = ready(*words)
    shown = said.stdout + said.stderr
    assert "old versions of keys/1.1.age, keys/recipients.json are still stored" in shown
    assert "key sync" in shown
    assert r"old versions of keys/2.age, keys/sources/docs.age, keys/\x1b[2J are stored, and no command deletes" in shown
    ready("key", "sync", "--identity", "ann.txt")
    said = ready(*words)
    assert old == ["keys/2.age", "keys/sources/docs.age", "keys/\x1b[2J"]
    assert "still stored" not in said.stdout + said.stderr
    assert "no command deletes" in said.stdout + said.stderr


def test_a_host_that_may_not_list_versions_is_told(ready: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: LocalObjects, prefix: str) -> Iterator[str]:
        raise Denied("no right to list versions")

    monkeypatch.setattr(LocalObjects, "past_documents", refuse)
    assert "cannot be seen: no right to list versions" in ready("key", "list").stderr
    assert "cannot be seen: no right to list versions" in ready("doctor").stdout


# The key files, as far as a host sees them


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "text", "changed header"])
def test_nothing_is_written_into_what_nobody_could_open(ready: Sealed, damage: str) -> None:
    ready("apply", "--yes")
    (ready.docs / "b.txt").write_text("b\n")
    path = ready.base / "repo" / "keys" / "1.age"
    data = path.read_bytes()
    path.unlink()
    changed = {"empty": b"", "cut": data[:350], "text": b"hello", "changed header": data.replace(b"X25519", b"Y25519")}
    if damage in changed:
        path.write_bytes(changed[damage])
    before = trees(ready, "repo/objects", "repo/runs")
    for words in (("plan",), ("apply", "--yes"), ("init",)):
        done = ready(*words, code=1)
        assert "keys/1.age" in done.stderr
        assert "recovery kit" in done.stderr
    assert trees(ready, "repo/objects", "repo/runs") == before
    assert "keys/1.age" in ready("doctor", code=4).stdout
    for words in (("status",), ("key", "list")):
        assert "keys/1.age" in ready(*words).stderr
    path.write_bytes(data)
    ready("apply", "--yes")
    for words in (("status",), ("key", "list"), ("doctor",), ("init",), ("plan",)):
        done = ready(*words)
        assert "1.age" not in done.stdout + done.stderr


def test_a_passphrase_that_is_left_opens_it_and_mends_it(sealed: Sealed) -> None:
    sealed.configure("ann", more="  passphrase: {env: BACKUP_WORD}\n")
    word = {"BACKUP_WORD": WORD}
    sealed("init", env=word)
    keys = sealed.base / "repo" / "keys"
    (keys / "1.age").unlink()
    for words in (("plan",), ("apply", "--yes"), ("init",), ("status",), ("key", "list")):
        assert "run s3hashsync key sync" in sealed(*words).stderr
    assert "keys/1.age is not there" in sealed("doctor").stdout
    sealed("key", "sync", env=word)
    sealed("ls", "docs", "--identity", "ann.txt")
    (keys / "1.1.age").write_bytes(b"")
    assert "keys/1.1.age is damaged" in sealed("key", "list").stderr
    assert "1.1.age" not in sealed("apply", "--yes").stderr
    (keys / "1.age").unlink()
    assert "nobody could open" in sealed("apply", "--yes", code=1).stderr


def test_damage_behind_the_header_shows_by_the_list(ready: Sealed) -> None:
    ready("apply", "--yes")
    path = ready.base / "repo" / "keys" / "1.age"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for words in (("plan",), ("apply", "--yes"), ("init",), ("status",), ("key", "list")):
        assert "key drill" in ready(*words).stderr
    assert "is not the file" in ready("doctor").stdout


# A host key file that is damaged


@pytest.mark.parametrize("damage", ["empty", "cut", "folder"])
def test_a_damaged_host_key_file_is_in_the_way_of_writing_alone(ready: Sealed, damage: str) -> None:
    ready("apply", "--yes")
    path = ready.host_file
    data = path.read_bytes()
    path.unlink()
    path.mkdir() if damage == "folder" else path.write_bytes(data[: 100 if damage == "cut" else 0])
    for words in (("ls", "docs"), ("find", "a*"), ("history", "docs"), ("restore", "docs", "--to", "out"), ("key", "drill")):
        done = ready(*words, "--identity", "ann.txt")
        assert str(path) in done.stderr
        assert "key enroll" in done.stderr
    assert trees(ready, "docs") == trees(ready, "out")
    ready("recovery-kit", "kit")
    ready("status")
    for words in (("doctor",), ("key", "list")):
        assert str(path) in ready(*words).stdout
    for words in (("plan",), ("apply", "--yes")):
        done = ready(*words, code=1)
        assert str(path) in done.stderr
    if damage == "folder":
        path.rmdir()
    said = ready("key", "enroll", "--identity", "ann.txt")
    assert "compare" in said.stdout
    assert path.read_bytes() == data
    ready("apply", "--yes")
    assert str(path) not in ready("ls", "docs", "--identity", "ann.txt").stderr


@pytest.mark.parametrize("other", [{}, {"id": "cd" * 16}])
def test_beside_a_damaged_host_key_file_nothing_is_believed_to_be_plain(ready: Sealed, other: dict[str, str]) -> None:
    ready("apply", "--yes")
    ready.write_encryption("")
    document = ready.base / "repo" / "repository.json"
    document.write_text(json.dumps(json.loads(document.read_text()) | {"encryption": "off", "hash": "sha256"} | other))
    ready.host_file.write_bytes(b"")
    for words in (("plan",), ("apply", "--yes"), ("ls", "docs", "--identity", "ann.txt")):
        assert str(ready.host_file) in ready(*words, code=12).stderr


def test_a_host_key_file_of_another_repository_keeps_being_refused(ready: Sealed) -> None:
    ready("apply", "--yes")
    body = json.loads(ready.host_file.read_text())
    for other in ({"fingerprint": "00" * 10}, {"repository": "cd" * 16}):
        ready.host_file.write_text(json.dumps(body | other))
        for words in (("plan",), ("ls", "docs", "--identity", "ann.txt"), ("key", "enroll", "--identity", "ann.txt")):
            ready(*words, code=12)


# The configuration's passphrase


def test_sync_adds_a_changed_passphrase_and_says_that_the_old_one_stays(ready: Sealed) -> None:
    ready.configure("ann", "ben", more="  passphrase: {env: BACKUP_WORD}\n")
    assert "+ 1 passphrase" in ready("key", "sync", "--identity", "ann.txt", env={"BACKUP_WORD": WORD}).stdout
    again = ready("key", "sync", "--identity", "ann.txt", env={"BACKUP_WORD": WORD})
    assert "+ 1 passphrase" not in again.stdout
    assert "key remove" not in again.stderr
    unset = ready("key", "sync", "--identity", "ann.txt")
    assert "it was not compared" in unset.stderr
    changed = ready("key", "sync", "--identity", "ann.txt", env={"BACKUP_WORD": "another one"})
    assert "+ 1 passphrase" in changed.stdout
    assert "and the new passphrase" in changed.stdout
    assert "key remove --passphrase" in changed.stderr
    for word in (WORD, "another one"):
        ready("key", "drill", env={"BACKUP_WORD": word})
    ready.configure("ann", "ben")
    assert "names no passphrase" in ready("key", "sync", "--identity", "ann.txt").stdout
    ready("key", "remove", "--passphrase", "--identity", "ann.txt")
    assert "names no passphrase" not in ready("key", "sync", "--identity", "ann.txt").stdout


def test_a_secret_that_others_can_read_is_warned_of_once(ready: Sealed) -> None:
    config = ready.base / "backup.yaml"
    ready.configure("ann", "ben", more=f"  passphrase: {WORD}\n")
    config.chmod(0o644)
    for words in (("plan",), ("validate",), ("doctor",)):
        done = ready(*words)
        assert (done.stdout + done.stderr).count(f"chmod 600 {config}") == 1
        assert WORD not in done.stdout + done.stderr
    config.chmod(0o600)
    assert "chmod" not in ready("validate").stderr
    ready.configure("ann", "ben", more="  passphrase: {env: BACKUP_WORD}\n")
    config.chmod(0o644)
    assert "chmod" not in ready("validate").stderr


def test_plan_shows_what_sync_would_change_and_sync_changes_it(ready: Sealed) -> None:
    assert "recipients" not in ready("plan").stdout
    ready.configure("ann", "eve", more="  passphrase: {env: BACKUP_WORD}\n")
    said = ready("plan").stdout
    added, removed = ready.recipient("eve"), ready.recipient("ben")
    assert f"recipients: + {added} + a passphrase - {removed}; s3hashsync key sync applies it" in said
    lines = ready.lines("plan")
    shown = next(line for line in lines if line["message_type"] == "recipients")
    assert (shown["added"], shown["removed"], shown["passphrase"]) == ([added], [removed], True)
    assert lines[-1]["message_type"] == "change_summary"
    assert "key sync applies it" in ready("apply", "--yes").stdout
    after = json.loads(ready("--json", "key", "sync", "--identity", "ann.txt", env={"BACKUP_WORD": WORD}).stdout.splitlines()[0])
    assert (after["added"], after["removed"], after["passphrases"]) == ([added], [removed], 1)
    assert "recipients" not in ready("plan").stdout
    ready("ls", "docs", "--identity", "eve.txt")
    ready("ls", "docs", env={"BACKUP_WORD": WORD})
    ready("ls", "docs", "--identity", "ben.txt", code=12)
    ready("key", "remove", "--passphrase", "--identity", "eve.txt")
    ready("ls", "docs", env={"BACKUP_WORD": WORD}, code=12)


def test_a_backup_does_not_fail_for_a_damaged_list(ready: Sealed) -> None:
    (ready.base / "repo" / "keys" / "recipients.json").write_text("{")
    assert "cannot be said" in ready("apply", "--yes").stderr
    ready("key", "sync", "--identity", "ann.txt")
    assert "cannot be said" not in ready("plan").stderr


def test_sync_needs_recipients(ready: Sealed) -> None:
    ready.write_encryption("")
    ready("key", "sync", "--identity", "ann.txt", code=2)


def test_drill_proves_and_says_what_it_did_not_try(ready: Sealed) -> None:
    assert ready.lines("key", "drill", "--identity", "ann.txt")[-1]["content"] is None
    ready("apply", "--yes")
    done = ready.lines("key", "drill", "--identity", "ann.txt")[-1]
    assert done["files"] == ["keys/1.age"]
    assert [one["source"] for one in done["sources"]] == ["docs"]
    assert (done["content"]["path"], done["errors"]) == ("a.txt", 0)
    assert done["untried"] == [ready.recipient("ben")]
    said = ready("key", "drill", "--identity", "ben.txt").stdout
    assert f"not tried: the identity of {ready.recipient('ann')}" in said
    assert "SHA-256 is right" in said
    ready("key", "drill", "--identity", "eve.txt", code=12)
    ready("key", "drill", code=12)


def test_drill_needs_neither_index_nor_host(ready: Sealed) -> None:
    ready("apply", "--yes")
    ready.new_machine()
    for file in (ready.base / "repo").glob("index.db*"):
        file.unlink()
    ready("key", "drill", "--identity", "ann.txt")


@pytest.mark.parametrize("victim", ["keys/sources/docs.age", "runs/docs/*", "packs/*/*", "keys/1.age"])
def test_drill_finds_damage(ready: Sealed, victim: str) -> None:
    ready("apply", "--yes")
    (path,) = (ready.base / "repo").glob(victim)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    done = ready("key", "drill", "--identity", "ann.txt", code=None)
    assert done.returncode == (1 if victim == "keys/1.age" else 3), done.stderr
    assert "error:" in done.stderr


def test_doctor_says_whether_the_host_is_enrolled(ready: Sealed) -> None:
    assert "this host is enrolled" in ready("doctor", "-v").stdout
    ready.host_file.chmod(0o640)
    assert "chmod 600" in ready("doctor").stdout
    ready.configure("ann", "eve")
    assert "other recipients" in ready("doctor").stdout
    ready.host_file.unlink()
    assert "not enrolled" in ready("doctor").stdout


def test_key_commands_and_their_options_are_described() -> None:
    text = (ROOT / "docs" / "commands.md").read_text().partition("\n## key\n")[2].partition("\n## ")[0]
    for name, command in key_command.commands.items():
        assert f"key {name}" in text
        for option in (p for p in command.params if isinstance(p, click.Option) and p.name in ("passphrase", "identity")):
            assert option.opts[0] in text


# Secrets


def test_no_secret_is_ever_said_or_stored_in_the_clear(sealed: Sealed) -> None:
    sealed.configure("ann", "ben", more="  passphrase: {env: BACKUP_WORD}\n  identity: {env: BACKUP_IDENTITY}\n")
    ann = (sealed.base / "ann.txt").read_text()
    env = {"BACKUP_WORD": WORD, "BACKUP_IDENTITY": ann}
    for words in (
        ("init", "-v"), ("apply", "--yes", "-v"), ("plan", "--out", "p.plan"), ("show", "p.plan"),
        ("ls", "docs"), ("doctor", "-v"),
        ("key", "list"), ("key", "drill"), ("key", "enroll"), ("key", "add", sealed.recipient("eve")), ("key", "sync"),
        ("key", "remove", sealed.recipient("ben")), ("status",), ("restore", "docs", "--to", "out"),
        ("ls", "docs", "--identity", "eve.txt"), ("key", "add", sealed.people["ann"].secret_text()), ("recovery-kit", "kit"),
    ):  # fmt: skip
        sealed(*words, code=None, env=env)
        if words[0] in ("init", "key"):
            sealed("--json", *words, code=None, env=env)
    for bad in ({"S3HASHSYNC_IDENTITY": ann[:-9]}, {"S3HASHSYNC_PASSPHRASE": f"{WORD}!"}, {"BACKUP_IDENTITY": f"x{ann}"}):
        sealed("ls", "docs", code=None, env={**env, **bad})
    opened = age.decrypt((sealed.base / "repo" / "keys" / "1.age").read_bytes(), (sealed.people["ann"],)).decode()
    host = json.loads(sealed.host_file.read_text())
    secrets = [WORD, *(one.secret_text() for one in sealed.people.values()), opened.splitlines()[-1]]
    secrets += [line.split(": ")[1] for line in opened.splitlines() if line.startswith("# root-key")]
    secrets += [host["hash_key"], host["sources"]["docs"]["name_key"], host["sources"]["docs"]["log_key"]]
    said = "".join(sealed.said)
    folders = [sealed.base / name for name in ("repo", "state", "kit", "p.plan")]
    files = [p for folder in folders for p in (folder, *folder.rglob("*")) if p.is_file()]
    assert len(files) > 8
    for secret in secrets:
        core = secret.removeprefix("AGE-SECRET-KEY-1")[:40]
        assert core not in said
        raw = bytes.fromhex(secret) if all(c in "0123456789abcdef" for c in secret) else core.encode()
        for file in files:
            data = file.read_bytes()
            assert core.encode() not in data, file
            assert raw not in data, file


# At a terminal


class Terminal:
    """The program with a person at it."""

    def __init__(self, program: Program, *words: str) -> None:
        self.process, self.fd = None, -1
        controller, terminal = pty.openpty()
        self.fd = controller
        self.process = subprocess.Popen(
            [sys.executable, "-m", "s3hashsync", *words],
            cwd=program.base,
            env={**program.environment, "TERM": "dumb", "COLUMNS": "500"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            close_fds=True,
        )
        os.close(terminal)
        self.seen = ""

    def answer(self, question: str, text: str) -> None:
        self._until(question)
        self.seen = ""
        os.write(self.fd, f"{text}\n".encode())

    def end(self) -> str:
        self._until(None)
        assert self.process is not None
        self.code = self.process.wait(30)
        os.close(self.fd)
        return self.seen

    def _until(self, wanted: str | None) -> None:
        deadline = time.monotonic() + 30
        while wanted is None or wanted not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if not select.select([self.fd], [], [], 1)[0]:
                continue
            data = b""
            with contextlib.suppress(OSError):
                data = os.read(self.fd, 65_536)
            if not data:
                assert wanted is None, self.seen
                return
            self.seen += data.decode()


@pytest.fixture
def undecided(sealed: Sealed) -> Sealed:
    sealed.write_encryption("")
    return sealed


def test_init_asks_whether_to_encrypt_and_makes_what_it_takes(undecided: Sealed) -> None:
    person = Terminal(undecided, "init")
    person.answer("Encrypt the backup?", "y")
    person.answer("Make an identity in the file", "")
    for question in ("passphrase", "Repeat"):
        person.answer(question, WORD)
    said = person.end()
    assert person.code == 0, said
    assert WORD not in said
    keys = b"".join(key.read_bytes() for key in (undecided.base / "repo" / "keys").glob("*.age"))
    assert re.search(rb"^-> scrypt \S+ 18$", keys, re.MULTILINE)
    (recipient,) = age.parse_identities((undecided.base / "s3hashsync-identity.txt").read_text())
    assert f"- {recipient.recipient}" in said
    undecided("apply", "--yes")
    undecided("ls", "docs", "--identity", "s3hashsync-identity.txt")
    undecided("ls", "docs", env={"S3HASHSYNC_PASSPHRASE": WORD})
    again = Terminal(undecided, "init")
    assert "There already" in again.end()


def test_init_takes_no_for_an_answer(undecided: Sealed) -> None:
    person = Terminal(undecided, "init")
    person.answer("Encrypt the backup?", "n")
    assert "encryption: off" in person.end()
    assert person.code == 0
    undecided("apply", "--yes")
    undecided("ls", "docs")


def test_the_identity_is_asked_for_at_a_terminal(ready: Sealed) -> None:
    ready("apply", "--yes")
    person = Terminal(ready, "ls", "docs")
    person.answer("Identity file", "ann.txt")
    assert "a.txt" in person.end()
    assert person.code == 0
    person = Terminal(ready, "apply", "--yes")
    assert "Identity" not in person.end()


def test_a_new_passphrase_is_asked_for_twice(ready: Sealed) -> None:
    ready("apply", "--yes")
    assert "key sync" in ready("key", "add", "--passphrase", "--identity", "ann.txt", code=2).stderr
    person = Terminal(ready, "key", "add", "--passphrase", "--identity", "ann.txt")
    person.answer("New passphrase", WORD)
    person.answer("Repeat", WORD)
    assert WORD not in person.end()
    ready("ls", "docs", env={"S3HASHSYNC_PASSPHRASE": WORD})


def test_the_passphrase_is_asked_for_at_a_terminal(sealed: Sealed) -> None:
    sealed.configure("ann", more="  passphrase: {env: BACKUP_WORD}\n")
    sealed("init", env={"BACKUP_WORD": WORD})
    sealed("apply", "--yes")
    person = Terminal(sealed, "ls", "docs")
    person.answer("Passphrase", WORD)
    said = person.end()
    assert "a.txt" in said
    assert WORD not in said
