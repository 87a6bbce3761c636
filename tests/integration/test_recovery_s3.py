"""Recovery without the program from a bucket, with `aws` and the other stock tools.

In both kinds of bucket: one that keeps versions, one that does not.
"""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3hashsync.stores.aws import connect
from tests import servers
from tests.aws_places import settings
from tests.program import Program
from tests.recovery import FORMS, ROOT, Form, back_up, encryption_of, picture, run, script_of, stock_path
from tests.servers import ACCESS_KEY, REGION, SECRET_KEY

CONFIG = """\
version: 1
repository:
  objects: s3://{bucket}/some/home
  index: sqlite://{base}/index.db
  region: {region}
  endpoints: {{s3: "{endpoint}"}}
  storage_class: {storage_class}
  pack: {pack}
encryption: {encryption}
host: here
sources:
  - name: docs
    path: {base}/docs
"""


class Bucket:
    """A repository in a bucket of its own, and a shell to recover it in."""

    def __init__(self, base: Path, endpoint: str, form: Form, storage_class: str = "STANDARD") -> None:
        self.base, self.endpoint, self.name = base, endpoint, f"recovery-{secrets.token_hex(6)}"
        self.client = connect(settings(endpoint)).s3()
        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": REGION}
        self.program = Program(base)
        self.program.environment |= keys
        encryption, self.identity = encryption_of(form, base)
        values = {"base": base, "pack": form.pack, "encryption": encryption, "endpoint": endpoint, "region": REGION}
        values["storage_class"] = storage_class
        (base / "backup.yaml").write_text(CONFIG.format(bucket=self.name, **values))
        self.program("init", "--yes")
        back_up(self.program)
        self.shell = keys | {"PATH": stock_path(base / "bin", aws=True), "HOME": str(base), "TMPDIR": str(base)}
        self.options = ["-i", self.identity] if form.encrypted else []

    def stored_keys(self) -> list[str]:
        return [one["Key"] for one in self.client.list_objects_v2(Bucket=self.name)["Contents"]]


@pytest.fixture(scope="session")
def without_versions() -> Iterator[str]:
    with servers.versitygw(versions=False) as endpoint:
        yield endpoint


@pytest.fixture(scope="module", params=[True, False], ids=["versions", "suffixes"])
def versions(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module", params=FORMS, ids=str)
def bucket(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    versitygw: str,
    without_versions: str,
    versions: bool,
) -> Bucket:
    return Bucket(tmp_path_factory.mktemp("bucket"), versitygw if versions else without_versions, request.param)


def test_what_is_stored_is_of_the_kind_that_is_tested(bucket: Bucket, versions: bool) -> None:
    stems = [key.rpartition("/")[2] for key in bucket.stored_keys() if "/objects/" in key]
    assert stems
    assert all(("." in stem) is not versions for stem in stems)


def test_the_page_restores_from_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    places = {
        "REPOSITORY": "",
        "BUCKET": bucket.name,
        "PREFIX": "some/home",
        "SOURCE": "docs",
        "TARGET": str(tmp_path / "back"),
        "IDENTITY": bucket.identity,
        "AWS_ENDPOINT_URL": bucket.endpoint,
    }
    script = script_of(ROOT / "docs" / "recovery.md")
    done = run(["bash", "-eu", "-c", script], bucket.shell | places, bucket.base)
    assert b"everything is restored and its SHA-256 is right" in done.stdout
    assert picture(tmp_path / "back") == picture(bucket.program.docs)


class Kit:
    """The scripts of a bucket's kit."""

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        bucket.program("recovery-kit", str(folder))
        self.bucket, self.folder = bucket, folder

    def __call__(self, name: str, *words: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        return run([str(self.folder / name), *words], self.bucket.shell, self.bucket.base, code=code)


def test_the_kit_restores_from_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    kit = Kit(bucket, tmp_path / "kit")
    assert kit("list-source.sh").stdout == b"docs\n"
    kit("restore-source.sh", *bucket.options, "docs", str(tmp_path / "back"))
    assert picture(tmp_path / "back") == picture(bucket.program.docs)
    assert b"0 to ask for" in kit("thaw-source.sh", *bucket.options, "docs").stderr
    assert bucket.name in (tmp_path / "kit" / "RECOVERY.txt").read_text()


@pytest.mark.parametrize("form", [FORMS[0], FORMS[-1]], ids=str)
def test_the_kit_thaws_what_is_archived(form: Form, ministack: str, tmp_path: Path) -> None:
    bucket = Bucket(tmp_path, ministack, form, "GLACIER")
    kit = Kit(bucket, tmp_path / "kit")
    done = kit("restore-source.sh", *bucket.options, "docs", str(tmp_path / "cold"), code=1)
    assert b"could not be restored" in done.stderr
    shown = kit("thaw-source.sh", *bucket.options, "docs")
    asked = shown.stdout.splitlines()
    assert f"{len(asked)} to ask for (with --yes), 0 on their way, 0 ready".encode() in shown.stderr
    assert len(asked) == len(set(asked))
    assert any(line.startswith(b"packs/") for line in asked) == form.packed
    done = kit("thaw-source.sh", *bucket.options, "--yes", "docs")
    assert f"{len(asked)} asked for now".encode() in done.stderr
    # ministack says of no version whether it is thawed; it takes two seconds.
    time.sleep(3)
    kit("restore-source.sh", *bucket.options, "docs", str(tmp_path / "back"))
    assert picture(tmp_path / "back") == picture(bucket.program.docs)
