"""One object on its way to S3 in parts.

Decides the size of parts, what a token holds, which parts a resumed upload need not send again, and the
checksum over the whole. Every part carries its CRC-32 and S3 checks it; completion carries the CRC-32 of
the whole, put together from those of the parts. Knows nothing of what the bytes are.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s3hashsync.codec.crc import combined_crc32
from s3hashsync.errors import AlreadyThere, Missing, StoreError, Unreachable
from s3hashsync.stores.aws import translated
from s3hashsync.stores.base import Stored

if TYPE_CHECKING:
    from s3hashsync.stores.s3 import S3Objects

SMALLEST_PART = 16 << 20
LARGEST_PART = 5 << 30
# S3 allows 10,000. The size is a hint: what is stored may come out larger, so a tenth is kept in hand.
PLANNED_PARTS = 9_000
_MIB = 1 << 20


def part_size_for(size_hint: int) -> int:
    """Whole mebibytes, so that the planned number of parts is enough."""
    needed = -(-size_hint // PLANNED_PARTS)
    return min(max(SMALLEST_PART, -(-needed // _MIB) * _MIB), LARGEST_PART)


def upload_token(part_size: int, upload_id: str) -> str:
    return f"1:{part_size}:{upload_id}"


@dataclass(frozen=True, slots=True)
class Part:
    """A part that S3 holds: its size, its CRC-32 (None where the server does not say) and its ETag."""

    size: int
    crc: int | None
    etag: str


def uploaded_parts(client: Any, where: dict[str, str], upload_id: str) -> dict[int, Part]:
    """What an unfinished upload holds; `Missing` when there is no such upload."""
    parts: dict[int, Part] = {}
    position: dict[str, Any] = {}
    doing = f"resuming the upload of s3://{where['Bucket']}/{where['Key']}"
    while True:
        with translated(doing):
            page = client.list_parts(**where, UploadId=upload_id, **position)
        for entry in page.get("Parts", ()):
            crc = entry.get("ChecksumCRC32")
            known = int.from_bytes(base64.b64decode(crc), "big") if crc else None
            parts[entry["PartNumber"]] = Part(entry["Size"], known, entry["ETag"])
        if not page.get("IsTruncated"):
            return parts
        if not page.get("NextPartNumberMarker"):
            raise Unreachable(f"{doing}: the server broke off in the middle of the list")
        position = {"PartNumberMarker": page["NextPartNumberMarker"]}


class MultipartUpload:
    """Implements `Upload`."""

    def __init__(self, store: S3Objects, stem: str, attempt_id: str, token: str) -> None:
        self._store, self._stem, self._attempt_id = store, stem, attempt_id
        self._client, self._where = store.part_request(stem, attempt_id)
        self.token = token
        self.part_size, self.upload_id = _parsed(token)
        self.held: dict[int, Part] = {}
        self._sent: dict[int, Part] = {}

    @property
    def key(self) -> str:
        return self._where["Key"]

    def write_part(self, number: int, data: bytes) -> None:
        crc = zlib.crc32(data)
        held = self.held.get(number)
        if held is not None and _is_same(held, data, crc):
            self._sent[number] = Part(len(data), crc, held.etag)
            return
        with translated(f"storing part {number} of {self._place}"):
            answer = self._client.upload_part(
                **self._where,
                UploadId=self.upload_id,
                PartNumber=number,
                Body=io.BytesIO(data),
                ChecksumCRC32=_crc_text(crc),
            )
        self._sent[number] = Part(len(data), crc, answer["ETag"])

    def holds_other(self, number: int, data: bytes) -> bool:
        held = self.held.get(number)
        return held is not None and not _is_same(held, data, zlib.crc32(data))

    def complete(self) -> Stored:
        numbers = sorted(self._sent)
        if not numbers or numbers != list(range(1, len(numbers) + 1)):
            raise ValueError("an upload is completed once every part from 1 on was written")
        crc, size = self._whole()
        try:
            with translated(f"completing the upload of {self._place}"):
                answer = self._client.complete_multipart_upload(
                    **self._where,
                    UploadId=self.upload_id,
                    ChecksumCRC32=_crc_text(crc),
                    ChecksumType="FULL_OBJECT",
                    MpuObjectSize=size,
                    MultipartUpload={"Parts": [_listed(n, self._sent[n]) for n in numbers]},
                    **self._store.completion_condition(),
                )
        except (Missing, AlreadyThere) as error:
            return self._completed_before(error)
        try:
            version = self._store.pinned(self._stem, self._attempt_id, answer)
        except StoreError as error:
            # The answer to a repeated completion may leave the version out.
            return self._completed_before(error)
        return Stored(version, size, f"crc32:{_crc_text(crc)}")

    def abort(self) -> None:
        try:
            with translated(f"aborting the upload of {self._place}"):
                self._client.abort_multipart_upload(**self._where, UploadId=self.upload_id)
        except StoreError:
            # Best effort: the lifecycle rule removes what stays.
            return

    @property
    def _place(self) -> str:
        return f"s3://{self._where['Bucket']}/{self._where['Key']}"

    def _whole(self) -> tuple[int, int]:
        crc = size = 0
        for number in sorted(self._sent):
            part = self._sent[number]
            crc, size = combined_crc32(crc, part.crc or 0, part.size), size + part.size
        return crc, size

    def _completed_before(self, error: StoreError) -> Stored:
        """An upload that is gone was completed (and only the answer lost) or aborted; the attempt id
        tells."""
        stored = self._store.find(self._stem, self._attempt_id)
        if stored is None or stored.version == "null":
            raise error
        return stored


def _parsed(token: str) -> tuple[int, str]:
    form, _, rest = token.partition(":")
    size, _, upload_id = rest.partition(":")
    if form != "1" or not size.isdigit() or not upload_id:
        raise StoreError(f"this is no token of an upload to S3: {token[:40]!r}")
    return int(size), upload_id


def _is_same(held: Part, data: bytes, crc: int) -> bool:
    if held.size != len(data):
        return False
    if held.crc is not None:
        return held.crc == crc
    # An ETag is the MD5 only without some kinds of server-side encryption; where it is not, the part is
    # sent again.
    return held.etag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _listed(number: int, part: Part) -> dict[str, Any]:
    return {"PartNumber": number, "ETag": part.etag, "ChecksumCRC32": _crc_text(part.crc or 0)}


def _crc_text(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4, "big")).decode()
