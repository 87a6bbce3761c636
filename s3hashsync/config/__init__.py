"""The configuration: where `backup.yaml` is, what it says, and everything that is wrong with it at once.

Decides what leaves this package: the names below. Knows nothing of stores, commands or the command line.
"""

from s3hashsync.config.exposed import exposed
from s3hashsync.config.load import find_config, load
from s3hashsync.config.model import (
    Config,
    Credentials,
    DynamoUrl,
    EncryptionSettings,
    FolderUrl,
    IndexUrl,
    ObjectsUrl,
    PackSettings,
    RepositorySettings,
    S3Url,
    SourceSettings,
    SqliteUrl,
)
from s3hashsync.config.quantities import parse_duration, parse_size
from s3hashsync.config.schema import schema_text
from s3hashsync.config.secret import Origin, Secret

__all__ = [
    "Config",
    "Credentials",
    "DynamoUrl",
    "EncryptionSettings",
    "FolderUrl",
    "IndexUrl",
    "ObjectsUrl",
    "Origin",
    "PackSettings",
    "RepositorySettings",
    "S3Url",
    "Secret",
    "SourceSettings",
    "SqliteUrl",
    "exposed",
    "find_config",
    "load",
    "parse_duration",
    "parse_size",
    "schema_text",
]
