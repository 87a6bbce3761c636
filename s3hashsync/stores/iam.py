"""The rights that each role needs, as IAM policies.

Decides the smallest set of actions for backing up, restoring, cleaning and changing recipients. Knows
neither accounts nor users, and asks nobody. A backup host cannot delete a version for good; one that is append-only cannot even
put a delete marker.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    BACKUP = "backup"
    APPEND_ONLY = "append-only backup"
    RESTORE = "restore"
    CLEAN = "clean"
    KEYS = "keys"


@dataclass(frozen=True, slots=True)
class Place:
    """What a policy is about. Without a table the index lies elsewhere. `region` and `account` may be `*`."""

    bucket: str
    prefix: str = ""
    table: str | None = None
    region: str = "*"
    account: str = "*"
    partition: str = "aws"


_READ = ("s3:GetObject", "s3:GetObjectVersion")
_PUT = ("s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
_CONTENTS = ("objects/*", "packs/*")
# A host adds the keys of a source by itself; whom the repository's own key is encrypted to is no business of a host's.
_WRITTEN = (*_CONTENTS, "runs/*", "keys/sources/*", "repository.json")
_Rights = tuple[str, tuple[str, ...], tuple[str, ...]]
_EVERYTHING: _Rights = ("Read", _READ, ("*",))
_OBJECTS: dict[Role, tuple[_Rights, ...]] = {
    # Conditional writes and the search for an own upload read what is there: so a backup reads as well.
    Role.BACKUP: (_EVERYTHING, ("Write", _PUT, _WRITTEN), ("Hide", ("s3:DeleteObject",), _CONTENTS)),
    Role.APPEND_ONLY: (_EVERYTHING, ("Write", _PUT, _WRITTEN)),
    Role.RESTORE: (("Read", (*_READ, "s3:RestoreObject"), ("*",)),),
    Role.CLEAN: (_EVERYTHING, ("Delete", ("s3:DeleteObject", "s3:DeleteObjectVersion"), _CONTENTS)),
    # The old versions of key files go for good, or whoever was removed could still open the repository with them.
    Role.KEYS: (_EVERYTHING, ("Keys", ("s3:PutObject", "s3:DeleteObject", "s3:DeleteObjectVersion"), ("keys/*",))),
}
_LIST_BUCKET = ("s3:ListBucket", "s3:ListBucketVersions")
# What `doctor`, and the start of every apply and clean, look at.
_INSPECT_BUCKET = ("s3:GetBucketVersioning", "s3:GetLifecycleConfiguration", "s3:GetReplicationConfiguration")
_INSPECT_BUCKET_MORE = ("s3:GetBucketPublicAccessBlock", "s3:GetBucketPolicy")
_READ_TABLE = ("dynamodb:BatchGetItem", "dynamodb:Scan", "dynamodb:DescribeTable")
_WRITE_TABLE = ("dynamodb:PartiQLInsert", "dynamodb:PartiQLUpdate")
_INSPECT_TABLE = ("dynamodb:DescribeTimeToLive", "dynamodb:DescribeContinuousBackups")


def policy(role: Role, place: Place) -> str:
    """The policy as JSON, as the AWS console and `aws iam create-policy` take it."""
    bucket = f"arn:{place.partition}:s3:::{place.bucket}"
    prefix = place.prefix.strip("/") + "/" if place.prefix.strip("/") else ""
    listing: dict[str, object] = _allow("ListContents", _LIST_BUCKET, bucket)
    if prefix:
        listing["Condition"] = {"StringLike": {"s3:prefix": [f"{prefix}*"]}}
    statements = [
        *(_allow(name, actions, *(f"{bucket}/{prefix}{key}" for key in keys)) for name, actions, keys in _OBJECTS[role]),
        listing,
        _allow("InspectBucket", (*_INSPECT_BUCKET, *_INSPECT_BUCKET_MORE), bucket),
    ]
    if place.table and role is not Role.KEYS:
        table = f"arn:{place.partition}:dynamodb:{place.region}:{place.account}:table/{place.table}"
        writes = () if role is Role.RESTORE else _WRITE_TABLE
        statements.append(_allow("Index", (*_READ_TABLE, *_INSPECT_TABLE, *writes), table))
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2)


def _allow(name: str, actions: tuple[str, ...], *resources: str) -> dict[str, object]:
    where: object = resources[0] if len(resources) == 1 else list(resources)
    return {"Sid": name, "Effect": "Allow", "Action": sorted(actions), "Resource": where}
