"""What a valid configuration is once it is read: values only, every default filled in, every path absolute.

Decides the shape. Knows nothing of YAML, of where a value came from, or of what is done with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from s3hashsync.config.secret import Secret


@dataclass(frozen=True, slots=True)
class S3Url:
    """A bucket and the prefix in it, without slashes at its ends; an empty prefix is the whole bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"


@dataclass(frozen=True, slots=True)
class FolderUrl:
    path: str

    def __str__(self) -> str:
        return f"file://{self.path}"


@dataclass(frozen=True, slots=True)
class DynamoUrl:
    table: str

    def __str__(self) -> str:
        return f"dynamodb://{self.table}"


@dataclass(frozen=True, slots=True)
class SqliteUrl:
    path: str

    def __str__(self) -> str:
        return f"sqlite://{self.path}"


ObjectsUrl = S3Url | FolderUrl
IndexUrl = DynamoUrl | SqliteUrl


@dataclass(frozen=True, slots=True)
class Credentials:
    """Access keys that the file names itself; where it names none, the usual AWS chain finds them."""

    access_key_id: Secret
    secret_access_key: Secret
    session_token: Secret | None


@dataclass(frozen=True, slots=True)
class PackSettings:
    """Contents of fewer than `below` bytes are put together into packs, each closed at `size` stored bytes."""

    below: int
    size: int


@dataclass(frozen=True, slots=True)
class EncryptionSettings:
    """Whom the repository is encrypted to, and how this host opens it.

    Without recipients an existing repository can still be opened. The texts of the recipients are valid and none is there twice.
    """

    recipients: tuple[str, ...] = ()
    passphrase: Secret | None = None
    identity: Secret | None = None
    host_key: str | None = None


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """An object store and the index that belongs to it. None is: leave it to the AWS chain; for `pack`: no packs."""

    objects: ObjectsUrl
    index: IndexUrl
    region: str | None
    profile: str | None
    role_arn: str | None
    s3_endpoint: str | None
    dynamodb_endpoint: str | None
    credentials: Credentials | None
    path_style: bool
    storage_class: str
    min_storage_seconds: int
    keep_deleted_seconds: int
    append_only: bool
    pack: PackSettings | None = None


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """A tree to back up."""

    name: str
    path: str
    exclude: tuple[str, ...]
    exclude_regex: tuple[str, ...]
    ignore_files: tuple[str, ...]
    exclude_caches: bool
    exclude_if_present: tuple[str, ...]
    exclude_larger_than: int | None
    one_file_system: bool
    compare: frozenset[str]
    allow_empty: bool


@dataclass(frozen=True, slots=True)
class Config:
    """One `backup.yaml`. Encryption is None where the file does not say: that is not the same as "off"."""

    file: str
    repository: RepositorySettings
    encryption: EncryptionSettings | Literal["off"] | None
    host: str
    sources: tuple[SourceSettings, ...]
    upload_threads: int
    mass_change_share: float
    mass_change_files: int
    log_interval_seconds: int
    verify_uploads: bool = True
