"""Run logs that somebody tampered with, and what a host can do that cannot open its own."""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import random
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import zstandard

from s3hashsync.codec import age
from s3hashsync.codec.age import X25519Identity
from s3hashsync.config.model import PackSettings
from s3hashsync.core.model import ContentHash, Control, PackAt, RecordState, Rev, StoredName, pack_key
from s3hashsync.core.plan import UpdateMetadata
from s3hashsync.disk.catalogue import Catalogue
from s3hashsync.errors import Corrupt, ExitCode, Refused, S3HashSyncError, WrongKey
from s3hashsync.run import hashing, listing, reindex, segments, stored_packs
from s3hashsync.run import repository as repositories
from s3hashsync.run.drill import drill
from s3hashsync.run.history import (
    CHANGES,
    CHECKPOINT,
    Line,
    SegmentHeader,
    SegmentWriter,
    all_segments,
    is_there,
    new_run_id,
    newest_key,
    read_header,
    read_segment,
    segment_key,
)
from s3hashsync.run.keyring import Keyring
from s3hashsync.run.keys import RepositoryKeys
from s3hashsync.run.ledger import Terms
from s3hashsync.run.progress import Silent
from s3hashsync.run.rebuild import rebuild_on_newest
from s3hashsync.run.recovery_kit import facts_of, kit
from s3hashsync.run.reindex import Rebuilder, rebuild_index
from s3hashsync.run.repository import Segments
from s3hashsync.run.restore import RestoreOptions, apply_restore, planned_restore
from s3hashsync.run.segments import LineWriter
from s3hashsync.run.snapshots import find_head, find_point, known_sources, segments_back
from s3hashsync.stores.base import Index, ObjectStore, Write
from tests.faulty import Fault, FaultPlan, FaultyObjects, on
from tests.harness import SOURCE, House, as_they_are
from tests.test_crash import run_under
from tests.test_two_hosts import TAKE_OVER, other_machine

PACKED = PackSettings(below=8 << 20, size=64 << 20)


def filled(house: House) -> House:
    for number in range(5):
        house.write(f"folder/{number}.jpg", f"content {number}")
    house.write("empty", "")
    (house.source / "link").symlink_to("empty")
    house.backup()
    return house.again()


@pytest.fixture
def house(folder: Path) -> House:
    """A backup host of an encrypted repository, without the identity."""
    return filled(House(folder, encryption=True).init())


@pytest.fixture
def plain(folder: Path) -> House:
    return filled(House(folder).init())


# Segments by hand, from the documented format


def the_key(house: House) -> str:
    with house.repository() as repository:
        return newest_key(repository.objects, house.source_name)


def stored(house: House, key: str) -> Path:
    return house.folder / "repository" / key


def lines_of(house: House, key: str) -> list[bytes]:
    """All lines of a segment, with their line feeds."""
    data = stored(house, key).read_bytes()
    if house.encryption:
        with house.repository() as repository:
            data = age.decrypt(data, repository.keys.identities())
    reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
    return reader.read().splitlines(keepends=True)


def log_key(house: House, source: str = SOURCE) -> bytes:
    with house.repository() as repository:
        key = repository.keys.log_key(source)
    assert key is not None
    return key


def signature(key: bytes, lines: list[bytes]) -> bytes:
    """The line behind these."""
    digests = hashlib.sha256(lines[0]).digest() + hashlib.sha256(b"".join(lines[1:])).digest()
    return b'{"hmac":"%s"}\n' % hmac.new(key, digests, "sha256").hexdigest().encode()


def frames(lines: list[bytes]) -> bytes:
    compressor = zstandard.ZstdCompressor()
    return compressor.compress(lines[0]) + compressor.compress(b"".join(lines[1:]))


def sealed(house: House, data: bytes) -> bytes:
    with house.repository() as repository:
        return age.encrypt(data, [one.recipient for one in repository.keys.identities()], os.urandom)


def put(house: House, key: str, data: bytes) -> None:
    place = stored(house, key)
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        place.chmod(0o600)
    place.write_bytes(data)


def refusal(house: House, key: str) -> str:
    """What reading says, before any line."""
    with house.repository() as repository:
        with pytest.raises(Corrupt) as raised:
            read_header(repository, key)
        with pytest.raises(Corrupt):
            read_segment(repository, key)
    assert key in raised.value.message
    return raised.value.message


def refused_anywhere(house: House, key: str) -> None:
    """At the latest when the lines are read to their end."""
    with house.repository() as repository, pytest.raises(Corrupt) as raised:
        for _ in read_segment(repository, key)[1]:
            pass
    assert key in raised.value.message


def test_the_last_line_is_the_documented_hmac(house: House) -> None:
    *lines, last = lines_of(house, the_key(house))
    assert json.loads(lines[-1]) == {"end": True, "lines": len(lines) - 2}
    assert last == signature(log_key(house), lines)


def test_a_segment_made_by_hand_is_believed(house: House) -> None:
    key = the_key(house)
    *lines, _ = lines_of(house, key)
    header = json.loads(lines[0]) | {"host": "by hand", "a field of tomorrow": 1}
    lines[0] = json.dumps(header).encode() + b"\n"
    put(house, key, sealed(house, frames([*lines, signature(log_key(house), lines)])))
    with house.repository() as repository:
        found, told = read_segment(repository, key)
        assert found.host == "by hand"
        assert len(list(told)) == len(lines) - 2


def test_without_encryption_there_is_no_hmac(plain: House) -> None:
    assert "end" in json.loads(lines_of(plain, the_key(plain))[-1])


# Forgeries: to the right recipient, which is public, but without the log key


def another_content(lines: list[bytes]) -> list[bytes]:
    return [lines[0], *(line.replace(b".jpg", b".gif") for line in lines[1:])]


FORGERIES: dict[str, Callable[[list[bytes], bytes, bytes], list[bytes]]] = {
    "no HMAC": lambda lines, last, key: lines,
    "the old HMAC": lambda lines, last, key: [*another_content(lines), last],
    "the old HMAC and another header": lambda lines, last, key: [lines[0].replace(b"laptop", b"desktop"), *lines[1:], last],
    "an HMAC under another key": lambda lines, last, key: [*lines, signature(bytes(32), lines)],
    "an HMAC that has no digits": lambda lines, last, key: [*lines, b'{"hmac":""}\n'],
    "a line less": lambda lines, last, key: [*lines[:2], *lines[3:], last],
    "a line after the footer": lambda lines, last, key: [*lines, lines[1], last],
    "a line after the HMAC": lambda lines, last, key: [*lines, last, lines[1]],
    "the HMAC twice": lambda lines, last, key: [*lines, last, last],
    "the HMAC before the footer": lambda lines, last, key: [*lines[:-1], last, lines[-1]],
    "nothing but the header": lambda lines, last, key: lines[:1],
    "nothing but an HMAC": lambda lines, last, key: [last],
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_segment_is_refused_and_named(house: House, name: str) -> None:
    key = the_key(house)
    *lines, last = lines_of(house, key)
    put(house, key, sealed(house, frames(FORGERIES[name](lines, last, log_key(house)))))
    assert "written by somebody else" in refusal(house, key)


def test_an_empty_segment_is_refused(house: House) -> None:
    key = the_key(house)
    put(house, key, sealed(house, b""))
    assert "no HMAC" in refusal(house, key)


def test_a_signed_segment_without_a_footer_is_not_whole(house: House) -> None:
    key = the_key(house)
    lines = lines_of(house, key)[:-2]
    put(house, key, sealed(house, frames([*lines, signature(log_key(house), lines)])))
    refused_anywhere(house, key)


def test_a_segment_that_is_not_encrypted_is_refused_by_an_encrypted_repository(house: House) -> None:
    key = the_key(house)
    put(house, key, frames(lines_of(house, key)))
    assert "not written by this repository" in refusal(house, key)


def test_a_segment_to_another_recipient_is_refused_and_is_no_question_of_keys(house: House) -> None:
    key = the_key(house)
    stranger = X25519Identity.generate(os.urandom)
    put(house, key, age.encrypt(frames(lines_of(house, key)), [stranger.recipient], os.urandom))
    assert "none of this repository's" in refusal(house, key)


def test_the_log_of_another_source_does_not_pass(house: House) -> None:
    """Genuine, and encrypted to the same recipient; each source has its own log key."""
    other = replace(house, source_name="music")
    other.write("a", "a")
    other.backup()
    key = the_key(house)
    copy = segment_key("music", "20990101T000000Z-ffffffff", 1)
    put(house, copy, stored(house, key).read_bytes())
    assert "somebody else" in refusal(house, copy)
    with house.job() as job:
        assert [one.present for one in listing.runs(job, "music")] == [2]


def test_a_log_of_a_source_that_has_no_keys_is_refused(house: House) -> None:
    copy = segment_key("nobody", "20990101T000000Z-ffffffff", 1)
    put(house, copy, stored(house, the_key(house)).read_bytes())
    with house.repository() as repository, pytest.raises(Corrupt, match="nobody"):
        read_header(repository, copy)
    with house.job() as job, pytest.raises(S3HashSyncError) as raised:
        list(listing.find_paths(job, "*.jpg"))
    assert "nobody" in raised.value.message


# Damage


@pytest.mark.parametrize("encryption", [False, True], ids=["plain", "encrypted"])
def test_a_cut_segment_is_refused(folder: Path, encryption: bool) -> None:
    house = filled(House(folder, encryption=encryption).init())
    key = the_key(house)
    data = stored(house, key).read_bytes()
    for length in (0, 1, 100, 200, len(data) // 2, len(data) - 20, len(data) - 1):
        put(house, key, data[:length])
        refused_anywhere(house, key)
    put(house, key, data + b"\0")
    refused_anywhere(house, key)


def one_bit_flipped(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def test_a_flipped_bit_in_an_encrypted_segment_is_found(house: House) -> None:
    key, chance = the_key(house), random.Random(5)
    data = stored(house, key).read_bytes()
    for _ in range(60):
        put(house, key, one_bit_flipped(data, chance))
        refusal(house, key)


def test_a_flipped_bit_in_a_plain_segment_is_found_or_changes_nothing(plain: House) -> None:
    """Some bits of a zstd frame say nothing: they fill up a bit stream, or hint at memory."""

    def told() -> tuple[SegmentHeader, list[Line]]:
        with plain.repository() as repository:
            header, lines = read_segment(repository, key)
            return header, list(lines)

    key, chance = the_key(plain), random.Random(5)
    data, whole = stored(plain, key).read_bytes(), told()
    refused = []
    for _ in range(200):
        put(plain, key, one_bit_flipped(data, chance))
        try:
            assert told() == whole
        except Corrupt as refusal:
            refused.append(refusal.message)
    assert len(refused) > 180
    assert all(key in message for message in refused)


def spoiled(keys: Keyring, change: Callable[[LineWriter], None]) -> None:
    """A segment that is spoiled before it is stored is not handed out."""
    writer = LineWriter(keys, SOURCE)
    for number in range(100):
        writer.add(random.Random(number).randbytes(8000).hex().encode())
    change(writer)
    with pytest.raises(Corrupt, match="does not open to what was put into it: it was not stored"):
        writer.finish(b'{"s3hashsync":"run-log"}')


@pytest.mark.parametrize("encryption", [False, True], ids=["plain", "encrypted"])
def test_what_does_not_open_is_not_stored(folder: Path, encryption: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit flips in memory: in compressed lines, in the header, or in what is sealed."""
    chance = random.Random(5)

    def flipped(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[chance.randrange(len(data) // 2, len(data))] ^= 1 << chance.randrange(8)
        return bytes(changed)

    def frame(writer: LineWriter) -> None:
        writer._parts[0] = flipped(writer._parts[0])

    def lines(writer: LineWriter) -> None:
        other = zstandard.ZstdCompressor().compressobj()
        writer._parts, writer._compressor = [other.compress(b"other lines\n")], other

    stream = age.Seal.stream
    with House(folder, encryption=encryption).init().repository() as repository:
        repository.keys.add_source(SOURCE)
        spoiled(repository.keys, frame)
        spoiled(repository.keys, lines)
        with monkeypatch.context() as patch:
            patch.setattr(segments, "chain", lambda head, rest: chain((frames([b'{"s3hashsync":"run-lag"}\n']),), rest))
            spoiled(repository.keys, lambda writer: None)
        if encryption:
            monkeypatch.setattr(age.Seal, "stream", lambda seal, pieces: map(flipped, stream(seal, pieces)))
            spoiled(repository.keys, lambda writer: None)


@pytest.mark.parametrize("encryption", [False, True], ids=["plain", "encrypted"])
def test_a_bomb_stops_at_its_first_line(folder: Path, encryption: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LONGEST_LINE", 1 << 20)
    house = filled(House(folder, encryption=encryption).init())
    key = the_key(house)
    bomb = frames([b"{", b" " * (64 << 20), b"}\n"])
    put(house, key, sealed(house, bomb) if encryption else bomb)
    assert "more than 1,048,576 bytes" in refusal(house, key)


def test_a_bomb_of_line_feeds_takes_little_memory(plain: House) -> None:
    """It is looked at before the HMAC is, and a list of so many lines takes ten times what they do."""
    key = the_key(plain)
    put(plain, key, frames([b"\n" * (64 << 20), b"\n"]))
    tracemalloc.start()
    try:
        assert "is not JSON" in refusal(plain, key)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


NO_LINES = [
    b"[" * 100_000,
    b"{",
    b"[]",
    b'{"path":"\\ud800","removed":true}',
    b'{"path_b64":"*","removed":true}',
    b'{"path":"x"}',
]


@pytest.mark.parametrize("line", NO_LINES)
def test_a_line_that_is_none_is_named(plain: House, line: bytes) -> None:
    key = the_key(plain)
    header, *_ = lines_of(plain, key)
    put(plain, key, frames([header, line + b"\n", b'{"end":true,"lines":1}\n']))
    refused_anywhere(plain, key)


NO_ENTRIES: dict[str, dict[str, object]] = {
    "a NUL in a symlink's target": {"type": "symlink", "target": "a\0b"},
    "a NUL in an attribute's name": {"type": "file", "xattrs": [["YQBi", "eA=="]]},
    "a device below zero": {"type": "chardev", "rdev": -1},
    "a device beyond all": {"type": "blockdev", "rdev": 1 << 63},
}


@pytest.mark.parametrize("name", NO_ENTRIES)
def test_a_line_that_no_system_call_takes_is_named(plain: House, name: str) -> None:
    """What was noticed by the call alone ended a restore in the middle, with an error that nobody had in mind."""
    key = the_key(plain)
    header, *_ = lines_of(plain, key)
    line = json.dumps({"path": "bad", "mtime": 1, "mode": "0644"} | NO_ENTRIES[name]).encode()
    put(plain, key, frames([header, line + b"\n", b'{"end":true,"lines":1}\n']))
    refused_anywhere(plain, key)


@pytest.mark.parametrize("time", [b"1" + b"0" * 400, b"1e300", b"-1e300", b"NaN", b"Infinity"])
def test_a_time_that_is_none_is_named(plain: House, time: bytes) -> None:
    key = the_key(plain)
    header, *lines = lines_of(plain, key)
    said = b'"time":%s' % json.dumps(json.loads(header)["time"]).encode()
    assert said in header
    put(plain, key, frames([header.replace(said, b'"time":' + time), *lines]))
    assert "its time" in refusal(plain, key)


# Where a segment belongs


def written(house: House, key: str, **fields: object) -> None:
    """A genuine segment by a host of this repository that says this, under `key`."""
    with house.repository() as repository:
        run, _, number = key.rpartition("/")[2].partition(".")
        header = SegmentHeader(
            kind=CHANGES,
            repository=repository.identity.id,
            incarnation=repository.identity.incarnation,
            source=SOURCE,
            root="/",
            host="laptop",
            run=run,
            number=int(number),
            previous="",
            time=0.0,
            scanned_ns=0,
        )
        put(house, key, SegmentWriter(repository.keys, SOURCE).finish(replace(header, **fields)))  # type: ignore[arg-type]


@pytest.mark.parametrize("encryption", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "music"}, "source music"),
        ({"run": "20200101T000000Z-00000000"}, "20200101T000000Z-00000000"),
        ({"number": 2}, "segment 2"),
        ({"repository": "another"}, "another repository"),
    ],
)
def test_a_segment_counts_under_its_own_key_alone(
    folder: Path, encryption: bool, fields: dict[str, object], message: str
) -> None:
    house = filled(House(folder, encryption=encryption).init())
    key = segment_key(SOURCE, "20990101T000000Z-ffffffff", 1)
    written(house, key)
    with house.repository() as repository:
        assert list(read_segment(repository, key)[1]) == []
    written(house, key, **fields)
    assert message in refusal(house, key)


@pytest.mark.parametrize("encryption", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("previous", ["20990101T000000Z-ffffffff.000001", "20990101T000000Z-ffffffff.000002", "../music/2"])
def test_a_segment_stands_on_an_earlier_one_of_its_source(folder: Path, encryption: bool, previous: str) -> None:
    """Whoever followed `previous` from a segment that names itself would never come to an end."""
    house = filled(House(folder, encryption=encryption).init())
    head, key = the_key(house), segment_key(SOURCE, "20990101T000000Z-ffffffff", 1)
    written(house, key, previous=f"runs/{SOURCE}/{previous}".replace(f"{SOURCE}/../", ""))
    assert "is not before it" in refusal(house, key)
    with house.repository() as repository:
        assert find_head(repository, SOURCE) == head
        with pytest.raises(Corrupt, match="is not before it"):
            list(all_segments(repository, key))
        with pytest.raises(Corrupt, match="is not before it"):
            list(segments_back(repository, SOURCE, key))


def test_a_copied_segment_does_not_become_the_head(plain: House) -> None:
    head = the_key(plain)
    put(plain, f"{head[:-1]}9", stored(plain, head).read_bytes())
    with plain.repository() as repository:
        assert find_head(repository, SOURCE) == head


# What else somebody put below `runs/`

HOSTILE_NAMES = ["x\n  encryption   age, fingerprint 0000", "$(touch owned)", "\x1b[2Khidden", "a b", "-i", "..x", "x" * 65]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_no_source_can_have_is_not_printed(house: House, name: str) -> None:
    """The sheet is what is trusted when all else is gone: one key that somebody may write must not add to it."""
    with house.repository() as repository:
        keys, objects = repository.keys, repository.objects
        assert isinstance(keys, RepositoryKeys)
        before, proof = kit(facts_of(house.config(), repository.identity, objects)), drill(keys)
        put(house, segment_key(name, "20990101T000000Z-ffffffff", 1), b"")
        put(house, f"keys/sources/{name}.age", b"")
        assert kit(facts_of(house.config(), repository.identity, objects)) == before
        assert drill(keys) == proof
        assert known_sources(repository) == [SOURCE]


STRAY_NAMES = ["desktop.ini", "20990101T000000Z-ffffffff.000001 (copy)", "20990101T000000Z-ffffffff.00001", "99/1", "x.00000²"]


@pytest.mark.parametrize("name", STRAY_NAMES)
def test_what_has_no_segments_name_is_passed_over(plain: House, name: str) -> None:
    """A file manager's notes stopped every later backup: they passed for a segment that the index does not know."""
    head = the_key(plain)
    for key in (f"runs/{SOURCE}/{name}", f"runs/nobody/{name}"):
        stored(plain, key).parent.mkdir(parents=True, exist_ok=True)
        put(plain, key, b"stray")
    plain.write("new", "new")
    plain.backup()
    assert head < the_key(plain) < f"runs/{SOURCE}/20990101"
    with plain.repository() as repository:
        assert find_head(repository, SOURCE) == the_key(plain)
        assert known_sources(repository) == [SOURCE]
        assert not is_there(repository.objects, f"runs/{SOURCE}/{name}")
    without_index(plain)
    rebuilt(plain)
    plain.backup()
    assert plain.plan() == []


@pytest.mark.parametrize("stamp", ["99991231T235959Z", "99999999T999999Z", "00000000T000000Z"])
def test_a_segment_of_a_time_that_no_run_can_follow_is_named(stamp: str) -> None:
    with pytest.raises(Corrupt, match=stamp):
        new_run_id(0.0, segment_key(SOURCE, f"{stamp}-ffffffff", 1), "00000000")


# A lost state


def notes(house: House, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(Silent, "note", lambda self, message: said.append(message))
    return said


def known_sha256(house: House) -> dict[bytes, bytes | None]:
    with house.state() as state:
        return {known.entry.path: known.sha256 for known, _ in state.all_known() if known.hash is not None}


def on_disk(house: House) -> dict[bytes, bytes]:
    files = ((path, path.read_bytes()) for path in house.source.rglob("*") if path.is_file() and not path.is_symlink())
    return {os.fsencode(path.relative_to(house.source)): hashlib.sha256(data).digest() for path, data in files if data}


@pytest.mark.parametrize("pack", [None, PACKED], ids=["objects", "packs"])
def test_without_the_identity_the_state_comes_from_the_index(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pack: PackSettings | None
) -> None:
    house = filled(House(folder, encryption=True, pack=pack).init())
    house.forget_state()
    said = notes(house, monkeypatch)
    steps = house.plan()
    assert any("encrypted" in message and "index" in message for message in said)
    assert {type(step) for step in steps if step.entry.size} == {UpdateMetadata}  # type: ignore[union-attr]
    assert set(known_sha256(house).values()) == {None}
    done = house.again().backup()
    assert (done.summary.files_hashed, done.summary.objects_put, done.summary.index_writes) == (5, 0, 0)
    assert known_sha256(house) == on_disk(house)
    assert {path: line.sha256 for path, line in house.logged().items() if line.hash} == on_disk(house)
    house.again().assert_converged()


def test_with_the_identity_nothing_is_hashed(house: House) -> None:
    before = known_sha256(house)
    house.forget_state()
    done = house.again(identity=True).backup()
    assert (done.totals.steps, done.summary.files_hashed, done.summary.objects_put) == (0, 0, 0)
    assert known_sha256(house) == before == on_disk(house)
    house.again().assert_converged()


def test_what_could_not_be_read_since_is_logged_without_its_sha256(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.forget_state()
    monkeypatch.setattr(hashing, "hash_file", unreadable(hashing.hash_file, b"folder/3.jpg"))
    assert [problem.path for problem in house.again().backup().problems] == [b"folder/3.jpg"]
    monkeypatch.undo()
    lines = house.logged()
    hash_ = house.contents()["photos/folder/3.jpg"]
    assert (lines[b"folder/3.jpg"].hash, lines[b"folder/3.jpg"].sha256) == (hash_, None)
    assert b'"sha256"' not in next(line for line in lines_of(house, the_key(house)) if b"3.jpg" in line)
    to = house.folder / "restored"
    with house.job() as job, planned_restore(job, [SOURCE], RestoreOptions(to=str(to))) as work:
        assert not apply_restore(job, work).problems
    assert (to / "folder/3.jpg").read_text() == "content 3"
    house = house.again()
    house.backup()
    assert known_sha256(house) == on_disk(house)
    house.again().assert_converged()


def unreadable(read: Callable[..., object], name: bytes) -> Callable[..., object]:
    def hashed(path: bytes, *rest: object, **more: object) -> object:
        if path == name:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return read(path, *rest, **more)

    return hashed


def test_a_name_that_somebody_wrote_into_the_index_is_named(house: House) -> None:
    record = next(iter(house.records().values()))
    strange = StoredName("photos/AAAAAAAAAAAAAAAAAAAAAAAA")
    with house._stores() as (_, index):
        index.write([Write(replace(record, rev=Rev(b"somebody"), names=record.names | {strange}), record.rev)])
    house.forget_state()
    with pytest.raises(Corrupt, match=strange):
        house.plan()


def test_a_take_over_needs_no_identity(house: House) -> None:
    new = other_machine(house)
    with pytest.raises(WrongKey) as raised:
        new.plan()
    assert "key enroll" in (raised.value.hint or "")
    done = new.enroll().backup(TAKE_OVER)
    assert (done.summary.objects_put, done.summary.index_writes, done.problems) == (0, 5, [])
    assert known_sha256(new) == on_disk(new)
    new.again().assert_converged()


# Nothing is read where nothing can be read


class Unread:
    """An object store whose run logs nobody opens."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def __getattr__(self, name: str) -> object:
        return getattr(self._objects, name)

    def read_document(self, key: str) -> bytes:
        assert not key.startswith("runs/"), f"{key} was read"
        return self._objects.read_document(key)


def unread(objects: ObjectStore, index: Index) -> tuple[ObjectStore, Index]:
    return Unread(objects), index  # type: ignore[return-value]


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_a_segment_of_a_dead_run_is_adopted_without_reading_it(house: House, looks: int) -> None:
    """The process died before it moved the head; some plans come before the next apply."""
    house.write("new", "new content")
    run_under(house, FaultPlan([on("objects.create_document", Fault.CRASH_AFTER)]))
    for _ in range(looks):
        assert house.again(wrap=unread).plan()
    house.again(wrap=unread).backup()
    house.again(wrap=as_they_are).assert_converged()


@pytest.mark.parametrize("encryption", [False, True], ids=["plain", "encrypted"])
def test_an_index_that_lost_its_last_run_alone_is_refused(folder: Path, encryption: bool) -> None:
    """The head of the logs follows the index's by one segment, as after a crash; but the state has settled it."""
    house = filled(House(folder, encryption=encryption).init())
    older(house, lambda: house.write("new", "new content"))
    for _ in range(2):
        with pytest.raises(Refused, match="newer than the index"):
            house.again().plan()


def older(house: House, change: Callable[[], object]) -> None:
    """A backup of this change; then the table is as it was before."""
    index = house.folder / "repository" / "index.db"
    shutil.copy(index, house.folder / "older")
    change()
    house.backup()
    for suffix in ("-wal", "-shm"):
        Path(f"{index}{suffix}").unlink(missing_ok=True)
    shutil.copy(house.folder / "older", index)


@pytest.mark.parametrize("lost", [False, True], ids=["with its state", "without a state"])
def test_a_table_of_an_older_point_takes_the_identity(house: House, lost: bool) -> None:
    older(house, lambda: house.write("new", "new content"))
    if lost:
        house.forget_state()
    with house.repository(identity=False) as repository, house.fresh_state() as state:
        before = state.anchor(), state.count()
        with pytest.raises(WrongKey) as raised:
            rebuild_on_newest(repository, state, SOURCE, Silent())
        assert raised.value.exit_code == ExitCode.WRONG_KEY == 12
        assert (state.anchor(), state.count()) == before
    with house.repository() as repository, house.fresh_state() as state:
        rebuild_on_newest(repository, state, SOURCE, Silent())
    house.again().backup()
    house.again().assert_converged(copies=2)


def test_what_reads_logs_says_that_it_takes_the_identity(house: House) -> None:
    asks: list[Callable[[], object]] = []
    with house.job(identity=False) as job:
        asks = [
            lambda: list(listing.list_paths(job, SOURCE)),
            lambda: list(listing.find_paths(job, "*")),
            lambda: list(listing.runs(job, SOURCE)),
            lambda: list(listing.versions(job, f"{SOURCE}:empty")),
            lambda: list(listing.compare(job, SOURCE, 0.0)),
            lambda: planned_restore(job, [SOURCE], RestoreOptions(to=str(house.folder / "to"))).__enter__(),
        ]
        for ask in asks:
            with pytest.raises(WrongKey, match="nothing is at hand"):
                ask()
    with house.job() as job:
        assert len(list(listing.find_paths(job, "*.jpg"))) == 5


# A lost index


def without_index(house: House) -> None:
    for path in (house.folder / "repository").glob("index.db*"):
        path.unlink()


def rebuilt(house: House, *, identity: bool = True) -> tuple[reindex.RebuiltIndex, list[bytes]]:
    """What the new index holds, and the paths that were lost."""
    with house._stores(create=True) as (objects, index):
        keys, terms = house.keys(objects, identity=identity), Terms("STANDARD", 0, 0)
        done, problems = rebuild_index(Rebuilder(objects, index, terms, Silent(), house.clock, os.urandom, keys))
    return done, sorted(problem.path for problem in problems)


def pack_items(house: House) -> dict[str, Control]:
    with house.repository() as repository:
        items = [item for item in repository.index.scan() if isinstance(item, Control) and item.key.startswith("pack:")]
    return {item.key: item for item in items}


@pytest.mark.parametrize("encryption", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("pack", [None, PACKED], ids=["objects", "packs"])
def test_a_lost_index_is_made_anew(folder: Path, encryption: bool, pack: PackSettings | None) -> None:
    house = filled(House(folder, encryption=encryption, pack=pack).init())
    (house.source / "folder/4.jpg").unlink()
    house.backup()
    names, records, items = house.names(), house.records(), pack_items(house)
    without_index(house)
    done, lost = rebuilt(house)
    assert (done.live, done.purging, done.packs, lost) == (4, 1, 1 if pack else 0, [])
    house = house.again(identity=True)
    assert house.names() == names
    assert {hash_: record.location for hash_, record in house.records().items()} == {h: r.location for h, r in records.items()}
    assert [(item.key, item.data, item.get("stored"), item.get("parts")) for item in pack_items(house).values()] == [
        (item.key, item.data, item.get("stored"), item.get("parts")) for item in items.values()
    ]
    assert house.backup().summary.objects_put == 0
    house.again().assert_converged()


def test_an_index_of_an_encrypted_repository_is_not_made_without_the_identity(house: House) -> None:
    without_index(house)
    with pytest.raises(WrongKey):
        rebuilt(house, identity=False)
    with house._stores() as (_, index):
        assert list(index.scan()) == []
    rebuilt(house)
    house.again().backup()
    house.again().assert_converged()


def test_many_members_take_many_items(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = filled(House(folder, pack=PACKED).init())
    (whole,) = pack_items(house).values()
    without_index(house)
    monkeypatch.setattr(stored_packs, "MEMBERS_IN_ITEM", 2)
    rebuilt(house)
    items = pack_items(house)
    assert items.keys() == {whole.key, f"{whole.key}.1", f"{whole.key}.2"}
    assert items[whole.key].get("parts") == "3"
    assert b"".join(items[key].data for key in sorted(items)) == whole.data


def test_a_pack_that_is_gone_has_lost_its_members(folder: Path) -> None:
    house = filled(House(folder, pack=PACKED).init())
    with house._stores() as (objects, _):
        for version in list(objects.versions("packs/")):
            objects.delete(version.stem, version.version)
    without_index(house)
    done, lost = rebuilt(house)
    assert (done.live, done.packs) == (0, 0)
    assert lost == [b"folder/%d.jpg" % number for number in range(5)]
    assert house.again().backup().summary.packs == 1
    house.again().assert_converged()


def test_lost_names_are_shown_as_paths(house: House) -> None:
    with house._stores() as (objects, _):
        for version in list(objects.versions("objects/")):
            objects.delete(version.stem, version.version)
    without_index(house)
    assert rebuilt(house)[1] == [b"folder/%d.jpg" % number for number in range(5)]


def test_members_stand_in_the_order_in_which_they_lie(house: House) -> None:
    catalogue = Catalogue()
    record = next(iter(house.records().values()))
    places = [PackAt("p", "v", 600, 9, 512), PackAt("p", "v", 0, 600, 512), PackAt("p", "v", 0, 600, 2048)]
    hashes = [ContentHash(bytes([number] * 32)) for number in (1, 2, 3)]
    contents = [replace(record.content, hash=hash_, location=at) for hash_, at in zip(hashes, places, strict=True)]
    elsewhere = replace(record.content, hash=hashes[0], location=PackAt("q", "v", 0, 9, 512))
    catalogue.add_contents([*contents, elsewhere])
    catalogue.add_versions([("packs/p", "v", 1234)])
    (found,) = catalogue.packs()
    assert (found.id, found.version, found.stored) == ("p", "v", 1234)
    assert found.members == (hashes[1], hashes[2], hashes[0])
    assert pack_key(found.id) == "pack:p"
    catalogue.close()


# A crash anywhere, on a host without the identity


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
def test_a_first_run_that_dies_anywhere_is_carried_on(folder: Path, fault: Fault) -> None:
    number, survived = 0, False
    while not survived:
        number += 1
        house = House(folder / str(number), encryption=True, pack=PACKED).init()
        for name in ("a", "b", "folder/c"):
            house.write(name, f"content of {name}")
        plan = FaultPlan([lambda operation, at=number: fault if operation.mutation == at else None])
        run_under(house, plan)
        survived = not plan.dead
        house = house.again(wrap=as_they_are)
        house.assert_safe()
        assert house.backup().problems == []
        house.again().assert_converged()
        assert all(record.state is RecordState.LIVE for record in house.records().values())
        shutil.rmtree(folder / str(number))
    assert number > 5


def test_a_new_owner_writes_the_name_of_what_it_cannot_read(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row came from the index: the SHA-256 is not known, the name is written all the same, and the log keeps the hash."""
    new = other_machine(house).enroll()
    before = house.records()
    hash_ = house.contents()["photos/folder/3.jpg"]
    monkeypatch.setattr(hashing, "hash_file", unreadable(hashing.hash_file, b"folder/3.jpg"))
    assert [problem.path for problem in new.backup(TAKE_OVER).problems] == [b"folder/3.jpg"]
    assert new.records()[hash_].rev != before[hash_].rev
    line = new.logged()[b"folder/3.jpg"]
    assert (line.hash, line.sha256) == (hash_, None)
    assert line.content is not None


# What is gone from the store


@pytest.mark.parametrize("encryption", [False, True])
def test_a_head_that_is_gone_is_noticed_and_written_anew(tmp_path: Path, encryption: bool) -> None:
    """Chained on by the next segment it would break every later restore."""
    house = House(tmp_path, encryption=encryption).init()
    for name in ("f", "g", "h"):
        house.write(name, name)
        house.backup()
        house = house.again()
    with house.repository() as repository:
        *_, head = [document.key for document in repository.objects.documents("runs/")]
        repository.objects.delete_document(head)
    house.write("i", "i")
    house = house.again(ahead=9000.0)
    house.backup()
    with house.repository() as repository:
        point = find_point(repository, house.source_name)
    assert point.header.kind == CHECKPOINT
    house.assert_safe()


def test_keys_of_a_source_that_are_gone_are_stored_again(tmp_path: Path) -> None:
    house = House(tmp_path, encryption=True).init()
    house.write("f", "f")
    house.backup()
    with house.repository() as repository:
        repository.objects.delete_document("keys/sources/photos.age")
    house.write("g", "g")
    house = house.again()
    house.backup()
    with house.repository() as repository:
        assert repository.objects.read_document("keys/sources/photos.age")
    house.assert_converged()


def test_the_host_key_file_of_another_repository_is_refused(tmp_path: Path) -> None:
    """What were encrypted with it nobody could open."""
    one, other = (House(tmp_path / name, encryption=True, seed=seed) for name, seed in (("a", 1), ("b", 2)))
    files = []
    for house in (one, other):
        house.folder.mkdir(exist_ok=True)
        house.init()
        with house.repository() as repository:
            files.append(repository.keys.host_file.path)
    Path(files[1]).write_bytes(Path(files[0]).read_bytes())
    other.write("f", "precious")
    with pytest.raises(WrongKey, match="another repository"):
        other.again().backup()


# Few requests


def test_a_segment_is_fetched_once_for_its_header_and_its_lines(house: House) -> None:
    for number in range(3):
        house.write(f"later {number}", f"content of {number}")
        house.again().backup()
    plan = FaultPlan()
    house.wrap = lambda objects, index: (FaultyObjects(objects, plan), index)
    with house.job() as job, planned_restore(job, [SOURCE], RestoreOptions(to=str(house.folder / "out"))) as work:
        apply_restore(job, work)
    assert len(os.listdir(house.folder / "out")) == 6
    fetched = Counter(done.key for done in plan.log if done.name == "objects.read_document" and done.key.startswith("runs/"))
    assert len(fetched) == 4
    assert set(fetched.values()) == {1}


def test_only_so_many_segments_are_kept_for_their_lines(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repositories, "_SEGMENTS_KEPT", 10)
    kept = Segments()
    with house.repository() as repository:
        key = newest_key(repository.objects, house.source_name)
        whole = repository.objects.read_document(key)
        assert [kept.read(repository.objects, key) for _ in range(3)] == [whole] * 3
    assert kept._kept == {}
