"""The clauses O1 to O17 of an object store. A test's name carries its clause."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from s3hashsync import errors
from s3hashsync.core.model import ContentHash, object_stem
from s3hashsync.stores.base import SMALL_DOCUMENT, Attempt, ObjectStore, Version

MakeObjects = Callable[[], ObjectStore]


def fresh_stem() -> str:
    return object_stem(ContentHash(secrets.token_bytes(32)))


def fetch(store: ObjectStore, stem: str, version: str, start: int = 0, length: int | None = None) -> bytes:
    return b"".join(store.read(stem, version, start, length))


def contents(store: ObjectStore, stem: str) -> list[Version]:
    """The versions of exactly this stem, without its markers."""
    return [v for v in store.versions(stem) if v.stem == stem and not v.is_marker]


def markers(store: ObjectStore, stem: str) -> list[Version]:
    return [v for v in store.versions(stem) if v.stem == stem and v.is_marker]


class ObjectStoreSuite:
    """Subclass it as `Test…` and override the fixture `make_objects`."""

    storage_class = "STANDARD"
    keeps_storage_class = True
    """Whether a listing shows the class that the put named."""
    creates_conditionally = True
    """Whether the server honours If-None-Match; without it O13 cannot hold in a race."""
    marks_conditionally = True
    """Whether the server honours conditional deletes; without them markers may stack in a race."""
    resumes = True
    """Whether an upload can be resumed by its token."""
    many = 1_100
    """Enough for two pages of a listing."""
    clock_slack = 120.0
    """Seconds by which the server's clock may differ from ours."""
    racers = 6

    @pytest.fixture
    def make_objects(self) -> MakeObjects:
        raise NotImplementedError

    @pytest.fixture
    def store(self, make_objects: MakeObjects) -> ObjectStore:
        return make_objects()

    def attempt(self) -> Attempt:
        return Attempt(secrets.token_hex(16), self.storage_class)

    # put

    @pytest.mark.parametrize("size", [1, 4095, 65_536, 65_537, 1_048_579])
    def test_o1_what_was_put_is_read(self, store: ObjectStore, size: int) -> None:
        stem, body = fresh_stem(), secrets.token_bytes(size)
        stored = store.put(stem, body, self.attempt())
        assert stored.size == size
        assert stored.version
        assert fetch(store, stem, stored.version) == body

    def test_o1_put_is_atomic(self, make_objects: MakeObjects) -> None:
        """Whoever lists or reads while others put sees whole versions only."""
        store, reader, stem = make_objects(), make_objects(), fresh_stem()
        body = secrets.token_bytes(300_000)
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                for version in contents(reader, stem):
                    assert version.size == len(body)
                    assert fetch(reader, stem, version.version) == body

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            for _ in range(10):
                store.put(stem, body, self.attempt())
            done.set()
            watching.result()

    def test_o1_the_same_attempt_never_changes_what_it_stored(self, make_objects: MakeObjects) -> None:
        store, stem, attempt = make_objects(), fresh_stem(), self.attempt()
        first = store.put(stem, b"first", attempt)
        again = make_objects().put(stem, b"first", attempt)
        assert fetch(store, stem, first.version) == b"first"
        assert fetch(store, stem, again.version) == b"first"
        if not store.versioned:
            assert again == first
            assert len(contents(store, stem)) == 1

    def test_o1_an_attempt_id_used_for_other_bytes_leaves_the_first_ones(self, store: ObjectStore) -> None:
        stem, attempt = fresh_stem(), self.attempt()
        first = store.put(stem, b"first", attempt)
        again = store.put(stem, b"second!", attempt)
        assert fetch(store, stem, first.version) == b"first"
        if not store.versioned:
            assert again == first

    def test_o1_each_attempt_makes_a_version_of_its_own(self, store: ObjectStore) -> None:
        stem = fresh_stem()
        one, two = store.put(stem, b"one", self.attempt()), store.put(stem, b"two", self.attempt())
        assert one.version != two.version
        assert fetch(store, stem, one.version) == b"one"
        assert fetch(store, stem, two.version) == b"two"

    def test_o1_many_threads_put_at_once(self, store: ObjectStore) -> None:
        bodies = {fresh_stem(): secrets.token_bytes(2_000) for _ in range(60)}
        with ThreadPoolExecutor(self.racers) as pool:
            stored = list(pool.map(lambda pair: store.put(*pair, self.attempt()), bodies.items()))
        for (stem, body), one in zip(bodies.items(), stored, strict=True):
            assert fetch(store, stem, one.version) == body

    def test_o2_another_handle_reads_it_at_once(self, make_objects: MakeObjects) -> None:
        store, other = make_objects(), make_objects()
        for _ in range(5):
            stem = fresh_stem()
            stored = store.put(stem, b"at once", self.attempt())
            assert fetch(other, stem, stored.version) == b"at once"

    def test_o3_the_checksum_is_of_the_stored_bytes(self, store: ObjectStore) -> None:
        body = b"a body with a checksum"
        algorithm, _, value = store.put(fresh_stem(), body, self.attempt()).checksum.partition(":")
        assert algorithm == "sha256"
        assert base64.b64decode(value) == hashlib.sha256(body).digest()

    # uploads in parts

    def test_o1_an_upload_in_parts_is_invisible_until_complete(self, make_objects: MakeObjects) -> None:
        store, other, stem = make_objects(), make_objects(), fresh_stem()
        upload = store.begin(stem, self.attempt(), 12 << 20)
        parts = [secrets.token_bytes(upload.part_size), secrets.token_bytes(1_000)]
        upload.write_part(1, parts[0])
        assert list(other.versions(stem)) == []
        upload.write_part(2, parts[1])
        assert list(other.versions(stem)) == []
        stored = upload.complete()
        assert stored.size == len(parts[0]) + len(parts[1])
        assert ":" in stored.checksum
        assert fetch(other, stem, stored.version) == b"".join(parts)
        assert [v.size for v in contents(other, stem)] == [stored.size]

    def test_o1_a_part_may_be_sent_again(self, store: ObjectStore) -> None:
        stem = fresh_stem()
        upload = store.begin(stem, self.attempt(), 12 << 20)
        part = secrets.token_bytes(upload.part_size)
        upload.write_part(1, part)
        upload.write_part(1, part)
        upload.write_part(2, b"the end")
        upload.write_part(2, b"the end")
        assert fetch(store, stem, upload.complete().version) == part + b"the end"

    def test_o1_an_upload_of_one_short_part(self, store: ObjectStore) -> None:
        stem = fresh_stem()
        upload = store.begin(stem, self.attempt(), 12 << 20)
        upload.write_part(1, b"short")
        assert fetch(store, stem, upload.complete().version) == b"short"

    def test_o1_an_aborted_upload_leaves_nothing(self, store: ObjectStore) -> None:
        stem, attempt = fresh_stem(), self.attempt()
        upload = store.begin(stem, attempt, 12 << 20)
        upload.write_part(1, b"never mind")
        upload.abort()
        assert list(store.versions(stem)) == []
        assert store.find(stem, attempt.id) is None

    def test_o1_an_upload_is_resumed(self, make_objects: MakeObjects) -> None:
        stem, attempt = fresh_stem(), self.attempt()
        upload = make_objects().begin(stem, attempt, 12 << 20)
        part = secrets.token_bytes(upload.part_size)
        upload.write_part(1, part)
        resumed = make_objects().resume(stem, attempt, upload.token)
        if not self.resumes:
            assert upload.token == ""
            assert resumed is None
            return
        assert resumed is not None
        assert resumed.part_size == upload.part_size
        resumed.write_part(1, part)
        resumed.write_part(2, b"the end")
        assert fetch(make_objects(), stem, resumed.complete().version) == part + b"the end"

    def test_o1_an_unknown_upload_is_not_resumed(self, store: ObjectStore) -> None:
        stem, attempt = fresh_stem(), self.attempt()
        upload = store.begin(stem, attempt, 12 << 20)
        upload.abort()
        assert store.resume(stem, attempt, upload.token) is None

    # reading

    @pytest.mark.parametrize(
        ("start", "length"),
        [
            (0, None),
            (0, 1),
            (1, None),
            (65_535, 2),
            (100_000, 50_000),
            (149_999, 1),
            (149_000, 5_000),
            (0, 150_000),
        ],
    )
    def test_o4_ranges(self, store: ObjectStore, start: int, length: int | None) -> None:
        stem, body = fresh_stem(), secrets.token_bytes(150_000)
        version = store.put(stem, body, self.attempt()).version
        stop = None if length is None else start + length
        assert fetch(store, stem, version, start, length) == body[start:stop]

    def test_o4_an_absent_version_is_missing(self, store: ObjectStore) -> None:
        stem = fresh_stem()
        version = store.put(stem, b"here", self.attempt()).version
        with pytest.raises(errors.Missing):
            fetch(store, fresh_stem(), version)
        store.delete(stem, version)
        with pytest.raises(errors.Missing):
            fetch(store, stem, version)

    def test_o4_the_pinned_version_is_read_below_a_marker_and_below_others(self, store: ObjectStore) -> None:
        stem = fresh_stem()
        version = store.put(stem, b"pinned", self.attempt()).version
        store.mark(stem)
        store.put(stem, b"later", self.attempt())
        store.mark(stem)
        assert fetch(store, stem, version) == b"pinned"

    # listing

    def test_o5_versions_are_sorted_and_complete(self, store: ObjectStore) -> None:
        stems = sorted(f"objects/{secrets.token_hex(32)}" for _ in range(self.many))
        with ThreadPoolExecutor(4) as pool:
            stored = dict(zip(stems, pool.map(lambda stem: store.put(stem, b"x", self.attempt()), stems), strict=True))
        listed = list(store.versions("objects/"))
        assert [v.stem for v in listed] == stems
        assert all(v.version == stored[v.stem].version and v.size == 1 for v in listed)
        assert not any(v.is_marker for v in listed)

    def test_o5_a_prefix_cuts_anywhere(self, store: ObjectStore) -> None:
        tails = ["0f", "0fa0", "0fa1", "10aa", "ab00"]
        stems = [f"objects/{tail.ljust(64, '7')}" for tail in tails]
        packs = [f"packs/{secrets.token_hex(16)}" for _ in range(3)]
        for stem in [*stems, *packs]:
            store.put(stem, b"x", self.attempt())
        store.create_document("objects.txt", b"no version of a content")
        for prefix in [
            "objects/",
            "objects/0",
            "objects/0f",
            "objects/0fa",
            "objects/0fa1",
            "objects/1",
            "objects/c",
        ]:
            assert [v.stem for v in store.versions(prefix)] == [s for s in sorted(stems) if s.startswith(prefix)]
        assert [v.stem for v in store.versions("packs/")] == sorted(packs)

    def test_o5_every_version_of_a_stem_is_listed(self, store: ObjectStore) -> None:
        stem = fresh_stem()
        before = time.time()
        made = {store.put(stem, b"v", self.attempt()).version for _ in range(3)}
        listed = contents(store, stem)
        assert {v.version for v in listed} == made
        for version in listed:
            assert before - self.clock_slack < version.modified < time.time() + self.clock_slack
            assert not self.keeps_storage_class or version.storage_class == self.storage_class
        if store.versioned:
            assert sum(v.is_latest for v in listed) == 1

    def test_o5_nothing_is_listed_where_nothing_is(self, store: ObjectStore) -> None:
        assert list(store.versions("objects/")) == []
        assert list(store.documents("runs/")) == []

    # deleting, finding, marking

    def test_o8_delete_takes_exactly_this_version(self, store: ObjectStore) -> None:
        stem = fresh_stem()
        one, two = store.put(stem, b"one", self.attempt()), store.put(stem, b"two", self.attempt())
        store.delete(stem, one.version)
        assert [v.version for v in contents(store, stem)] == [two.version]
        assert fetch(store, stem, two.version) == b"two"
        assert markers(store, stem) == []

    def test_o8_deleting_an_absent_version_is_fine(self, store: ObjectStore) -> None:
        stem = fresh_stem()
        version = store.put(stem, b"one", self.attempt()).version
        store.delete(stem, version)
        store.delete(stem, version)
        assert list(store.versions(stem)) == []

    def test_o9_a_put_is_found_by_its_attempt(self, make_objects: MakeObjects) -> None:
        store, stem, attempt = make_objects(), fresh_stem(), self.attempt()
        assert store.find(stem, attempt.id) is None
        stored = store.put(stem, b"found again", attempt)
        store.put(stem, b"of somebody else", self.attempt())
        assert make_objects().find(stem, attempt.id) == stored
        assert store.find(stem, secrets.token_hex(16)) is None
        assert store.find(fresh_stem(), attempt.id) is None
        store.delete(stem, stored.version)
        assert store.find(stem, attempt.id) is None

    def test_o9_an_upload_is_found_once_it_is_complete(self, make_objects: MakeObjects) -> None:
        store, stem, attempt = make_objects(), fresh_stem(), self.attempt()
        upload = store.begin(stem, attempt, 12 << 20)
        upload.write_part(1, b"a body")
        assert make_objects().find(stem, attempt.id) is None
        stored = upload.complete()
        found = make_objects().find(stem, attempt.id)
        assert found is not None
        assert (found.version, found.size) == (stored.version, stored.size)

    def test_o9_a_put_below_a_marker_is_found(self, store: ObjectStore) -> None:
        stem, attempt = fresh_stem(), self.attempt()
        stored = store.put(stem, b"below", attempt)
        store.mark(stem)
        assert store.find(stem, attempt.id) == stored

    def test_o10_a_marker_lies_on_top_and_only_once(self, store: ObjectStore) -> None:
        stem = fresh_stem()
        version = store.put(stem, b"kept", self.attempt()).version
        store.mark(stem)
        store.mark(stem)
        assert [v.version for v in contents(store, stem)] == [version]
        found = markers(store, stem)
        assert len(found) == int(store.versioned)
        assert all(marker.is_latest for marker in found)

    def test_o10_markers_do_not_stack_in_a_race(self, store: ObjectStore) -> None:
        stem = fresh_stem()
        version = store.put(stem, b"kept", self.attempt()).version
        with ThreadPoolExecutor(self.racers) as pool:
            list(pool.map(store.mark, [stem] * self.racers))
        assert [v.version for v in contents(store, stem)] == [version]
        if self.marks_conditionally:
            assert len(markers(store, stem)) == int(store.versioned)

    def test_o11_unmark_takes_markers_and_no_version(self, store: ObjectStore) -> None:
        stem = fresh_stem()
        one = store.put(stem, b"one", self.attempt())
        store.mark(stem)
        two = store.put(stem, b"two", self.attempt())
        store.mark(stem)
        store.unmark(stem)
        store.unmark(stem)
        assert markers(store, stem) == []
        assert {v.version for v in contents(store, stem)} == {one.version, two.version}

    def test_o11_unmark_touches_no_other_stem(self, store: ObjectStore) -> None:
        short, long = "packs/aa11", "packs/aa11bb"
        for stem in (short, long):
            store.put(stem, b"x", self.attempt())
            store.mark(stem)
        store.unmark(short)
        assert markers(store, short) == []
        assert len(markers(store, long)) == int(store.versioned)

    def test_o12_barrier(self, make_objects: MakeObjects) -> None:
        store = make_objects()
        store.barrier()
        stem = fresh_stem()
        version = store.put(stem, b"durable", self.attempt()).version
        store.barrier()
        store.barrier()
        assert fetch(make_objects(), stem, version) == b"durable"

    # documents

    def test_o6_documents_are_read_whole(self, make_objects: MakeObjects) -> None:
        store, body = make_objects(), secrets.token_bytes(200_000)
        store.create_document("runs/src/2026.1", body)
        assert make_objects().read_document("runs/src/2026.1") == body
        store.create_document("keys/empty", b"")
        assert store.read_document("keys/empty") == b""
        for key in ["repository.json", "runs/src", "runs/src/2026.1/x"]:
            with pytest.raises(errors.Missing):
                store.read_document(key)

    def test_o6_what_is_too_large_is_not_read(self, store: ObjectStore) -> None:
        body = bytes(SMALL_DOCUMENT + 1)
        for key, is_read in (("keys/recipients.json", False), ("runs/src/2026.1", True)):
            # A retry after a lost answer looks whether its document is there.
            with contextlib.suppress(errors.Corrupt):
                store.create_document(key, body)
            if is_read:
                assert store.read_document(key) == body
                continue
            with pytest.raises(errors.Corrupt, match="nobody here wrote that"):
                store.read_document(key)

    def test_o7_documents_are_listed_in_order(self, store: ObjectStore) -> None:
        keys = [
            "runs/a/1.1",
            "runs/a/1.10",
            "runs/a/1.2",
            "runs/a-b/1.1",
            "runs/a.b/1",
            "runs/b/2.1",
            "keys/1.age",
        ]
        for key in keys:
            store.create_document(key, key.encode())
        runs = sorted(key for key in keys if key.startswith("runs/"))
        assert [d.key for d in store.documents("runs/")] == runs
        assert [d.size for d in store.documents("runs/")] == [len(key) for key in runs]
        assert [d.key for d in store.documents("runs/a")] == [key for key in runs if key.startswith("runs/a")]
        assert [d.key for d in store.documents("runs/a/1.1")] == ["runs/a/1.1", "runs/a/1.10"]
        for after in [*runs, "runs/", "runs/a/1.15", "runs/z", "zzz", "a"]:
            assert [d.key for d in store.documents("runs/", after)] == [key for key in runs if key > after]
        assert all(abs(d.modified - time.time()) < self.clock_slack for d in store.documents("runs/"))

    def test_o7_many_documents(self, store: ObjectStore) -> None:
        keys = [f"runs/src/{number:05d}.1" for number in range(self.many)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda key: store.replace_document(key, b"x"), keys))
        assert [d.key for d in store.documents("runs/src/")] == keys

    def test_o13_a_taken_key_is_not_overwritten(self, make_objects: MakeObjects) -> None:
        store = make_objects()
        store.create_document("repository.json", b"first")
        for handle in (store, make_objects()):
            for body in (b"second", b"first"):
                with pytest.raises(errors.AlreadyThere):
                    handle.create_document("repository.json", body)
        assert store.read_document("repository.json") == b"first"

    def test_o13_one_of_many_creators_wins(self, make_objects: MakeObjects) -> None:
        if not self.creates_conditionally:
            pytest.skip("this server does not know If-None-Match")
        for turn in range(5):
            key, handles = f"runs/src/{turn}.1", [make_objects() for _ in range(self.racers)]
            start = threading.Barrier(self.racers)

            def create(number: int) -> int | None:
                start.wait()  # noqa: B023
                try:
                    handles[number].create_document(key, b"%d" % number * 1_000)  # noqa: B023
                except errors.AlreadyThere:
                    return None
                return number

            with ThreadPoolExecutor(self.racers) as pool:
                winners = [n for n in pool.map(create, range(self.racers)) if n is not None]
            assert len(winners) == 1
            assert handles[0].read_document(key) == b"%d" % winners[0] * 1_000

    def test_o14_replacement_is_atomic(self, make_objects: MakeObjects) -> None:
        store, reader = make_objects(), make_objects()
        store.replace_document("keys/1.age", b"0" * 50_000)
        done = threading.Event()

        def watch() -> Iterator[bytes]:
            while not done.is_set():
                yield reader.read_document("keys/1.age")

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(lambda: all(len(set(b)) == 1 and len(b) == 50_000 for b in watch()))
            for number in range(1, 10):
                store.replace_document("keys/1.age", b"%d" % number * 50_000)
            done.set()
            assert watching.result()
        assert reader.read_document("keys/1.age") == b"9" * 50_000

    def test_o15_deleting_a_document(self, store: ObjectStore) -> None:
        store.create_document("keys/old.age", b"old")
        store.delete_document("keys/old.age")
        store.delete_document("keys/old.age")
        store.delete_document("keys/never/was.age")
        with pytest.raises(errors.Missing):
            store.read_document("keys/old.age")
        assert list(store.documents("keys/")) == []
        store.create_document("keys/old.age", b"anew")
        assert store.read_document("keys/old.age") == b"anew"

    def test_o16_what_a_document_was_before_is_forgotten(self, store: ObjectStore) -> None:
        for key in ("keys/1.age", "keys/1.age-more"):
            for body in (b"first", b"second", b"third"):
                store.replace_document(key, body)
        before = contents(store, "keys/1.age-more")
        store.forget_versions("keys/1.age")
        store.forget_versions("keys/never/was.age")
        assert store.read_document("keys/1.age") == b"third"
        assert len(contents(store, "keys/1.age")) == int(store.versioned)
        assert contents(store, "keys/1.age-more") == before

    def test_o16_a_deleted_document_is_forgotten_as_a_whole(self, store: ObjectStore) -> None:
        store.replace_document("keys/1.1.age", b"first")
        store.delete_document("keys/1.1.age")
        store.replace_document("keys/1.1.age", b"second")
        store.delete_document("keys/1.1.age")
        store.forget_versions("keys/1.1.age")
        assert [v for v in store.versions("keys/1.1.age") if v.stem == "keys/1.1.age"] == []
        with pytest.raises(errors.Missing):
            store.read_document("keys/1.1.age")

    def test_o17_what_was_replaced_or_deleted_is_listed(self, store: ObjectStore) -> None:
        for key in ("keys/1.age", "keys/1.1.age", "keys/2.age", "keys/sources/a.age", "runs/a/1.1"):
            store.create_document(key, b"first")
        assert list(store.past_documents("")) == []
        for key in ("keys/2.age", "keys/2.age", "keys/1.age", "runs/a/1.1"):
            store.replace_document(key, b"second")
        store.delete_document("keys/1.1.age")
        expected = ["keys/1.1.age", "keys/1.age", "keys/2.age"] if store.versioned else []
        assert list(store.past_documents("keys/")) == expected
        for key in expected:
            store.forget_versions(key)
        assert list(store.past_documents("keys/")) == []
        assert list(store.past_documents("runs/")) == (["runs/a/1.1"] if store.versioned else [])

    def test_o17_a_long_list_is_whole(self, store: ObjectStore) -> None:
        keys = [f"keys/{number:05d}.age" for number in range(self.many)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda key: store.replace_document(key, b"x"), keys))
            list(pool.map(store.delete_document, keys))
        assert list(store.past_documents("keys/")) == (keys if store.versioned else [])
