"""Clients, fresh buckets and fresh tables on the test servers.

Decides names and credentials. Knows nothing of what is tested; whatever it makes goes with its server. One client serves all
buckets of a server, and one all tables: making a client takes longer than most tests.
"""

from __future__ import annotations

import functools
import secrets
from typing import Any

from s3hashsync.stores.aws import AwsSettings, connect
from s3hashsync.stores.dynamodb import DynamoIndex
from s3hashsync.stores.dynamodb_setup import prepare_table
from s3hashsync.stores.s3 import S3Objects
from tests.servers import ACCESS_KEY, REGION, SECRET_KEY


def settings(endpoint: str, *, key: str = ACCESS_KEY, secret: str = SECRET_KEY) -> AwsSettings:
    return AwsSettings(
        region=REGION,
        access_key_id=key,
        secret_access_key=secret,
        s3_endpoint=endpoint,
        dynamodb_endpoint=endpoint,
        connect_timeout=5,
        read_timeout=30,
    )


@functools.cache
def _s3(endpoint: str) -> Any:
    return connect(settings(endpoint)).s3()


@functools.cache
def _dynamodb(endpoint: str) -> Any:
    return connect(settings(endpoint)).dynamodb()


def list_in_pages(endpoint: str, entries: int) -> None:
    """Of so many at most, where a server has a thousand: few objects make many pages. Holds for the client of all buckets."""

    def limit(params: dict[str, Any], **_: object) -> None:
        params["MaxKeys"] = entries

    for listing in ("ListObjectsV2", "ListObjectVersions"):
        _s3(endpoint).meta.events.register(f"provide-client-params.s3.{listing}", limit)


def fresh_bucket(endpoint: str, *, versioned: bool = True) -> tuple[Any, str]:
    """A client and the name of a new bucket."""
    client, bucket = _s3(endpoint), f"test-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=bucket)
    if versioned:
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    return client, bucket


def fresh_objects(endpoint: str, *, versioned: bool = True) -> S3Objects:
    client, bucket = fresh_bucket(endpoint, versioned=versioned)
    return S3Objects(client, bucket, "home", versioned=versioned)


def fresh_table(endpoint: str) -> tuple[Any, str]:
    """A client and the name of a new table."""
    client, table = _dynamodb(endpoint), f"test-{secrets.token_hex(6)}"
    prepare_table(client, table)
    return client, table


def fresh_index(endpoint: str) -> DynamoIndex:
    return DynamoIndex(*fresh_table(endpoint))
