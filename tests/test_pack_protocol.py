"""Packs under every interleaving and fault: the real `StoredPacks`, `Uploader` and `Ledger` against PURGE PACK, and each rule of
both taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from s3hashsync.core.model import ContentHash, Control, PackAt, Record, RecordState, Rev, StoredName, pack_key, pack_stem
from s3hashsync.errors import Corrupt
from s3hashsync.run import stored_packs
from s3hashsync.run.stored_packs import StoredPacks
from tests.harness import SLOW
from tests.protocol.explorer import Faults, Process
from tests.protocol.packs import FIRST, OLD, A, B, Purging, constant_id, fresh_id, packs, purges, removes
from tests.test_ledger import BUDGETS, WORLDS, Scenario, by_title, holds

LIVE, TRASH, PURGING, GONE = RecordState.LIVE, RecordState.TRASH, RecordState.PURGING, RecordState.GONE
OTHER = "cd" * 16
V0 = [(pack_stem(OLD), "v0")]
TWINS = [*V0, (pack_stem(OLD), "v00")]
BOTH = {"x": "a", "y": "b"}
RIGHT = Purging()


def member(hash_: ContentHash, state: RecordState, *names: str, version: str = "v0", pack: str = OLD) -> Record:
    at = None if state is GONE else PackAt(pack, version, 0, 1, 512)
    return Record(hash_, state, Rev(b"first"), frozenset(map(StoredName, names)), location=at)


def listing(*members: ContentHash) -> Control:
    return Control(pack_key(OLD), Rev(b"item"), (("parts", "1"),), b"".join(members))


def scenarios(kind: type[StoredPacks] = StoredPacks, draw=fresh_id, rules: Purging = RIGHT) -> list[Scenario]:
    """With `kind`, `draw` or `rules`, a rule is taken out."""

    def up(host: str = "one", **wanted: str) -> Process:
        return packs(host, wanted or BOTH, kind, draw)

    purge, last = purges(rules), purges(replace(rules, last=True))
    trash = [member(A, TRASH), member(B, TRASH), listing(A, B)]
    mixed = [member(A, TRASH), member(B, LIVE, "y"), listing(A, B)]
    live = [member(A, LIVE, "x"), member(B, LIVE, "y"), listing(A, B)]
    elsewhere = [member(A, GONE), member(B, PURGING, pack=OTHER)]
    twins = [member(A, TRASH), member(B, LIVE, "q", version="v00"), listing(A, B)]
    return [
        Scenario("a new pack while it is purged", [up(), purge]),
        Scenario("the run after it takes it up", [up(), up(), purge]),
        Scenario("two hosts with a content in common", [up("two", z="a"), up(), purge]),
        Scenario("two hosts, each with a part of the other's", [up(x="a"), up("two", z="a", y="b"), purge]),
        Scenario("members are gone, and purging elsewhere", [up(), purge], elsewhere),
        Scenario("members come back while they are purged", [up(), purge], trash, V0),
        Scenario("one comes back, the other goes", [removes("y", B), purge, up(x="a")], mixed, V0, ["y"]),
        Scenario("both go", [removes("x", A), removes("y", B), purge], live, V0, ["x", "y"]),
        Scenario("a pack that was stored twice", [up(), purge], twins, TWINS, ["q"]),
        Scenario("two purges of a new pack", [up(), purge, last]),
        Scenario("two purges, one comes back", [up(x="a"), purge, purge], trash, V0),
        Scenario("two purges of twins", [up(x="a"), purge, last], twins, TWINS, ["q"]),
    ]


@by_title(scenarios())
def test_no_interleaving_of_packs_loses_anything(scenario: Scenario) -> None:
    for faults in BUDGETS:
        holds(scenario, faults, limit=5_000)


@SLOW
@pytest.mark.slow
@by_title(scenarios())
@pytest.mark.parametrize("faults", [*BUDGETS, Faults(1, 1, 1)], ids=lambda f: f"{f.crashes}{f.lost}{f.delayed}")
def test_packs_at_a_crash_a_lost_answer_and_a_delayed_request_at_once(scenario: Scenario, faults: Faults) -> None:
    holds(scenario, faults, limit=WORLDS)


def test_a_list_of_members_in_two_items_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_packs, "MEMBERS_IN_ITEM", 1)
    for scenario in scenarios()[:2]:
        for faults in BUDGETS:
            holds(scenario, faults, limit=5_000)


# Each rule of PACK taken out


class ReadsAfterThePut(StoredPacks):
    """The members' revs are those from after the put."""

    def _put(self, pack, needed):
        super()._put(pack, needed)
        items = self._index.read([hash_.hex() for hash_ in needed])
        for hash_ in needed:
            now = items.get(hash_.hex())
            self._ready[hash_] = replace(self._ready[hash_], expects=now.rev if now else None)


class ItemAfterThePack(StoredPacks):
    def _put(self, pack, needed):
        super()._put(pack, needed)
        super()._list(pack, "")

    def _list(self, pack, attempt):
        """Not yet."""


class UsesAgain(StoredPacks):
    """Offers a pack's bytes also after a write that was refused."""

    def take(self, hash_, rev):
        if (kept := self._ready.get(hash_)) is None:
            return None
        self._ready[hash_] = replace(kept, expects=rev)
        supply = super().take(hash_, rev)
        self._ready[hash_] = kept
        return supply


class AdoptsOnAnyRev(StoredPacks):
    """Takes up what a dead process stored, whatever became of the record since."""

    def take(self, hash_, rev):
        one = self._ready.get(hash_)
        if one is not None and one.pack.adopted:
            self._ready[hash_] = replace(one, expects=rev)
        return super().take(hash_, rev)


class OverwritesNoItem(StoredPacks):
    """Uses an id that has an item already."""

    def _list(self, pack, attempt):
        try:
            super()._list(pack, attempt)
        except Corrupt:
            return


TRIED = [Faults(), Faults(crashes=1)]
SEEN = 4_000
"""Fewer than `test_no_interleaving_of_packs_loses_anything` sees with nothing taken out: so the tests here fail for the rule that
they take out, and for nothing else."""


def caught_by_any(searched: Sequence[Scenario], word: str) -> None:
    for faults in TRIED:
        for scenario in searched:
            violation, _ = scenario.search(faults, SEEN)
            if violation is not None:
                assert word in violation.message, str(violation)
                return
    pytest.fail("a rule was taken out, and no search noticed it")


@pytest.mark.parametrize("wrong", [ReadsAfterThePut, ItemAfterThePack, UsesAgain, AdoptsOnAnyRev])
def test_packing_needs(wrong: type[StoredPacks]) -> None:
    caught_by_any(scenarios(wrong), "bytes that are deleted")


def test_a_pack_must_have_an_id_of_its_own() -> None:
    caught_by_any(scenarios(OverwritesNoItem, constant_id), "bytes that are deleted")


def test_an_id_that_comes_twice_is_refused() -> None:
    """The real ones stop: then the machine has no randomness."""
    scenario = Scenario("twice", [packs("one", {"x": "a"}, draw=constant_id), packs("two", {"z": "b"}, draw=constant_id)])
    with pytest.raises(Corrupt, match="has an item"):
        scenario.search(Faults())


# Each rule of PURGE PACK taken out

ALL = RIGHT.fenced


@pytest.mark.parametrize(
    "rules",
    [
        Purging(exact=False),
        Purging(listed_first=False, known=FIRST),
        Purging(purging=False),
        Purging(fenced=ALL - {None}),
        Purging(fenced=ALL - {GONE}),
        Purging(fenced=ALL - {PURGING}),
    ],
    ids=["exact", "listed first", "purging", "absent ones move", "gone ones move", "those purging elsewhere move"],
)
def test_purging_a_pack_needs(rules: Purging) -> None:
    caught_by_any(scenarios(rules=rules), "bytes that are deleted")


def test_purging_a_pack_needs_all_items_of_its_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_packs, "MEMBERS_IN_ITEM", 1)
    caught_by_any(scenarios(rules=Purging(all_items=False)), "bytes that are deleted")


@SLOW
@pytest.mark.slow
def test_a_member_that_is_live_or_trash_elsewhere_may_stay_as_it_is() -> None:
    """Of two protocols that hold, the other one. Whoever packs does not name such a content from its pack: its rev need not move,
    which saves the writes."""
    for scenario in scenarios(rules=Purging(fenced=ALL - {LIVE, TRASH})):
        for faults in TRIED:
            holds(scenario, faults, limit=SEEN)
