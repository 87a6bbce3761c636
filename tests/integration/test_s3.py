"""What the S3 adapter alone has: failures of a real server, uploads taken up again, pages, markers."""

from __future__ import annotations

import base64
import secrets
import zlib

import pytest

from s3hashsync.errors import AlreadyThere, Denied, ExitCode, Missing, NoRepository, StoreError, Unreachable
from s3hashsync.stores.aws import NoStore, connect
from s3hashsync.stores.base import Attempt, Version
from s3hashsync.stores.s3 import S3Objects
from s3hashsync.stores.s3_setup import BucketAt, Versioning, inspect_bucket, prepare_bucket, versioning_of
from s3hashsync.stores.s3_upload import MultipartUpload
from tests.aws_places import fresh_bucket, fresh_objects, settings
from tests.servers import free_port

STEM = "objects/" + "0" * 64


def attempt() -> Attempt:
    return Attempt(secrets.token_hex(16), "STANDARD")


def read(store: S3Objects, stem: str, version: str) -> bytes:
    return b"".join(store.read(stem, version))


def test_wrong_credentials_are_denied(versitygw: str) -> None:
    for key, secret in (("nobody", "x" * 20), ("testaccesskey", "wrong" * 4)):
        store = S3Objects(connect(settings(versitygw, key=key, secret=secret)).s3(), "any", versioned=False)
        with pytest.raises(Denied, match="s3://any/"):
            store.read_document("repository.json")
        with pytest.raises(Denied):
            store.put(STEM, b"x", attempt())


def test_a_missing_bucket_is_no_missing_version(versitygw: str) -> None:
    """Names are dropped for a version that is proven missing: a mistyped bucket must not do that."""
    for versioned in (True, False):
        store = S3Objects(connect(settings(versitygw)).s3(), "no-such-bucket", versioned=versioned)
        calls = [
            lambda store=store: read(store, STEM, "a" * 26),
            lambda store=store: store.delete(STEM, "a" * 26),
            lambda store=store: list(store.versions("objects/")),
            lambda store=store: store.read_document("repository.json"),
            lambda store=store: store.put(STEM, b"x", attempt()),
        ]
        for call in calls:
            with pytest.raises(NoStore) as caught:
                call()
            assert isinstance(caught.value, NoRepository)
            assert not isinstance(caught.value, Missing)
            assert caught.value.exit_code is ExitCode.NO_REPOSITORY


def test_a_dead_port_is_unreachable() -> None:
    store = S3Objects(connect(settings(f"http://127.0.0.1:{free_port()}")).s3(), "any")
    with pytest.raises(Unreachable) as caught:
        store.read_document("repository.json")
    assert caught.value.transient
    assert caught.value.hint


def test_a_wrong_checksum_is_refused_by_the_server(versitygw: str) -> None:
    """O3: what arrives damaged is not stored."""
    store = fresh_objects(versitygw)
    upload = store.begin(STEM, attempt(), 100 << 20)
    assert isinstance(upload, MultipartUpload)
    upload.write_part(1, b"right")
    part = upload._sent[1]
    upload._sent[1] = type(part)(part.size, zlib.crc32(b"wrong"), part.etag)
    with pytest.raises(StoreError):
        upload.complete()
    assert list(store.versions("objects/")) == []


@pytest.mark.parametrize("versioned", [True, False])
def test_an_upload_is_taken_up_again(versitygw: str, versioned: bool) -> None:
    store, mine = fresh_objects(versitygw, versioned=versioned), attempt()
    upload = store.begin(STEM, mine, 100 << 20)
    first, second, third = (secrets.token_bytes(upload.part_size) for _ in range(3))
    upload.write_part(1, first)
    upload.write_part(2, secrets.token_bytes(upload.part_size))

    resumed = store.resume(STEM, mine, upload.token)
    assert isinstance(resumed, MultipartUpload)
    assert sorted(resumed.held) == [1, 2]
    sent = {number: part.etag for number, part in resumed.held.items()}
    for number, data in enumerate((first, second, third), 1):
        resumed.write_part(number, data)
    assert resumed._sent[1].etag == sent[1], "the first part is there already: it is not sent again"
    assert resumed._sent[2].etag != sent[2], "the second part had other bytes"
    stored = resumed.complete()
    whole = first + second + third
    assert stored.size == len(whole)
    assert stored.checksum == "crc32:" + base64.b64encode(zlib.crc32(whole).to_bytes(4, "big")).decode()
    assert store.find(STEM, mine.id) == stored
    assert read(store, STEM, stored.version) == whole
    assert resumed.complete() == stored, "the answer to a completion may be lost"
    assert store.resume(STEM, mine, upload.token) is None


def test_a_token_of_another_store_is_refused(versitygw: str) -> None:
    with pytest.raises(StoreError, match="token"):
        fresh_objects(versitygw).resume(STEM, attempt(), "nonsense")


def test_a_taken_key_without_versions_is_looked_at(versitygw: str) -> None:
    store, mine = fresh_objects(versitygw, versioned=False), attempt()
    first = store.put(STEM, b"first", mine)
    upload = store.begin(STEM, mine, 100 << 20)
    upload.write_part(1, b"second")
    assert upload.complete() == first
    assert read(store, STEM, first.version) == b"first"


def test_a_bucket_that_gives_no_versions_is_an_error(versitygw: str) -> None:
    client, bucket = fresh_bucket(versitygw, versioned=False)
    with pytest.raises(StoreError, match="no version") as caught:
        S3Objects(client, bucket, versioned=True).put(STEM, b"x", attempt())
    assert not caught.value.transient


def test_versions_come_in_pages(versitygw: str) -> None:
    """Pages that end within the versions of one key, with markers among them."""
    client, bucket = fresh_bucket(versitygw)
    whole, paged = S3Objects(client, bucket), S3Objects(_SmallPages(client, 3), bucket)
    stems = [f"objects/{number:064x}" for number in range(4)]
    for stem in stems:
        for _ in range(4):
            whole.put(stem, b"x", attempt())
        whole.mark(stem)
    listed = list(paged.versions("objects/"))

    def identity(version: Version) -> tuple[str, str]:
        return version.stem, version.version

    assert sorted(map(identity, listed)) == sorted(map(identity, whole.versions("objects/")))
    assert [version.stem for version in listed] == sorted(version.stem for version in listed)
    assert len(listed) == 20
    assert len(list(paged.versions(stems[1]))) == 5
    paged.unmark(stems[1])
    assert not any(version.is_marker for version in whole.versions(stems[1]))
    assert sum(version.is_marker for version in whole.versions("objects/")) == 3


class _SmallPages:
    """A client whose listings come in small pages."""

    def __init__(self, client: object, size: int) -> None:
        self._client = client
        self._size = size

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)

    def list_object_versions(self, **request: object) -> object:
        return self._client.list_object_versions(**request, MaxKeys=self._size)  # type: ignore[attr-defined]


def test_odd_keys_are_listed_as_they_are(versitygw: str) -> None:
    store = fresh_objects(versitygw)
    keys = sorted(["runs/ü +%/1.1", "runs/a&b<c>/1.1", "runs/%41/1", "runs/a'b\"c/1"], key=str.encode)
    for key in keys:
        store.create_document(key, key.encode())
    assert [document.key for document in store.documents("runs/")] == keys
    assert [version.stem for version in store.versions("runs/")] == keys
    assert all(store.read_document(key) == key.encode() for key in keys)
    with pytest.raises(AlreadyThere):
        store.create_document(keys[0], b"x")


def test_prefixes_keep_repositories_apart(versitygw: str) -> None:
    client, bucket = fresh_bucket(versitygw)
    one, other = S3Objects(client, bucket, "/home/"), S3Objects(client, bucket, "home2")
    stored = one.put(STEM, b"x", attempt())
    assert list(other.versions("")) == []
    assert [version.stem for version in one.versions("")] == [STEM]
    with pytest.raises(Missing):
        read(other, STEM, stored.version)


def test_a_bucket_is_prepared_and_inspected(versitygw: str) -> None:
    client = connect(settings(versitygw)).s3()
    at = BucketAt(f"made-{secrets.token_hex(4)}", "home")
    assert [finding.severity for finding in inspect_bucket(client, at)] == ["refused"]
    made = prepare_bucket(client, at)
    assert {f.what for f in made if f.severity == "created"} >= {f"bucket {at.bucket}", "versions"}
    assert versioning_of(client, at.bucket) is Versioning.ON
    again = prepare_bucket(client, at)
    assert not any(finding.severity in ("created", "refused") for finding in again)
    assert any("missing protection" in f.what for f in again), "this server has no public access block"
    client.put_bucket_versioning(Bucket=at.bucket, VersioningConfiguration={"Status": "Suspended"})
    assert [f.what for f in inspect_bucket(client, at) if f.severity == "refused"]
