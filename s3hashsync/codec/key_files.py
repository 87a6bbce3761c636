"""The documents that hold keys: what stands in them, and how each is authenticated.

Decides the derivation of keys from the root key, and the forms of `keys/<epoch>.age` and `keys/sources/<source>.age` (both once
they are opened), of `keys/recipients.json` and of the host key file. age says nothing of who wrote a file, so each carries a MAC
that hangs on the root key. Encrypts nothing; knows neither stores nor disks. No secret is ever in an error or a `repr`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from s3hashsync.codec.age import X25519Identity, X25519Recipient
from s3hashsync.codec.names import NAME_KEY_BYTES
from s3hashsync.errors import Corrupt, UsageError, WrongKey

FORMAT = 1
KEY_BYTES = 32
FINGERPRINT_BYTES = 10
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_FIRST_LINE = re.compile(r"# s3hashsync repository key, format ([0-9]{1,9})\n")
_FIELD = re.compile(r"# ([a-z-]+): (.*)\n")
_FROM_ANOTHER = "it was written by somebody else, or changed: restore it from an older version"
_NEWER = "use a newer version of s3hashsync"

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Body: TypeAlias = dict[str, Json]


def _derived(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(secret)


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


@dataclass(frozen=True, slots=True)
class RootKey:
    """32 random bytes, for the repository's life; everything else hangs on it."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ValueError("not a root key")

    @property
    def hash_key(self) -> bytes:
        """Names contents."""
        return _derived(self.secret, b"s3hashsync hash")

    @property
    def document_key(self) -> bytes:
        """Authenticates `keys/<epoch>.age` and `keys/recipients.json`."""
        return _derived(self.secret, b"s3hashsync documents")

    @property
    def fingerprint(self) -> str:
        """Public: 20 hexadecimal digits."""
        return _derived(self.secret, b"s3hashsync fingerprint")[:FINGERPRINT_BYTES].hex()


def fingerprint_text(digits: str) -> str:
    """As people are shown it: five groups of four."""
    return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))


# keys/<epoch>.age, opened


@dataclass(frozen=True, slots=True)
class EpochKey:
    """What `keys/<epoch>.age` holds. `created` in epoch seconds."""

    repository: str
    epoch: int
    created: int
    root: RootKey
    identity: X25519Identity

    def text(self) -> bytes:
        """A valid age identity file; secret."""
        lines = [
            f"# s3hashsync repository key, format {FORMAT}",
            f"# repository: {self.repository}",
            f"# epoch: {self.epoch}",
            f"# created: {datetime.fromtimestamp(self.created, UTC).strftime(_TIME)}",
            f"# recipient: {self.identity.recipient}",
            f"# root-key: {self.root.secret.hex()}",
        ]
        above = "".join(f"{line}\n" for line in lines).encode()
        secret = f"{self.identity.secret_text()}\n".encode()
        return above + f"# mac: {_mac(self.root.document_key, above + secret).hex()}\n".encode() + secret


def parse_epoch(data: bytes, where: str) -> EpochKey:
    """Raises `WrongKey` when the MAC does not hold, `Corrupt` when it cannot be read at all; `where` names it."""
    try:
        # Not by `splitlines`, for which more than a line feed ends a line.
        *texts, end = data.decode("ascii").split("\n")
        lines = [f"{text}\n" for text in texts]
        first = _FIRST_LINE.fullmatch(lines[0])
        if first is None or end:
            raise ValueError
        _check_format(int(first[1]), where)
        at = next(number for number, line in enumerate(lines) if line.startswith("# mac: "))
        fields = {match[1]: match[2] for line in lines[1 : at + 1] if (match := _FIELD.fullmatch(line)) is not None}
        (secret,) = lines[at + 1 :]
        key = EpochKey(
            repository=fields["repository"],
            epoch=int(fields["epoch"]),
            created=int(datetime.strptime(fields["created"], _TIME).replace(tzinfo=UTC).timestamp()),
            root=RootKey(bytes.fromhex(fields["root-key"])),
            identity=X25519Identity.parse(secret.removesuffix("\n")),
        )
        stated, recipient = fields["mac"], fields["recipient"]
    except (ValueError, KeyError, IndexError, StopIteration, UsageError):
        # Not chained: the exception may hold what it could not read.
        raise Corrupt(f"{where} opens, but holds no key of a repository", "restore it from an older version") from None
    mac = _mac(key.root.document_key, ("".join(lines[:at]) + secret).encode()).hex()
    if not hmac.compare_digest(stated, mac) or recipient != str(key.identity.recipient):
        raise WrongKey(f"{where} is not what s3hashsync wrote: its MAC is wrong", _FROM_ANOTHER)
    return key


# keys/sources/<source>.age, opened


@dataclass(frozen=True, slots=True)
class SourceKeys:
    """Seals the names of one source, and signs its run logs."""

    name_key: bytes = field(repr=False)
    log_key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if (len(self.name_key), len(self.log_key)) != (NAME_KEY_BYTES, KEY_BYTES):
            raise ValueError("not the keys of a source")


def render_source(repository: str, source: str, keys: SourceKeys, hash_key: bytes) -> bytes:
    body: Body = {"s3hashsync": "source-keys", "format": FORMAT, "repository": repository, "source": source}
    return _signed(body | _source_fields(keys), _source_mac_key(hash_key))


def parse_source(data: bytes, repository: str, source: str, hash_key: bytes) -> SourceKeys:
    where = f"keys/sources/{source}.age"
    body = _parsed(data, "source-keys", where)
    _check_mac(body, _source_mac_key(hash_key), where)
    if (body.get("repository"), body.get("source")) != (repository, source):
        raise WrongKey(f"{where} holds the keys of another source ({body.get('source')})", _FROM_ANOTHER)
    try:
        return _source_keys(body)
    except (ValueError, KeyError, TypeError):
        raise _damaged(where) from None


def _source_mac_key(hash_key: bytes) -> bytes:
    return _derived(hash_key, b"s3hashsync sources")


def _source_fields(keys: SourceKeys) -> Body:
    return {"name_key": keys.name_key.hex(), "log_key": keys.log_key.hex()}


def _source_keys(body: Mapping[str, Json]) -> SourceKeys:
    return SourceKeys(bytes.fromhex(str(body["name_key"])), bytes.fromhex(str(body["log_key"])))


# keys/recipients.json


@dataclass(frozen=True, slots=True)
class RecipientList:
    """Whom `keys/<epoch>.age` is encrypted to, and how many passphrases open the repository beside them. `describes`: the SHA-256
    of that file, and who is to open it; two files while one takes the other's place, none in lists that were written before there
    was this field."""

    repository: str
    epoch: int
    recipients: tuple[str, ...]
    passphrases: int = 0
    describes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def is_about(self, sealed: bytes) -> bool:
        """Whether this list was made for that `keys/<epoch>.age`: an older list is not."""
        return digest_of(sealed) in self.describes

    def render(self, root: RootKey) -> bytes:
        body: Body = {
            "s3hashsync": "recipients",
            "format": FORMAT,
            "repository": self.repository,
            "epoch": self.epoch,
            "recipients": list(self.recipients),
            "passphrases": self.passphrases,
        }
        if self.describes:
            body["describes"] = {digest: list(recipients) for digest, recipients in self.describes.items()}
        return _signed(body, root.document_key)


@dataclass(frozen=True, slots=True)
class StatedRecipients:
    """`keys/recipients.json` as it stands in the store: to be compared and shown, believed only after `check`."""

    stated: RecipientList
    _body: Body = field(repr=False)

    def check(self, root: RootKey) -> RecipientList:
        _check_mac(self._body, root.document_key, RECIPIENTS)
        return self.stated


RECIPIENTS = "keys/recipients.json"


def digest_of(sealed: bytes) -> str:
    """How a list names the key file that it describes."""
    return hashlib.sha256(sealed).hexdigest()


def parse_recipients(data: bytes) -> StatedRecipients:
    body = _parsed(data, "recipients", RECIPIENTS)
    try:
        describes = body.get("describes", {})
        if not isinstance(describes, dict):
            raise TypeError
        stated = RecipientList(
            repository=str(body["repository"]),
            epoch=_number(body["epoch"]),
            recipients=_recipients(body["recipients"]),
            passphrases=_number(body["passphrases"]),
            describes={digest: _recipients(recipients) for digest, recipients in describes.items()},
        )
    except (ValueError, KeyError, TypeError, UsageError):
        raise _damaged(RECIPIENTS) from None
    return StatedRecipients(stated, body)


def _recipients(value: Json) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(str(X25519Recipient.parse(str(one))) for one in value)


# The host key file


@dataclass(frozen=True, slots=True)
class HostSource:
    """A source's keys on a host. `sealed` is `keys/sources/<source>.age` as long as it is not known to be stored."""

    keys: SourceKeys
    sealed: bytes | None = None


@dataclass(frozen=True, slots=True)
class HostKey:
    """What a backup host keeps: enough to write, nothing that opens what is stored. `versions` as in `repository.json`, "" where
    an older version wrote the file. `founding` are the documents of an `init` that has not come to its end, by their keys: until
    they are gone the file is good for nothing else."""

    repository: str
    objects: str
    fingerprint: str
    epoch: int
    recipient: X25519Recipient
    hash_key: bytes = field(repr=False)
    versions: str = ""
    sources: Mapping[str, HostSource] = field(default_factory=dict, repr=False)
    founding: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def render(self) -> bytes:
        body: Body = {
            "s3hashsync": "host-key",
            "format": FORMAT,
            "repository": self.repository,
            "objects": self.objects,
            "encryption": "age",
            "fingerprint": self.fingerprint,
            "epoch": self.epoch,
            "recipient": str(self.recipient),
            "hash_key": self.hash_key.hex(),
            "versions": self.versions,
            "sources": {name: _host_source(one) for name, one in sorted(self.sources.items())},
        }
        if self.founding:
            body["founding"] = {key: base64.b64encode(data).decode("ascii") for key, data in sorted(self.founding.items())}
        return json.dumps(body, indent=1).encode() + b"\n"


def parse_host_key(data: bytes, where: str) -> HostKey:
    body = _parsed(data, "host-key", where)
    try:
        sources, founding = body["sources"], body.get("founding", {})
        hash_key = bytes.fromhex(str(body["hash_key"]))
        if not isinstance(sources, dict) or not isinstance(founding, dict) or len(hash_key) != KEY_BYTES:
            raise TypeError
        return HostKey(
            repository=str(body["repository"]),
            objects=str(body["objects"]),
            fingerprint=str(body["fingerprint"]),
            epoch=_number(body["epoch"]),
            recipient=X25519Recipient.parse(str(body["recipient"])),
            hash_key=hash_key,
            versions=str(body.get("versions", "")),
            sources={name: _parsed_host_source(one) for name, one in sources.items()},
            founding={key: base64.b64decode(str(text), validate=True) for key, text in founding.items()},
        )
    except (ValueError, KeyError, TypeError, UsageError):
        raise Corrupt(f"{where} is damaged", "write it anew, with the identity at hand: s3hashsync key enroll") from None


def _host_source(one: HostSource) -> Json:
    fields = _source_fields(one.keys)
    return fields if one.sealed is None else fields | {"sealed": base64.b64encode(one.sealed).decode("ascii")}


def _parsed_host_source(body: Json) -> HostSource:
    if not isinstance(body, dict):
        raise TypeError
    sealed = body.get("sealed")
    return HostSource(_source_keys(body), None if sealed is None else base64.b64decode(str(sealed), validate=True))


# JSON with a MAC


def _canonical(body: Mapping[str, Json]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _signed(body: Body, key: bytes) -> bytes:
    return json.dumps(body | {"mac": _mac(key, _canonical(body)).hex()}, separators=(",", ":")).encode() + b"\n"


def _check_mac(body: Mapping[str, Json], key: bytes, where: str) -> None:
    fields = {name: value for name, value in body.items() if name != "mac"}
    stated = str(body.get("mac")).encode()
    if not hmac.compare_digest(stated, _mac(key, _canonical(fields)).hex().encode()):
        raise WrongKey(f"{where} is not what s3hashsync wrote: its MAC is wrong", _FROM_ANOTHER)


def _parsed(data: bytes, kind: str, where: str) -> Body:
    try:
        body = json.loads(data)
        if not isinstance(body, dict) or body.get("s3hashsync") != kind:
            raise ValueError
        number = _number(body["format"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(where) from None
    _check_format(number, where)
    return body


def _check_format(number: int, where: str) -> None:
    if number > FORMAT:
        raise Corrupt(f"{where} has format {number}, this program knows {FORMAT}", _NEWER)


def _damaged(where: str) -> Corrupt:
    return Corrupt(f"{where} is damaged", "restore it from an older version")


def _number(value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError
    return value
