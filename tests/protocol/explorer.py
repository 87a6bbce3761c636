"""Every interleaving of a few processes that run the program's own write protocol, with faults at every
request.

A process is an ordinary function over an index and an object store. It is run again from its beginning with
the answers that it got so far, until it asks for something new: so its state is the list of its answers (kept
once, and known by a number), and a world of several processes is a value that can be kept in a set. The search
is breadth first and complete; a violation comes with the shortest way to it.

Faults, each with a budget: a crash before or after a request; a lost answer (the request is sent again, as
the retrying wrapper does); a delayed request (it is sent again, and the first one arrives at any later
moment, even after the death of its sender).
The store has versions, so that a put that is sent again leaves two. What a host keeps on its own disk outlives its processes; it
is written and read in the moment of the answer before it, for nobody else can see it.
Decides nothing about the protocol: the processes do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from s3hashsync.core.model import (
    Control,
    Item,
    Overflow,
    PackAt,
    Record,
    RecordState,
    StoredName,
    object_stem,
    overflow_key,
    pack_stem,
)
from s3hashsync.stores.base import Attempt, Outcome, Stored, Version, Write

STORED_AT = 1_000


class Request(NamedTuple):
    """What a process asks for. Notes, and what it does on its own disk, are no requests: they are taken up in the moment of the
    answer before them."""

    verb: str
    what: Hashable


READS = frozenset({"read", "versions", "find"})
DISK = frozenset({"keep", "kept", "drop"})
NOTES = DISK | {"acknowledged", "removing", "removed", "adding"}


class Faults(NamedTuple):
    crashes: int = 0
    lost: int = 0
    delayed: int = 0


NO_FAULTS = Faults()


class Pairs(tuple[tuple[str, Item], ...]):
    """Keys and items, in order. Its hash is asked for again and again, and taken once."""

    taken: int

    def __hash__(self) -> int:
        try:
            return self.taken
        except AttributeError:
            self.taken = super().__hash__()
            return self.taken


class World(NamedTuple):
    """`answers`: for each process what it was answered, as `Search` numbers it (0: nothing yet), None once it is dead. `versions`
    are (stem, version). `disks`: (host, key, value)."""

    items: Pairs
    versions: frozenset[tuple[str, str]]
    serial: int
    acknowledged: frozenset[StoredName]
    removed: frozenset[StoredName]
    answers: tuple[int | None, ...]
    late: tuple[Request, ...]
    faults: Faults
    disks: tuple[tuple[str, str, Hashable], ...] = ()

    def item(self, key: str) -> Item | None:
        return next((item for k, item in self.items if k == key), None)

    def with_item(self, item: Item) -> World:
        return self._replace(items=Pairs(sorted({**dict(self.items), item.key: item}.items())))

    def without_item(self, key: str) -> World:
        return self._replace(items=Pairs(pair for pair in self.items if pair[0] != key))


CHECKSUM = "sha256:"
"""Of everything: bytes do not count here."""


class _Asks(BaseException):
    def __init__(self, request: Request) -> None:
        self.request = request


class Remote:
    """Index and object store of one process: answers from the record, or stops the process with its next request."""

    versioned = True
    single_put_limit = 1 << 30

    def __init__(self, number: int, answers: Sequence[Hashable]) -> None:
        self.number = number
        self._answers = list(answers)
        self._drawn = 0

    def ask(self, verb: str, what: Hashable) -> object:
        if not self._answers:
            raise _Asks(Request(verb, what))
        return self._answers.pop(0)

    def note(self, verb: str, name: StoredName) -> None:
        self.ask(verb, name)

    def entropy(self, size: int) -> bytes:
        self._drawn += 1
        return bytes([self.number, self._drawn]).ljust(size, b"\0")

    # Index

    def read(self, keys: Collection[str]) -> dict[str, Item]:
        items = self.ask("read", tuple(sorted(keys)))
        return {item.key: item for item in items}  # type: ignore[attr-defined]

    def scan(self) -> Iterator[Item]:
        raise NotImplementedError

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        return list(self.ask("write", tuple(writes)))  # type: ignore[call-overload]

    def write_units(self, item: Item) -> int:
        return 0

    def forget(self, key: str, expects: bytes) -> None:
        """What the protocol never does: delete an item. For taking out the rule."""
        self.ask("forget", (key, expects))

    # Objects

    def put(self, stem: str, body: object, attempt: Attempt) -> Stored:
        return Stored(str(self.ask("put", (stem, attempt.id))), 1, CHECKSUM)

    def find(self, stem: str, attempt_id: str) -> Stored | None:
        version = self.ask("find", (stem, attempt_id))
        return Stored(str(version), 1, CHECKSUM) if version is not None else None

    def barrier(self) -> None:
        """The store is durable when it answers."""

    def delete(self, stem: str, version: str) -> None:
        self.ask("delete", (stem, version))

    def versions(self, prefix: str) -> Iterator[Version]:
        for stem, version in self.ask("versions", prefix):  # type: ignore[attr-defined]
            yield Version(stem, version, 1, STORED_AT, is_marker=False, is_latest=False)

    def mark(self, stem: str) -> None:
        """Markers are advice: the search leaves them out."""

    def unmark(self, stem: str) -> None: ...

    # The host's own disk

    def keep(self, host: str, key: str, value: Hashable) -> None:
        self.ask("keep", (host, key, value))

    def kept(self, host: str, prefix: str) -> tuple[Hashable, ...]:
        return self.ask("kept", (host, prefix))  # type: ignore[return-value]

    def drop(self, host: str, key: str) -> None:
        self.ask("drop", (host, key))


Body = Callable[[Remote], None]


@dataclass(frozen=True, slots=True)
class Process:
    """`name`: whose name it works on; the source's lock lets one process a name run at a time (None: no lock)."""

    title: str
    body: Body
    name: StoredName | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    message: str
    steps: tuple[str, ...]

    def __str__(self) -> str:
        return "\n   ".join((self.message, *self.steps))


class Step(NamedTuple):
    """How a world came from another one: what was asked and answered, or what happened to the request instead."""

    who: str
    request: Request
    answer: Hashable = None
    fate: str | None = None

    def __str__(self) -> str:
        fate = f" -> {_brief(self.answer)}" if self.fate is None else self.fate
        return f"{self.who} {_shown(self.request)}{fate}"


@dataclass(slots=True)
class Search:
    """The processes, and what they do next after which answers (kept: it is asked again and again)."""

    processes: Sequence[Process]
    limit: int = 400_000
    worlds: int = 0
    complete: bool = False
    by_rev: bool = True
    ghosts: bool = True
    _next: dict[tuple[int, int], Request | None] = field(default_factory=dict)
    _answers: list[tuple[Hashable, ...]] = field(default_factory=lambda: [()])
    _numbers: dict[tuple[int, Hashable], int] = field(default_factory=dict)

    def run(self, start: World) -> Violation | None:
        """The first violation in a breadth-first search, None when there is none in the worlds that were seen."""
        came: dict[World, tuple[Step, World] | None] = {start: None}
        queue = deque([start])
        while queue and len(came) <= self.limit:
            world = queue.popleft()
            if message := broken(world, ghosts=self.ghosts):
                self.worlds = len(came)
                return Violation(message, _way(came, world))
            for step, after in self._successors(world):
                if after not in came:
                    came[after] = (step, world)
                    queue.append(after)
        self.worlds, self.complete = len(came), not queue
        return None

    def further(self, answers: int, answer: Hashable) -> int:
        """These answers and one more."""
        key = (answers, answer)
        number = self._numbers.setdefault(key, len(self._answers))
        if number == len(self._answers):
            self._answers.append((*self._answers[answers], answer))
        return number

    def following(self, number: int, answers: int) -> Request | None:
        """The next request of a process, None when it has ended."""
        key = (number, answers)
        if key not in self._next:
            try:
                self.processes[number].body(Remote(number, self._answers[answers]))
                self._next[key] = None
            except _Asks as asks:
                self._next[key] = asks.request
        return self._next[key]

    def _successors(self, world: World) -> Iterator[tuple[Step, World]]:
        for number, answers in enumerate(world.answers):
            if answers is not None and not self._waits(world, number):
                yield from self._steps(world, number, answers)
        for i, request in enumerate(world.late):
            after, _ = self._apply(world, request)
            yield Step("late", request, fate=""), after._replace(late=world.late[:i] + world.late[i + 1 :])

    def _waits(self, world: World, number: int) -> bool:
        """Whether the source's lock is with another process."""
        name, started = self.processes[number].name, bool(world.answers[number])
        if name is None or started:
            return False
        return any(
            process.name == name and other != number and world.answers[other] and self._runs(world, other)
            for other, process in enumerate(self.processes)
        )

    def _runs(self, world: World, number: int) -> bool:
        answers = world.answers[number]
        return answers is not None and self.following(number, answers) is not None

    def _steps(self, world: World, number: int, answers: int) -> Iterator[tuple[Step, World]]:
        request = self.following(number, answers)
        if request is None:
            return
        who = f"{self.processes[number].title}:"
        done, answer = self._apply(world, request)
        yield Step(who, request, answer), self._hear(done, number, self.further(answers, answer))
        if request.verb in READS or request.verb in NOTES:
            return
        faults = world.faults
        if faults.lost:
            # The process sends the same request again.
            yield Step(who, request, fate=", ANSWER LOST"), done._replace(faults=faults._replace(lost=faults.lost - 1))
        if faults.delayed:
            spent = faults._replace(delayed=faults.delayed - 1)
            late = world._replace(faults=spent, late=(*world.late, request))
            yield Step(who, request, fate=", DELAYED"), late
            if faults.crashes:
                spent = spent._replace(crashes=faults.crashes - 1)
                yield Step(who, request, fate=", DELAYED, CRASH"), _dead(late._replace(faults=spent), number)
        if faults.crashes:
            spent = faults._replace(crashes=faults.crashes - 1)
            yield Step(who, request, fate=", CRASH after"), _dead(done._replace(faults=spent), number)
            yield Step(who, request, fate=", CRASH before"), _dead(world._replace(faults=spent), number)

    def _hear(self, world: World, number: int, answers: int) -> World:
        """The process has its answer; what it notes at once, it notes now."""
        request = self.following(number, answers)
        while request is not None and request.verb in NOTES:
            world, answer = _noted(world, request)
            answers = self.further(answers, answer)
            request = self.following(number, answers)
        return _with_answers(world, number, answers)

    def _apply(self, world: World, request: Request) -> tuple[World, Hashable]:
        match request:
            case Request("read", keys):
                return world, tuple(item for key in keys if (item := world.item(key)) is not None)  # type: ignore[attr-defined]
            case Request("write", writes):
                outcomes = []
                for write in writes:  # type: ignore[attr-defined]
                    world, outcome = self._written(world, write)
                    outcomes.append(outcome)
                return world, tuple(outcomes)
            case Request("put", (stem, attempt)):
                version = f"{attempt}v{world.serial}"
                return world._replace(versions=world.versions | {(stem, version)}, serial=world.serial + 1), version
            case Request("find", (stem, attempt)):
                found = [v for s, v in world.versions if s == stem and v.startswith(f"{attempt}v")]
                return world, max(found, key=_serial_of, default=None)
            case Request("delete", place):
                return world._replace(versions=world.versions - {place}), None
            case Request("versions", prefix):
                return world, tuple(sorted(place for place in world.versions if place[0].startswith(str(prefix))))
            case Request("forget", (key, expects)):
                now = world.item(key)
                return (world.without_item(key) if now is not None and now.rev == expects else world), None
            case _ if request.verb in NOTES:
                return _noted(world, request)
            case _:
                raise AssertionError(request)

    def _written(self, world: World, write: Write) -> tuple[World, Outcome]:
        now = world.item(write.item.key)
        if now is not None and now.rev == write.item.rev:
            return world, Outcome(written=True)
        allowed = (now.rev if now else None) == write.expects
        if not self.by_rev and isinstance(write.item, Record):
            # The rule taken out: the states that such a write may follow, and no rev.
            allowed = _state_allows(now, write)
        if not allowed:
            return world, Outcome(written=False, found=now)
        return world.with_item(write.item), Outcome(written=True)


def start(
    processes: Sequence[Process],
    items: Sequence[Item] = (),
    versions: Collection[tuple[str, str]] = (),
    acknowledged: Collection[StoredName] = (),
    faults: Faults = NO_FAULTS,
) -> World:
    return World(
        Pairs(sorted((item.key, item) for item in items)),
        frozenset(versions),
        1,
        frozenset(acknowledged),
        frozenset(),
        tuple(0 for _ in processes),
        (),
        faults,
    )


def names_of(world: World, record: Record) -> frozenset[StoredName]:
    """All names that count: those of a live record, and of the overflow items that it lists."""
    if record.state is not RecordState.LIVE:
        return frozenset()
    found = set(record.names)
    for prefix in record.buckets:
        item = world.item(overflow_key(record.hash, prefix))
        found |= item.names if isinstance(item, Overflow) else set()
    return frozenset(found)


def broken(world: World, *, ghosts: bool = True) -> str | None:
    """The invariants; None when they hold. Without `ghosts` a name may come back after its removal: a late
    request of a dead process may still add it, which costs storage and loses nothing."""
    records = [item for _, item in world.items if isinstance(item, Record)]
    for record in records:
        if record.state not in (RecordState.LIVE, RecordState.TRASH):
            continue
        if _place_of(record) not in world.versions:
            return f"a {record.state.value} record points to bytes that are deleted"
    names = frozenset().union(*(names_of(world, record) for record in records))
    if lost := world.acknowledged - names:
        return f"acknowledged names are lost: {sorted(lost)}"
    if ghosts and world.removed & names:
        return f"removed names are still there: {sorted(world.removed & names)}"
    return None


def _state_allows(now: Item | None, write: Write) -> bool:
    """The states before, as one would name them in a condition: live stays or goes to the trash, the rest starts anew."""
    state = now.state if isinstance(now, Record) else None
    assert isinstance(write.item, Record)
    match write.item.state:
        case RecordState.LIVE:
            return (state is None) if write.expects is None else state is not None
        case RecordState.TRASH:
            return state is RecordState.LIVE
        case RecordState.PURGING:
            return state is RecordState.TRASH
        case RecordState.GONE:
            return state in (None, RecordState.PURGING, RecordState.GONE)


def _place_of(record: Record) -> tuple[str, str]:
    at = record.content.location
    return (pack_stem(at.pack) if isinstance(at, PackAt) else object_stem(record.hash)), at.version


def _serial_of(version: str) -> int:
    return int(version.rpartition("v")[2])


def _noted(world: World, request: Request) -> tuple[World, Hashable]:
    if request.verb in DISK:
        return _on_disk(world, request)
    name = {request.what}
    match request.verb:
        case "acknowledged":
            return world._replace(acknowledged=world.acknowledged | name), None
        case "removing":
            return world._replace(acknowledged=world.acknowledged - name), None
        case "removed":
            return world._replace(removed=world.removed | name), None
        case _:
            return world._replace(removed=world.removed - name), None


def _on_disk(world: World, request: Request) -> tuple[World, Hashable]:
    match request:
        case Request("kept", (host, prefix)):
            return world, tuple(value for h, key, value in world.disks if h == host and key.startswith(prefix))
        case Request("keep", (host, key, value)):
            others = [one for one in world.disks if one[:2] != (host, key)]
            return world._replace(disks=tuple(sorted([*others, (host, key, value)], key=lambda one: one[:2]))), None
        case Request("drop", place):
            return world._replace(disks=tuple(one for one in world.disks if one[:2] != place)), None
        case _:
            raise AssertionError(request)


def _with_answers(world: World, number: int, answers: int | None) -> World:
    return world._replace(answers=(*world.answers[:number], answers, *world.answers[number + 1 :]))


def _dead(world: World, number: int) -> World:
    return _with_answers(world, number, None)


def _way(came: Mapping[World, tuple[Step, World] | None], world: World) -> tuple[str, ...]:
    out = []
    while (step := came[world]) is not None:
        out.append(str(step[0]))
        world = step[1]
    return tuple(reversed(out))


def _shown(request: Request) -> str:
    return f"{request.verb} {_brief(request.what)}"


def _brief(value: object) -> str:
    match value:
        case tuple():
            return f"[{', '.join(map(_brief, value))}]"
        case Write():
            return f"{_brief(value.item)} on {value.expects and value.expects[:2].hex()}"
        case Outcome():
            return "written" if value.written else "refused"
        case Record():
            where = f"{getattr(value.location, 'pack', '')[:4]} {getattr(value.location, 'version', '')[-3:]}"
            return f"{value.state.value} {where} {sorted(value.names)} {sorted(value.buckets)} rev {value.rev[:2].hex()}"
        case Control():
            return f"{value.key[:9]} of {len(value.data) // 32} rev {value.rev[:2].hex()}"
        case Overflow():
            return f"#{value.prefix} {sorted(value.names)} rev {value.rev[:2].hex()}"
        case str():
            return value if len(value) < 24 else f"{value[:12]}…{value[64:]}"
        case _:
            return str(value)[:60]
