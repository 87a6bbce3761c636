"""Puts the parts together: the only place that reads clock, randomness and environment.

Decides which store a URL means. boto3 is imported only when an AWS store is opened: it costs more time than a small plan.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from s3hashsync.config import Config, DynamoUrl, EncryptionSettings, FolderUrl, S3Url, SqliteUrl, find_config, load
from s3hashsync.errors import Denied, Missing, NoRepository, Refused, StoreError, WrongKey
from s3hashsync.run.backup import Job
from s3hashsync.run.founding import Founder, Openers, found_encrypted
from s3hashsync.run.helper import Helper
from s3hashsync.run.identities import Unlocking, is_named, opener_finder
from s3hashsync.run.keyring import Keyring, NoKeys
from s3hashsync.run.keys import RepositoryKeys, check_setting
from s3hashsync.run.lease import all_sources
from s3hashsync.run.pins import HostPlace, check_new, check_pins
from s3hashsync.run.progress import Progress, Silent, Stop
from s3hashsync.run.repository import (
    DOCUMENT,
    PLAIN,
    STORE,
    SUFFIX,
    Identity,
    Repository,
    initialise,
    open_repository,
    read_identity,
)
from s3hashsync.stores.base import Index, ObjectStore
from s3hashsync.stores.filesystem import file_system_kind, is_remote
from s3hashsync.stores.local import LocalObjects
from s3hashsync.stores.retrying import RetryEvent, RetryingIndex, RetryingObjects, RetryPolicy
from s3hashsync.stores.sqlite import SqliteIndex
from s3hashsync.stores.sqlite_damaged import put_aside_if_damaged

if TYPE_CHECKING:
    from s3hashsync.stores.aws import Aws

LOCAL_THREADS = 2
FIRST_CONTACT = RetryPolicy(attempts=4, total_seconds=15)


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
    base = environ.get("XDG_STATE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    if not base.startswith("/"):
        base = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "s3hashsync", repository_id)


@contextmanager
def opened_stores(
    config: Config, environ: Mapping[str, str], progress: Progress, *, create: bool = False, new_index: bool = False
) -> Iterator[Stores]:
    """Both stores, behind the retrying wrapper. `create`: a folder or index file that is not there is made; `new_index`: an index
    file is made even beside an existing repository, for it is about to be filled from the run logs."""
    with ExitStack() as stack:
        aws = connect_aws(config, environ) if needs_aws(config) else None
        policy = RetryPolicy()
        hook = _told(progress)
        if create and _is_nothing_there(config):
            # Before a folder or a file is made.
            check_new(host_place(config, environ), "")
        with _pinned(config, environ):
            objects = _objects(config, aws, stack, create=create)
            identity = read_identity(objects)
            if identity is None and not create:
                raise NoRepository(f"there is no repository at {config.repository.objects}", "s3hashsync init makes one")
        if new_index and isinstance(config.repository.index, SqliteUrl):
            _put_aside_if_damaged(config.repository.index.path, progress)
        # Never an empty index beside an existing repository: that would hide everything that is stored.
        index = _index(config, aws, stack, create=new_index or (create and identity is None))
        yield Stores(RetryingObjects(objects, policy, hook), RetryingIndex(index, policy, hook), aws)


@contextmanager
def _pinned(config: Config, environ: Mapping[str, str]) -> Iterator[None]:
    """Where there is no repository, but this host is enrolled in one there, it is not a new place: the disk is not mounted, or
    another one is. Raises `WrongKey` then."""
    try:
        yield
    except NoRepository:
        check_new(host_place(config, environ), "")
        raise


def _is_nothing_there(config: Config) -> bool:
    """Of an embedded repository: not even what an `init` that was cut short leaves."""
    objects, index = config.repository.objects, config.repository.index
    if not isinstance(objects, FolderUrl) or not isinstance(index, SqliteUrl):
        return False
    return not os.path.exists(os.path.join(objects.path, DOCUMENT)) and not os.path.exists(index.path)


def needs_aws(config: Config) -> bool:
    """Whether either half of the repository lies in AWS or behind its interfaces."""
    return isinstance(config.repository.objects, S3Url) or isinstance(config.repository.index, DynamoUrl)


def connect_aws(config: Config, environ: Mapping[str, str]) -> Aws:
    """A session with AWS as the configuration says; secrets are revealed only here."""
    from s3hashsync.stores.aws import AwsSettings, connect

    r = config.repository
    keys = r.credentials
    return connect(
        AwsSettings(
            # botocore itself reads AWS_DEFAULT_REGION alone; the other SDKs, and the pipelines' log-in steps, set AWS_REGION.
            region=r.region or environ.get("AWS_REGION") or None,
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
        try:
            store = LocalObjects(url.path, create=create)
        except Missing as error:
            hint = "is the disk mounted? s3hashsync init makes a new repository"
            if create:
                hint = "the folder above it is missing: is the disk mounted? otherwise make that folder first"
            raise NoRepository(f"there is no repository at {url.path}", hint) from error
        stack.callback(store.close)
        return store
    assert aws is not None
    return open_s3(aws, url, create=create)


def open_s3(aws: Aws, url: S3Url, *, create: bool) -> ObjectStore:
    """The bucket in the mode that its repository was made for; a new repository uses versions where the bucket has them."""
    from s3hashsync.stores.s3 import S3Objects
    from s3hashsync.stores.s3_setup import Versioning, versioning_of

    client = aws.s3()
    plain = S3Objects(client, url.bucket, url.prefix, versioned=False)
    # First contact: a server that is not there should be named soon, one that is only busy be asked again.
    identity = read_identity(RetryingObjects(plain, FIRST_CONTACT))
    try:
        now = versioning_of(client, url.bucket)
    except Denied:
        # A role that may not look: what init found is what counts.
        now = Versioning.OFF if identity and identity.versions == SUFFIX else Versioning.ON
    if identity and identity.versions == STORE and now is not Versioning.ON:
        raise Refused(
            f"versioning is {now.value.lower() or 'off'} on bucket {url.bucket}, but this repository relies on it",
            "switch it on again: aws s3api put-bucket-versioning --versioning-configuration Status=Enabled --bucket"
            f" {url.bucket}",
        )
    suffixed = identity.versions == SUFFIX if identity else now is not Versioning.ON
    return plain if suffixed else S3Objects(client, url.bucket, url.prefix, versioned=True)


def _index(config: Config, aws: Aws | None, stack: ExitStack, *, create: bool) -> Index:
    url = config.repository.index
    if isinstance(url, SqliteUrl):
        try:
            index = SqliteIndex(url.path, create=create)
        except Missing as error:
            raise Refused(
                f"the repository is there, but its index {url.path} is not",
                "is index: right? if the index is lost, make it anew from the run logs: s3hashsync rebuild --index",
            ) from error
        stack.callback(index.close)
        return index
    from s3hashsync.stores.dynamodb import DynamoIndex

    assert aws is not None
    table = DynamoIndex(aws.dynamodb(), url.table)
    stack.callback(table.close)
    return table


def _put_aside_if_damaged(path: str, progress: Progress) -> None:
    aside = put_aside_if_damaged(path)
    if aside is not None:
        progress.note(f"{path} is damaged: it was put aside as {aside}")


def _told(progress: Progress) -> Callable[[RetryEvent], None]:
    def tell(event: RetryEvent) -> None:
        if event.attempt > 1:
            progress.note(f"{event.operation}: {event.error} (attempt {event.attempt}, again in {event.wait_seconds:.0f} s)")

    return tell


@contextmanager
def opened_job(
    config: Config, environ: Mapping[str, str], progress: Progress, stop: Stop, unlocking: Unlocking | None = None
) -> Iterator[Job]:
    """Everything a command needs to work on the repository; raises `NoRepository` when there is none."""
    with opened_stores(config, environ, progress) as stores:

        def keys(about: Identity) -> Keyring:
            return keys_of(config, environ, stores.objects, about, unlocking)

        repository = open_repository(stores.objects, stores.index, keys)
        with closing(Helper()) as helper:
            job = make_job(config, repository, environ, progress, stop)
            yield replace(job, helper=helper) if (os.cpu_count() or 1) > 1 else job


# Keys


def host_place(config: Config, environ: Mapping[str, str]) -> HostPlace:
    """Where this host keeps its key files: the XDG configuration folder."""
    base = environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    if not base.startswith("/"):
        base = os.path.join(os.path.expanduser("~"), ".config")
    settings = config.encryption
    named = settings.host_key if isinstance(settings, EncryptionSettings) else None
    return HostPlace(os.path.join(base, "s3hashsync", "hosts"), str(config.repository.objects), named)


def keys_of(
    config: Config, environ: Mapping[str, str], objects: ObjectStore, about: Identity, unlocking: Unlocking | None = None
) -> Keyring:
    """The keys of this repository. Raises `WrongKey` when it is not what this host knows, `Refused` when it is not what the
    configuration says."""
    unlocking = unlocking or Unlocking()
    place = replace(host_place(config, environ), warn=unlocking.warn)
    check_pins(place, about)
    check_setting(config, about)
    if about.encryption == PLAIN:
        if config.encryption is None and is_named(environ, unlocking):
            raise WrongKey(
                f"an identity was given, and the repository at {place.url} says that nothing is encrypted",
                "was it exchanged? if it never was encrypted, write encryption: off",
            )
        return NoKeys()
    return RepositoryKeys(objects, about, place, opener_finder(config, environ, unlocking), os.urandom)


# Jobs


def make_job(config: Config, repository: Repository, environ: Mapping[str, str], progress: Progress, stop: Stop) -> Job:
    local = isinstance(config.repository.objects, FolderUrl)
    return Job(
        config=config,
        repository=repository,
        state_folder=state_folder(environ, repository.identity.id),
        progress=progress,
        stop=stop,
        clock=time.time,
        clock_ns=time.time_ns,
        entropy=_Entropy(),
        threads=LOCAL_THREADS if local else config.upload_threads,
        own=own_paths(config, environ),
    )


def own_paths(config: Config, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What belongs to the program itself: the folders of the local states and of the key files, what an embedded repository
    consists of (its folder may hold other things, too), an index file with its logs."""
    place = host_place(config, environ)
    paths = [os.path.dirname(state_folder(environ, "x")), place.folder, *([place.named] if place.named else [])]
    if isinstance(config.repository.objects, FolderUrl):
        parts = ("objects", "packs", "runs", "keys", "repository.json")
        paths += [os.path.join(config.repository.objects.path, part) for part in parts]
    if isinstance(config.repository.index, SqliteUrl):
        paths += [config.repository.index.path + suffix for suffix in ("", "-wal", "-shm", "-journal")]
    return tuple(paths)


@contextmanager
def opened_keys(config: Config, environ: Mapping[str, str], progress: Progress, unlocking: Unlocking) -> Iterator[RepositoryKeys]:
    """The keys of an encrypted repository; the index is not opened. Raises `Refused` where nothing is encrypted."""
    with ExitStack() as stack:
        aws = connect_aws(config, environ) if isinstance(config.repository.objects, S3Url) else None
        with _pinned(config, environ):
            objects = RetryingObjects(_objects(config, aws, stack, create=False), RetryPolicy(), _told(progress))
            about = read_identity(objects)
            if about is None:
                raise NoRepository(f"there is no repository at {config.repository.objects}", "s3hashsync init makes one")
        keys = keys_of(config, environ, objects, about, unlocking)
        if not isinstance(keys, RepositoryKeys):
            raise Refused("the repository is not encrypted: there are no keys", "whether it is, was decided when it was made")
        yield keys


def repository_there(config: Config, environ: Mapping[str, str]) -> bool:
    """Whether there is a repository, without making anything."""
    try:
        with opened_stores(config, environ, Silent()):
            return True
    except (NoRepository, Missing, WrongKey):
        return False


def make_repository(
    config: Config, stores: Stores, environ: Mapping[str, str], unlocking: Unlocking, openers: Openers | None
) -> tuple[Identity, bool]:
    """`init`: the repository, encrypted to `openers` (None: not at all), and whether it is new."""
    place, now = host_place(config, environ), int(time.time())
    about = read_identity(stores.objects)
    if about is not None:
        check_pins(place, about)
        check_setting(config, about)
    if openers is None if about is None else about.encryption == PLAIN:
        if about is None:
            check_new(place, "")
        return initialise(stores.objects, stores.index, now, os.urandom)
    opener = None
    if unlocking.identity_file:
        # Nobody is asked for what hardly any init needs.
        opener = opener_finder(config, environ, unlocking)(by_passphrase=False)
    founder = Founder(stores.objects, stores.index, place, openers or Openers(()), now, os.urandom, opener)
    return found_encrypted(founder)


# Looking at the stores themselves, for `init`, `doctor` and the start of every apply

Found = tuple[str, str, str | None]
"""Severity (`ok`, `created`, `warning`, `refused`), what, hint."""


def prepare_stores(config: Config, environ: Mapping[str, str], *, recovery: bool) -> list[Found]:
    """Create what is missing of bucket and table, and look at everything."""
    from s3hashsync.stores.dynamodb_setup import prepare_table
    from s3hashsync.stores.s3_setup import BucketAt, prepare_bucket

    aws = connect_aws(config, environ)
    objects, index = config.repository.objects, config.repository.index
    findings = prepare_bucket(aws.s3(), BucketAt(objects.bucket, objects.prefix)) if isinstance(objects, S3Url) else []
    if isinstance(index, DynamoUrl):
        findings = [*findings, *prepare_table(aws.dynamodb(), index.table, point_in_time_recovery=recovery)]
    return [(f.severity, f.what, f.hint) for f in findings]


def check_stores(config: Config, environ: Mapping[str, str]) -> list[Found]:
    """Look at bucket and table; nothing for embedded stores."""
    if not needs_aws(config):
        return []
    from s3hashsync.stores.dynamodb_setup import inspect_table
    from s3hashsync.stores.s3_setup import BucketAt, inspect_bucket

    aws = connect_aws(config, environ)
    objects, index = config.repository.objects, config.repository.index
    findings = inspect_bucket(aws.s3(), BucketAt(objects.bucket, objects.prefix)) if isinstance(objects, S3Url) else []
    if isinstance(index, DynamoUrl):
        findings = [*findings, *inspect_table(aws.dynamodb(), index.table)]
    return [(f.severity, f.what, f.hint) for f in findings]


def refuse_what_breaks(job: Job, environ: Mapping[str, str]) -> None:
    """Before every apply: what breaks the write protocol's invariants (suspended versions, expiring rules) is refused."""
    config = job.config
    url = config.repository.index
    if isinstance(url, SqliteUrl) and is_remote(file_system_kind(os.path.dirname(url.path))):
        others = sorted({facts.host for facts in all_sources(job.repository.index)} - {config.host})
        if others:
            raise Refused(
                f"the index {url.path} lies on a network file system, and host {others[0]!r} writes to it too",
                "SQLite cannot keep two hosts apart there: give this host a repository of its own, or use DynamoDB",
            )
    for severity, what, hint in check_stores(config, environ):
        if severity == "refused":
            raise Refused(what, hint)


def tidy(config: Config) -> None:
    """Before every apply: what dead processes have left in the folder of an embedded repository."""
    url = config.repository.objects
    if isinstance(url, FolderUrl):
        with suppress(StoreError), closing(LocalObjects(url.path)) as objects:
            objects.tidy()


def iam_policies(config: Config) -> list[tuple[str, str]]:
    """The rights of each role, as JSON."""
    from s3hashsync.stores.iam import Place, Role, policy

    objects, index = config.repository.objects, config.repository.index
    if not isinstance(objects, S3Url):
        return []
    table = index.table if isinstance(index, DynamoUrl) else None
    place = Place(objects.bucket, objects.prefix, table)
    roles = [role for role in Role if role is not Role.KEYS or config.encryption != "off"]
    return [(role.value, policy(role, place)) for role in roles]


class _Entropy:
    """The system's randomness. Short draws (revs: one and more for each content) come out of a block, since each question to the
    system lets another thread take the interpreter's lock; keys are drawn each by itself. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._block = b""

    def __call__(self, size: int) -> bytes:
        if size > _SHORT:
            return os.urandom(size)
        with self._lock:
            if len(self._block) < size:
                self._block = os.urandom(64 * _SHORT)
            drawn, self._block = self._block[:size], self._block[size:]
        return drawn


_SHORT = 12
"""A rev has so many bytes; the key of an age file has more."""
