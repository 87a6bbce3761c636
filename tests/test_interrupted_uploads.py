"""Large contents of an encrypted repository that a dead process had begun to send in parts: on a store that can go on with them,
and on a folder, which begins anew."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from s3hashsync.core.model import Record, RecordState
from s3hashsync.disk import seals
from s3hashsync.run import backup, uploads
from s3hashsync.run.progress import Silent
from s3hashsync.stores import local, local_upload, s3_upload
from s3hashsync.stores.aws import connect
from s3hashsync.stores.s3 import S3Objects
from s3hashsync.stores.sqlite import SqliteIndex
from tests import servers
from tests.aws_places import fresh_bucket, settings
from tests.faulty import Crash, Fault, FaultPlan, on
from tests.harness import House, as_they_are
from tests.test_crash import assert_restorable, child, state_under, under

KILLS = int(os.environ.get("S3HASHSYNC_KILLS", "5"))
PART = 1 << 20
PARTS = 4
SIZE = PARTS * PART - 100_000
"""Noise, so that it is as long when it is stored."""


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


class Server:
    """A client that counts the parts which are sent, and leaves out the checksum that ministack takes for a wrong one."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.sent: list[int] = []
        self.begun = 0
        self.aborted = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def create_multipart_upload(self, **request: Any) -> Any:
        self.begun += 1
        return self._client.create_multipart_upload(**request)

    def upload_part(self, **request: Any) -> Any:
        answer = self._client.upload_part(**request)
        self.sent.append(request["PartNumber"])
        return answer

    def complete_multipart_upload(self, **request: Any) -> Any:
        del request["ChecksumCRC32"], request["ChecksumType"]
        return self._client.complete_multipart_upload(**request)

    def abort_multipart_upload(self, **request: Any) -> Any:
        self.aborted += 1
        return self._client.abort_multipart_upload(**request)


@dataclass
class S3House(House):
    """Its objects lie in a bucket with versions; its index in a file."""

    server: Server | None = None
    bucket: str = ""
    endpoint: str = ""
    notes: Notes = field(default_factory=Notes)

    @contextlib.contextmanager
    def _stores(self, *, create: bool = False) -> Iterator[tuple[Any, SqliteIndex]]:
        index = SqliteIndex(str(self.folder / "index.db"), create=create)
        try:
            # A process that is a copy of this one must not share its connections.
            server = Server(connect(settings(self.endpoint)).s3()) if self.endpoint else self.server
            yield S3Objects(server, self.bucket, "home"), index
        finally:
            index.close()

    @contextlib.contextmanager
    def job(self, *, identity: bool = True) -> Iterator[backup.Job]:
        with super().job(identity=identity) as job:
            yield replace(job, progress=self.notes)

    @property
    def seal_files(self) -> dict[str, bytes]:
        return {place.name: place.read_bytes() for place in self.state_folder.glob("*.seal")}


@pytest.fixture(scope="module")
def ministack() -> Iterator[str]:
    with servers.ministack() as endpoint:
        yield endpoint


@pytest.fixture
def house(ministack: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> S3House:
    """One large file, not backed up yet."""
    monkeypatch.setattr(S3Objects, "single_put_limit", PART)
    monkeypatch.setattr(s3_upload, "SMALLEST_PART", PART)
    client, bucket = fresh_bucket(ministack)
    house = S3House(folder, encryption=True, server=Server(client), bucket=bucket)
    house.init()
    house.write("large", random.Random(1).randbytes(SIZE))
    return house


def die(house: S3House, name: str, fault: Fault, nth: int = 1) -> S3House:
    """A run that dies at the n-th operation of this name; the process after it."""
    plan = FaultPlan([on(name, fault, nth)])
    house.wrap = under(plan)
    with state_under(plan), pytest.raises(Crash):
        house.backup()
    house.assert_safe()
    assert house.server is not None
    house.server.sent.clear()
    return house.again(wrap=as_they_are, notes=Notes())  # type: ignore[return-value]


def assert_stored(house: S3House) -> None:
    """Once, and it opens; nothing secret is left behind."""
    assert house.seal_files == {}
    house = house.again(notes=Notes())  # type: ignore[assignment]
    house.assert_converged()
    (record,) = house.records().values()
    assert (record.state, record.encoding) == (RecordState.LIVE, "zstd+age:1")
    assert isinstance(record, Record)
    assert_restorable(house)
    assert house.server is not None
    unfinished = house.server.list_multipart_uploads(Bucket=house.bucket).get("Uploads", [])
    assert unfinished == []


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
@pytest.mark.parametrize("nth", range(1, PARTS + 1))
def test_the_next_run_goes_on_with_the_same_seal(house: S3House, fault: Fault, nth: int) -> None:
    house = die(house, "upload.write_part", fault, nth)
    (before,) = house.seal_files.values()
    stored = nth - (fault is Fault.CRASH_BEFORE)
    kept: list[bytes] = []
    house.wrap = lambda objects, index: kept.extend(house.seal_files.values()) or (objects, index)  # type: ignore[func-returns-value]
    assert house.backup().summary.objects_put == 1
    assert kept == [before]
    assert house.server is not None
    assert house.server.sent == list(range(stored + 1, PARTS + 1)), "what was there is not sent again"
    assert (house.server.begun, house.notes.said) == (1, [])
    assert_stored(house)


def test_a_crash_before_the_token_is_kept_begins_anew(house: S3House) -> None:
    """The upload that nobody knows of is left to the bucket's rule."""
    house = die(house, "objects.begin", Fault.CRASH_AFTER)
    assert house.seal_files == {}
    assert house.backup().summary.objects_put == 1
    assert house.server is not None
    assert (house.server.begun, house.server.sent) == (2, list(range(1, PARTS + 1)))
    (lost,) = house.server.list_multipart_uploads(Bucket=house.bucket)["Uploads"]
    house.server.abort_multipart_upload(Bucket=house.bucket, Key=lost["Key"], UploadId=lost["UploadId"])
    assert_stored(house)


def test_a_complete_upload_is_taken_up_and_its_seal_dropped(house: S3House) -> None:
    house = die(house, "upload.complete", Fault.CRASH_AFTER)
    assert len(house.seal_files) == 1
    summary = house.backup().summary
    assert (summary.adopted, summary.objects_put) == (1, 0)
    assert house.server is not None
    assert house.server.sent == []
    assert_stored(house)


def test_an_upload_that_was_only_not_completed_sends_nothing_again(house: S3House) -> None:
    house = die(house, "upload.complete", Fault.CRASH_BEFORE)
    assert house.backup().summary.objects_put == 1
    assert house.server is not None
    assert house.server.sent == []
    assert_stored(house)


@pytest.mark.parametrize("how", ["deleted", "cut short", "of another encoder"])
def test_without_its_seal_it_starts_again_and_says_so(house: S3House, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    house = die(house, "upload.write_part", Fault.CRASH_AFTER, 3)
    (place,) = house.state_folder.glob("*.seal")
    match how:
        case "deleted":
            place.unlink()
        case "cut short":
            place.write_bytes(place.read_bytes().splitlines()[0][:-30])
        case _:
            monkeypatch.setattr(uploads, "ENCODER", "another one")
    assert house.backup().summary.objects_put == 1
    assert [note for note in house.notes.said if "starts again" in note and "large" in note]
    assert house.server is not None
    assert (house.server.begun, house.server.sent) == (2, list(range(1, PARTS + 1)))
    assert_stored(house)


def test_an_upload_that_the_store_has_given_up_starts_again_with_a_new_seal(house: S3House) -> None:
    house = die(house, "upload.write_part", Fault.CRASH_AFTER, 2)
    (before,) = house.seal_files.values()
    assert house.server is not None
    (lost,) = house.server.list_multipart_uploads(Bucket=house.bucket)["Uploads"]
    house.server.abort_multipart_upload(Bucket=house.bucket, Key=lost["Key"], UploadId=lost["UploadId"])
    after: list[bytes] = []
    keep = seals.SealFiles.keep

    def noted(self: seals.SealFiles, attempt_id: str, *args: Any) -> None:
        keep(self, attempt_id, *args)
        after.extend(house.seal_files.values())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seals.SealFiles, "keep", noted)
        house.backup()
    assert len(after) == 1
    assert after != [before], "one seal is never used for two uploads"
    assert any("starts again" in note for note in house.notes.said)
    assert_stored(house)


def test_two_crashes_of_one_upload(house: S3House) -> None:
    house = die(house, "upload.write_part", Fault.CRASH_AFTER, 1)
    (before,) = house.seal_files.values()
    house = die(house, "upload.write_part", Fault.CRASH_AFTER, 3)
    (after,) = house.seal_files.values()
    assert after.startswith(before)
    house.backup()
    assert house.server is not None
    assert (house.server.begun, house.server.sent) == (1, [4])
    assert_stored(house)


def unfinished(house: S3House) -> list[Any]:
    assert house.server is not None
    found: list[Any] = house.server.list_multipart_uploads(Bucket=house.bucket).get("Uploads", [])
    return found


def test_a_file_that_changed_since_is_sealed_anew_and_the_old_seal_goes(house: S3House) -> None:
    """Its content has another hash: nothing of the old attempt is used."""
    house = die(house, "upload.write_part", Fault.CRASH_AFTER, 2)
    assert len(house.seal_files) == 1
    house.write("large", random.Random(2).randbytes(SIZE))
    house.backup()
    assert house.server is not None
    assert (house.server.begun, house.server.sent) == (2, list(range(1, PARTS + 1)))
    assert (house.seal_files, house.server.aborted, unfinished(house)) == ({}, 1, [])
    assert_stored(house)


@pytest.mark.parametrize("fault", [None, "objects.resume", "upload.abort"])
def test_of_a_file_that_is_gone_nothing_is_left(house: S3House, fault: str | None) -> None:
    """Also where the store cannot be asked to give the upload up: the run goes on, and a bucket's rule takes what stays."""
    house = die(house, "upload.write_part", Fault.CRASH_AFTER, 2)
    (house.source / "large").unlink()
    if fault is not None:
        house.wrap = under(FaultPlan([on(fault, Fault.DENY)]))
    assert house.backup().problems == []
    assert (house.seal_files, len(unfinished(house))) == ({}, int(fault is not None))
    house = house.again(wrap=as_they_are, notes=Notes())  # type: ignore[assignment]
    with house.job() as job, backup.planned(job) as work:
        assert work.sessions["photos"].state.resumable() == set()
    house.assert_converged()


def test_a_file_that_was_not_stored_keeps_its_seal(house: S3House) -> None:
    """It was touched since it was planned. The run comes to its end, and the one after it goes on with the upload."""
    house = die(house, "upload.write_part", Fault.CRASH_AFTER, 2)
    before = house.seal_files
    with house.job() as job, backup.planned(job) as work:
        os.utime(house.source / "large", (7, 7))
        _, problems = backup.apply(job, work, backup.ApplyOptions())
    assert [problem.path for problem in problems] == [b"large"]
    assert house.seal_files == before
    house = house.again(notes=Notes())  # type: ignore[assignment]
    house.backup()
    assert house.server is not None
    assert (house.server.begun, house.server.sent) == (1, [3, 4])
    assert_stored(house)


def test_other_bytes_are_never_sealed_with_the_same_seal(house: S3House) -> None:
    """The file looks as it did when it was planned, and is another one: nothing is sent before that is known."""
    house = die(house, "upload.write_part", Fault.CRASH_AFTER, 2)
    place = house.source / "large"
    about = place.stat()
    with house.job() as job, backup.planned(job) as work:
        with place.open("r+b") as file:
            file.seek(PART // 2)
            file.write(b"other bytes")
        os.utime(place, ns=(about.st_atime_ns, about.st_mtime_ns))
        _, problems = backup.apply(job, work, backup.ApplyOptions())
    assert [problem.path for problem in problems] == [b"large"]
    assert house.server is not None
    assert house.server.sent == []
    house = house.again(notes=Notes())  # type: ignore[assignment]
    assert house.backup().problems == []
    assert house.server is not None
    assert house.server.sent == list(range(1, PARTS + 1))
    house.assert_safe()
    assert_restorable(house)


def test_kill_9_in_the_middle(house: S3House, ministack: str) -> None:
    """For real, at random moments. A bucket's rule takes what was begun and never known."""
    chance = random.Random(KILLS)
    killed = 0
    for number in range(KILLS * 8):
        if killed == KILLS:
            break
        house = house.again(notes=Notes())  # type: ignore[assignment]
        if number % 4 == 0:
            house.write("large", chance.randbytes(SIZE))
        pid = child(house.again(endpoint=ministack))
        time.sleep(chance.random() * 0.5)
        os.kill(pid, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        house.assert_safe()
    assert killed == KILLS
    house = house.again(notes=Notes())  # type: ignore[assignment]
    assert house.backup().problems == []
    house.again().assert_safe()
    assert house.again().plan() == []
    assert_restorable(house)


def test_a_folder_begins_anew_and_keeps_no_seal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.LocalObjects, "single_put_limit", PART)
    monkeypatch.setattr(local_upload, "PART_SIZE", PART)
    monkeypatch.setattr(local_upload.LocalUpload, "part_size", PART)
    house = House(folder, encryption=True).init()
    house.write("large", random.Random(1).randbytes(SIZE))
    for nth in range(1, PARTS + 1):
        plan = FaultPlan([on("upload.write_part", Fault.CRASH_AFTER, nth)])
        house.wrap = under(plan)
        with pytest.raises(Crash):
            house.backup()
        assert not list(house.state_folder.glob("*.seal"))
        house.assert_safe()
        house = house.again(wrap=as_they_are)
    done = house.backup()
    assert (done.summary.objects_put, done.problems) == (1, [])
    house.again().assert_converged()
    assert_restorable(house.again())


def test_a_part_that_is_another_one_ends_the_seal(house: S3House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the store holds was sealed with it, and is not what would be sent now: it may not seal both."""
    house = die(house, "upload.write_part", Fault.CRASH_AFTER, 2)
    assert house.server is not None
    (before,) = house.seal_files.values()
    (upload,) = house.server.list_multipart_uploads(Bucket=house.bucket)["Uploads"]
    where = {"Bucket": house.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
    house.server._client.upload_part(**where, PartNumber=2, Body=random.Random(2).randbytes(PART))
    after: list[bytes] = []
    keep = seals.SealFiles.keep

    def noted(files: seals.SealFiles, *what: Any) -> None:
        keep(files, *what)
        after.extend(house.seal_files.values())

    monkeypatch.setattr(seals.SealFiles, "keep", noted)
    assert house.backup().problems == []
    assert (house.server.begun, house.server.aborted) == (2, 1)
    assert len(after) == 1
    assert before not in after
    assert_stored(house)


def test_a_store_that_hides_parts_gets_no_other_bytes_under_the_same_seal(
    house: S3House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is written to while it is sent again."""
    house = die(house, "upload.complete", Fault.CRASH_BEFORE)
    send = Server.upload_part

    def upload_part(server: Server, **request: Any) -> Any:
        if not server.sent:
            with (house.source / "large").open("r+b") as file:
                file.seek(2 * PART + PART // 2)
                file.write(b"other bytes")
        return send(server, **request)

    monkeypatch.setattr(Server, "upload_part", upload_part)
    monkeypatch.setattr(Server, "list_parts", lambda *_, **__: {}, raising=False)
    assert [problem.path for problem in house.backup().problems] == [b"large"]
    assert house.server is not None
    assert house.server.sent == [1, 2], "the third is another one by now"
    assert house.seal_files == {}


def test_a_file_that_changes_while_it_is_sent_leaves_no_seal(house: S3House, monkeypatch: pytest.MonkeyPatch) -> None:
    send = Server.upload_part

    def upload_part(server: Server, **request: Any) -> Any:
        os.utime(house.source / "large", (request["PartNumber"], 7))
        return send(server, **request)

    monkeypatch.setattr(Server, "upload_part", upload_part)
    assert [problem.path for problem in house.backup().problems] == [b"large"]
    assert house.server is not None
    assert (house.seal_files, house.server.aborted) == ({}, 1)
    assert house.server.list_multipart_uploads(Bucket=house.bucket).get("Uploads", []) == []
