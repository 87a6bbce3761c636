"""The way to AWS and to servers that speak like it: credentials, clients, and what their failures mean.

Decides time-outs, the size of the connection pool, path-style addressing, and which of our errors each
failure becomes. Nothing is retried here: botocore's own retries are off, for they would multiply with those
of `stores.retrying`. Knows nothing of what the clients are used for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.config
import botocore.credentials
import botocore.exceptions
import botocore.parsers
import botocore.session
import urllib3.exceptions

from s3hashsync.errors import (
    AlreadyThere,
    Archived,
    Denied,
    Missing,
    NoRepository,
    NoSpace,
    S3HashSyncError,
    StoreError,
    Unreachable,
    Unsupported,
)

DEFAULT_REGION_ELSEWHERE = "us-east-1"
"""What servers other than AWS expect in signatures when nothing is configured."""


class NoStore(StoreError, NoRepository):
    """The bucket or the table itself is not there. It is no `Missing`: that is a proof that one version is
    lost, and names would be dropped for it; a mistyped bucket proves nothing."""


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """How to reach AWS. What is left empty is found by the usual AWS chain (environment, profile, role)."""

    region: str | None = None
    profile: str | None = None
    role_arn: str | None = None
    external_id: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    s3_endpoint: str | None = None
    dynamodb_endpoint: str | None = None
    sts_endpoint: str | None = None
    path_style: bool | None = None
    connections: int = 16
    connect_timeout: float = 10.0
    read_timeout: float = 60.0


class Aws:
    """A session; clients are made on demand (a client costs some 50 ms) and may be used from many threads."""

    def __init__(self, settings: AwsSettings) -> None:
        self._settings = settings
        with translated("setting up the connection to AWS"):
            self._session = _session(settings)

    def s3(self) -> Any:
        """Servers other than AWS get path-style addresses unless the settings say otherwise."""
        style = self._settings.path_style
        with translated("setting up the connection to S3"):
            client = self._client("s3", self._settings.s3_endpoint, _s3_config(path_style=bool(style), tls=True))
            if not _is_amazon(client):
                # The endpoint may come from the environment or a profile: only a finished client knows it.
                tls = str(client.meta.endpoint_url).startswith("https:")
                wanted = _s3_config(path_style=style is None or style, tls=tls)
                client = self._client("s3", self._settings.s3_endpoint, wanted)
        return client

    def dynamodb(self) -> Any:
        with translated("setting up the connection to DynamoDB"):
            return self._client("dynamodb", self._settings.dynamodb_endpoint, {})

    def _client(self, service: str, endpoint: str | None, s3: dict[str, Any]) -> Any:
        region = self._session.region_name
        elsewhere = endpoint is not None or service == "s3"
        try:
            return self._session.client(
                service,
                region_name=region or (DEFAULT_REGION_ELSEWHERE if elsewhere else None),
                endpoint_url=endpoint,
                config=_config(self._settings, s3),
            )
        except ValueError as error:
            if isinstance(error, botocore.exceptions.BotoCoreError):
                raise
            # botocore's own, for an endpoint from the environment or a profile that is no address at all.
            hint = "write https://server or http://server:port in `endpoints` or AWS_ENDPOINT_URL"
            raise StoreError(f"setting up the connection to {service}: {_brief(error)}", hint) from error


def connect(settings: AwsSettings) -> Aws:
    return Aws(settings)


def _session(settings: AwsSettings) -> boto3.Session:
    base = boto3.Session(
        profile_name=settings.profile,
        region_name=settings.region,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        aws_session_token=settings.session_token,
    )
    return _in_role(base, settings) if settings.role_arn else base


def _in_role(base: Any, settings: AwsSettings) -> boto3.Session:
    """A session in the role; its credentials are fetched when first needed and renewed before they expire."""
    source = base.get_credentials()
    if source is None:
        raise botocore.exceptions.NoCredentialsError
    extra = {"RoleSessionName": "s3hashsync"}
    if settings.external_id:
        extra["ExternalId"] = settings.external_id
    creator = partial(
        base.client,
        region_name=base.region_name or DEFAULT_REGION_ELSEWHERE,
        endpoint_url=settings.sts_endpoint,
        config=_config(settings, {}),
    )
    fetcher = botocore.credentials.AssumeRoleCredentialFetcher(
        client_creator=creator, source_credentials=source, role_arn=settings.role_arn, extra_args=extra
    )
    inner = botocore.session.Session(profile=settings.profile)
    # botocore has no public way to hand a session renewable credentials; this is how its own tools do it.
    inner._credentials = botocore.credentials.DeferredRefreshableCredentials(
        method="assume-role", refresh_using=fetcher.fetch_credentials
    )
    return boto3.Session(botocore_session=inner, region_name=base.region_name)


def _s3_config(*, path_style: bool, tls: bool) -> dict[str, Any]:
    # With TLS and a checksum of ours in the signed headers there is no need to hash the body a second time.
    signing = {"payload_signing_enabled": False} if tls else {}
    return {"addressing_style": "path" if path_style else "auto", **signing}


def _config(settings: AwsSettings, s3: dict[str, Any]) -> Any:
    return botocore.config.Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=settings.connections,
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        tcp_keepalive=True,
        # Uploads carry their own checksum, which the store verifies; contents are checked against their hash.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3=s3,
        user_agent_extra="s3hashsync",
    )


def _is_amazon(client: Any) -> bool:
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn")) or host == "s3.amazonaws.com"


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Vendor errors end here. `doing` says which operation on which resource, for the message."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        raise from_answer(error.response, doing) from error
    except botocore.exceptions.BotoCoreError as error:
        raise _from_library(error, doing) from error
    except (botocore.parsers.ResponseParserError, urllib3.exceptions.HTTPError, OSError, EOFError) as error:
        raise Unreachable(f"{doing}: the answer was broken off or garbled ({_brief(error)})") from error


def code_of(response: Any) -> str:
    return str(response.get("Error", {}).get("Code", ""))


def status_of(response: Any) -> int:
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


_BUSY = frozenset(
    {
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "SlowDown",
        "Throttling",
        "ThrottlingError",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestLimitExceeded",
        "TooManyRequests",
        "TooManyRequestsException",
        "LimitExceededException",
        "BandwidthLimitExceeded",
        "InternalError",
        "InternalServerError",
        "InternalFailure",
        "ServiceUnavailable",
        "Busy",
        "RequestTimeout",
        "RequestTimeoutException",
        "OperationAborted",
        "ConditionalRequestConflict",
        "TransactionConflict",
        "TransactionConflictException",
        "TransactionInProgressException",
        "IncompleteBody",
        "PriorRequestNotComplete",
    }
)
_DAMAGED = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest"})
_CREDENTIALS = frozenset(
    {
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidSignatureException",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidToken",
        "AuthFailure",
        "XAdminUserNotFound",
    }
)
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_SKEWED = frozenset({"RequestTimeTooSkewed"})
_FORBIDDEN = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AllAccessDisabled",
        "AccountProblem",
        "NotSignedUp",
        "OptInRequired",
    }
)
_NO_STORE = frozenset({"NoSuchBucket", "ResourceNotFound", "ResourceNotFoundException", "TableNotFoundException", "NoSuchTable"})
_TAKEN = frozenset({"PreconditionFailed", "412"})
# A bare 404 is not among them: a gateway or proxy says that too, and absence has to be proven.
_MISSING = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchUpload"})
_ARCHIVED = frozenset({"InvalidObjectState", "ObjectNotInActiveTierError"})
_UNKNOWN = frozenset({"NotImplemented", "UnknownOperationException", "UnknownOperation", "MethodNotAllowed", "405", "501"})
_ELSEWHERE = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"})
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "StorageFull", "InsufficientStorage", "EntityTooLargeForQuota"})


def from_answer(response: Any, doing: str) -> S3HashSyncError:
    """What a refusal by the service means. The code decides; the HTTP status only where there is no code that
    says more (an answer to HEAD has no body)."""
    code, status = code_of(response), status_of(response)
    said = f"{doing}: {_said(response)}"
    if code in _DAMAGED:
        return Unreachable(
            f"{doing}: the bytes were damaged on the way ({code})",
            "it is tried again; if it stays, suspect memory or network hardware",
        )
    if code in _BUSY or status in (429, 500, 502, 503, 504):
        return Unreachable(said, "the service is busy or failing; it is tried again")
    if code in _TAKEN or status == 412:
        return AlreadyThere(said)
    if code in _NO_STORE:
        return NoStore(said, "check the name, the region and the endpoint; `s3hashsync init` creates what is missing")
    if code in _ARCHIVED:
        return Archived(said, "it has to be thawed first: `s3hashsync restore` names the command that asks for that")
    if code in _ELSEWHERE or status == 301:
        return StoreError(said, "the bucket is in another region: set `region` in the repository's settings")
    if code in _FULL or status == 507:
        return NoSpace(said, "the server has no room left, or the quota is used up")
    if denied := _denied(code, status, said):
        return denied
    if code in _UNKNOWN or status in (405, 501):
        return Unsupported(said, "the server does not know this operation")
    if code in _MISSING or (code == "InvalidArgument" and "version id" in said.lower()):
        return Missing(said)
    if code.isdigit() and status == 400:
        return StoreError(said, "the server gave no reason: is the region right, and the endpoint? does the bucket exist?")
    return StoreError(said)


def _denied(code: str, status: int, said: str) -> Denied | None:
    if code in _EXPIRED:
        return Denied(said, "the credentials have expired: log in again, or renew the token")
    if code in _SKEWED:
        return Denied(said, "the clock of this machine is wrong: requests are signed with the time")
    if code in _CREDENTIALS:
        return Denied(said, "the server does not accept these credentials: check key, secret, profile and endpoint")
    if code.isdigit() and status in (401, 403):
        return Denied(said, "the credentials are wrong, or lack a right that `s3hashsync init` names")
    if code in _FORBIDDEN or status in (401, 403):
        return Denied(said, "this right is missing: `s3hashsync init` prints the policy that each role needs")
    return None


_CREDENTIAL_ERRORS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.NoAuthTokenError,
    botocore.exceptions.TokenRetrievalError,
    botocore.exceptions.SSOError,
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.UnknownCredentialError,
)
_NETWORK_ERRORS = (
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
)


def _from_library(error: Exception, doing: str) -> S3HashSyncError:
    """What botocore itself found, before an answer or instead of one."""
    said = f"{doing}: {_brief(error)}"
    if isinstance(error, _CREDENTIAL_ERRORS):
        hint = "set credentials in the usual AWS way: environment, profile, `aws sso login`, or an instance role"
        return Denied(said, hint)
    if isinstance(error, botocore.exceptions.NoRegionError):
        return StoreError(said, "set `region` in the repository's settings, or AWS_REGION")
    if isinstance(error, botocore.exceptions.SSLError) and "CERTIFICATE" in str(error).upper():
        return StoreError(said, "the server's certificate is not trusted: set AWS_CA_BUNDLE, or correct the endpoint")
    if isinstance(error, botocore.exceptions.SSLError) and "WRONG_VERSION_NUMBER" in str(error).upper():
        return StoreError(said, "no TLS could be agreed on: is the endpoint right, and is it http:// that the server speaks?")
    if isinstance(error, botocore.exceptions.FlexibleChecksumError | botocore.exceptions.ChecksumError):
        return Unreachable(f"{doing}: the bytes were damaged on the way ({_brief(error)})")
    if isinstance(error, botocore.exceptions.EndpointConnectionError | botocore.exceptions.ConnectTimeoutError):
        return Unreachable(said, "is the endpoint right, and does this machine have a network?")
    if isinstance(error, _NETWORK_ERRORS):
        return Unreachable(said)
    return StoreError(said)


def _said(response: Any) -> str:
    """The service's own words, with its code, and the status where there is no body."""
    code, message = code_of(response), str(response.get("Error", {}).get("Message", ""))
    if code.isdigit() or not code:
        return f"HTTP status {status_of(response) or code}"
    return f"{message.rstrip('.')} ({code})" if message else code


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")[:300]
