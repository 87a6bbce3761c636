"""The bucket: making it, and whether it is as the repository needs it.

Decides which settings are right, which are only a missing protection, and which break the invariants of the
write protocol and are refused. Never changes a policy or a lifecycle rule that is there already: what differs
is reported. Knows nothing of what is stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from s3hashsync.errors import Denied, Unsupported
from s3hashsync.stores.aws import code_of, status_of, translated
from s3hashsync.stores.finding import Finding, looked, made

ABORT_UPLOADS_AFTER_DAYS = 7
_BLOCKS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
_NOT_SET = frozenset(
    {
        "NoSuchPublicAccessBlockConfiguration",
        "NoSuchBucketPolicy",
        "NoSuchLifecycleConfiguration",
        "ReplicationConfigurationNotFoundError",
    }
)


@dataclass(frozen=True, slots=True)
class BucketAt:
    """`versions` is whether a bucket that is made, or that never had versions, gets them."""

    bucket: str
    prefix: str = ""
    versions: bool = True

    @property
    def key_prefix(self) -> str:
        return self.prefix.strip("/") + "/" if self.prefix.strip("/") else ""


class Versioning(Enum):
    ON = "Enabled"
    SUSPENDED = "Suspended"
    OFF = ""


def versioning_of(client: Any, bucket: str) -> Versioning:
    """How the bucket stands; a server that knows no versions has none."""
    try:
        with translated(f"looking at the versioning of s3://{bucket}"):
            answer = client.get_bucket_versioning(Bucket=bucket)
    except Unsupported:
        return Versioning.OFF
    return Versioning(answer.get("Status", ""))


def prepare_bucket(client: Any, at: BucketAt) -> list[Finding]:
    """Makes what is missing, then looks at everything."""
    done: list[Finding] = []
    if not _bucket_is_there(client, at.bucket):
        with translated(f"creating the bucket {at.bucket}"):
            client.create_bucket(Bucket=at.bucket, **_in_region(client))
        done.append(Finding("created", f"bucket {at.bucket}"))
    if versioning_of(client, at.bucket) is Versioning.OFF and at.versions:
        done += made("versions", lambda: _switch_versions_on(client, at.bucket))
    if _is_unset(lambda: client.get_public_access_block(Bucket=at.bucket)):
        done += made("public access block", lambda: _block_public_access(client, at.bucket))
    if _speaks_tls(client) and _is_unset(lambda: client.get_bucket_policy(Bucket=at.bucket)):
        done += made("bucket policy that admits TLS only", lambda: _demand_tls(client, at.bucket))
    if _is_unset(lambda: client.get_bucket_lifecycle_configuration(Bucket=at.bucket)):
        done += made("lifecycle rule that removes unfinished uploads", lambda: _abort_uploads(client, at))
    return done + inspect_bucket(client, at)


def inspect_bucket(client: Any, at: BucketAt) -> list[Finding]:
    if not _bucket_is_there(client, at.bucket):
        return [Finding("refused", f"there is no bucket {at.bucket}", "`s3hashsync init` creates it")]
    return [
        *looked("versions", lambda: _versions(client, at.bucket)),
        *looked("lifecycle rules", lambda: _lifecycle(client, at)),
        *looked("public access block", lambda: _public_access(client, at.bucket)),
        *looked("bucket policies", lambda: _policy(client, at.bucket)),
        *looked("replication", lambda: _replication(client, at.bucket)),
    ]


def _in_region(client: Any) -> dict[str, Any]:
    region = client.meta.region_name
    # us-east-1 is what S3 takes when nothing is said, and it refuses to be told.
    if region in ("us-east-1", "aws-global"):
        return {}
    return {"CreateBucketConfiguration": {"LocationConstraint": region}}


def _switch_versions_on(client: Any, bucket: str) -> None:
    # S3 may take some minutes over it; a put that gets no version until then is an error (`stores.s3`).
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


def _block_public_access(client: Any, bucket: str) -> None:
    everything = dict.fromkeys(_BLOCKS, True)
    client.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=everything)


def _demand_tls(client: Any, bucket: str) -> None:
    arn = f"arn:{client.meta.partition}:s3:::{bucket}"
    statement = {
        "Sid": "s3hashsync-tls-only",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [arn, f"{arn}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    client.put_bucket_policy(Bucket=bucket, Policy=document)


def _abort_uploads(client: Any, at: BucketAt) -> None:
    rule = {
        "ID": "s3hashsync-abort-unfinished-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": at.key_prefix},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABORT_UPLOADS_AFTER_DAYS},
    }
    client.put_bucket_lifecycle_configuration(Bucket=at.bucket, LifecycleConfiguration={"Rules": [rule]})


def _is_unset(ask: Callable[[], Any]) -> bool:
    """Whether the bucket certainly has no such setting. Where that cannot be told, nothing is set up."""
    try:
        with translated("looking at the bucket"):
            return not _asked(ask)
    except (Unsupported, Denied):
        return False


def _asked(ask: Callable[[], Any]) -> Any:
    """{} when the bucket has no such setting; any other refusal is raised."""
    try:
        return ask()
    except Exception as error:
        if code_of(getattr(error, "response", {})) in _NOT_SET:
            return {}
        raise


def _bucket_is_there(client: Any, bucket: str) -> bool:
    with translated(f"looking for the bucket {bucket}"):
        try:
            client.head_bucket(Bucket=bucket)
        except client.exceptions.ClientError as error:
            if status_of(error.response) == 404:
                return False
            # 403: it is there; a right that is confined to the prefix does not cover this question.
            if status_of(error.response) != 403:
                raise
    return True


def _speaks_tls(client: Any) -> bool:
    return str(client.meta.endpoint_url).startswith("https:")


def _versions(client: Any, bucket: str) -> Iterator[Finding]:
    answer = client.get_bucket_versioning(Bucket=bucket)
    if answer.get("MFADelete") == "Enabled":
        yield Finding("refused", "MFA delete is on: `clean` could never delete a version", "switch it off")
    match answer.get("Status", ""):
        case "Enabled":
            yield Finding("ok", "versions are on")
        case "Suspended":
            hint = "switch versioning on again: `aws s3api put-bucket-versioning`"
            yield Finding("refused", "versioning is suspended: new versions would overwrite each other", hint)
        case _:
            what = "missing protection: the bucket keeps no versions"
            yield Finding("warning", what, "no undelete by hand, no protection from a host that may delete")


def _lifecycle(client: Any, at: BucketAt) -> Iterator[Finding]:
    rules = _asked(lambda: client.get_bucket_lifecycle_configuration(Bucket=at.bucket)).get("Rules", [])
    ours = [rule for rule in rules if rule.get("Status") == "Enabled" and _overlaps(rule, at.key_prefix)]
    for rule in ours:
        if harm := _harm(rule):
            name = rule.get("ID", "without a name")
            hint = "remove it, or restrict it to another prefix: it would delete content that the index still counts on"
            yield Finding("refused", f"the lifecycle rule {name!r} {harm} what the repository holds", hint)
    if any("AbortIncompleteMultipartUpload" in rule for rule in ours):
        yield Finding("ok", "a lifecycle rule removes unfinished uploads")
    else:
        what = "missing protection: no lifecycle rule removes unfinished uploads"
        hint = f"add one for s3://{at.bucket}/{at.key_prefix}: parts are billed until they are removed"
        yield Finding("warning", what, hint)


def _overlaps(rule: Any, prefix: str) -> bool:
    condition = rule.get("Filter", {})
    own = condition.get("Prefix") or condition.get("And", {}).get("Prefix") or rule.get("Prefix") or ""
    return bool(own.startswith(prefix) or prefix.startswith(own))


def _harm(rule: Any) -> str | None:
    """What a rule does that it must not. Removing expired markers and aborting uploads is all that is
    allowed."""
    expiration = rule.get("Expiration", {})
    if rule.get("NoncurrentVersionExpiration") or expiration.get("Days") or expiration.get("Date"):
        return "expires"
    if rule.get("Transitions") or rule.get("NoncurrentVersionTransitions"):
        return "moves to another storage class"
    return None


def _public_access(client: Any, bucket: str) -> Iterator[Finding]:
    answer = _asked(lambda: client.get_public_access_block(Bucket=bucket))
    blocks = answer.get("PublicAccessBlockConfiguration", {})
    if all(blocks.get(name) for name in _BLOCKS):
        yield Finding("ok", "public access is blocked")
    else:
        yield Finding("warning", "missing protection: public access is not blocked entirely", "block all of it")


def _policy(client: Any, bucket: str) -> Iterator[Finding]:
    document = _asked(lambda: client.get_bucket_policy(Bucket=bucket)).get("Policy", "{}")
    if _demands_tls(json.loads(document)):
        yield Finding("ok", "requests without TLS are denied")
    else:
        hint = "add a statement that denies requests with aws:SecureTransport false"
        yield Finding("warning", "missing protection: requests without TLS are not denied", hint)


def _demands_tls(document: Any) -> bool:
    statements = document.get("Statement", [])
    return any(
        statement.get("Effect") == "Deny"
        and str(statement.get("Condition", {}).get("Bool", {}).get("aws:SecureTransport", "")).lower() == "false"
        for statement in (statements if isinstance(statements, list) else [statements])
    )


def _replication(client: Any, bucket: str) -> Iterator[Finding]:
    answer = _asked(lambda: client.get_bucket_replication(Bucket=bucket))
    if answer.get("ReplicationConfiguration"):
        hint = "the replica keeps, and bills, what `clean` removes here: it needs a lifecycle rule of its own"
        yield Finding("warning", "the bucket is replicated, and replicas do not receive deletes of versions", hint)
