"""Packs in the store: putting them, listing their members in the index, and offering their contents to whoever names them.

Decides the order: the members' revs are read, then come attempt, index item, pack. So a content is named on the very rev that
its record had before the pack was put, also by the next run, where the process died in between; or it is not taken from there.
How packs are made is `run.packing`'s. Names nothing itself; that is the ledger's.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from s3hashsync.core.model import ContentHash, Control, Record, RecordState, Rev, pack_key, pack_stem
from s3hashsync.core.value import value
from s3hashsync.disk.state import OpenPack
from s3hashsync.errors import Corrupt
from s3hashsync.run.attempts import UploadPorts
from s3hashsync.run.frames import failing
from s3hashsync.run.ledger import REV_BYTES, Supply
from s3hashsync.run.packing import Pack, PackedContent
from s3hashsync.stores.base import Write

MEMBERS_IN_ITEM = 10_000
"""An index item holds 400 KB at most, and each member takes 32 bytes."""


class StoredPacks:
    """Those of one run, and those that a dead process left."""

    def __init__(self, ports: UploadPorts) -> None:
        self._ports = ports
        self._objects = ports.repository.objects
        self._index = ports.repository.index
        self._lock = threading.Lock()
        self._ready: dict[ContentHash, _Ready] = {}
        self._look_for_left()

    @property
    def waiting(self) -> Collection[ContentHash]:
        """The contents that lie in packs and were not asked for yet: they need not be packed again."""
        return self._ready.keys()

    def new_among(self, hashes: Iterable[ContentHash]) -> set[ContentHash]:
        """Those of them that wait in a pack of this run, and had no record before it was put."""
        found = ((hash_, self._ready.get(hash_)) for hash_ in hashes)
        return {hash_ for hash_, one in found if one is not None and one.expects is None and not one.pack.adopted}

    def take(self, hash_: ContentHash, rev: Rev | None) -> Supply | None:
        """Once, and on the rev that was read before the pack was put: after a refused write its bytes must not be used again."""
        ready = self._ready.pop(hash_, None)
        if ready is None or ready.expects != rev:
            return None
        with self._ports.tally.lock:
            self._ports.tally.adopted += ready.pack.adopted
        return ready.pack.supply(ready.place)

    def put(self, pack: Pack) -> None:
        """Store it, so that its members are ready for the ledger. For any thread; one pack is on its way at a time."""
        with self._lock:
            items = self._index.read([hash_.hex() for hash_ in pack.contents])
            records = {item.hash: item for item in items.values() if isinstance(item, Record)}
            needed = {h: records[h].rev if h in records else None for h in pack.contents if not _is_stored(records.get(h))}
            if needed:
                self._put(pack, needed)

    def _put(self, pack: Pack, needed: Mapping[ContentHash, Rev | None]) -> None:
        ports = self._ports
        attempt = ports.new_id()
        now = ports.settings.now()
        ports.state.mark_pack(OpenPack(pack.id, attempt, pack.checksum, pack.encoding, now, _members(pack, needed)))
        self._list(pack, attempt)
        stored = self._objects.put(pack_stem(pack.id), pack.body, ports.attempt(attempt))
        if stored.checksum.startswith("sha256:") and stored.checksum != pack.checksum:
            # It was read once more for this, and not as it was when it was opened again.
            ports.state.forget_packs([pack.id])
            raise failing("what was stored is another one, which nobody will use")
        self._objects.barrier()
        with ports.tally.lock:
            ports.tally.objects += 1
            ports.tally.packs += 1
            ports.tally.bytes_stored += stored.size
            ports.tally.bytes_read += sum(pack.contents[hash_].size for hash_ in needed)
        put = _StoredPack(pack.id, stored.version, pack.encoding, now)
        # In one step: the ledger may be taking those of the pack before.
        self._ready.update({hash_: _Ready(rev, pack.contents[hash_], put) for hash_, rev in needed.items()})

    def _list(self, pack: Pack, attempt: str) -> None:
        members = PackList(pack.id, list(pack.contents), pack.body.size, pack.checksum, attempt)
        for item in members.items(lambda: Rev(self._ports.settings.entropy(REV_BYTES))):
            (outcome,) = self._index.write([Write(item, None)])
            if not outcome.written:
                raise Corrupt(f"the index has an item {item.key} already", "is this machine's source of randomness broken?")
            with self._ports.tally.lock:
                self._ports.tally.index_writes += 1
                self._ports.tally.index_units += self._index.write_units(item)

    def _look_for_left(self) -> None:
        """What a dead process had put into packs and may not have named. A pack counts when it is whole: its checksum was written
        down before it was put; and when this index lists its members: otherwise nobody would ask them before it is purged."""
        gone = []
        packs = self._ports.state.open_packs()
        listed = self._index.read([pack_key(pack.id) for pack in packs]) if packs else {}
        for pack in packs:
            stored = self._ports.found(pack_stem(pack.id), pack.attempt) if pack_key(pack.id) in listed else None
            if stored is None or stored.checksum != pack.checksum:
                gone.append(pack.id)
                continue
            left = _StoredPack(pack.id, stored.version, pack.encoding, pack.stored_at, adopted=True)
            self._ready |= {hash_: _Ready(rev, place, left) for hash_, rev, place in _parse_members(pack.members)}
        if gone:
            self._ports.state.forget_packs(gone)


# What the index says of a pack


@value
class PackList:
    """The members of a pack, by which it is purged; `stored` bytes, `checksum` of the whole."""

    id: str
    members: Sequence[bytes]
    stored: int
    checksum: str
    attempt: str

    def items(self, rev: Callable[[], Rev]) -> list[Control]:
        """As many as it takes; the one that says how many there are comes last."""
        pages = [b"".join(self.members[at : at + MEMBERS_IN_ITEM]) for at in range(0, len(self.members), MEMBERS_IN_ITEM)]
        fields = (
            ("members", str(len(self.members))),
            ("stored", str(self.stored)),
            ("checksum", self.checksum),
            ("attempt", self.attempt),
            ("parts", str(len(pages))),
        )
        key = pack_key(self.id)
        more = [Control(f"{key}.{n}", rev(), (), page) for n, page in enumerate(pages) if n]
        return [*more, Control(key, rev(), fields, pages[0])]


# What is remembered of a pack


@value
class _StoredPack:
    """A pack that lies in the store. `adopted`: a process that is dead now has put it there."""

    id: str
    version: str
    encoding: str
    stored_at: int
    adopted: bool = False

    def supply(self, place: PackedContent) -> Supply:
        location = place.location(self.id, self.version)
        return Supply(location, self.encoding, place.stored, "", place.size, self.stored_at)


@value
class _Ready:
    """A content in a stored pack, and the rev on which it may be named."""

    expects: Rev | None
    place: PackedContent
    pack: _StoredPack


def _is_stored(record: Record | None) -> bool:
    return record is not None and record.state in (RecordState.LIVE, RecordState.TRASH)


_MEMBER = struct.Struct("<32s?12s5Q")


def _members(pack: Pack, needed: Mapping[ContentHash, Rev | None]) -> bytes:
    """Each content with the rev that its record had, and its place."""
    out = []
    for hash_, rev in needed.items():
        p = pack.contents[hash_]
        out.append(_MEMBER.pack(hash_, rev is not None, rev or b"", p.frame_offset, p.frame_length, p.offset, p.size, p.stored))
    return b"".join(out)


def _parse_members(members: bytes) -> Iterator[tuple[ContentHash, Rev | None, PackedContent]]:
    for hash_, has_rev, rev, *place in _MEMBER.iter_unpack(members):
        yield ContentHash(hash_), Rev(rev) if has_rev else None, PackedContent(*place)
