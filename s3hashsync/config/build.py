"""From a checked document to the settings: defaults, absolute paths, and the rules that a schema cannot say.

Decides the defaults and what does not go together. A value that is already faulted is read as its default, so
that all that is wrong with the others is found as well. Knows nothing of YAML.
"""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from s3hashsync.codec.age_keys import X25519Recipient
from s3hashsync.config.faults import FaultLog, KeyPath, Value, where
from s3hashsync.config.locations import Folder, parse_index, parse_objects
from s3hashsync.config.model import (
    Config,
    Credentials,
    EncryptionSettings,
    FolderUrl,
    IndexUrl,
    ObjectsUrl,
    PackSettings,
    RepositorySettings,
    SourceSettings,
    SqliteUrl,
)
from s3hashsync.config.quantities import DAY, parse_duration, parse_size
from s3hashsync.config.secret import Origin, Secret
from s3hashsync.errors import UsageError

T = TypeVar("T")
ALL_COMPARED = frozenset({"size", "mtime", "ctime", "inode"})
KEEP_DELETED_SECONDS = 30 * DAY
UPLOAD_THREADS = 8
MASS_CHANGE_SHARE = 0.5
MASS_CHANGE_FILES = 100
LOG_INTERVAL_SECONDS = 120
# Where a request costs as much as keeping megabytes for a year, larger contents are packed, into larger packs.
PACKS = PackSettings(below=256 << 10, size=32 << 20)
PACKS_OF_ARCHIVES = PackSettings(below=8 << 20, size=64 << 20)
ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
MIN_PACK, MAX_PACK = 1 << 20, 512 << 20
MAX_PACKED = 64 << 20
# What is billed as if it had stayed that long, even if it is deleted on the next day.
_BILLED_SECONDS = {
    "STANDARD_IA": 30 * DAY,
    "ONEZONE_IA": 30 * DAY,
    "GLACIER_IR": 90 * DAY,
    "GLACIER": 90 * DAY,
    "DEEP_ARCHIVE": 180 * DAY,
}


@dataclass(frozen=True, slots=True)
class Group:
    """One group of keys of the document; a key that is absent or faulted reads as the default."""

    file: str
    folder: Folder
    log: FaultLog
    path: KeyPath
    keys: dict[str, Value]

    def fault(self, key: str, message: str, hint: str | None = None) -> None:
        self.log.at_value((*self.path, key), message, hint)

    def value(self, key: str) -> Value:
        return None if self.log.is_faulted((*self.path, key)) else self.keys.get(key)

    def text(self, key: str) -> str | None:
        value = self.value(key)
        return value if isinstance(value, str) else None

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.value(key)
        return value if isinstance(value, bool) else default

    def number(self, key: str, default: float) -> float:
        value = self.value(key)
        return float(value) if isinstance(value, int | float) else default

    def parsed(self, key: str, parse: Callable[[str], T]) -> T | None:
        text = self.text(key)
        if text is None:
            return None
        try:
            return parse(text)
        except UsageError as error:
            self.fault(key, error.message, error.hint)
            return None

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.value(key)
        return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()

    def group(self, key: str) -> Group:
        value = self.value(key)
        keys = value if isinstance(value, dict) else {}
        return Group(self.file, self.folder, self.log, (*self.path, key), keys)

    def groups(self, key: str) -> Iterator[Group]:
        value = self.value(key)
        for number, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, dict):
                yield Group(self.file, self.folder, self.log, (*self.path, key, number), item)


def build(root: Group, hostname: str) -> Config:
    """The configuration. Worth nothing if the log holds a fault afterwards: then defaults stand in."""
    duration = root.parsed("log_interval", parse_duration)
    if duration == 0:
        root.fault("log_interval", "a run log cannot be written every 0 seconds", "write 2m")
    if not hostname and not root.value("host"):
        root.fault("host", "this machine has no host name", "set host: to the name that it is to have")
    uploads, guards = root.group("uploads"), root.group("guards")
    return Config(
        file=root.file,
        repository=_repository(root.group("repository")),
        encryption=_encryption(root),
        host=root.text("host") or hostname,
        sources=_sources(root),
        upload_threads=int(uploads.number("threads", UPLOAD_THREADS)),
        mass_change_share=guards.number("mass_change_share", MASS_CHANGE_SHARE),
        mass_change_files=int(guards.number("mass_change_files", MASS_CHANGE_FILES)),
        log_interval_seconds=duration or LOG_INTERVAL_SECONDS,
        verify_uploads=uploads.flag("verify", default=True),
    )


def _repository(group: Group) -> RepositorySettings:
    objects = group.parsed("objects", lambda text: parse_objects(text, group.folder))
    storage_class = group.text("storage_class") or "STANDARD"
    billed = _BILLED_SECONDS.get(storage_class, 0)
    minimum = group.parsed("min_storage_duration", parse_duration)
    keep = group.parsed("keep_deleted", parse_duration)
    endpoints = group.group("endpoints")
    if group.text("profile") and "access_key_id" in group.keys:
        group.fault("profile", "a profile and access keys are given", "take one of the two out")
    return RepositorySettings(
        objects=objects or FolderUrl(""),
        index=_index(group, objects),
        region=group.text("region"),
        profile=group.text("profile"),
        role_arn=group.text("role_arn"),
        s3_endpoint=endpoints.text("s3"),
        dynamodb_endpoint=endpoints.text("dynamodb"),
        credentials=_credentials(group),
        path_style=group.flag("path_style"),
        storage_class=storage_class,
        min_storage_seconds=billed if minimum is None else minimum,
        keep_deleted_seconds=max(KEEP_DELETED_SECONDS, billed) if keep is None else keep,
        append_only=group.flag("append_only"),
        pack=_pack(group, storage_class),
    )


def _pack(repository: Group, storage_class: str) -> PackSettings | None:
    """What the file says; a key that it leaves out gives way to the one that it does say."""
    if repository.value("pack") in (False, "off"):
        return None
    group = repository.group("pack")
    usual = PACKS_OF_ARCHIVES if storage_class in ARCHIVES else PACKS
    below, size = group.parsed("below", parse_size), group.parsed("size", parse_size)
    if size is not None and not MIN_PACK <= size <= MAX_PACK:
        group.fault("size", "a pack has from 1MiB to 512MiB: it waits in a temporary file while it is made")
        size = None
    if below == 0:
        group.fault("below", "nothing is smaller than this", "write pack: off to have no packs")
    elif below is not None and below > MAX_PACKED:
        group.fault("below", "packs are for small contents: at most 64MiB", "larger ones gain nothing by being packed")
    elif below is not None and size is not None and below > size:
        group.fault("below", "is more than size: what is packed has to fit into a pack", "make size larger, or below smaller")
    return PackSettings(
        below=min(usual.below, size or usual.size) if below is None else below,
        size=max(usual.size, below or 0) if size is None else size,
    )


def _index(group: Group, objects: ObjectsUrl | None) -> IndexUrl:
    index = group.parsed("index", lambda text: parse_index(text, group.folder))
    if isinstance(objects, FolderUrl):
        index = index or SqliteUrl(objects.path.rstrip("/") + "/index.db")
        if isinstance(index, SqliteUrl) and index.path == objects.path:
            group.fault("index", "the index is the folder of the objects", "take it out: index.db lies inside")
    elif objects is not None and "index" not in group.keys:
        hint = "write index: dynamodb://table, or index: sqlite:///file for one host without DynamoDB"
        group.fault("index", "this key is missing: objects in S3 need an index", hint)
    return index or SqliteUrl("")


def _credentials(group: Group) -> Credentials | None:
    names = ("access_key_id", "secret_access_key", "session_token")
    given = {name: _secret(group, name) for name in names if name in group.keys}
    for missing in names[:2]:
        if given and missing not in given:
            group.fault(missing, f"this key is missing: {next(iter(given))} stands alone")
    key, secret = given.get("access_key_id"), given.get("secret_access_key")
    if key is None or secret is None:
        return None
    return Credentials(key, secret, given.get("session_token"))


def _encryption(root: Group) -> EncryptionSettings | Literal["off"] | None:
    value = root.value("encryption")
    if value in (False, "off"):
        return "off"
    if not isinstance(value, dict):
        return None
    group = root.group("encryption")
    return EncryptionSettings(
        recipients=_recipients(group),
        passphrase=_secret(group, "passphrase"),
        identity=_secret(group, "identity"),
        host_key=group.parsed("host_key", group.folder.absolute),
    )


def _recipients(group: Group) -> tuple[str, ...]:
    recipients = group.value("recipients")
    first: dict[str, int] = {}
    for number, recipient in enumerate(recipients if isinstance(recipients, list) else ()):
        path = (*group.path, "recipients", number)
        if not isinstance(recipient, str) or group.log.is_faulted(path):
            continue
        if recipient in first:
            message = f"the recipient is there already, in line {first[recipient]}"
            group.log.at_value(path, message, "take one of the two out: a second recipient is another key, kept elsewhere")
            continue
        try:
            X25519Recipient.parse(recipient)
        except UsageError as error:
            group.log.at_value(path, error.message, error.hint)
            continue
        first[recipient] = group.log.places.value(path).line
    return tuple(first)


def _secret(group: Group, key: str) -> Secret | None:
    place = group.log.places.value((*group.path, key))
    origin = Origin(group.file, where((*group.path, key)), place.line, place.column)
    value = group.value(key)
    if isinstance(value, str):
        return Secret("text", (value,), origin)
    below = group.group(key)
    if name := below.text("env"):
        return Secret("env", (name,), origin)
    if path := below.parsed("file", group.folder.absolute):
        return Secret("file", (path,), origin)
    words = below.texts("command") or below.parsed("command", _words)
    return Secret("command", words, origin) if words else None


def _words(command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise UsageError(f"the command cannot be taken apart: {error}", "write it as a list") from error
    if not words:
        raise UsageError("the command is empty", "write [PROGRAM, ARGUMENT]")
    return words


def _sources(root: Group) -> tuple[SourceSettings, ...]:
    sources: list[SourceSettings] = []
    first: dict[str, int] = {}
    for group in root.groups("sources"):
        source = _source(group)
        if source.name in first:
            message = f"the source {source.name} is there already, in line {first[source.name]}"
            group.fault("name", message, "give each source a name of its own")
        elif source.name:
            first[source.name] = root.log.places.value((*group.path, "name")).line
        sources.append(source)
    return tuple(sources)


def _source(group: Group) -> SourceSettings:
    return SourceSettings(
        name=group.text("name") or "",
        path=group.parsed("path", group.folder.absolute) or "",
        exclude=group.texts("exclude"),
        exclude_regex=_regexes(group),
        ignore_files=group.texts("ignore_files"),
        exclude_caches=group.flag("exclude_caches"),
        exclude_if_present=group.texts("exclude_if_present"),
        exclude_larger_than=group.parsed("exclude_larger_than", parse_size),
        one_file_system=group.flag("one_file_system"),
        compare=frozenset(group.texts("compare")) or ALL_COMPARED,
        allow_empty=group.flag("allow_empty"),
    )


def _regexes(group: Group) -> tuple[str, ...]:
    regexes = group.value("exclude_regex")
    for number, regex in enumerate(regexes if isinstance(regexes, list) else ()):
        if isinstance(regex, str):
            _check_regex(regex, (*group.path, "exclude_regex", number), group.log)
    return group.texts("exclude_regex")


def _check_regex(regex: str, path: KeyPath, log: FaultLog) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(regex)
    except re.error as error:
        at = f", at character {error.pos + 1}" if error.pos is not None else ""
        log.at_value(path, f"not a regular expression: {error.msg}{at}", "rules of gitignore go to exclude")
    except (RecursionError, OverflowError, ValueError):
        log.at_value(path, "not a regular expression: it is too large")
