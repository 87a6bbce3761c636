"""Objects and documents in a bucket under a prefix.

Decides keys, checksums, how a version is pinned, and how a marker is put so that markers do not stack. On a
bucket with versions the version is S3's VersionId; on one without, the key is `<stem>.<attempt id>`,
created once and never again, and that suffix is the version. Knows nothing of records, hashes or states,
and retries nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from s3hashsync.errors import AlreadyThere, Missing, StoreError, Unreachable, Unsupported
from s3hashsync.stores.aws import status_of, translated
from s3hashsync.stores.base import Attempt, Body, Document, Stored, Upload, Version, check_size, pieces_of
from s3hashsync.stores.s3_upload import MultipartUpload, part_size_for, upload_token, uploaded_parts

SINGLE_PUT_LIMIT = 64 << 20
CHUNK = 1 << 20
STANDARD = "STANDARD"
_ATTEMPT = "attempt"
_MARKING_TRIES = 4
_IS_MARKER = "s3hashsync:marker"


class S3Objects:
    """Implements `ObjectStore` over an S3 client of `stores.aws`."""

    single_put_limit = SINGLE_PUT_LIMIT

    def __init__(self, client: Any, bucket: str, prefix: str = "", *, versioned: bool = True) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._versioned = versioned

    @property
    def versioned(self) -> bool:
        return self._versioned

    def put(self, stem: str, body: Body, attempt: Attempt) -> Stored:
        key = self._content_key(stem, attempt.id)
        whole = b"".join(pieces_of(body))
        try:
            with translated(f"storing {self._place(key)}"):
                answer = self._client.put_object(
                    **self._at(key),
                    # A bytes body would be copied into one buffer with the request's head; a stream is not.
                    Body=io.BytesIO(whole),
                    ChecksumSHA256=(checksum := _sha256(whole)),
                    Metadata={_ATTEMPT: attempt.id},
                    StorageClass=attempt.storage_class or STANDARD,
                    **self._create_only(),
                )
        except AlreadyThere:
            return self._own_key(stem, attempt.id)
        return Stored(self.pinned(stem, attempt.id, answer), len(whole), f"sha256:{checksum}")

    def begin(self, stem: str, attempt: Attempt, size_hint: int) -> Upload:
        key = self._content_key(stem, attempt.id)
        with translated(f"beginning the upload of {self._place(key)}"):
            answer = self._client.create_multipart_upload(
                **self._at(key),
                ChecksumAlgorithm="CRC32",
                ChecksumType="FULL_OBJECT",
                Metadata={_ATTEMPT: attempt.id},
                StorageClass=attempt.storage_class or STANDARD,
            )
        token = upload_token(part_size_for(size_hint), answer["UploadId"])
        return MultipartUpload(self, stem, attempt.id, token)

    def resume(self, stem: str, attempt: Attempt, token: str) -> Upload | None:
        upload = MultipartUpload(self, stem, attempt.id, token)
        try:
            upload.held = uploaded_parts(self._client, self._at(upload.key), upload.upload_id)
        except Missing:
            return None
        return upload

    def find(self, stem: str, attempt_id: str) -> Stored | None:
        if not self._versioned:
            return self._head(self._content_key(stem, attempt_id), attempt_id, None)
        key = self._prefix + stem
        for version in self._versions_of(key):
            # "null" was given while versions were not kept: another put would take its place.
            if version.is_marker or version.version == "null":
                continue
            if stored := self._head(key, attempt_id, version.version):
                return stored
        return None

    def read(self, stem: str, version: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        key, pin = self._pin(stem, version)
        # A range of nothing cannot be said in HTTP: one byte is asked for, so that absence still shows.
        last = "" if length is None else str(start + max(length, 1) - 1)
        ranged = {"Range": f"bytes={start}-{last}"} if start or length is not None else {}
        doing = f"reading {self._place(key)}"
        with translated(doing):
            try:
                answer = self._client.get_object(**self._at(key), **pin, **ranged)
            except self._client.exceptions.ClientError as error:
                if status_of(error.response) == 416:
                    return  # the range begins at or after the end: there is nothing to read there
                if status_of(error.response) == 405:
                    raise Missing(f"{doing}: this version is a delete marker") from error
                raise
            # A server may answer with the whole object instead of the range.
            skipped = start if ranged and status_of(answer) != 206 else 0
            yield from _chunks(answer["Body"], skipped, length)

    def versions(self, prefix: str) -> Iterator[Version]:
        return self._all_versions(prefix) if self._versioned else self._suffixed(prefix)

    def read_document(self, key: str) -> bytes:
        with translated(f"reading {self._place(self._prefix + key)}"):
            answer = self._client.get_object(**self._at(self._prefix + key), ChecksumMode="ENABLED")
            with answer["Body"] as body:
                check_size(key, answer["ContentLength"])
                return bytes(body.read())

    def documents(self, prefix: str, after: str = "") -> Iterator[Document]:
        for entry in self._listing(prefix, after):
            key = entry["Key"].removeprefix(self._prefix)
            if key > after:
                yield Document(key, entry["Size"], entry["LastModified"].timestamp())

    def delete(self, stem: str, version: str) -> None:
        key, pin = self._pin(stem, version)
        try:
            with translated(f"deleting a version of {self._place(key)}"):
                self._client.delete_object(**self._at(key), **pin)
        except Missing:
            return

    def mark(self, stem: str) -> None:
        if not self._versioned:
            return
        key = self._prefix + stem
        for _ in range(_MARKING_TRIES):
            top = next((entry for entry in self._entries_of(key) if entry["IsLatest"]), None)
            if top is None or _IS_MARKER in top:
                return
            if self._marked_over(key, top["ETag"]):
                return
        raise Unreachable(f"marking {self._place(key)} as deleted: others keep writing there")

    def unmark(self, stem: str) -> None:
        if not self._versioned:
            return
        key = self._prefix + stem
        for version in [version for version in self._versions_of(key) if version.is_marker]:
            self.delete(stem, version.version)

    def barrier(self) -> None:
        """S3 is durable when it answers."""

    def create_document(self, key: str, body: bytes) -> None:
        self._write_document(key, body, {"IfNoneMatch": "*"})

    def replace_document(self, key: str, body: bytes) -> None:
        self._write_document(key, body, {})

    def delete_document(self, key: str) -> None:
        try:
            with translated(f"deleting {self._place(self._prefix + key)}"):
                self._client.delete_object(**self._at(self._prefix + key))
        except Missing:
            return

    def forget_versions(self, key: str) -> None:
        """Also where contents have keys of their own: versioning may have been switched on later."""
        try:
            found = list(self._entries_of(self._prefix + key))
        except Unsupported:
            return
        # A marker on top hides what is below it until that is gone.
        found.sort(key=lambda entry: (_IS_MARKER in entry, entry["IsLatest"]))
        for entry in found:
            if entry["IsLatest"] and _IS_MARKER not in entry:
                continue
            with suppress(Missing), translated(f"deleting an old version of {self._place(self._prefix + key)}"):
                self._client.delete_object(**self._at(self._prefix + key), VersionId=entry["VersionId"])

    def past_documents(self, prefix: str) -> Iterator[str]:
        last = ""
        # As in `forget_versions`, whether contents have versions says nothing about documents.
        with suppress(Unsupported):
            for entry in self._entries(prefix):
                if (_IS_MARKER in entry or not entry["IsLatest"]) and entry["Key"] != last:
                    last = entry["Key"]
                    yield last.removeprefix(self._prefix)

    def _write_document(self, key: str, body: bytes, condition: dict[str, str]) -> None:
        with translated(f"writing {self._place(self._prefix + key)}"):
            self._client.put_object(
                **self._at(self._prefix + key),
                Body=io.BytesIO(body),
                ChecksumSHA256=_sha256(body),
                StorageClass=STANDARD,
                **condition,
            )

    # What an upload in parts needs of its store.

    def part_request(self, stem: str, attempt_id: str) -> tuple[Any, dict[str, str]]:
        return self._client, self._at(self._content_key(stem, attempt_id))

    def completion_condition(self) -> dict[str, str]:
        return self._create_only()

    def pinned(self, stem: str, attempt_id: str, answer: Any) -> str:
        """The version that a finished write left."""
        if not self._versioned:
            return attempt_id
        version = str(answer.get("VersionId", ""))
        if version in ("", "null"):
            # Without a version of its own the object can be overwritten, and a record could not pin it.
            raise StoreError(
                f"storing {self._place(self._prefix + stem)}: the server gave it no version",
                "versioning was switched on minutes ago, or is suspended: see `s3hashsync doctor`",
            )
        return version

    # Keys and requests.

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": key}

    def _place(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def _content_key(self, stem: str, attempt_id: str) -> str:
        return self._prefix + (stem if self._versioned else f"{stem}.{attempt_id}")

    def _pin(self, stem: str, version: str) -> tuple[str, dict[str, str]]:
        if not version:
            raise ValueError("a version must be named: without it S3 would take the newest")
        return self._content_key(stem, version), {"VersionId": version} if self._versioned else {}

    def _create_only(self) -> dict[str, str]:
        return {} if self._versioned else {"IfNoneMatch": "*"}

    def _own_key(self, stem: str, attempt_id: str) -> Stored:
        """What stands under a key that only this attempt can have written."""
        stored = self._head(self._content_key(stem, attempt_id), attempt_id, None)
        if stored is None:
            raise Unreachable(f"storing {self._place(self._prefix + stem)}: it is there and not there")
        return stored

    def _head(self, key: str, attempt_id: str, version: str | None) -> Stored | None:
        """The object if this attempt wrote it."""
        pin = {"VersionId": version} if version else {}
        with translated(f"looking at {self._place(key)}"):
            try:
                answer = self._client.head_object(**self._at(key), **pin, ChecksumMode="ENABLED")
            except self._client.exceptions.ClientError as error:
                # An answer to HEAD has no body that could say more. 405: a delete marker.
                if status_of(error.response) in (404, 405):
                    return None
                raise
        if answer["Metadata"].get(_ATTEMPT) != attempt_id:
            return None
        return Stored(version or attempt_id, answer["ContentLength"], _checksum_of(answer))

    def _marked_over(self, key: str, etag: str) -> bool:
        """Whether a marker lies on the version with this ETag now."""
        with translated(f"marking {self._place(key)} as deleted"):
            try:
                self._client.delete_object(**self._at(key), IfMatch=etag)
            except self._client.exceptions.ClientError as error:
                # 404: a marker is on top already. 412: something else is on top by now: look again.
                if status_of(error.response) in (404, 412):
                    return False
                if status_of(error.response) != 501:
                    raise
                self._client.delete_object(**self._at(key))
        return True

    # Listings.

    def _all_versions(self, prefix: str) -> Iterator[Version]:
        for entry in self._entries(prefix):
            yield self._version(entry)

    def _versions_of(self, key: str) -> Iterator[Version]:
        return map(self._version, self._entries_of(key))

    def _entries_of(self, key: str) -> Iterator[Any]:
        """Versions and markers of exactly this key, which sorts before every longer one."""
        for entry in self._entries(key.removeprefix(self._prefix)):
            if entry["Key"] != key:
                return
            yield entry

    def _version(self, entry: Any) -> Version:
        return Version(
            stem=entry["Key"].removeprefix(self._prefix),
            version=entry["VersionId"],
            size=entry.get("Size", 0),
            modified=entry["LastModified"].timestamp(),
            is_marker=_IS_MARKER in entry,
            is_latest=entry["IsLatest"],
            storage_class=entry.get("StorageClass", ""),
        )

    def _entries(self, prefix: str) -> Iterator[Any]:
        """Versions and markers in one stream, as S3 keeps them: by key, newest first."""
        where = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        doing = f"listing versions in {self._place(self._prefix + prefix)}"
        position: dict[str, str] = {}
        while True:
            with translated(doing):
                page = self._client.list_object_versions(**where, **position)
            entries = [
                *page.get("Versions", ()),
                *(e | {_IS_MARKER: True} for e in page.get("DeleteMarkers", ())),
            ]
            entries.sort(key=lambda e: (_utf8(e["Key"]), not e["IsLatest"], -e["LastModified"].timestamp()))
            # A page begins after the marker; some servers repeat the entry that the marker names.
            last = (position.get("KeyMarker"), position.get("VersionIdMarker"))
            yield from (entry for entry in entries if (entry["Key"], entry["VersionId"]) != last)
            if not page.get("IsTruncated"):
                return
            position = _next_page(page, {"KeyMarker": "NextKeyMarker", "VersionIdMarker": "NextVersionIdMarker"}, doing)

    def _suffixed(self, prefix: str) -> Iterator[Version]:
        """Without versions every key is one; a key without a suffix is nobody's content."""
        for entry in self._listing(prefix, ""):
            stem, dot, version = entry["Key"].removeprefix(self._prefix).rpartition(".")
            if dot and re.fullmatch(r"[0-9A-Za-z_-]+", version):
                modified = entry["LastModified"].timestamp()
                storage_class = entry.get("StorageClass", "")
                yield Version(stem, version, entry["Size"], modified, False, True, storage_class)

    def _listing(self, prefix: str, after: str) -> Iterator[Any]:
        where = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        position = {"StartAfter": self._prefix + after} if after else {}
        doing = f"listing {self._place(self._prefix + prefix)}"
        while True:
            with translated(doing):
                page = self._client.list_objects_v2(**where, **position)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            position = _next_page(page, {"ContinuationToken": "NextContinuationToken"}, doing)


def _next_page(page: Any, names: dict[str, str], doing: str) -> dict[str, str]:
    """How to ask for the next page; a listing that stops in the middle would pass for a whole one."""
    position = {ask: page[told] for ask, told in names.items() if page.get(told)}
    if not position:
        raise Unreachable(f"{doing}: the server broke off in the middle of the list")
    return position


def _chunks(body: Any, skipped: int, length: int | None) -> Iterator[bytes]:
    """The body without what comes before `skipped` and after `length`."""
    with body:
        while skipped and (chunk := body.read(min(skipped, CHUNK))):
            skipped -= len(chunk)
        while length != 0 and (chunk := body.read(CHUNK if length is None else min(length, CHUNK))):
            length = None if length is None else length - len(chunk)
            yield chunk


def _checksum_of(answer: Any) -> str:
    """The checksum over the whole object that the server keeps; "" where it keeps none (or one of parts
    only)."""
    if answer.get("ChecksumType") == "COMPOSITE":
        return ""
    for algorithm in ("SHA256", "CRC32", "CRC64NVME"):
        value = answer.get(f"Checksum{algorithm}")
        if value and "-" not in value:
            return f"{algorithm.lower()}:{value}"
    return ""


def _sha256(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
