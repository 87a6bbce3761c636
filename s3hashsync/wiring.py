"""Puts the parts together: the only place that reads clock, randomness and environment.

Decides which store a URL means. boto3 is imported only when an AWS store is opened: it costs more time than a small plan.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3hashsync.config import Config, DynamoUrl, FolderUrl, S3Url, SqliteUrl, find_config, load
from s3hashsync.run.backup import Job
from s3hashsync.run.progress import Progress, Stop
from s3hashsync.run.repository import Repository, open_repository
from s3hashsync.stores.base import Index, ObjectStore
from s3hashsync.stores.local import LocalObjects
from s3hashsync.stores.retrying import RetryEvent, RetryingIndex, RetryingObjects, RetryPolicy
from s3hashsync.stores.sqlite import SqliteIndex

if TYPE_CHECKING:
    from s3hashsync.stores.aws import Aws

LOCAL_THREADS = 2


@dataclass(frozen=True, slots=True)
class Stores:
    """The two halves as the configuration names them, before anybody has checked that they belong together. `aws` is None
    when both are embedded."""

    objects: ObjectStore
    index: Index
    aws: Aws | None


def load_config(path: str | None, environ: Mapping[str, str]) -> Config:
    """The configuration at `path`, or where it is usually found."""
    return load(path or find_config(os.getcwd(), environ), environ, socket.gethostname())


def state_folder(environ: Mapping[str, str], repository_id: str) -> str:
    """Where the local states of a repository lie: the XDG state folder."""
    base = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "s3hashsync", repository_id)


@contextmanager
def opened_stores(
    config: Config, environ: Mapping[str, str], progress: Progress, *, create: bool = False
) -> Iterator[Stores]:
    """Both stores, behind the retrying wrapper. `create`: a folder or index file that is not there is made."""
    with ExitStack() as stack:
        aws = connect_aws(config, environ) if _needs_aws(config) else None
        policy = RetryPolicy()
        hook = _told(progress)
        objects = _objects(config, aws, stack, create=create)
        index = _index(config, aws, stack, create=create)
        yield Stores(RetryingObjects(objects, policy, hook), RetryingIndex(index, policy, hook), aws)


def _needs_aws(config: Config) -> bool:
    return isinstance(config.repository.objects, S3Url) or isinstance(config.repository.index, DynamoUrl)


def connect_aws(config: Config, environ: Mapping[str, str]) -> Aws:
    """A session with AWS as the configuration says; secrets are revealed only here."""
    from s3hashsync.stores.aws import AwsSettings, connect

    r = config.repository
    keys = r.credentials
    return connect(
        AwsSettings(
            region=r.region,
            profile=r.profile,
            role_arn=r.role_arn,
            access_key_id=keys.access_key_id.reveal(environ) if keys else None,
            secret_access_key=keys.secret_access_key.reveal(environ) if keys else None,
            session_token=keys.session_token.reveal(environ) if keys and keys.session_token else None,
            s3_endpoint=r.s3_endpoint,
            dynamodb_endpoint=r.dynamodb_endpoint,
            path_style=r.path_style or None,
            connections=config.upload_threads + 4,
        )
    )


def _objects(config: Config, aws: Aws | None, stack: ExitStack, *, create: bool) -> ObjectStore:
    url = config.repository.objects
    if isinstance(url, FolderUrl):
        store = LocalObjects(url.path, create=create)
        stack.callback(store.close)
        store.tidy()
        return store
    from s3hashsync.stores.s3 import S3Objects
    from s3hashsync.stores.s3_setup import Versioning, versioning_of

    assert aws is not None
    client = aws.s3()
    versioned = versioning_of(client, url.bucket) is Versioning.ON
    return S3Objects(client, url.bucket, url.prefix, versioned=versioned)


def _index(config: Config, aws: Aws | None, stack: ExitStack, *, create: bool) -> Index:
    url = config.repository.index
    if isinstance(url, SqliteUrl):
        index = SqliteIndex(url.path, create=create)
        stack.callback(index.close)
        return index
    from s3hashsync.stores.dynamodb import DynamoIndex

    assert aws is not None
    table = DynamoIndex(aws.dynamodb(), url.table)
    stack.callback(table.close)
    return table


def _told(progress: Progress) -> Callable[[RetryEvent], None]:
    def tell(event: RetryEvent) -> None:
        if event.attempt > 1:
            progress.note(f"{event.operation}: {event.error} (attempt {event.attempt}, again in {event.wait_seconds:.0f} s)")

    return tell


@contextmanager
def opened_job(config: Config, environ: Mapping[str, str], progress: Progress, stop: Stop) -> Iterator[Job]:
    """Everything a command needs to work on the repository; raises `NoRepository` when there is none."""
    with opened_stores(config, environ, progress) as stores:
        repository = open_repository(stores.objects, stores.index)
        yield make_job(config, repository, environ, progress, stop)


def make_job(
    config: Config, repository: Repository, environ: Mapping[str, str], progress: Progress, stop: Stop
) -> Job:
    local = isinstance(config.repository.objects, FolderUrl)
    return Job(
        config=config,
        repository=repository,
        state_folder=state_folder(environ, repository.identity.id),
        progress=progress,
        stop=stop,
        clock=time.time,
        clock_ns=time.time_ns,
        entropy=os.urandom,
        threads=LOCAL_THREADS if local else config.upload_threads,
    )
