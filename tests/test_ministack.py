"""The AWS adapters over a small server from PyPI: no installation beyond the development tools.

It knows archive classes, lifecycle rules and public access blocks, which the server of the integration tests
does not.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import secrets
from collections.abc import Iterator

import pytest

from s3hashsync.errors import Archived, StoreError, Unreachable
from s3hashsync.stores.aws import connect
from s3hashsync.stores.base import Attempt, ObjectStore
from s3hashsync.stores.dynamodb import DynamoIndex
from s3hashsync.stores.s3 import S3Objects
from s3hashsync.stores.s3_setup import BucketAt, inspect_bucket, prepare_bucket
from tests import servers
from tests.aws_places import fresh_bucket, fresh_objects, fresh_table, list_in_pages, settings
from tests.conformance.index import IndexSuite, MakeIndex
from tests.conformance.objects import MakeObjects, ObjectStoreSuite

NO_FULL_CHECKSUM = "ministack takes the right checksum over a whole upload for a wrong one"
no_full_checksum = pytest.mark.xfail(reason=NO_FULL_CHECKSUM, strict=False)
RELEASE = tuple(int(part) for part in importlib.metadata.version("ministack").split(".")[:2])
since_1_5 = pytest.mark.skipif(RELEASE < (1, 5), reason="needs ministack 1.5: earlier ones cannot do this")
STEM = "objects/" + "0" * 64


@pytest.fixture(scope="module")
def ministack() -> Iterator[str]:
    with servers.ministack() as endpoint:
        list_in_pages(endpoint, 50)
        yield endpoint


class _WithoutWholeChecksum(ObjectStoreSuite):
    many = 110  # three pages; whole ones of versitygw are longer

    @no_full_checksum
    def test_o1_an_upload_in_parts_is_invisible_until_complete(self, make_objects: MakeObjects) -> None:
        super().test_o1_an_upload_in_parts_is_invisible_until_complete(make_objects)

    @no_full_checksum
    def test_o1_a_part_may_be_sent_again(self, store: ObjectStore) -> None:
        super().test_o1_a_part_may_be_sent_again(store)

    @no_full_checksum
    def test_o1_an_upload_of_one_short_part(self, store: ObjectStore) -> None:
        super().test_o1_an_upload_of_one_short_part(store)

    @no_full_checksum
    def test_o1_an_upload_is_resumed(self, make_objects: MakeObjects) -> None:
        super().test_o1_an_upload_is_resumed(make_objects)

    @no_full_checksum
    def test_o9_an_upload_is_found_once_it_is_complete(self, make_objects: MakeObjects) -> None:
        super().test_o9_an_upload_is_found_once_it_is_complete(make_objects)


class TestWithVersions(_WithoutWholeChecksum):
    @pytest.fixture
    def make_objects(self, ministack: str) -> MakeObjects:
        client, bucket = fresh_bucket(ministack)
        return lambda: S3Objects(client, bucket, "home")


class TestWithoutVersions(_WithoutWholeChecksum):
    @pytest.fixture
    def make_objects(self, ministack: str) -> MakeObjects:
        client, bucket = fresh_bucket(ministack, versioned=False)
        return lambda: S3Objects(client, bucket, "home", versioned=False)


@since_1_5
class TestIndex(IndexSuite):
    bills = True
    many = 1_000

    @pytest.fixture
    def make_index(self, ministack: str) -> MakeIndex:
        client, table = fresh_table(ministack)
        return lambda: DynamoIndex(client, table)


@since_1_5
@pytest.mark.parametrize("storage_class", ["DEEP_ARCHIVE", "GLACIER"])
@pytest.mark.parametrize("versioned", [True, False])
def test_archived_versions_say_so(ministack: str, versioned: bool, storage_class: str) -> None:
    store, attempt = fresh_objects(ministack, versioned=versioned), Attempt("ab12", storage_class)
    stored = store.put(STEM, b"cold", attempt)
    with pytest.raises(Archived):
        b"".join(store.read(STEM, stored.version))
    assert store.find(STEM, attempt.id) == stored, "finding an upload again needs no thaw"
    assert [version.storage_class for version in store.versions(STEM)] == [storage_class]


def test_documents_stay_warm(ministack: str) -> None:
    store = fresh_objects(ministack)
    store.create_document("repository.json", b"{}")
    assert [version.storage_class for version in store.versions("repository")] == ["STANDARD"]


def test_a_bucket_is_prepared(ministack: str) -> None:
    client = connect(settings(ministack)).s3()
    at = BucketAt(f"made-{secrets.token_hex(4)}", "home")
    created = {finding.what for finding in prepare_bucket(client, at) if finding.severity == "created"}
    assert len(created) == 4
    rules = client.get_bucket_lifecycle_configuration(Bucket=at.bucket)["Rules"]
    assert [rule["Filter"] for rule in rules] == [{"Prefix": "home/"}]
    again = prepare_bucket(client, at)
    assert {finding.severity for finding in again} == {"ok", "warning"}
    assert [f.what for f in again if f.severity == "warning"] == ["missing protection: requests without TLS are not denied"]


HARMFUL = [
    {"Expiration": {"Days": 10}},
    {"NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
    {"Transitions": [{"Days": 1, "StorageClass": "GLACIER"}]},
    {"NoncurrentVersionTransitions": [{"NoncurrentDays": 1, "StorageClass": "GLACIER"}]},
]


@pytest.mark.parametrize("effect", HARMFUL, ids=lambda effect: next(iter(effect)))
@pytest.mark.parametrize(("rule_prefix", "refused"), [("", True), ("home/", True), ("home/objects/", True), ("other/", False)])
def test_lifecycle_rules_that_touch_contents_are_refused(
    ministack: str, effect: dict[str, object], rule_prefix: str, refused: bool
) -> None:
    client, bucket = fresh_bucket(ministack)
    rule = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": rule_prefix}} | effect
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    findings = prepare_bucket(client, BucketAt(bucket, "home"))
    assert any(f.severity == "refused" and "theirs" in f.what for f in findings) is refused
    kept = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert [rule["ID"] for rule in kept] == ["theirs"], "rules of others are never overwritten"


def test_harmless_rules_are_allowed(ministack: str) -> None:
    client, bucket = fresh_bucket(ministack)
    rules = [
        {"ID": "off", "Status": "Disabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}},
        {
            "ID": "abort",
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "Expiration": {"ExpiredObjectDeleteMarker": True},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 3},
        },
    ]
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    assert not any(f.severity == "refused" for f in inspect_bucket(client, BucketAt(bucket, "home")))


def test_a_role_is_assumed(ministack: str) -> None:
    _, bucket = fresh_bucket(ministack)
    role = "arn:aws:iam::000000000000:role/backup"
    chosen = dataclasses.replace(settings(ministack), role_arn=role, sts_endpoint=ministack)
    client = connect(chosen).s3()
    S3Objects(client, bucket).create_document("repository.json", b"{}")
    assert client._request_signer._credentials.access_key != chosen.access_key_id


def test_a_role_that_cannot_be_assumed_is_unreachable_not_hidden() -> None:
    nowhere = f"http://127.0.0.1:{servers.free_port()}"
    chosen = dataclasses.replace(settings(nowhere), role_arn="arn:aws:iam::0:role/x", sts_endpoint=nowhere)
    with pytest.raises(Unreachable):
        S3Objects(connect(chosen).s3(), "any").read_document("repository.json")


def test_a_version_that_another_put_would_replace_is_not_found(ministack: str) -> None:
    """In a bucket that keeps no versions, contrary to what `repository.json` says, everything has the version "null"."""
    client, bucket = connect(settings(ministack)).s3(), f"plain-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=bucket)
    store = S3Objects(client, bucket, "home", versioned=True)
    with pytest.raises(StoreError):
        store.put(STEM, b"body", Attempt("a1", "STANDARD"))
    assert store.find(STEM, "a1") is None
