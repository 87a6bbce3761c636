"""The keys of an encrypted repository below the command line: documents, `init`, sources, recipients, pins. Crashes at every
write of a store or of the host key file."""

from __future__ import annotations

import contextlib
import hmac
import itertools
import json
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from s3hashsync.codec import age
from s3hashsync.codec.age import Passphrase, Payload, X25519Identity, X25519Recipient
from s3hashsync.codec.age_header import parse_text
from s3hashsync.codec.key_files import (
    RECIPIENTS,
    EpochKey,
    HostKey,
    HostSource,
    RecipientList,
    RootKey,
    SourceKeys,
    fingerprint_text,
    parse_epoch,
    parse_host_key,
    parse_recipients,
    parse_source,
    render_source,
)
from s3hashsync.config.model import PackSettings
from s3hashsync.core.model import Rev, Sha256
from s3hashsync.disk.host_key import PrivateFile
from s3hashsync.errors import Corrupt, Denied, Incomplete, Missing, Refused, S3HashSyncError, UsageError, WrongKey
from s3hashsync.run.founding import Founder, Openers, found_encrypted
from s3hashsync.run.key_health import check_writable, key_faults, old_versions, unlisted
from s3hashsync.run.keys import RepositoryKeys
from s3hashsync.run.pins import HostPlace, check_pins
from s3hashsync.run.recipients import Wanted, begin_change, change_recipients, difference
from s3hashsync.run.repository import Identity, control_item, initialise, read_identity
from s3hashsync.run.unlock import Opener, opener_from, unlock
from s3hashsync.stores.base import ObjectStore, Write
from s3hashsync.stores.local import LocalObjects
from s3hashsync.stores.retrying import RetryingIndex, RetryingObjects, RetryPolicy
from s3hashsync.stores.sqlite import SqliteIndex
from tests import servers
from tests.aws_places import fresh_objects
from tests.faulty import Crash, Fault, FaultPlan, FaultyIndex, FaultyObjects, Operation, at
from tests.harness import House

RANDOM = random.Random(5)
NOW = 1_795_000_000
WORD = Passphrase("correct horse battery staple", work_factor=4)
CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
ORIGINAL_WRITE, ORIGINAL_REMOVE = PrivateFile._write, PrivateFile.remove


def person() -> X25519Identity:
    return X25519Identity.generate(RANDOM.randbytes)


def opener(*people: age.Identity) -> Opener:
    return Opener("a test's identity", people)


# The documents


def an_epoch() -> EpochKey:
    return EpochKey("ab" * 16, 1, NOW, RootKey(RANDOM.randbytes(32)), person())


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block, written out."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def test_keys_are_derived_as_the_manual_says() -> None:
    root = RootKey(bytes(range(32)))
    assert root.hash_key == hkdf(root.secret, b"s3hashsync hash")
    assert root.document_key == hkdf(root.secret, b"s3hashsync documents")
    assert root.fingerprint == hkdf(root.secret, b"s3hashsync fingerprint")[:10].hex()
    assert fingerprint_text("0123456789abcdef0123") == "0123 4567 89ab cdef 0123"


def test_an_epoch_key_is_an_identity_file_and_comes_back() -> None:
    key = an_epoch()
    assert age.parse_identities(key.text().decode()) == [key.identity]
    assert parse_epoch(key.text(), "keys/1.age") == key
    lines = key.text().decode().splitlines(keepends=True)
    signed = "".join([*lines[:6], lines[7]]).encode()
    assert lines[6] == f"# mac: {hmac.digest(key.root.document_key, signed, 'sha256').hex()}\n"


def test_no_changed_epoch_key_is_believed() -> None:
    text = an_epoch().text()
    for position in range(len(text)):
        changed = bytearray(text)
        changed[position] ^= 1
        with pytest.raises((WrongKey, Corrupt)) as caught:
            parse_epoch(bytes(changed), "keys/1.age")
        assert "keys/1.age" in caught.value.message
    for cut in range(0, len(text), 7):
        with pytest.raises(Corrupt):
            parse_epoch(text[:cut], "keys/1.age")


def test_the_recipient_that_an_epoch_key_names_is_its_own() -> None:
    key, other = an_epoch(), person()
    above = key.text().decode().split("# mac: ")[0].replace(str(key.identity.recipient), str(other.recipient))
    secret = f"{key.identity.secret_text()}\n"
    mac = hmac.digest(key.root.document_key, (above + secret).encode(), "sha256").hex()
    with pytest.raises(WrongKey):
        parse_epoch(f"{above}# mac: {mac}\n{secret}".encode(), "keys/1.age")


def test_a_later_format_asks_for_a_newer_version() -> None:
    with pytest.raises(Corrupt, match="format 2"):
        parse_epoch(an_epoch().text().replace(b"format 1", b"format 2"), "keys/1.age")


def changed_values(document: bytes) -> Iterator[bytes]:
    body = json.loads(document)
    for name, value in body.items():
        other = value + 1 if isinstance(value, int) else {} if isinstance(value, dict) else value[:-1]
        if other != value:
            yield json.dumps(body | {name: other}).encode()
        yield json.dumps({key: kept for key, kept in body.items() if key != name}).encode()
    yield b""
    yield document[: len(document) // 2]
    yield b"[]"
    yield b"[" * 100_000


def test_no_changed_list_of_recipients_is_believed() -> None:
    root = RootKey(RANDOM.randbytes(32))
    people = texts(*(person() for _ in range(3)))
    listed = RecipientList("ab" * 16, 1, people, 1, {"cd" * 32: people, "ef" * 32: people[:2]})
    assert parse_recipients(listed.render(root)).check(root) == listed
    for document in (*changed_values(listed.render(root)), listed.render(RootKey(RANDOM.randbytes(32)))):
        with pytest.raises((WrongKey, Corrupt)):
            parse_recipients(document).check(root)


def test_no_changed_keys_of_a_source_are_believed() -> None:
    hash_key, keys = RANDOM.randbytes(32), SourceKeys(RANDOM.randbytes(64), RANDOM.randbytes(32))
    document = render_source("ab" * 16, "docs", keys, hash_key)
    assert parse_source(document, "ab" * 16, "docs", hash_key) == keys
    for changed in changed_values(document):
        with pytest.raises((WrongKey, Corrupt)):
            parse_source(changed, "ab" * 16, "docs", hash_key)
    ours = "ab" * 16
    for repository, source, key in (("cd" * 16, "docs", hash_key), (ours, "other", hash_key), (ours, "docs", bytes(32))):
        with pytest.raises(WrongKey):
            parse_source(document, repository, source, key)


def test_a_damaged_host_key_file_is_named() -> None:
    host = HostKey("ab" * 16, "file:///r", "00" * 10, 1, person().recipient, RANDOM.randbytes(32), founding={"keys/1.age": b"x"})
    assert parse_host_key(host.render(), "host.json") == host
    empty = b'{"s3hashsync":"host-key","format":1}'
    for changed in (b"", b"{}", empty, host.render()[:-20], host.render().replace(b"age1", b"age2")):
        with pytest.raises(Corrupt, match=r"host\.json"):
            parse_host_key(changed, "host.json")


def test_no_secret_is_in_a_repr() -> None:
    key, source = an_epoch(), SourceKeys(RANDOM.randbytes(64), RANDOM.randbytes(32))
    host = HostKey("ab" * 16, "file:///r", "00" * 10, 1, key.identity.recipient, key.root.hash_key)
    shown = repr((key, source, host, WORD, opener(key.identity), Openers((), WORD)))
    for secret in (key.root.secret, key.root.hash_key, source.name_key, source.log_key):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown
    assert key.identity.secret_text() not in shown
    assert WORD.text not in shown


# A repository and its hosts


@dataclass
class Place:
    """One repository, the people who may open it, and hosts, each with a folder for its key files."""

    folder: Path
    people: tuple[X25519Identity, ...] = field(default_factory=lambda: (person(), person()))
    passphrase: Passphrase | None = None

    @property
    def openers(self) -> Openers:
        return Openers(tuple(str(one.recipient) for one in self.people), self.passphrase)

    def host(self, name: str) -> HostPlace:
        return HostPlace(str(self.folder / name), f"file://{self.folder / 'repository'}")

    @contextlib.contextmanager
    def stores(self) -> Iterator[tuple[LocalObjects, SqliteIndex]]:
        self.folder.mkdir(exist_ok=True)
        objects = LocalObjects(str(self.folder / "repository"), create=True)
        index = SqliteIndex(str(self.folder / "repository" / "index.db"), create=True)
        try:
            yield objects, index
        finally:
            index.close()
            objects.close()

    def init(self, name: str, plan: FaultPlan | None = None, *, at_hand: Opener | None = None) -> Identity:
        with self.stores() as (objects, index):
            faulty = FaultyObjects(objects, plan or FaultPlan()), FaultyIndex(index, plan or FaultPlan())
            policy = RetryPolicy(first_wait=0.0, longest_wait=0.0, sleep=lambda seconds: None)
            stores = RetryingObjects(faulty[0], policy), RetryingIndex(faulty[1], policy)
            founder = Founder(*stores, self.host(name), self.openers, NOW, random.SystemRandom().randbytes, at_hand)
            with host_files_under(plan or FaultPlan()):
                return found_encrypted(founder)[0]

    @contextlib.contextmanager
    def keys(self, name: str, at_hand: Opener | None = None, plan: FaultPlan | None = None) -> Iterator[RepositoryKeys]:
        with self.stores() as (objects, _):
            about = read_identity(objects)
            assert about is not None
            check_pins(self.host(name), about)
            faulty = FaultyObjects(objects, plan or FaultPlan())
            with host_files_under(plan or FaultPlan()):
                yield RepositoryKeys(
                    faulty, about, self.host(name), lambda by_passphrase: at_hand, random.SystemRandom().randbytes
                )

    def assert_nobody_is_locked_out(self) -> None:
        """If there is a repository, its key is there, and everybody who is listed opens it."""
        with self.stores() as (objects, _):
            about = read_identity(objects)
            if about is None:
                return
            listed = parse_recipients(objects.read_document(RECIPIENTS)).stated
            for one in listed.recipients:
                (identity,) = (p for p in self.people if str(p.recipient) == one)
                opened = unlock(objects, about, opener(identity))
                assert parse_recipients(objects.read_document(RECIPIENTS)).check(opened.root) == listed
            assert listed.recipients
            if listed.passphrases and self.passphrase is not None:
                unlock(objects, about, opener(self.passphrase))

    def assert_host_writes(self, name: str) -> None:
        """What this host seals under its own keys, the user's identity opens."""
        with self.keys(name) as keys:
            keys.add_source("docs")
            seal, hash_ = keys.new_seal(), keys.content_hash(Sha256(bytes(32)))
            sealed, log_key, name_in_index = seal.encrypt(b"text"), keys.log_key("docs"), keys.names("docs").of(b"a/b", hash_)
        with self.keys("nobody", opener(self.people[0])) as keys:
            assert age.decrypt(sealed, keys.identities()) == b"text"
            assert keys.content_hash(Sha256(bytes(32))) == hash_
            assert keys.log_key("docs") == log_key
            assert keys.names("docs").path(name_in_index, hash_) == b"a/b"


@contextlib.contextmanager
def host_files_under(plan: FaultPlan) -> Iterator[None]:
    """The writes of host key files are operations of the plan, too."""

    def fault(name: str, path: str, effect: Callable[[], bool | None]) -> bool | None:
        met = plan.begin(name, path, mutates=True)
        if met is Fault.CRASH_BEFORE:
            raise plan.die()
        done = effect()
        if met is Fault.CRASH_AFTER:
            raise plan.die()
        return done

    def write(self: PrivateFile, path: str, data: bytes, *, replace: bool) -> bool:
        return bool(fault("file.write", path, lambda: ORIGINAL_WRITE(self, path, data, replace=replace)))

    def remove(self: PrivateFile) -> None:
        fault("file.remove", self.path, lambda: ORIGINAL_REMOVE(self))

    PrivateFile._write, PrivateFile.remove = write, remove  # type: ignore[method-assign]
    try:
        yield
    finally:
        PrivateFile._write, PrivateFile.remove = ORIGINAL_WRITE, ORIGINAL_REMOVE  # type: ignore[method-assign]


# init


def writes_of_an_init(folder: Path) -> int:
    plan = FaultPlan()
    Place(folder / "dry", passphrase=WORD).init("here", plan)
    return plan.mutations


def test_init_writes_in_the_order_that_keeps_it_safe(folder: Path) -> None:
    plan = FaultPlan()
    Place(folder, passphrase=WORD).init("here", plan)
    written = [op.name + " " + os.path.basename(op.key) for op in plan.log if op.mutation]
    assert written[0] == "index.write repository"
    assert written[1].startswith("file.write")
    assert [one.split(" ")[1] for one in written[2:6]] == ["1.age", "1.1.age", "recipients.json", "repository.json"]
    assert written[6].startswith("file.write")
    assert len(written) == 7


@pytest.mark.parametrize("fault", CRASHES)
def test_an_init_that_dies_anywhere_is_completed_by_the_next_one(folder: Path, fault: Fault) -> None:
    for number in range(1, writes_of_an_init(folder) + 1):
        place = Place(folder / str(number), passphrase=WORD)
        with contextlib.suppress(Crash):
            place.init("here", FaultPlan([at(number, fault)]))
        place.assert_nobody_is_locked_out()
        about = place.init("here")
        place.assert_nobody_is_locked_out()
        place.assert_host_writes("here")
        assert place.init("here") == about


def hint_of(action: Callable[[], object]) -> str:
    """What somebody who is refused is told to do, "" when all is well."""
    try:
        action()
    except Refused as error:
        return error.hint or "nothing"
    return ""


@pytest.mark.parametrize("fault", CRASHES)
def test_another_host_after_a_dead_init_makes_it_or_is_told_how(folder: Path, fault: Fault) -> None:
    told = 0
    for number in range(1, writes_of_an_init(folder) + 1):
        place = Place(folder / str(number), passphrase=WORD)
        with contextlib.suppress(Crash):
            place.init("here", FaultPlan([at(number, fault)]))
        hint = hint_of(lambda place=place: place.init("there"))  # type: ignore[misc]
        if hint:
            told += 1
            assert "--identity" in hint
            place.init("there", at_hand=opener(place.people[1]))
        with place.stores() as (objects, _):
            about = read_identity(objects)
            assert about is not None
            unlock(objects, about, opener(place.people[0]))
        # The dead one: whatever it left, it never writes with a key that is not the repository's.
        place.init("here")
        with place.keys("here", opener(place.people[0])) as keys:
            if keys.host is None:
                keys.enroll([])
        place.assert_host_writes("here")
    assert told


@pytest.mark.parametrize("rivals_end", range(8))
def test_two_inits_at_once_make_one_repository(folder: Path, rivals_end: int) -> None:
    """At each write of one, another host's init runs; to its end (0), or until it dies at its first, second … write."""
    for number in range(1, writes_of_an_init(folder) + 1):
        place = Place(folder / str(number))
        rivals: list[str] = []

        def rival(operation: Operation, place: Place = place, rivals: list[str] = rivals, number: int = number) -> None:
            if operation.mutation == number and not rivals:
                rivals.append("there")
                files = PrivateFile._write, PrivateFile.remove
                with contextlib.suppress(Refused, Crash):
                    place.init("there", FaultPlan([at(rivals_end, Fault.CRASH_AFTER)] if rivals_end else []))
                PrivateFile._write, PrivateFile.remove = files  # type: ignore[method-assign]

        lost = hint_of(lambda place=place: place.init("here", FaultPlan([rival])))  # type: ignore[misc]
        assert not lost or not list((place.folder / "here").glob("*.json")), "a key that has lost is forgotten"
        place.assert_nobody_is_locked_out()
        for name in ("here", "there"):
            with contextlib.suppress(Refused):
                place.init(name)
        place.assert_nobody_is_locked_out()
        if not lost or not rivals_end:
            place.assert_host_writes("there" if lost else "here")


def test_inits_in_many_threads_make_one_repository(folder: Path) -> None:
    for turn in range(5):
        place = Place(folder / str(turn))

        def init(name: str, place: Place = place) -> str:
            with place.stores() as (objects, index), contextlib.suppress(Refused):
                founder = Founder(objects, index, place.host(name), place.openers, NOW, random.SystemRandom().randbytes)
                return found_encrypted(founder)[0].fingerprint
            return ""

        with ThreadPoolExecutor(4) as pool:
            made = {one for one in pool.map(init, ["a", "a", "b", "c"]) if one}
        assert len(made) == 1
        place.assert_nobody_is_locked_out()


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.THROTTLE])
def test_an_init_survives_lost_answers(folder: Path, fault: Fault) -> None:
    for number in range(1, writes_of_an_init(folder) + 1):
        place = Place(folder / str(number))
        place.init("here", FaultPlan([at(number, fault)]))
        place.assert_host_writes("here")


def test_an_unfinished_init_takes_the_recipients_of_today(folder: Path) -> None:
    place = Place(folder)
    with contextlib.suppress(Crash):
        place.init("here", FaultPlan([at(2, Fault.CRASH_AFTER)]))
    place.people = (person(), person())
    place.init("here")
    place.assert_nobody_is_locked_out()


def test_an_unfinished_init_goes_on_with_the_passphrase_that_it_began_with(folder: Path) -> None:
    place = Place(folder, passphrase=WORD)
    with contextlib.suppress(Crash):
        place.init("here", FaultPlan([at(4, Fault.CRASH_BEFORE)]))
    with pytest.raises(Refused, match="another passphrase"):
        replace(place, passphrase=Passphrase("another one", work_factor=4)).init("here")
    place.init("here")
    place.assert_nobody_is_locked_out()


def test_an_unfinished_repository_takes_no_backup(folder: Path) -> None:
    place = Place(folder)
    with contextlib.suppress(Crash):
        place.init("here", FaultPlan([at(6, Fault.CRASH_BEFORE)]))
    with place.keys("here") as keys, pytest.raises(WrongKey) as caught:
        keys.enrolled()
    assert "init" in (caught.value.hint or "")


def test_a_lost_repository_json_is_written_again_by_a_host_that_knows_it(folder: Path) -> None:
    place = Place(folder)
    about = place.init("here")
    place.assert_host_writes("here")
    (folder / "repository" / "repository.json").unlink()
    assert place.init("here") == about
    place.assert_nobody_is_locked_out()
    place.assert_host_writes("here")


def test_keys_without_repository_json_are_never_written_over(folder: Path) -> None:
    place = Place(folder)
    place.init("here")
    place.assert_host_writes("here")
    (folder / "repository" / "repository.json").unlink()
    before = (folder / "repository" / "keys" / "1.age").read_bytes()
    with pytest.raises(Refused):
        place.init("new host")
    assert (folder / "repository" / "keys" / "1.age").read_bytes() == before
    place.init("new host", at_hand=opener(place.people[0]))
    place.assert_host_writes("here")


def test_an_init_looks_for_the_key_that_it_knows(folder: Path) -> None:
    """A repository whose key is lost as well is none, and must not look like one."""
    place = Place(folder)
    place.init("here")
    for name in ("repository.json", "keys/1.age"):
        (folder / "repository" / name).unlink()
    with pytest.raises(Refused, match=r"keys/1\.age"):
        place.init("here")
    assert not (folder / "repository" / "repository.json").exists()


@pytest.mark.parametrize("key", ["keys/1.age", RECIPIENTS, "repository.json"])
def test_an_init_finds_out_where_creating_writes_over_what_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """A server that does not know create-only writes: another host's init writes last."""
    other = Place(folder / "other")
    other.init("there")
    theirs = (folder / "other" / "repository" / key).read_bytes()
    place, create = Place(folder / "place"), LocalObjects.create_document

    def overtaken(self: LocalObjects, created: str, body: bytes) -> None:
        create(self, created, body)
        if created == "repository.json":
            self.replace_document(key, theirs)

    monkeypatch.setattr(LocalObjects, "create_document", overtaken)
    with pytest.raises(Refused, match="another init"):
        place.init("here")
    assert not list((folder / "place" / "here").glob("*.json")), "a key that has lost is forgotten"


def test_a_new_repository_needs_somebody_who_can_open_it(folder: Path) -> None:
    with pytest.raises(UsageError, match="nobody who can open it"):
        Place(folder, people=()).init("here")


# Sources


@pytest.mark.parametrize("fault", CRASHES)
def test_a_host_that_dies_while_it_adds_a_source_goes_on(folder: Path, fault: Fault) -> None:
    plan = FaultPlan()
    place = Place(folder / "dry")
    place.init("here")
    with place.keys("here", plan=plan) as keys:
        keys.add_source("docs")
    assert plan.names() == ["file.write", "objects.create_document", "file.write"]
    for number in range(1, plan.mutations + 1):
        place = Place(folder / str(number))
        place.init("here")
        with contextlib.suppress(Crash), place.keys("here", plan=FaultPlan([at(number, fault)])) as keys:
            keys.add_source("docs")
        place.assert_host_writes("here")
        data = PrivateFile(next(str(p) for p in (folder / str(number) / "here").glob("*.json"))).read()
        assert data is not None
        assert b"sealed" not in data


def test_a_source_that_another_host_has_added_needs_enrolling(folder: Path) -> None:
    place = Place(folder)
    place.init("here")
    with place.keys("there", opener(place.people[0])) as keys:
        keys.enroll(["docs"])
    place.assert_host_writes("here")
    with place.keys("there") as keys:
        for _ in range(2):
            with pytest.raises(WrongKey) as caught:
                keys.add_source("docs")
            assert "key enroll" in (caught.value.hint or "")
        with pytest.raises(WrongKey):
            keys.names("docs")
    with place.keys("there", opener(place.people[0])) as keys:
        assert set(keys.enroll(["docs", "not yet"]).sources) == {"docs"}
    place.assert_host_writes("there")


def test_keys_that_were_in_use_are_kept_when_another_host_takes_their_place(folder: Path) -> None:
    """The document was lost, and another host is faster to write it: the only copy is this host's."""
    place = Place(folder)
    place.init("here")
    with place.keys("there", opener(place.people[0])) as other:
        other.enroll([])
    place.assert_host_writes("here")
    stored = folder / "repository" / "keys" / "sources" / "docs.age"
    stored.unlink()
    with place.keys("here") as keys:
        before, create = keys.log_key("docs"), keys.objects.create_document

        def late(key: str, body: bytes) -> None:
            with place.keys("there") as other:
                other.add_source("docs")
            create(key, body)

        keys.objects.create_document = late  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(WrongKey) as caught:
                keys.add_source("docs")
            assert "move that document away" in (caught.value.hint or "")
    stored.rename(folder / "away")
    place.assert_host_writes("here")
    with place.keys("nobody", opener(place.people[0])) as keys:
        assert keys.log_key("docs") == before


def test_enrolling_never_takes_the_place_of_keys_that_a_host_has(folder: Path) -> None:
    """What was backed up with them nobody else could open."""
    place = Place(folder)
    place.init("here")
    place.assert_host_writes("here")
    stored = folder / "repository" / "keys" / "sources" / "docs.age"
    stored.rename(folder / "away")
    with place.keys("there", opener(place.people[0])) as other:
        other.enroll([])
        other.add_source("docs")
        theirs = other.log_key("docs")
    with place.keys("here", opener(place.people[0])) as keys:
        mine, before = keys.log_key("docs"), keys.host_file.read()
        with pytest.raises(WrongKey, match="other keys of source docs than the repository") as caught:
            keys.enroll(["fresh", "docs"])
        assert keys.host_file.path in (caught.value.hint or "")
        assert keys.host_file.read() == before
        assert keys.log_key("docs") == mine
        assert set(keys.enroll([]).sources) == {"docs"}, "it is no business of other sources"
    # Either way out of the hint.
    second = stored.rename(folder / "second")
    place.assert_host_writes("here")
    with place.keys("here", opener(place.people[0])) as keys:
        keys.enroll(["docs"])
        assert keys.stored_source("docs").log_key == mine
    second.rename(stored)
    with place.keys("here", opener(place.people[0])) as keys:
        Path(keys.host_file.path).rename(folder / "host.json")
    with place.keys("here", opener(place.people[0])) as keys:
        keys.enroll(["docs"])
        assert keys.log_key("docs") == theirs


def test_the_same_keys_in_an_older_document_are_no_others(folder: Path) -> None:
    place = Place(folder)
    place.init("here")
    place.assert_host_writes("here")
    stored = folder / "repository" / "keys" / "sources" / "docs.age"
    older = stored.rename(folder / "older")
    with place.keys("here") as keys:
        create = keys.objects.create_document

        def late(key: str, body: bytes) -> None:
            older.rename(stored)
            create(key, body)

        keys.objects.create_document = late  # type: ignore[method-assign]
        with pytest.raises(WrongKey, match="written by another host"):
            keys.add_source("docs")
    with place.keys("here", opener(place.people[0])) as keys:
        keys.enroll(["docs"])
    place.assert_host_writes("here")


def test_keys_that_were_never_in_use_go_when_another_host_is_faster(folder: Path) -> None:
    place = Place(folder)
    place.init("here")
    with place.keys("there", opener(place.people[0])) as other:
        other.enroll([])
    with place.keys("here") as keys:
        create = keys.objects.create_document

        def late(key: str, body: bytes) -> None:
            with place.keys("there") as other:
                other.add_source("docs")
            create(key, body)

        keys.objects.create_document = late  # type: ignore[method-assign]
        with pytest.raises(WrongKey, match="does not have them"):
            keys.add_source("docs")
        assert keys.host is not None
        assert not keys.host.sources


def test_two_processes_of_a_host_add_sources(folder: Path) -> None:
    place = Place(folder)
    place.init("here")
    with place.keys("here") as one, place.keys("here") as two:
        one.add_source("first")
        two.add_source("second")
        one.add_source("second")
        assert one.log_key("second") == two.log_key("second")
    with place.keys("here") as keys:
        assert keys.host is not None
        assert set(keys.host.sources) == {"first", "second"}


@pytest.mark.parametrize("act", ["add_source", "enroll"])
def test_the_host_key_file_is_changed_by_one_process_at_a_time(folder: Path, act: str) -> None:
    place = Place(folder)
    place.init("here")
    with place.keys("here", opener(place.people[0])) as one, place.keys("here", opener(place.people[0])) as two:
        one.unlocked()
        with ThreadPoolExecutor(1) as pool:
            with two.host_file.locked():
                waiting = pool.submit(one.add_source, "first") if act == "add_source" else pool.submit(one.enroll, [])
                with pytest.raises(TimeoutError):
                    waiting.result(timeout=0.5)
                written = two.enrolled()
                kept = {"second": HostSource(SourceKeys(RANDOM.randbytes(64), RANDOM.randbytes(32)))}
                two.host_file.replace(replace(written, sources=kept).render())
            waiting.result()
    with place.keys("here") as keys:
        assert keys.host is not None
        assert set(keys.host.sources) == ({"first", "second"} if act == "add_source" else {"second"})


def test_an_added_source_costs_one_look(folder: Path) -> None:
    """Its keys must be in the repository whenever something is written that only they open."""
    place, plan = Place(folder), FaultPlan()
    place.init("here")
    place.assert_host_writes("here")
    with place.keys("here", plan=plan) as keys:
        keys.add_source("docs")
    assert [operation.name for operation in plan.log] == ["objects.read_document"]


def test_a_forged_key_of_a_source_is_not_believed(folder: Path) -> None:
    place = Place(folder)
    place.init("here")
    place.assert_host_writes("here")
    with place.keys("here") as keys:
        assert keys.host is not None
        recipient = keys.host.recipient
    forged = render_source(keys.about.id, "docs", SourceKeys(bytes(64), bytes(32)), bytes(32))
    path = folder / "repository" / "keys" / "sources" / "docs.age"
    genuine = path.read_bytes()
    for to in (recipient, person().recipient):
        path.write_bytes(age.encrypt(forged, (to,), RANDOM.randbytes))
        with place.keys("new", opener(place.people[0])) as keys, pytest.raises(WrongKey):
            keys.log_key("docs")
    path.write_bytes(genuine[:-1])
    with place.keys("new", opener(place.people[0])) as keys, pytest.raises(Corrupt):
        keys.log_key("docs")


# Opening


def test_nobody_is_asked_before_something_has_to_be_read_and_then_once(folder: Path) -> None:
    place = Place(folder)
    place.init("here")
    asked = []

    def find(*, by_passphrase: bool) -> Opener:
        asked.append(by_passphrase)
        return opener(place.people[0])

    with place.stores() as (objects, _):
        about = read_identity(objects)
        assert about is not None
        keys = RepositoryKeys(objects, about, place.host("here"), find, os.urandom)
        keys.add_source("docs")
        keys.content_hash(Sha256(bytes(32)))
        keys.new_seal()
        keys.names("docs")
        keys.log_key("docs")
        assert keys.encoding == "zstd+age:1"
        assert asked == []
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _: keys.identity(1).secret_text(), range(32)))
            seals = {seal.file_key for seal in pool.map(lambda _: keys.new_seal(), range(32))}
    assert len(found) == 1
    assert len(seals) == 32
    assert asked == [False]


def test_a_passphrase_opens_what_it_was_made_for(folder: Path) -> None:
    place = Place(folder, passphrase=WORD)
    place.init("here")
    with place.keys("new", opener(WORD)) as keys:
        assert len(keys.identities()) == 1
    with place.keys("new", opener(Passphrase("wrong"))) as keys, pytest.raises(WrongKey, match="passphrase does not open"):
        keys.identities()
    without = Place(folder / "without")
    without.init("here")
    with without.keys("new", opener(WORD)) as keys, pytest.raises(WrongKey, match="no passphrase opens"):
        keys.identities()


def test_a_wrong_identity_is_told_whose_the_repository_is(folder: Path) -> None:
    place, stranger = Place(folder), person()
    place.init("here")
    with place.keys("new", opener(stranger)) as keys, pytest.raises(WrongKey) as caught:
        keys.identities()
    assert str(stranger.recipient) in caught.value.message
    assert all(str(one.recipient) in (caught.value.hint or "") for one in place.people)
    with place.keys("new") as keys, pytest.raises(WrongKey) as caught:
        keys.identities()
    assert "--identity" in (caught.value.hint or "")


def test_exchanged_keys_are_named(folder: Path) -> None:
    one, two = Place(folder / "one"), Place(folder / "two")
    two.people = one.people
    one.init("here")
    two.init("here")
    ours, theirs = (p.folder / "repository" / "keys" / "1.age" for p in (one, two))
    ours.write_bytes(theirs.read_bytes())
    with one.keys("new", opener(one.people[0])) as keys, pytest.raises(WrongKey, match="its repository is"):
        keys.identities()


def test_a_forged_second_epoch_is_refused(folder: Path) -> None:
    place = Place(folder)
    about = place.init("here")
    forged = EpochKey(about.id, 2, NOW, RootKey(RANDOM.randbytes(32)), person())
    body = age.encrypt(forged.text(), tuple(one.recipient for one in place.people), RANDOM.randbytes)
    (folder / "repository" / "keys" / "2.age").write_bytes(body)
    with place.keys("new", opener(place.people[0])) as keys, pytest.raises(WrongKey, match="fingerprint"):
        keys.identities()


def test_a_second_epoch_opens_what_each_has_sealed(folder: Path) -> None:
    place = Place(folder)
    about = place.init("here")
    with place.keys("here", opener(place.people[0])) as keys:
        old = keys.new_seal().encrypt(b"old")
        second = EpochKey(about.id, 2, NOW, keys.unlocked().root, person())
    body = age.encrypt(second.text(), tuple(one.recipient for one in place.people), RANDOM.randbytes)
    (folder / "repository" / "keys" / "2.age").write_bytes(body)
    with place.keys("there", opener(place.people[1])) as keys:
        assert keys.enroll([]).epoch == 2
        assert keys.encoding == "zstd+age:2"
        assert age.decrypt(keys.new_seal().encrypt(b"new"), (keys.identity(2),)) == b"new"
        assert age.decrypt(old, (keys.identity(1),)) == b"old"
        with pytest.raises(Corrupt, match="epoch 3"):
            keys.identity(3)


def test_identity_files_may_be_protected() -> None:
    mine = person()
    text = f"# mine\n{mine.secret_text()}\n".encode()
    assert opener_from("the file", text, lambda: None).identities == (mine,)
    protected = age.encrypt(text, (WORD,), RANDOM.randbytes)
    assert opener_from("the file", protected, lambda: WORD.text).identities == (mine,)
    with pytest.raises(WrongKey, match="nobody to ask"):
        opener_from("the file", protected, lambda: None)
    with pytest.raises(WrongKey, match="does not open the file"):
        opener_from("the file", protected, lambda: "wrong")
    for bad in (b"", b"hello", b"\xff\xfe", b"-----BEGIN AGE ENCRYPTED FILE-----\n", str(mine.recipient).encode()):
        with pytest.raises(UsageError, match="the file"):
            opener_from("the file", bad, lambda: None)


# Pins


def test_a_repository_that_suddenly_says_otherwise_is_refused(folder: Path) -> None:
    place = Place(folder)
    about = place.init("here")
    for other in (
        replace(about, fingerprint="00" * 10),
        replace(about, encryption="off", fingerprint=""),
        replace(about, id="cd" * 16),
        replace(about, versions="store"),
    ):
        with pytest.raises(WrongKey) as caught:
            check_pins(place.host("here"), other)
        assert "delete" in (caught.value.hint or "")
        check_pins(place.host("nobody"), other)
    check_pins(place.host("here"), about)
    # The same repository at another address, and another repository at another one.
    elsewhere = replace(place.host("here"), url="s3://elsewhere")
    check_pins(elsewhere, about)
    check_pins(elsewhere, replace(about, id="cd" * 16, encryption="off"))


def test_a_host_key_file_of_former_days_says_nothing_of_versions(folder: Path) -> None:
    place = Place(folder)
    about = place.init("here")
    (file,) = (folder / "here").glob("*.json")
    assert '"versions": "suffix"' in file.read_text()
    file.write_text(file.read_text().replace(' "versions": "suffix",\n', ""))
    check_pins(place.host("here"), replace(about, versions="store"))


@pytest.mark.parametrize("id_", ["/tmp/x", "../x", "", "a/b", "a" * 65])
def test_what_the_index_calls_the_repository_becomes_no_path(folder: Path, id_: str) -> None:
    place = Place(folder)
    with place.stores() as (_, index):
        index.write([Write(control_item(Identity(id_, "ab" * 8, NOW), Rev(bytes(12))), None)])
    with pytest.raises(Corrupt, match="is damaged"):
        place.init("here")
    assert [path.name for path in folder.iterdir()] == ["repository"]


def test_a_named_key_file_belongs_to_one_repository(folder: Path) -> None:
    place = Place(folder)
    about = place.init("here")
    (file,) = (folder / "here").glob("*.json")
    named = HostPlace(str(folder / "none"), "s3://elsewhere", str(file))
    check_pins(named, about)
    with pytest.raises(WrongKey):
        check_pins(named, replace(about, id="cd" * 16))


def test_no_new_repository_takes_the_place_of_one_that_is_known(folder: Path) -> None:
    place = Place(folder)
    place.init("here")
    shutil.rmtree(folder / "repository")
    with pytest.raises(WrongKey, match="is not there"):
        place.init("here")
    place.init("another host")


def test_a_damaged_file_of_another_repository_is_in_nobodys_way(folder: Path) -> None:
    place = Place(folder)
    about = place.init("here")
    (folder / "here" / f"{'cd' * 16}.json").write_text("{")
    check_pins(place.host("here"), about)


# Recipients


def changed(place: Place, wanted: Wanted, plan: FaultPlan | None = None, by: age.Identity | None = None) -> RecipientList:
    with place.keys("here", opener(by or place.people[0]), plan) as keys:
        return change_recipients(begin_change(keys), wanted)


def texts(*people: X25519Identity) -> tuple[str, ...]:
    return tuple(str(one.recipient) for one in people)


def test_added_and_removed_recipients(folder: Path) -> None:
    place, third = Place(folder), person()
    about = place.init("here")
    first, second = place.people
    place.people = (first, second, third)
    assert changed(place, Wanted(texts(first, second, third))).recipients == texts(first, second, third)
    place.assert_nobody_is_locked_out()
    changed(place, Wanted(texts(first, third)))
    with place.stores() as (objects, _):
        unlock(objects, about, opener(third))
        with pytest.raises(WrongKey):
            unlock(objects, about, opener(second))
        listed = parse_recipients(objects.read_document(RECIPIENTS)).stated
        assert list(unlisted(objects, listed)) == []
        assert objects.read_document("keys/1.age").count(b"-> X25519") == 2
    place.assert_host_writes("here")


def test_passphrases_come_and_go(folder: Path) -> None:
    place = Place(folder)
    about = place.init("here")
    assert changed(place, Wanted(texts(*place.people), WORD)).passphrases == 1
    assert changed(place, Wanted(texts(*place.people), WORD)).passphrases == 1, "the same one is not added twice"
    assert changed(place, Wanted(texts(*place.people), Passphrase("two", work_factor=4)), by=WORD).passphrases == 2
    with place.stores() as (objects, _):
        for word in ("two", WORD.text):
            unlock(objects, about, opener(Passphrase(word)))
    with pytest.raises(Refused, match="would not open"):
        changed(place, Wanted(texts(*place.people), drop_passphrases=True), by=WORD)
    assert changed(place, Wanted(texts(*place.people), drop_passphrases=True)).passphrases == 0
    assert sorted(p.name for p in (folder / "repository" / "keys").iterdir()) == ["1.age", "recipients.json"]


def test_the_last_way_in_and_the_one_at_hand_stay(folder: Path) -> None:
    place = Place(folder)
    place.init("here")
    before = (folder / "repository" / "keys" / "1.age").read_bytes()
    with pytest.raises(Refused, match="last"):
        changed(place, Wanted(()))
    with pytest.raises(Refused, match="at hand"):
        changed(place, Wanted(texts(place.people[1])))
    assert (folder / "repository" / "keys" / "1.age").read_bytes() == before


@pytest.mark.parametrize("place_of_fault", ["header", "text"])
@pytest.mark.parametrize("passphrase", [None, WORD])
def test_a_key_file_that_does_not_open_again_is_not_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place_of_fault: str, passphrase: Passphrase | None
) -> None:
    """A machine whose memory fails: in a folder the only key file would be written over."""
    place = Place(folder)
    place.init("here")
    keys = folder / "repository" / "keys"
    before = {path.name: path.read_bytes() for path in keys.iterdir()}
    encrypt, broken = age.Seal.encrypt, b"-> scrypt" if passphrase else b"-> X25519"

    def failing(self: age.Seal, plain: bytes) -> bytes:
        if broken not in self.header:
            return encrypt(self, plain)
        if place_of_fault == "header":
            data = encrypt(self, plain)
            return data[:40] + bytes((data[40] ^ 1,)) + data[41:]
        return encrypt(self, plain[:-2] + b"x\n")

    monkeypatch.setattr(age.Seal, "encrypt", failing)
    with pytest.raises(Corrupt, match="encrypted a moment ago"):
        changed(place, Wanted(texts(*place.people, person()) if passphrase is None else texts(*place.people), passphrase))
    assert {path.name: path.read_bytes() for path in keys.iterdir()} == before


@pytest.mark.parametrize("fault", [*CRASHES, Fault.DENY])
@pytest.mark.parametrize("change", ["add", "remove", "swap", "passphrase", "no passphrase"])
def test_a_change_that_dies_anywhere_locks_nobody_out(folder: Path, change: str, fault: Fault) -> None:
    third = person()

    def prepared(where: Path) -> tuple[Place, Wanted]:
        place = Place(where, passphrase=WORD if change == "no passphrase" else None)
        place.init("here")
        first, second = place.people
        place.people, place.passphrase = (first, second, third), WORD
        return place, {
            "add": Wanted(texts(first, second, third)),
            "remove": Wanted(texts(first)),
            "swap": Wanted(texts(first, third)),
            "passphrase": Wanted(texts(first, second), WORD),
            "no passphrase": Wanted(texts(first, second), drop_passphrases=True),
        }[change]

    plan = FaultPlan()
    place, wanted = prepared(folder / "dry")
    result = changed(place, wanted, plan)
    for number in range(1, plan.mutations + 1):
        place, wanted = prepared(folder / str(number))
        with contextlib.suppress(Crash, S3HashSyncError):
            changed(place, wanted, FaultPlan([at(number, fault)]))
        place.assert_nobody_is_locked_out()
        again = changed(place, wanted)
        assert (again.recipients, again.passphrases) == (wanted.recipients, result.passphrases)
        place.assert_nobody_is_locked_out()
        with place.stores() as (objects, _):
            assert list(unlisted(objects, again)) == []


def test_a_removal_that_was_cut_short_shows(folder: Path) -> None:
    place = Place(folder)
    place.init("here")
    plan = FaultPlan([at(2, Fault.CRASH_BEFORE)])
    with contextlib.suppress(Crash):
        changed(place, Wanted(texts(place.people[0])), plan)
    with place.stores() as (objects, _):
        listed = parse_recipients(objects.read_document(RECIPIENTS)).stated
        assert listed.recipients == texts(place.people[0])
        assert list(unlisted(objects, listed)) == ["keys/1.age"]


class Counted:
    """`stores.base.ObjectStore` around another one, as far as keys go: counts the bytes of documents."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.moved = 0
        self.keys: set[str] = set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def read_document(self, key: str) -> bytes:
        data = self._store.read_document(key)
        self.moved += len(data)
        return data

    def replace_document(self, key: str, body: bytes) -> None:
        self.moved += len(body)
        self.keys.add(key)
        self._store.replace_document(key, body)


def test_changing_recipients_moves_next_to_nothing(folder: Path) -> None:
    """Whatever is stored: contents, packs, logs and the keys of sources are not touched."""
    place, third = Place(folder), person()
    about = place.init("here")
    sources = [f"source-{number}" for number in range(20)]
    with place.keys("here") as keys:
        for source in sources:
            keys.add_source(source)
    for wanted in (texts(*place.people, third), texts(place.people[0])):
        with place.stores() as (objects, _):
            counted = Counted(objects)
            find = lambda by_passphrase: opener(place.people[0])  # noqa: E731
            keys = RepositoryKeys(counted, about, place.host("here"), find, os.urandom)  # type: ignore[arg-type]
            change_recipients(begin_change(keys), Wanted(wanted))
        assert counted.moved < 15_000
        assert counted.keys == {"keys/1.age", RECIPIENTS}


def test_the_list_is_written_anew_where_it_is_lost_or_forged(folder: Path) -> None:
    place = Place(folder)
    about = place.init("here")
    path = folder / "repository" / "keys" / "recipients.json"
    stranger = person()
    forged = RecipientList(about.id, 1, texts(*place.people, stranger)).render(RootKey(RANDOM.randbytes(32)))
    for damage in (b"", forged, None):
        path.unlink() if damage is None else path.write_bytes(damage)
        changed(place, Wanted(texts(*place.people)))
        place.assert_nobody_is_locked_out()
        with place.stores() as (objects, _), pytest.raises(WrongKey):
            unlock(objects, about, opener(stranger))


def test_what_the_configuration_would_change() -> None:
    from s3hashsync.config.model import EncryptionSettings
    from s3hashsync.config.secret import Origin, Secret

    listed = RecipientList("ab" * 16, 1, ("age1a", "age1b"))
    secret = Secret("text", ("word",), Origin("f", "", 0, 0))
    assert not difference(EncryptionSettings(), listed)
    assert not difference(EncryptionSettings(("age1b", "age1a")), listed)
    found = difference(EncryptionSettings(("age1b", "age1c"), passphrase=secret), listed)
    assert (found.added, found.removed, found.passphrase) == (("age1c",), ("age1a",), True)
    assert not difference(EncryptionSettings(("age1a", "age1b"), secret), replace(listed, passphrases=2)).passphrase


def test_a_list_of_former_days_lets_nobody_in_again(folder: Path) -> None:
    """Genuine, but put back by somebody who may write to the store."""
    place, thief = Place(folder), person()
    place.init("here")
    path = folder / "repository" / "keys" / "recipients.json"
    mine = texts(*place.people)
    changed(place, Wanted((*mine, *texts(thief))))
    old = path.read_bytes()
    changed(place, Wanted(mine))
    fresh = path.read_bytes()
    path.write_bytes(old)
    with place.keys("here", opener(place.people[0])) as keys:
        assert begin_change(keys).before is None
        assert [fault.what for fault in check_writable(keys)] == [
            "keys/1.age is not the file that keys/recipients.json describes: one of them was changed or is damaged"
        ]
    path.write_bytes(fresh)
    with place.keys("here", opener(place.people[0])) as keys:
        before = begin_change(keys).before
        assert before is not None
        assert before.recipients == mine
        assert check_writable(keys) == ()


def test_a_list_without_a_digest_is_read_and_not_gone_by(folder: Path) -> None:
    """As it was written before there was one: whoever put it back would be believed otherwise."""
    place = Place(folder)
    place.init("here")
    path = folder / "repository" / "keys" / "recipients.json"
    with place.keys("here", opener(place.people[0])) as keys:
        listed = replace(parse_recipients(path.read_bytes()).stated, describes={})
        path.write_bytes(listed.render(keys.unlocked().root))
        assert b"describes" not in path.read_bytes()
        assert keys.stated_recipients() == listed
        assert list(key_faults(keys)) == []
        assert begin_change(keys).before is None
    changed(place, Wanted(texts(*place.people)))
    with place.keys("here", opener(place.people[0])) as keys:
        assert begin_change(keys).before is not None


def added(place: Place, newcomer: X25519Identity, plan: FaultPlan) -> bool:
    """`key add`; False: it was told that somebody else is at work."""
    try:
        with place.keys("here", opener(place.people[0]), plan) as keys:
            change = begin_change(keys)
            if change.before is None:
                return False
            change_recipients(change, Wanted((*change.before.recipients, *texts(newcomer))))
    except Refused:
        return False
    return True


def assert_added(place: Place, *newcomers: X25519Identity) -> None:
    with place.stores() as (objects, _):
        about = read_identity(objects)
        assert about is not None
        listed = parse_recipients(objects.read_document(RECIPIENTS)).stated
        for one in newcomers:
            assert str(one.recipient) in listed.recipients
            unlock(objects, about, opener(one))


def test_of_two_changes_at_once_none_is_lost_without_a_word(folder: Path) -> None:
    """At each request of one, another one runs to its end."""
    plan = FaultPlan()
    dry = Place(folder / "dry")
    dry.init("here")
    assert added(dry, person(), plan)
    told = 0
    for number in range(1, len(plan.log) + 1):
        place, one, two = Place(folder / str(number)), person(), person()
        place.init("here")
        rivals: list[bool] = []
        plan = FaultPlan()

        def rival(_: Operation, place: Place = place, two: X25519Identity = two, rivals: list[bool] = rivals) -> None:
            if len(plan.log) == number and not rivals:  # noqa: B023
                rivals.append(False)
                rivals[0] = added(place, two, FaultPlan())

        plan.rules = [rival]
        mine = added(place, one, plan)
        told += not mine
        with place.keys("here", opener(place.people[0])) as keys:
            if begin_change(keys).before is not None:
                assert_added(place, *([one] if mine else []), *([two] if rivals[0] else []))
            else:
                assert not (mine and rivals[0])
                assert list(key_faults(keys))
        place.people = (*place.people, one, two)
        changed(place, Wanted(texts(*place.people)))
        place.assert_nobody_is_locked_out()
    assert told


def test_two_changes_that_go_step_by_step_lose_nobody_without_a_word(folder: Path) -> None:
    for seed in range(40):
        place, people, turn = Place(folder / str(seed)), (person(), person()), random.Random(seed)
        place.init("here")
        turns = Turns(turn)
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(turns.take, number, added, place, one) for number, one in enumerate(people)]
            done = [future.result() for future in futures]
        if all(done):
            assert_added(place, *people)
        place.people = (*place.people, *people)
        changed(place, Wanted(texts(*place.people)))
        place.assert_nobody_is_locked_out()


class Turns:
    """Two processes, of which one at a time goes one request further; which one is drawn."""

    def __init__(self, turn: random.Random) -> None:
        self._turn = turn
        self._next = turn.randrange(2)
        self._left = {0, 1}
        self._moved = threading.Condition()

    def take(self, number: int, action: Callable[[Place, X25519Identity, FaultPlan], bool], *what: object) -> bool:
        place, one = what
        assert isinstance(place, Place)
        assert isinstance(one, X25519Identity)
        try:
            return action(place, one, FaultPlan([lambda _: self._wait(number)]))
        finally:
            with self._moved:
                self._left.discard(number)
                self._next = 1 - number
                self._moved.notify_all()

    def _wait(self, number: int) -> None:
        with self._moved:
            self._next = self._turn.choice(sorted(self._left))
            self._moved.notify_all()
            assert self._moved.wait_for(lambda: self._next == number or self._left == {number}, 20)


def test_an_apply_looks_at_the_keys_with_two_reads(folder: Path) -> None:
    place, plan = Place(folder, passphrase=WORD), FaultPlan()
    place.init("here")
    with place.keys("here", plan=plan) as keys:
        assert check_writable(keys) == ()
    assert [(one.name, one.key) for one in plan.log] == [
        ("objects.read_document", "keys/1.age"),
        ("objects.read_document", RECIPIENTS),
    ]


@pytest.fixture(scope="module")
def ministack() -> Iterator[str]:
    with servers.ministack() as endpoint:
        yield endpoint


def test_old_versions_of_the_keys_are_gone_from_a_bucket(ministack: str, folder: Path) -> None:
    store, place = fresh_objects(ministack), Place(folder, passphrase=WORD)
    index = SqliteIndex(str(folder / "index.db"), create=True)
    founder = Founder(store, index, place.host("here"), place.openers, NOW, os.urandom)
    about, _ = found_encrypted(founder)
    index.close()
    first, second = place.people
    old = store.read_document("keys/1.age")
    keys = RepositoryKeys(store, about, place.host("here"), lambda by_passphrase: opener(first), os.urandom)
    store.replace_document(RECIPIENTS, store.read_document(RECIPIENTS))
    assert [f"old versions of {RECIPIENTS}" in fault.what for fault in old_versions(keys)] == [True]
    change_recipients(begin_change(keys), Wanted(texts(first), drop_passphrases=True))
    assert list(old_versions(keys)) == []
    left = [(v.stem, b"".join(store.read(v.stem, v.version))) for v in store.versions("keys/") if not v.is_marker]
    assert sorted(stem for stem, _ in left) == ["keys/1.age", RECIPIENTS]
    assert old not in [body for _, body in left]
    with pytest.raises(WrongKey):
        unlock(store, about, opener(second))


class Versioned:
    """A bucket with versions around a folder, as far as documents go: keeps what each was before. `stop`: what becomes of whoever
    wants to delete that."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.old: dict[str, list[bytes]] = {}
        self.stop: type[Exception] | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def _keep(self, key: str) -> None:
        with contextlib.suppress(Missing):
            self.old.setdefault(key, []).append(self._store.read_document(key))

    def replace_document(self, key: str, body: bytes) -> None:
        self._keep(key)
        self._store.replace_document(key, body)

    def delete_document(self, key: str) -> None:
        self._keep(key)
        self._store.delete_document(key)

    def past_documents(self, prefix: str) -> Iterator[str]:
        return iter(sorted(key for key in self.old if key.startswith(prefix)))

    def forget_versions(self, key: str) -> None:
        if self.stop is not None:
            raise self.stop("no right to delete versions")
        del self.old[key]


@pytest.mark.parametrize("stop", [Crash, Denied])
@pytest.mark.parametrize("kept", [2, 1])
def test_old_versions_that_an_earlier_change_has_left_go_with_the_next_one(
    folder: Path, kept: int, stop: type[Exception]
) -> None:
    """Somebody who was removed opens them."""
    place = Place(folder, passphrase=WORD)
    about = place.init("here")
    left = texts(*place.people[:kept])
    with place.stores() as (objects, _):
        bucket = Versioned(objects)
        find = lambda by_passphrase: opener(place.people[0])  # noqa: E731
        keys = RepositoryKeys(bucket, about, place.host("here"), find, os.urandom)  # type: ignore[arg-type]
        bucket.stop = stop
        with pytest.raises(Crash if stop is Crash else Incomplete):
            change_recipients(begin_change(keys), Wanted(left, drop_passphrases=True))
        assert b"AGE-SECRET-KEY-1" in age.decrypt(bucket.old["keys/1.1.age"][0], (WORD,))
        assert any("keys/1.1.age" in fault.what and "key sync" in fault.hint for fault in old_versions(keys))
        bucket.stop = None
        bucket.old |= {"keys/2.age": [b"of an epoch that is lost"], "keys/sources/docs.age": [b"no business of recipients"]}
        change_recipients(begin_change(keys), Wanted(left))
        assert [fault.what.partition(" are ")[0] for fault in old_versions(keys)] == [
            "old versions of keys/2.age, keys/sources/docs.age"
        ]
    assert sorted(bucket.old) == ["keys/2.age", "keys/sources/docs.age"]


def test_old_versions_stay_while_nobody_has_opened_the_new_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file key is wrapped for somebody else: whoever sealed it does not see that, whoever opens it does."""
    place, stranger, wrap = Place(folder), person(), X25519Recipient.wrap
    about = place.init("here")
    first = place.people[0]
    with place.stores() as (objects, _):
        bucket, before = Versioned(objects), objects.read_document("keys/1.age")
        find = lambda by_passphrase: opener(first)  # noqa: E731
        keys = RepositoryKeys(bucket, about, place.host("here"), find, os.urandom)  # type: ignore[arg-type]
        change = begin_change(keys)
        monkeypatch.setattr(X25519Recipient, "wrap", lambda _, *how: wrap(stranger.recipient, *how))
        with pytest.raises(WrongKey, match="does not open"):
            change_recipients(change, Wanted(texts(first)))
    assert bucket.old["keys/1.age"] == [before]


def test_a_new_passphrase_is_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, wrap = Place(folder), Passphrase.wrap
    place.init("here")
    other = Passphrase("another one", work_factor=4)
    monkeypatch.setattr(Passphrase, "wrap", lambda _, *how: wrap(other, *how))
    with pytest.raises(Corrupt, match=r"keys/1\.1\.age is not what was written"):
        changed(place, Wanted(texts(*place.people), WORD))
    with place.stores() as (objects, _):
        assert parse_recipients(objects.read_document(RECIPIENTS)).stated.passphrases == 0


# What a host has


def secrets_of(house: House) -> dict[str, bytes]:
    """Everything in the host's key file that could be a key, by where it stands."""
    (file,) = Path(house.place.folder).glob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    found: dict[str, bytes] = {}

    def collect(where: str, value: object) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                collect(f"{where}/{name}", inner)
        elif isinstance(value, str):
            with contextlib.suppress(ValueError):
                found[where] = bytes.fromhex(value)

    collect("", json.loads(file.read_text()))
    return found


def test_nothing_that_a_host_keeps_opens_anything(folder: Path) -> None:
    house = House(folder, encryption=True, pack=PackSettings(1 << 12, 1 << 20)).init()
    house.write("small", "small")
    house.write("large", random.Random(1).randbytes(1 << 14))
    house.backup()
    house.assert_converged()
    keys = secrets_of(house)
    assert {"/hash_key", "/sources/photos/name_key", "/sources/photos/log_key"} <= keys.keys()
    windows = {value[at : at + size] for value in keys.values() for size in (16, 32) for at in range(len(value) - size + 1)}
    identities = [X25519Identity.generate(lambda size, w=w: w) for w in windows if len(w) == 32]  # type: ignore[misc]
    sealed = [p for p in (folder / "repository").rglob("*") if p.is_file() and p.read_bytes().startswith(b"age-encryption.org/")]
    kinds = {str(p.relative_to(folder / "repository")).split("/")[0] for p in sealed}
    assert kinds == {"keys", "objects", "packs", "runs"}
    for path in sealed:
        data = path.read_bytes()
        header, text = age.parse_header(data), parse_text(data)
        assert header is not None
        assert text is not None
        nonce, body = data[header.size : header.size + 16], data[header.size + 16 :]
        with pytest.raises(WrongKey):
            header.unlock(nonce, identities)
        for key in (w for w in windows if len(w) == 16):
            with pytest.raises(Corrupt):
                text.check_mac(key)
            with pytest.raises(Corrupt):
                list(Payload(key, nonce, 0).decrypt(iter((body,))))


def test_no_name_and_no_content_is_in_the_clear(folder: Path) -> None:
    house = House(folder, encryption=True).init()
    house.write("a name that nobody should see", b"a content that nobody should see" * 100)
    house.backup()
    (file,) = Path(house.place.folder).glob("*.json")
    secrets = [bytes.fromhex(value) for value in (json.loads(file.read_text())["hash_key"],)]
    for path in (p for p in (folder / "repository").rglob("*") if p.is_file()):
        data = path.read_bytes()
        for hidden in (b"nobody should see", *secrets, *(s.hex().encode() for s in secrets)):
            assert hidden not in data, path


def test_files_of_the_host_stay_private_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0o000)
    try:
        house = House(folder, encryption=True).init()
        house.write("file", "content")
        house.backup()
    finally:
        os.umask(before)
    secrets_of(house)
    assert all(p.stat().st_mode & 0o077 == 0 for p in Path(house.place.folder).iterdir())


def test_a_key_file_that_cannot_be_written_is_named(folder: Path) -> None:
    blocked = folder / "file"
    blocked.write_text("")
    with pytest.raises(S3HashSyncError, match="cannot write"):
        PrivateFile(str(blocked / "x.json")).replace(b"data")
    with pytest.raises(S3HashSyncError, match="cannot read"):
        PrivateFile(str(folder)).read()


def test_a_private_file_is_never_overwritten_by_create(folder: Path) -> None:
    file = PrivateFile(str(folder / "new" / "x.json"))
    assert file.create(b"one")
    assert not file.create(b"two")
    assert file.read() == b"one"
    file.replace(b"three")
    link = folder / "link"
    link.symlink_to(file.path)
    PrivateFile(str(link)).replace(b"four")
    assert link.is_symlink()
    assert file.read() == b"four"
    assert file.mode() == 0o600
    assert sorted(os.listdir(folder / "new")) == ["x.json"]


def test_a_plain_repository_is_no_business_of_keys(folder: Path) -> None:
    place = Place(folder)
    with place.stores() as (objects, index):
        about, _ = initialise(objects, index, NOW, RANDOM.randbytes)
    check_pins(place.host("here"), about)
    assert list(itertools.islice((folder / "repository").glob("keys/*"), 1)) == []
