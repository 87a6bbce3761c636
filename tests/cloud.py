"""A bucket at versitygw and a table at DynamoDB Local, hosts that use them, and what is stored there as stock tools see it.

Decides what a repository on real servers must look like (`assert_whole`). Its oracle are `age`, `zstd`, `tar` and the key files,
by docs/formats.md; of the program it uses the adapters that fetch bytes and items, nothing that reads them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from s3hashsync.core.model import ObjectAt, PackAt, Record, RecordState
from s3hashsync.stores.aws import connect
from s3hashsync.stores.dynamodb import DynamoIndex
from s3hashsync.stores.s3 import S3Objects
from tests.aws_places import settings
from tests.program import Program
from tests.recovery import FORMS, Form, encryption_of
from tests.servers import ACCESS_KEY, REGION, SECRET_KEY

OBJECTS, PACKS, SEALED_OBJECTS, SEALED_PACKS = FORMS

CONFIG = """\
version: 1
repository:
  objects: s3://{bucket}/home
  index: dynamodb://{table}
  region: {region}
  endpoints: {{s3: "{s3}", dynamodb: "{dynamodb}"}}
  pack: {pack}
encryption: {encryption}
host: {host}
log_interval: 1s
sources:
  - name: {source}
    path: {base}/docs
"""
SMALL_PACKS = "{below: 64KiB, size: 1MiB}"


class Cloud:
    """A bucket and a table of their own, and hosts that use them. `pack`: in place of `SMALL_PACKS`."""

    def __init__(self, servers: tuple[str, str], form: Form, folder: Path, *, pack: str = SMALL_PACKS) -> None:
        self.s3, self.dynamodb = servers
        self.form, self._pack = form, pack if form.packed else "off"
        self.bucket, self.table = f"e2e-{secrets.token_hex(6)}", f"e2e-{secrets.token_hex(6)}"
        self._folder = folder
        self._encryption, self._identity = encryption_of(form, folder)
        self._objects = S3Objects(connect(settings(self.s3)).s3(), self.bucket, "home", versioned=True)

    def host(self, base: Path, name: str, source: str) -> Program:
        """Whoever backs up has no identity; `opening` is for who reads."""
        base.mkdir(parents=True, exist_ok=True)
        program = Program(base)
        text = CONFIG.format(
            bucket=self.bucket,
            table=self.table,
            region=REGION,
            s3=self.s3,
            dynamodb=self.dynamodb,
            pack=self._pack,
            encryption=self._encryption,
            host=name,
            source=source,
            base=base,
        )
        (base / "backup.yaml").write_text(text)
        program.environment |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": REGION}
        program.environment["XDG_CONFIG_HOME"] = str(base / "config")
        return program

    @property
    def opening(self) -> list[str]:
        return ["--identity", self._identity] if self.form.encrypted else []

    def enroll(self, host: Program) -> None:
        if self.form.encrypted:
            host("key", "enroll", *self.opening)

    def records(self) -> dict[bytes, Record]:
        index = DynamoIndex(connect(settings(self.dynamodb)).dynamodb(), self.table)
        try:
            return {bytes(item.hash): item for item in index.scan() if isinstance(item, Record)}
        finally:
            index.close()

    def versions(self, prefix: str = "objects/") -> dict[str, list[str]]:
        """Stem to versions."""
        out: dict[str, list[str]] = {}
        for version in self._objects.versions(prefix):
            if not version.is_marker:
                out.setdefault(version.stem, []).append(version.version)
        return out

    def markers(self, stem: str) -> list[bool]:
        """Of a key, the newest first: whether it is a marker."""
        return [version.is_marker for version in sorted(self._objects.versions(stem), key=lambda v: not v.is_latest)]

    def read(self, stem: str, version: str) -> bytes:
        return b"".join(self._objects.read(stem, version))

    # As stock tools see it

    @cached_property
    def _epoch_identity(self) -> Path:
        """What the repository's key file holds, as `age` opens it for the user's identity: an identity itself."""
        path = self._folder / "epoch-identity"
        path.touch(mode=0o600)
        path.write_bytes(_run(["age", "-d", "-i", self._identity], self._objects.read_document("keys/1.age")))
        return path

    @cached_property
    def _hash_key(self) -> bytes:
        (root_key,) = re.findall("^# root-key: ([0-9a-f]{64})$", self._epoch_identity.read_text(), re.MULTILINE)
        extracted = hmac.digest(bytes(32), bytes.fromhex(root_key), "sha256")
        return hmac.digest(extracted, b"s3hashsync hash\x01", "sha256")

    def opened(self, stored: bytes) -> bytes:
        if self.form.encrypted:
            stored = _run(["age", "-d", "-i", str(self._epoch_identity)], stored)
        return _run(["zstd", "-dcq"], stored)

    def hash_of(self, content: bytes) -> bytes:
        """What a content is stored under."""
        digest = hashlib.sha256(content).digest()
        return hmac.digest(self._hash_key, digest, "sha256") if self.form.encrypted else digest

    def name_of(self, host: Program, source: str, path: str, hash_: bytes) -> str:
        """As the index has it."""
        if not self.form.encrypted:
            return f"{source}/{path}"
        (host_key,) = (host.base / "config" / "s3hashsync" / "hosts").glob("*.json")
        key = bytes.fromhex(json.loads(host_key.read_text())["sources"][source]["name_key"])
        sealed = AESSIV(key).encrypt(path.encode(), [source.encode(), hash_])
        return f"{source}/{base64.urlsafe_b64encode(sealed).rstrip(b'=').decode()}"

    def stored(self) -> Iterator[tuple[str, str, bytes]]:
        """Everything that is stored, after it was opened and found to be what it says: stem, version, hash of a content."""
        for stem, versions in self.versions("objects/").items():
            for version in versions:
                hash_ = self.hash_of(self.opened(self.read(stem, version)))
                assert stem == f"objects/{hash_.hex()}"
                yield stem, version, hash_
        for stem, versions in self.versions("packs/").items():
            for version in versions:
                for hash_ in self._members(self.opened(self.read(stem, version))):
                    yield stem, version, hash_

    def _members(self, tar: bytes) -> list[bytes]:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            _run(["tar", "-x", "-C", folder], tar)
            members = {path.name: self.hash_of(path.read_bytes()) for path in Path(folder).iterdir()}
        assert all(name == hash_.hex() for name, hash_ in members.items())
        return list(members.values())

    def assert_whole(self) -> list[bytes]:
        """Every live or trash record's version is there and holds its content. Answers all that is stored, twice what is stored
        twice."""
        stored = list(self.stored())
        places = set(stored)
        for hash_, record in self.records().items():
            if record.state in (RecordState.LIVE, RecordState.TRASH):
                assert (*_place(hash_, record), hash_) in places, f"{hash_.hex()} has lost its content"
        return [hash_ for _, _, hash_ in stored]


def _place(hash_: bytes, record: Record) -> tuple[str, str]:
    match record.content.location:
        case ObjectAt(version):
            return f"objects/{hash_.hex()}", version
        case PackAt(pack, version):
            return f"packs/{pack}", version


def _run(command: list[str], given: bytes) -> bytes:
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout
