"""The clauses I1 to I10 of an index. A test's name carries its clause."""

from __future__ import annotations

import dataclasses
import secrets
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings

from s3hashsync.core.model import (
    ContentHash,
    Control,
    Item,
    ObjectAt,
    Overflow,
    PackAt,
    Record,
    RecordState,
    Rev,
    StoredName,
)
from s3hashsync.stores.base import Index, Outcome, Write
from tests.conformance import strategies

MakeIndex = Callable[[], Index]

# One table serves all examples (writes are on the rev that is there); several subclasses run one property.
PROPERTY = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
)


def fresh_rev() -> Rev:
    return Rev(secrets.token_bytes(12))


def fresh_hash() -> ContentHash:
    return ContentHash(secrets.token_bytes(32))


def record(*names: str, hash_: ContentHash | None = None) -> Record:
    return Record(
        hash=hash_ or fresh_hash(),
        state=RecordState.LIVE,
        rev=fresh_rev(),
        names=frozenset(StoredName(name) for name in names),
        expiration=1_800_000_000,
        size=1_234,
        stored=567,
        stored_at=1_700_000_000,
        storage_class="DEEP_ARCHIVE",
        checksum="sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        location=PackAt("ab" * 16, "cd" * 16, 1_048_576, 300_000, 512),
    )


def control(key: str, **fields: str) -> Control:
    return Control(key, fresh_rev(), tuple(sorted(fields.items())))


def moved(item: Item) -> Item:
    """The same item under a fresh rev."""
    return dataclasses.replace(item, rev=fresh_rev())


def put(index: Index, items: Iterable[Item]) -> None:
    """Insert items that are not there yet."""
    assert all(outcome.written for outcome in index.write([Write(item, None) for item in items]))


def one_of_each() -> list[Item]:
    hash_ = fresh_hash()
    return [
        record("src/a", hash_=hash_),
        Overflow(hash_, "0f", fresh_rev(), frozenset({StoredName("src/b")})),
        control(f"source:{secrets.token_hex(4)}", host="laptop"),
    ]


class IndexSuite:
    """Subclass it as `Test…` and override the fixture `make_index`."""

    bills = False
    """Whether writes cost units."""
    many = 5_000
    racers = 6
    turns = 8
    """How often each racer writes in the test of lost updates."""

    @pytest.fixture
    def make_index(self) -> MakeIndex:
        raise NotImplementedError

    @pytest.fixture
    def index(self, make_index: MakeIndex) -> Index:
        return make_index()

    # reading

    def test_i1_a_write_is_read_at_once_by_everybody(self, make_index: MakeIndex) -> None:
        one, other = make_index(), make_index()
        for item in one_of_each():
            put(one, [item])
            assert other.read([item.key]) == {item.key: item}
            later = moved(item)
            assert other.write([Write(later, item.rev)]) == [Outcome(written=True)]
            assert one.read([item.key]) == {item.key: later}

    def test_i2_what_is_not_in_the_answer_is_absent(self, index: Index) -> None:
        there = [record("src/a") for _ in range(350)]
        put(index, there)
        absent = [fresh_hash().hex() for _ in range(350)]
        mixed = [key for pair in zip((r.key for r in there), absent, strict=True) for key in pair]
        assert index.read(mixed) == {r.key: r for r in there}
        assert index.read([]) == {}
        assert index.read([f"{there[0].key}#0f", "repository", "source:nobody"]) == {}

    def test_i2_a_key_may_be_asked_twice(self, index: Index) -> None:
        item = record("src/a")
        put(index, [item])
        assert index.read([item.key, item.key]) == {item.key: item}

    def test_i2_all_kinds_in_one_read(self, index: Index) -> None:
        items = [item for _ in range(60) for item in one_of_each()]
        put(index, items)
        assert index.read([item.key for item in items]) == {item.key: item for item in items}

    # scanning

    def test_i3_a_scan_is_complete(self, index: Index) -> None:
        items: dict[str, Item] = {}
        while len(items) < self.many:
            batch = [item for _ in range(50) for item in one_of_each()]
            put(index, batch)
            items |= {item.key: item for item in batch}
        assert {item.key: item for item in index.scan()} == items

    def test_i3_an_empty_index_scans_to_nothing(self, index: Index) -> None:
        assert list(index.scan()) == []

    def test_i3_a_scan_and_a_writer_do_not_stop_each_other(self, make_index: MakeIndex) -> None:
        index, other = make_index(), make_index()
        before = [record("src/a") for _ in range(1_000)]
        put(index, before)
        seen = set()
        for number, item in enumerate(index.scan()):
            seen.add(item.key)
            if number % 100 == 0 and number < len(before):
                put(other, [record("src/b")])
                (current,) = other.read([before[number].key]).values()
                assert other.write([Write(moved(current), current.rev)])[0].written
        assert {item.key for item in before} <= seen

    # conditions

    def test_i4_an_insert_needs_an_absent_item(self, index: Index) -> None:
        for item in one_of_each():
            assert index.write([Write(item, None)]) == [Outcome(written=True)]
            assert index.write([Write(moved(item), None)]) == [Outcome(written=False, found=item)]
            assert index.read([item.key]) == {item.key: item}

    def test_i4_a_replacement_needs_the_expected_rev(self, index: Index) -> None:
        for item in one_of_each():
            put(index, [item])
            second, stale = moved(item), moved(item)
            assert index.write([Write(second, item.rev)]) == [Outcome(written=True)]
            assert index.write([Write(stale, item.rev)]) == [Outcome(written=False, found=second)]
            assert index.read([item.key]) == {item.key: second}

    def test_i4_a_replacement_of_an_absent_item_is_refused(self, index: Index) -> None:
        for item in one_of_each():
            assert index.write([Write(item, fresh_rev())]) == [Outcome(written=False, found=None)]
            assert index.read([item.key]) == {}

    def test_i4_writes_of_one_call_are_independent(self, index: Index) -> None:
        taken, old = record("src/taken"), record("src/old")
        put(index, [taken, old])
        usurper, later, fresh, orphan = moved(taken), moved(old), record("src/new"), record("src/orphan")
        writes = [Write(usurper, None), Write(later, old.rev), Write(fresh, None), Write(orphan, fresh_rev())]
        assert index.write(writes) == [
            Outcome(False, taken),
            Outcome(True),
            Outcome(True),
            Outcome(False, None),
        ]
        assert index.read([i.key for i in (taken, old, fresh, orphan)]) == {i.key: i for i in (taken, later, fresh)}

    def test_i4_every_field_is_replaced(self, index: Index) -> None:
        full = dataclasses.replace(record("src/a", "src/b"), spill=2, buckets=frozenset({"0f", "a"}))
        put(index, [full])
        bare = Record(full.hash, RecordState.GONE, fresh_rev())
        assert index.write([Write(bare, full.rev)])[0].written
        assert index.read([full.key]) == {full.key: bare}

    @pytest.mark.parametrize("kind", [0, 1, 2], ids=["record", "overflow", "control"])
    def test_i4_one_of_many_racers_wins(self, make_index: MakeIndex, kind: int) -> None:
        handles = [make_index() for _ in range(self.racers)]
        for expects_absent in (True, False):
            item = one_of_each()[kind]
            if not expects_absent:
                put(handles[0], [item])
            expects = None if expects_absent else item.rev
            tries = [moved(item) for _ in range(self.racers)]
            start = threading.Barrier(self.racers)

            def race(number: int) -> Outcome:
                start.wait()  # noqa: B023
                return handles[number].write([Write(tries[number], expects)])[0]  # noqa: B023

            with ThreadPoolExecutor(self.racers) as pool:
                outcomes = list(pool.map(race, range(self.racers)))
            winners = [item for item, outcome in zip(tries, outcomes, strict=True) if outcome.written]
            assert len(winners) == 1
            assert all(o.found == winners[0] for o in outcomes if not o.written)
            assert handles[0].read([item.key]) == {item.key: winners[0]}

    def test_i4_no_update_is_lost(self, make_index: MakeIndex) -> None:
        """Racers add names to one record, as hosts do; every acknowledged one is there in the end."""
        start = record()
        handles = [make_index() for _ in range(self.racers)]
        put(handles[0], [start])

        def add(number: int) -> None:
            known: Item = start
            for turn in range(self.turns):
                while True:
                    assert isinstance(known, Record)
                    names = known.names | {StoredName(f"host{number}/{turn}")}
                    wanted = dataclasses.replace(known, names=names, rev=fresh_rev())
                    (outcome,) = handles[number].write([Write(wanted, known.rev)])
                    known = wanted if outcome.written else outcome.found or known
                    if outcome.written:
                        break

        with ThreadPoolExecutor(self.racers) as pool:
            list(pool.map(add, range(self.racers)))
        (final,) = handles[0].read([start.key]).values()
        assert isinstance(final, Record)
        assert final.names == {f"host{n}/{t}" for n in range(self.racers) for t in range(self.turns)}

    def test_i4_threads_share_one_handle(self, index: Index) -> None:
        batches = [[record(f"src/{n}") for _ in range(40)] for n in range(self.racers)]
        with ThreadPoolExecutor(self.racers) as pool:
            list(pool.map(lambda batch: put(index, batch), batches))
            reads = list(pool.map(lambda batch: index.read([i.key for i in batch]), batches))
        assert reads == [{i.key: i for i in batch} for batch in batches]

    def test_i5_own_rev_counts_as_written(self, index: Index) -> None:
        for item in one_of_each():
            insert = Write(item, None)
            assert index.write([insert]) == index.write([insert]) == [Outcome(written=True)]
            replace = Write(moved(item), item.rev)
            assert index.write([replace]) == index.write([replace]) == [Outcome(written=True)]
            assert index.read([item.key]) == {item.key: replace.item}

    def test_i5_in_a_batch_of_which_a_part_was_applied(self, index: Index) -> None:
        writes = [Write(record(f"src/{n}"), None) for n in range(60)]
        index.write(writes[:17])
        assert index.write(writes) == [Outcome(written=True)] * 60

    def test_i6_what_was_written_outlives_the_handle(self, make_index: MakeIndex) -> None:
        items = one_of_each()
        put(make_index(), items)
        assert make_index().read([item.key for item in items]) == {item.key: item for item in items}

    def test_i7_one_write_an_item(self, index: Index) -> None:
        for item in one_of_each():
            with pytest.raises(ValueError, match="same key"):
                index.write([Write(item, None), Write(moved(item), None)])
            assert index.read([item.key]) == {}

    def test_i8_one_outcome_a_write_in_order(self, index: Index) -> None:
        taken = [record(f"src/{n}") for n in range(130)]
        put(index, taken[::2])
        outcomes = index.write([Write(moved(item), None) for item in taken])
        assert outcomes == [Outcome(False, i) if n % 2 == 0 else Outcome(True) for n, i in enumerate(taken)]
        assert index.write([]) == []

    # round trips

    @PROPERTY
    @given(item=strategies.items)
    def test_i9_every_item_round_trips(self, make_index: MakeIndex, item: Item) -> None:
        index, item = make_index(), moved(item)
        current = index.read([item.key]).get(item.key)
        (outcome,) = index.write([Write(item, current.rev if current else None)])
        assert outcome.written
        assert index.read([item.key]) == {item.key: item}

    @pytest.mark.parametrize("version", ["null", "00", "0A", "ABCD", "3/L4kqtJ+rmSpXd3==", "ab" * 16, "a" * 1024])
    def test_i9_versions_round_trip(self, index: Index, version: str) -> None:
        single = dataclasses.replace(record("src/a"), location=ObjectAt(version))
        packed = dataclasses.replace(record("src/b"), location=PackAt("ee" * 16, version, 2**40, 1, 0))
        put(index, [single, packed])
        assert index.read([single.key, packed.key]) == {single.key: single, packed.key: packed}

    def test_i9_items_near_the_limit(self, index: Index) -> None:
        long = frozenset(StoredName(f"src/{n:04d}" + "ü" * 193) for n in range(1_000))  # 394,000 bytes
        short = frozenset(StoredName(f"src/{n:06d}") for n in range(30_000))  # 300,000 bytes
        hash_ = fresh_hash()
        items: list[Item] = [
            Overflow(hash_, "0", fresh_rev(), long),
            Overflow(hash_, "1", fresh_rev(), short),
            dataclasses.replace(record(), names=long),
            control("source:large", value="v" * 390_000),
        ]
        for item in items:
            put(index, [item])
            assert index.read([item.key]) == {item.key: item}
        assert sum(1 for _ in index.scan()) == len(items)

    def test_i9_large_items_in_one_batch(self, index: Index) -> None:
        names = [StoredName(f"src/{n:04d}" + "x" * 390) for n in range(900)]
        items = [Overflow(fresh_hash(), "0", fresh_rev(), frozenset(names)) for _ in range(50)]
        put(index, items)
        assert index.read([item.key for item in items]) == {item.key: item for item in items}

    def test_i9_buckets_of_all_lengths(self, index: Index) -> None:
        every = frozenset(f"{n:03x}" for n in range(4_096))
        for buckets in (every, every | {"0", "ff", "abcd"}, frozenset({"0"}), frozenset({"0000", "ffff"})):
            item = dataclasses.replace(record(), spill=4, buckets=buckets)
            put(index, [item])
            assert index.read([item.key]) == {item.key: item}

    def test_i10_units(self, index: Index) -> None:
        small = record("src/a")
        large = dataclasses.replace(small, names=frozenset(StoredName(f"src/{n:01000d}") for n in range(10)))
        if self.bills:
            assert index.write_units(small) == 1
            assert 10 <= index.write_units(large) <= 12
        else:
            assert index.write_units(small) == index.write_units(large) == 0
