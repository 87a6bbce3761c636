"""What each failure of AWS becomes, and the pure parts of the AWS adapters."""

from __future__ import annotations

import json
from typing import Any

import botocore.exceptions
import pytest
from hypothesis import given

from s3hashsync.core.model import ContentHash, Item, Record, RecordState, Rev, StoredName
from s3hashsync.errors import (
    AlreadyThere,
    Archived,
    Denied,
    Missing,
    NoSpace,
    S3HashSyncError,
    StoreError,
    Unreachable,
    Unsupported,
)
from s3hashsync.stores.aws import AwsSettings, NoStore, connect, from_answer, translated
from s3hashsync.stores.base import Attempt
from s3hashsync.stores.dynamodb_items import decode_item, encode_item, write_units
from s3hashsync.stores.iam import Place, Role, policy
from s3hashsync.stores.s3 import S3Objects
from s3hashsync.stores.s3_upload import PLANNED_PARTS, SMALLEST_PART, part_size_for
from tests.conformance import strategies

ANSWERS = [
    ("SlowDown", 503, Unreachable),
    ("ServiceUnavailable", 503, Unreachable),
    ("InternalError", 500, Unreachable),
    ("InternalServerError", 500, Unreachable),
    ("RequestTimeout", 400, Unreachable),
    ("ThrottlingException", 400, Unreachable),
    ("ProvisionedThroughputExceededException", 400, Unreachable),
    ("ProvisionedThroughputExceeded", 0, Unreachable),
    ("ConditionalRequestConflict", 409, Unreachable),
    ("BadDigest", 400, Unreachable),
    ("XAmzContentSHA256Mismatch", 400, Unreachable),
    ("502", 502, Unreachable),
    ("AccessDenied", 403, Denied),
    ("AccessDeniedException", 400, Denied),
    ("403", 403, Denied),
    ("InvalidAccessKeyId", 403, Denied),
    ("SignatureDoesNotMatch", 403, Denied),
    ("UnrecognizedClientException", 400, Denied),
    ("ExpiredToken", 400, Denied),
    ("RequestTimeTooSkewed", 403, Denied),
    ("InvalidObjectState", 403, Archived),
    ("NoSuchBucket", 404, NoStore),
    ("ResourceNotFoundException", 400, NoStore),
    ("NoSuchKey", 404, Missing),
    ("NoSuchVersion", 404, Missing),
    ("NoSuchUpload", 404, Missing),
    ("PreconditionFailed", 412, AlreadyThere),
    ("NotImplemented", 501, Unsupported),
    ("MethodNotAllowed", 405, Unsupported),
    ("UnknownOperationException", 400, Unsupported),
    ("XMinioStorageFull", 507, NoSpace),
    ("PermanentRedirect", 301, StoreError),
    ("ValidationException", 400, StoreError),
    # Only a code proves that something is not there: a proxy, or an unknown user, may say 404 as well.
    ("404", 404, StoreError),
    ("XAdminUserNotFound", 404, Denied),
    ("SomethingNew", 404, StoreError),
]


@pytest.mark.parametrize(("code", "status", "kind"), ANSWERS)
def test_every_answer_has_one_meaning(code: str, status: int, kind: type[S3HashSyncError]) -> None:
    answer = {"Error": {"Code": code, "Message": "So it is."}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = from_answer(answer, "storing s3://b/k")
    assert type(error) is kind
    assert error.message.startswith("storing s3://b/k: ")
    assert error.transient is (kind is Unreachable)


LIBRARY = [
    (botocore.exceptions.NoCredentialsError(), Denied),
    (botocore.exceptions.PartialCredentialsError(provider="env", cred_var="x"), Denied),
    (botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"), Unreachable),
    (botocore.exceptions.ConnectTimeoutError(endpoint_url="http://x"), Unreachable),
    (botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"), Unreachable),
    (botocore.exceptions.ConnectionClosedError(endpoint_url="http://x"), Unreachable),
    (botocore.exceptions.ResponseStreamingError(error="cut"), Unreachable),
    (botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), Unreachable),
    (botocore.exceptions.FlexibleChecksumError(error_msg="x"), Unreachable),
    (botocore.exceptions.SSLError(endpoint_url="x", error="CERTIFICATE_VERIFY_FAILED"), StoreError),
    (botocore.exceptions.SSLError(endpoint_url="x", error="EOF"), Unreachable),
    (botocore.exceptions.NoRegionError(), StoreError),
    (ConnectionResetError(), Unreachable),
    (TimeoutError(), Unreachable),
]


@pytest.mark.parametrize(("error", "kind"), LIBRARY, ids=lambda value: getattr(value, "__name__", None))
def test_every_failure_of_the_library_has_one_meaning(error: Exception, kind: type[StoreError]) -> None:
    with pytest.raises(StoreError, match="reading x") as caught, translated("reading x"):
        raise error
    assert type(caught.value) is kind


def test_clients_do_not_retry_and_have_room_for_every_thread() -> None:
    aws = connect(AwsSettings(region="eu-central-1", access_key_id="a", secret_access_key="b", connections=33))
    for client in (aws.s3(), aws.dynamodb()):
        assert client.meta.config.retries["total_max_attempts"] == 1
        assert client.meta.config.max_pool_connections == 33


@pytest.mark.parametrize(
    ("endpoint", "path_style", "style"),
    [
        (None, None, "auto"),
        ("https://s3.eu-central-1.amazonaws.com", None, "auto"),
        ("http://127.0.0.1:9000", None, "path"),
        ("https://minio.example.org", None, "path"),
        ("https://minio.example.org", False, "auto"),
        (None, True, "path"),
    ],
)
def test_path_style(endpoint: str | None, path_style: bool | None, style: str) -> None:
    chosen = AwsSettings(
        region="eu-central-1",
        access_key_id="a",
        secret_access_key="b",
        s3_endpoint=endpoint,
        path_style=path_style,
    )
    assert connect(chosen).s3().meta.config.s3["addressing_style"] == style


@pytest.mark.parametrize(("scheme", "hashed_again"), [("https", False), ("http", True)])
def test_bodies_are_hashed_once_where_tls_protects_them(scheme: str, hashed_again: bool) -> None:
    chosen = AwsSettings(region="eu-central-1", access_key_id="a", secret_access_key="b", s3_endpoint=f"{scheme}://s3.invalid")
    client, seen = connect(chosen).s3(), []
    client.meta.events.register("before-send.s3.PutObject", lambda request, **_: seen.append(request.headers))
    with pytest.raises(Unreachable):
        S3Objects(client, "bucket").put("objects/a", b"body", Attempt("ab", "STANDARD"))
    (headers,) = seen
    assert (headers["X-Amz-Content-SHA256"] != b"UNSIGNED-PAYLOAD") is hashed_again
    assert b"x-amz-checksum-sha256" in headers["Authorization"]


@pytest.mark.parametrize("size", [0, 1, SMALLEST_PART, 100 << 30, 1 << 40, 5 << 40])
def test_parts_are_few_enough(size: int) -> None:
    part = part_size_for(size)
    assert part >= SMALLEST_PART
    assert part % (1 << 20) == 0
    assert -(-size // part) <= PLANNED_PARTS


@given(strategies.items)
def test_items_round_trip(item: Item) -> None:
    assert decode_item(encode_item(item)) == item


def test_a_tombstone_is_small() -> None:
    gone = Record(ContentHash(b"\1" * 32), RecordState.GONE, Rev(b"r" * 12))
    assert set(encode_item(gone)) == {"hash", "rev", "state"}
    assert write_units(gone) == 1


@pytest.mark.parametrize(("length", "units"), [(1, 1), (800, 1), (2_000, 3), (300_000, 294)])
def test_units_grow_with_the_names(length: int, units: int) -> None:
    name = StoredName("x" * length)
    assert write_units(Record(ContentHash(b"\1" * 32), RecordState.LIVE, Rev(b"r" * 12), frozenset({name}))) == units


def actions(role: Role, place: Place) -> set[str]:
    document: Any = json.loads(policy(role, place))
    return {action for statement in document["Statement"] for action in statement["Action"]}


def test_policies_give_each_role_what_it_needs_and_no_more() -> None:
    place = Place("bucket", "home", "table")
    for role in (Role.BACKUP, Role.APPEND_ONLY, Role.RESTORE):
        assert "s3:DeleteObjectVersion" not in actions(role, place)
    assert "s3:DeleteObjectVersion" in actions(Role.CLEAN, place)
    assert not any(action.startswith("dynamodb") for action in actions(Role.KEYS, place))
    assert "s3:DeleteObject" not in actions(Role.APPEND_ONLY, place)
    assert not {"s3:PutObject", "dynamodb:PartiQLUpdate"} & actions(Role.RESTORE, place)
    assert not any("dynamodb:DeleteItem" in actions(role, place) for role in Role)
    assert not any(action.startswith("dynamodb") for action in actions(Role.BACKUP, Place("bucket")))


def reach(role: Role, action: str) -> set[str]:
    """The keys that this action may be done to."""
    document: Any = json.loads(policy(role, Place("bucket")))
    found: set[str] = set()
    for statement in document["Statement"]:
        if action in statement["Action"]:
            resources = statement["Resource"]
            found |= set([resources] if isinstance(resources, str) else resources)
    return {resource.removeprefix("arn:aws:s3:::bucket/") for resource in found}


def test_a_host_cannot_write_the_keys_of_the_repository_nor_delete_any() -> None:
    for role in (Role.BACKUP, Role.APPEND_ONLY):
        assert reach(role, "s3:PutObject") == {"objects/*", "packs/*", "runs/*", "keys/sources/*", "repository.json"}
        assert reach(role, "s3:DeleteObject") <= {"objects/*", "packs/*"}
    assert reach(Role.CLEAN, "s3:DeleteObjectVersion") == {"objects/*", "packs/*"}
    assert reach(Role.KEYS, "s3:DeleteObjectVersion") == reach(Role.KEYS, "s3:PutObject") == {"keys/*"}


def test_policies_name_the_prefix() -> None:
    document = json.loads(policy(Role.BACKUP, Place("bucket", "/home/", "table", "eu-central-1", "123456789012")))
    resources = [statement["Resource"] for statement in document["Statement"]]
    written = ("objects/*", "packs/*", "runs/*", "keys/sources/*", "repository.json")
    assert resources == [
        "arn:aws:s3:::bucket/home/*",
        [f"arn:aws:s3:::bucket/home/{key}" for key in written],
        [f"arn:aws:s3:::bucket/home/{key}" for key in written[:2]],
        "arn:aws:s3:::bucket",
        "arn:aws:s3:::bucket",
        "arn:aws:dynamodb:eu-central-1:123456789012:table/table",
    ]
