"""docs/formats.md against the bytes: a second reader, written from that page alone.

Nothing of the program is imported here. The program makes a repository as a person would; the reader below opens it with the
user's identity and yields every path with its content. Where it fails, the page is wrong or the program is.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import io
import json
import os
import re
import secrets
import sqlite3
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import pytest
import zstandard
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESSIV, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.program import Program
from tests.recovery import FORMS, Form, back_up, picture

# The reader

BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
CHUNK = 1 << 16


def hkdf(key: bytes, info: bytes, salt: bytes | None = None) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(key)


def mac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def unpadded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def canonical(body: dict[str, object]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def bech32(prefix: str, data: bytes) -> str:
    """For making identities; the reader only reads them."""
    bits = "".join(f"{byte:08b}" for byte in data)
    values = [int(bits[at : at + 5].ljust(5, "0"), 2) for at in range(0, len(bits), 5)]
    spread = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    sum_ = 1
    for value in [*spread, *values, 0, 0, 0, 0, 0, 0]:
        top, sum_ = sum_ >> 25, (sum_ & 0x1FFFFFF) << 5 ^ value
        for bit, number in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            sum_ ^= number if top >> bit & 1 else 0
    check = [(sum_ ^ 1) >> 5 * (5 - at) & 31 for at in range(6)]
    return prefix + "1" + "".join(BECH32[value] for value in (*values, *check))


def age_identities(text: str) -> list[bytes]:
    """The keys of an identity file. (The checksum of Bech32 is left to whoever writes such files.)"""
    found = []
    for line in text.splitlines():
        if line.startswith("AGE-SECRET-KEY-1"):
            bits = "".join(f"{BECH32.index(c):05b}" for c in line.lower().rpartition("1")[2][:-6])
            found.append(int(bits[:256], 2).to_bytes(32, "big"))
    return found


class AgeFile:
    """One age file, whole or in part."""

    def __init__(self, data: bytes, identities: list[bytes]) -> None:
        self.data = data
        header = data[: data.index(b"\n--- ") + 4]
        line, _, _ = data[len(header) :].partition(b"\n")
        self.nonce_at = len(header) + len(line) + 1
        file_key = self._file_key(header.decode(), identities)
        assert mac(hkdf(file_key, b"header"), header) == unpadded(line.decode().strip())
        nonce = data[self.nonce_at : self.nonce_at + 16]
        self._cipher = ChaCha20Poly1305(hkdf(file_key, b"payload", nonce))

    @staticmethod
    def _file_key(header: str, identities: list[bytes]) -> bytes:
        version, *lines, end = header.split("\n")
        assert (version, end) == ("age-encryption.org/v1", "---")
        for stanza, body in zip(lines[::2], lines[1::2], strict=True):
            _, kind, share = stanza.split(" ")
            for secret in identities:
                private, public = X25519PrivateKey.from_private_bytes(secret), unpadded(share)
                own = private.public_key().public_bytes_raw()
                shared = private.exchange(X25519PublicKey.from_public_bytes(public))
                assert kind == "X25519"
                try:
                    wrap = ChaCha20Poly1305(hkdf(shared, b"age-encryption.org/v1/X25519", public + own))
                    return wrap.decrypt(bytes(12), unpadded(body), None)
                except Exception:
                    continue
        raise AssertionError("no identity fits")

    def chunk(self, number: int) -> bytes:
        at = self.nonce_at + 16 + number * (CHUNK + 16)
        piece = self.data[at : at + CHUNK + 16]
        last = at + CHUNK + 16 >= len(self.data)
        return self._cipher.decrypt(number.to_bytes(11, "big") + bytes([last]), piece, None)

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        chunks = -(-(len(self.data) - self.nonce_at - 16) // (CHUNK + 16))
        first = start // CHUNK
        last = chunks - 1 if length is None else (start + length - 1) // CHUNK
        plain = b"".join(self.chunk(number) for number in range(first, last + 1))[start - first * CHUNK :]
        return plain if length is None else plain[:length]


def frames(data: bytes) -> Iterator[bytes]:
    """zstd frames that stand one behind the other; each must have a content checksum."""
    while data:
        assert zstandard.get_frame_parameters(data).has_checksum
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        yield decompressor.decompress(data)
        assert decompressor.eof
        data = decompressor.unused_data


class Reader:
    """A repository in a folder, by docs/formats.md."""

    def __init__(self, folder: Path, identity_file: str = "") -> None:
        self.folder = folder
        self.about = json.loads((folder / "repository.json").read_bytes())
        assert (self.about["s3hashsync"], self.about["format"], self.about["versions"]) == ("repository", 1, "suffix")
        self.encrypted = self.about["encryption"] == "age"
        self.epochs: dict[int, bytes] = {}
        if self.encrypted:
            assert self.about["hash"] == "hmac-sha256"
            self._open_keys(age_identities(identity_file))
        else:
            assert (self.about["hash"], self.about["encryption"]) == ("sha256", "off")
            assert not (folder / "keys").exists()
            assert "fingerprint" not in self.about

    # Keys

    def _open_keys(self, user: list[bytes]) -> None:
        for file in sorted((self.folder / "keys").glob("*.age")):
            if not re.fullmatch(r"[0-9]+\.age", file.name):
                continue
            text = AgeFile(file.read_bytes(), user).read().decode()
            above, key_mac, secret = re.fullmatch(
                r"(.*\n)# mac: ([0-9a-f]{64})\n(AGE-SECRET-KEY-1.*\n)", text, re.DOTALL
            ).groups()  # type: ignore[union-attr]
            said = dict(line.removeprefix("# ").split(": ", 1) for line in above.splitlines()[1:])
            assert above.splitlines()[0] == "# s3hashsync repository key, format 1"
            assert list(said) == ["repository", "epoch", "created", "recipient", "root-key"]
            assert said["repository"] == self.about["id"]
            assert f"{said['epoch']}.age" == file.name
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", said["created"])
            root = bytes.fromhex(said["root-key"])
            assert mac(hkdf(root, b"s3hashsync documents"), (above + secret).encode()).hex() == key_mac
            (self.epochs[int(said["epoch"])],) = age_identities(secret)
        self.hash_key = hkdf(root, b"s3hashsync hash")
        self.document_key = hkdf(root, b"s3hashsync documents")
        assert hkdf(root, b"s3hashsync fingerprint")[:10].hex() == self.about["fingerprint"]
        self.recipients = json.loads((self.folder / "keys" / "recipients.json").read_bytes())
        said_mac = self.recipients.pop("mac")
        assert mac(self.document_key, canonical(self.recipients)).hex() == said_mac
        assert self.recipients["s3hashsync"] == "recipients"
        assert (self.recipients["repository"], self.recipients["epoch"]) == (self.about["id"], max(self.epochs))
        sealed = (self.folder / "keys" / f"{max(self.epochs)}.age").read_bytes()
        assert self.recipients["describes"] == {hashlib.sha256(sealed).hexdigest(): self.recipients["recipients"]}

    def source_keys(self, source: str) -> tuple[bytes, bytes]:
        """Name key and log key."""
        sealed = (self.folder / "keys" / "sources" / f"{source}.age").read_bytes()
        keys = json.loads(self._unsealed(sealed).read())
        said_mac = keys.pop("mac")
        assert mac(hkdf(self.hash_key, b"s3hashsync sources"), canonical(keys)).hex() == said_mac
        assert set(keys) == {"s3hashsync", "format", "repository", "source", "name_key", "log_key"}
        assert (keys["s3hashsync"], keys["repository"], keys["source"]) == ("source-keys", self.about["id"], source)
        return bytes.fromhex(keys["name_key"]), bytes.fromhex(keys["log_key"])

    def _unsealed(self, data: bytes, epoch: int | None = None) -> AgeFile:
        return AgeFile(data, [self.epochs[epoch]] if epoch else list(self.epochs.values()))

    # Run logs

    def sources(self) -> list[str]:
        return sorted(folder.name for folder in (self.folder / "runs").iterdir())

    def newest(self, source: str) -> dict[bytes, dict[str, object]]:
        """Every path of the newest state with the last line about it."""
        segments = []
        key = max(f"runs/{source}/{file.name}" for file in (self.folder / "runs" / source).iterdir())
        while key:
            header, lines = self.segment(key, source)
            segments.append(lines)
            key = "" if header["kind"] == "checkpoint" else header["previous"]  # type: ignore[assignment]
        paths: dict[bytes, dict[str, object]] = {}
        for lines in reversed(segments):
            for line in lines:
                path = exact(line, "path")
                if line.get("removed"):
                    paths.pop(path, None)
                else:
                    paths[path] = line
        return paths

    def segment(self, key: str, source: str) -> tuple[dict[str, object], list[dict[str, object]]]:
        data = (self.folder / key).read_bytes()
        if self.encrypted:
            data = self._unsealed(data).read()
        first, rest = frames(data)
        header, lines = json.loads(first), rest.splitlines(keepends=True)
        assert first.count(b"\n") == 1
        assert (header["s3hashsync"], header["format"], header["source"]) == ("run-log", 1, source)
        assert key == f"runs/{source}/{header['run']}.{header['number']:06d}"
        assert header["repository"] == self.about["id"]
        if self.encrypted:
            written = json.loads(lines.pop())
            digests = hashlib.sha256(first).digest() + hashlib.sha256(b"".join(lines)).digest()
            assert written == {"hmac": mac(self.source_keys(source)[1], digests).hex()}
        assert json.loads(lines.pop()) == {"end": True, "lines": len(lines)}
        return header, [json.loads(line) for line in lines]

    # Contents

    def content(self, line: dict[str, object]) -> bytes:
        if line["size"] == 0:
            assert "content" not in line
            return b""
        at, hash_ = line["content"], str(line["hash"])
        assert isinstance(at, dict)
        encoding, location = at["encoding"], at["location"].split(":")
        epoch = None if encoding == "zstd" else int(re.fullmatch(r"zstd\+age:([0-9]+)", encoding)[1])  # type: ignore[index]
        if location[0] == "1o":
            stored = self.stored("objects", hash_, unquote(location[1]))
            assert (len(stored), checksum(stored)) == (at["stored"], at["checksum"])
            (content,) = frames(self._unsealed(stored, epoch).read() if epoch else stored)
        else:
            pack, version = map(unquote, location[1:3])
            start, length, offset = map(int, location[3:])
            stored = self.stored("packs", pack, version)
            piece = self._unsealed(stored, epoch).read(start, length) if epoch else stored[start : start + length]
            assert len(piece) == length
            (frame,) = frames(piece)
            assert frame[offset - 512 : offset - 512 + 64].decode() == hash_
            assert at["checksum"] == ""
            assert 0 <= at["stored"] <= len(stored)
            content = frame[offset : offset + int(str(line["size"]))]
        sha256 = hashlib.sha256(content).digest()
        assert len(content) == line["size"]
        assert sha256.hex() == line["sha256"]
        assert hash_ == (mac(self.hash_key, sha256) if self.encrypted else sha256).hex()
        return content

    def stored(self, kind: str, name: str, version: str) -> bytes:
        return (self.folder / kind / name[:2] / f"{name}.{version}").read_bytes()

    # The index

    def names(self, database: sqlite3.Connection) -> dict[tuple[str, bytes], bytes]:
        """Source and path to hash, as the index of records has it (no overflow items)."""
        out = {}
        for hash_, names in database.execute("SELECT hash, names FROM records WHERE state = 0"):
            for name in names.decode().split("\0"):
                source, _, sealed = name.partition("/")
                if self.encrypted:
                    raw = base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
                    path = AESSIV(self.source_keys(source)[0]).decrypt(raw, [source.encode(), hash_])
                else:
                    path = unquote_to_bytes(sealed)
                out[source, path] = hash_
        return out


def exact(line: dict[str, object], field: str) -> bytes:
    encoded = line.get(f"{field}_b64")
    return base64.b64decode(str(encoded)) if encoded else str(line[field]).encode()


def checksum(stored: bytes) -> str:
    return "sha256:" + base64.b64encode(hashlib.sha256(stored).digest()).decode()


# What it reads

CONFIG = """\
version: 1
repository:
  objects: {base}/repo
  pack: {pack}
encryption: {encryption}
host: here
log_interval: 1s
sources:
  - name: docs
    path: {base}/docs
"""


class Made:
    """A repository that the program made, and what went into it."""

    def __init__(self, base: Path, form: Form) -> None:
        self.form, self.program = form, Program(base)
        secret = secrets.token_bytes(32)
        public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        other = X25519PrivateKey.generate().public_key().public_bytes_raw()
        self.identity = bech32("age-secret-key-", secret).upper()
        encryption = f"{{recipients: [{bech32('age', other)}, {bech32('age', public)}]}}" if form.encrypted else "off"
        (base / "backup.yaml").write_text(CONFIG.format(base=base, pack=form.pack, encryption=encryption))
        self.program("init")
        back_up(self.program)
        self.repository = base / "repo"

    def reader(self) -> Reader:
        return Reader(self.repository, f"# a comment\n{self.identity}\n")


@pytest.fixture(scope="module", params=FORMS, ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("formats"), request.param)


def test_a_second_reader_gets_every_path_and_content(made: Made) -> None:
    reader = made.reader()
    assert reader.sources() == ["docs"]
    lines = reader.newest("docs")
    top = os.fsencode(made.program.docs)
    wanted = {os.path.relpath(os.path.join(top, p), top): what for p, what in picture(made.program.docs).items()}
    assert set(lines) == {b"", *wanted}
    for path, (mode, what) in wanted.items():
        line = lines[path]
        if line["type"] == "file":
            assert reader.content(line) == what
        elif line["type"] == "symlink":
            assert exact(line, "target") == what
        else:
            assert (line["type"], what) == ("dir", "folder")
        assert line["type"] == "symlink" or int(str(line["mode"]), 8) == stat.S_IMODE(mode)


def test_a_second_reader_gets_every_state_before(made: Made) -> None:
    """The newest state is no accident of the last segment: each segment is whole and believed by itself."""
    reader = made.reader()
    keys = sorted(f"runs/docs/{file.name}" for file in (made.repository / "runs" / "docs").iterdir())
    headers = [reader.segment(key, "docs")[0] for key in keys]
    assert [header["previous"] for header in headers] == ["", *keys[:-1]]
    assert {header["kind"] for header in headers} == {"changes", "checkpoint"}


def test_what_is_stored_has_the_form_that_is_tested(made: Made) -> None:
    locations = {str(line["content"]["location"])[:2] for line in made.reader().newest("docs").values() if "content" in line}  # type: ignore[index]
    assert locations == ({"1o", "1p"} if made.form.packed else {"1o"})
    assert (made.repository / "keys").exists() == made.form.encrypted
    assert len(list((made.repository / "packs").glob("*/*"))) > 0 or not made.form.packed


def test_a_pack_is_a_tar_in_frames(made: Made) -> None:
    """The frames as the page has them: a member lies whole in one, the last one ends the tar."""
    reader = made.reader()
    for file in (made.repository / "packs").glob("*/*"):
        assert re.fullmatch(r"[0-9a-f]{32}\.[0-9a-f]{16}", file.name)
        assert file.parent.name == file.name[:2]
        data = file.read_bytes()
        parts = list(frames(reader._unsealed(data).read() if made.form.encrypted else data))
        assert parts[-1] == bytes(1024)
        assert all(len(part) % 512 == 0 for part in parts)
        for part in parts[:-1]:
            (*whole, last) = members(part)
            assert sum(512 + -(-size // 512) * 512 for _, size in whole) < 1 << 20, "the frame goes on behind its end"
            assert last
        with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as tar:
            found = [(one.name, one.mode, one.uid, one.gid, one.mtime, one.uname, one.gname, one.type) for one in tar]
        names = [name for part in parts[:-1] for name, _ in members(part)]
        assert found == [(name, 0o600, 0, 0, 0, "", "", tarfile.REGTYPE) for name in names]


def members(frame: bytes) -> list[tuple[str, int]]:
    """Name and size of what lies in one frame of a tar."""
    out, at = [], 0
    while at < len(frame):
        name, size = frame[at : at + 64].decode(), int(frame[at + 124 : at + 135], 8)
        assert frame[at + 257 : at + 265] == b"ustar\x0000"
        out.append((name, size))
        at += 512 + -(-size // 512) * 512
    return out


def test_the_index_holds_the_names_and_places(made: Made) -> None:
    reader = made.reader()
    lines = {path: line for path, line in reader.newest("docs").items() if "hash" in line}
    with contextlib.closing(sqlite3.connect(made.repository / "index.db")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
        assert database.execute("PRAGMA application_id").fetchone() == (0x73336873,)
        names = reader.names(database)
        assert {path: hash_.hex() for (_, path), hash_ in names.items()} == {p: line["hash"] for p, line in lines.items()}
        assert {source for source, _ in names} == {"docs"}
        for line in lines.values():
            assert place(database, bytes.fromhex(str(line["hash"]))) == line["content"]
        check_controls(database, reader.about)
        check_pack_items(database, made)


def place(database: sqlite3.Connection, hash_: bytes) -> dict[str, object]:
    """A record's content, in the form of the run log."""
    row = database.execute(
        "SELECT stored, stored_at, c.word, checksum, e.word, records.version, packs.pack, packs.version,"
        " frame_offset, frame_length, offset FROM records"
        " LEFT JOIN packs ON packs.number = records.pack LEFT JOIN words c ON c.number = class"
        " LEFT JOIN words e ON e.number = encoding WHERE hash = ?",
        [hash_],
    ).fetchone()
    stored, stored_at, class_, check, encoding, version, pack, pack_version, *numbers = row
    in_pack = pack is not None
    parts = ["1p", text(pack), text(pack_version), *map(str, numbers)] if in_pack else ["1o", text(version)]
    return {
        "location": ":".join(parts),
        "stored": stored,
        "stored_at": stored_at,
        "class": class_,
        "checksum": "sha256:" + base64.b64encode(check).decode() if isinstance(check, bytes) else check,
        "encoding": encoding,
    }


def text(value: bytes | str) -> str:
    return value.hex() if isinstance(value, bytes) else value


def check_controls(database: sqlite3.Connection, about: dict[str, object]) -> None:
    controls = {key: dict(json.loads(fields)) for key, fields in database.execute("SELECT key, fields FROM controls")}
    assert {name: controls["repository"][name] for name in ("id", "incarnation", "created", "format")} == {
        "id": about["id"],
        "incarnation": about["incarnation"],
        "created": str(about["created"]),
        "format": "1",
    }
    assert controls["sources"] == {"docs": "1"}
    assert set(controls["source:docs"]) == {"host", "run", "head", "updated", "files", "size", "rewrite", "unfinished"}


def check_pack_items(database: sqlite3.Connection, made: Made) -> None:
    reader = made.reader()
    rows = {
        key: (dict(json.loads(fields)), data) for key, fields, data in database.execute("SELECT key, fields, data FROM controls")
    }
    items = {key.removeprefix("pack:"): value for key, value in rows.items() if key.startswith("pack:")}
    packs = list((made.repository / "packs").glob("*/*"))
    assert {file.name.partition(".")[0] for file in packs} <= set(items)
    for file in packs:
        pack, _, version = file.name.partition(".")
        fields, data = items[pack]
        stored = file.read_bytes()
        plain = reader._unsealed(stored).read() if made.form.encrypted else stored
        hashes_ = [name for part in list(frames(plain))[:-1] for name, _ in members(part)]
        assert data.hex() == "".join(hashes_)
        assert fields == {
            "members": str(len(hashes_)),
            "stored": str(len(stored)),
            "checksum": checksum(stored),
            "attempt": version,
            "parts": "1",
        }
