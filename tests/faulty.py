"""Stores that fail on purpose: they crash, lose answers, delay, throttle, deny, and answer in part.

One `FaultPlan` counts the operations of all stores that share it, so a test runs once without faults, sees
how many changing operations there were (`plan.mutations`), and then runs again with a fault at each of them
in turn. A crash is for good: after it every operation of every store under the plan raises `Crash`, as a
dead process does nothing more.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from s3hashsync import errors
from s3hashsync.core.model import Item
from s3hashsync.stores.base import (
    Attempt,
    Body,
    Document,
    Index,
    ObjectStore,
    Outcome,
    Stored,
    Upload,
    Version,
    Write,
)

T = TypeVar("T")


class Crash(BaseException):
    """The process dies here. No `except Exception` sees it."""


class Fault(Enum):
    CRASH_BEFORE = "crash before the effect"
    CRASH_AFTER = "crash after the effect"
    POWER_FAILURE = "crash before the effect; what was put since the last barrier is gone, on a store without versions"
    LOSE_ANSWER = "the effect, then Unreachable"
    DELAY = "Unreachable now, the effect when `release` is called"
    THROTTLE = "Unreachable, no effect"
    DENY = "Denied, no effect"
    PARTIAL = "half of a batch, or of a stream, then Unreachable; elsewhere as LOSE_ANSWER"


CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.POWER_FAILURE)
SURVIVABLE = (Fault.LOSE_ANSWER, Fault.DELAY, Fault.THROTTLE, Fault.PARTIAL)


@dataclass(frozen=True, slots=True)
class Operation:
    """`mutation` counts the changing operations of a plan from 1 (0: it only reads), `nth` those of this
    name."""

    name: str
    key: str
    mutation: int
    nth: int


Rule = Callable[[Operation], Fault | None]


def at(mutation: int, fault: Fault) -> Rule:
    """At the n-th changing operation."""
    return lambda operation: fault if operation.mutation == mutation else None


def on(name: str, fault: Fault, nth: int = 1) -> Rule:
    """At the n-th operation of this name (`objects.put`, `index.write` …); 0: at each of them."""
    return lambda operation: fault if operation.name == name and nth in (0, operation.nth) else None


@dataclass
class FaultPlan:
    """Which operations go wrong, and a log of all of them. Without rules everything goes well."""

    rules: Sequence[Rule] = ()
    log: list[Operation] = field(default_factory=list)
    mutations: int = 0
    dead: bool = False
    _counts: dict[str, int] = field(default_factory=dict)
    _delayed: list[Callable[[], object]] = field(default_factory=list)
    _on_power_failure: list[Callable[[], None]] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def begin(self, name: str, key: str, *, mutates: bool) -> Fault | None:
        with self._lock:
            if self.dead:
                raise Crash(f"{name} {key}: the process is dead")
            self.mutations += mutates
            self._counts[name] = self._counts.get(name, 0) + 1
            operation = Operation(name, key, self.mutations if mutates else 0, self._counts[name])
            self.log.append(operation)
            return next((fault for rule in self.rules if (fault := rule(operation)) is not None), None)

    def die(self, *, power: bool = False) -> Crash:
        with self._lock:
            self.dead = True
            for forget in self._on_power_failure if power else ():
                forget()
        return Crash("the process died")

    def delay(self, effect: Callable[[], object]) -> None:
        with self._lock:
            self._delayed.append(effect)

    def at_power_failure(self, forget: Callable[[], None]) -> None:
        self._on_power_failure.append(forget)

    def release(self) -> int:
        """The delayed requests arrive now, also those of a dead process; nobody hears their answers. Says
        how many."""
        with self._lock:
            effects, self._delayed = self._delayed, []
        for effect in effects:
            with contextlib.suppress(errors.StoreError):
                effect()
        return len(effects)

    def names(self) -> list[str]:
        """The changing operations in order: for messages, and for asserting an order."""
        return [operation.name for operation in self.log if operation.mutation]


def _perform(
    plan: FaultPlan,
    name: str,
    key: str,
    effect: Callable[[], T],
    *,
    mutates: bool = True,
    half: Callable[[], object] | None = None,
) -> T:
    fault = plan.begin(name, key, mutates=mutates)
    match fault:
        case None:
            return effect()
        case Fault.CRASH_BEFORE:
            raise plan.die()
        case Fault.POWER_FAILURE:
            raise plan.die(power=True)
        case Fault.CRASH_AFTER:
            effect()
            raise plan.die()
        case Fault.DENY:
            raise errors.Denied(f"{name} {key}: denied on purpose")
        case Fault.DELAY:
            plan.delay(effect)
        case Fault.LOSE_ANSWER:
            effect()
        case Fault.PARTIAL:
            (half or effect)()
        case Fault.THROTTLE:
            pass
    raise errors.Unreachable(f"{name} {key}: {fault.name.lower()} on purpose")


def _stream(plan: FaultPlan, name: str, key: str, source: Iterator[T]) -> Iterator[T]:
    fault = plan.begin(name, key, mutates=False)
    if fault in CRASHES:
        raise plan.die(power=fault is Fault.POWER_FAILURE)
    if fault is Fault.DENY:
        raise errors.Denied(f"{name} {key}: denied on purpose")
    if fault is None:
        for item in source:
            if plan.dead:
                raise Crash(f"{name} {key}: the process is dead")
            yield item
        return
    if fault is Fault.PARTIAL:
        items = list(source)
        if len(items) == 1 and isinstance(items[0], bytes):
            yield items[0][: len(items[0]) // 2]  # type: ignore[misc]
        else:
            yield from items[: len(items) // 2]
    raise errors.Unreachable(f"{name} {key}: {fault.name.lower()} on purpose")


class FaultyUpload:
    """`stores.base.Upload`."""

    def __init__(self, upload: Upload, stem: str, plan: FaultPlan, remember: Callable[[Stored], Stored]) -> None:
        self.token = upload.token
        self.part_size = upload.part_size
        self._upload = upload
        self._stem = stem
        self._plan = plan
        self._remember = remember

    def holds_other(self, number: int, data: bytes) -> bool:
        return self._upload.holds_other(number, data)

    def write_part(self, number: int, data: bytes) -> None:
        key = f"{self._stem} {number}"
        _perform(self._plan, "upload.write_part", key, lambda: self._upload.write_part(number, data))

    def complete(self) -> Stored:
        return _perform(self._plan, "upload.complete", self._stem, lambda: self._remember(self._upload.complete()))

    def abort(self) -> None:
        _perform(self._plan, "upload.abort", self._stem, self._upload.abort)


class FaultyObjects:
    """`stores.base.ObjectStore` around another one."""

    def __init__(self, store: ObjectStore, plan: FaultPlan) -> None:
        self._store = store
        self._plan = plan
        self._unsynced: list[tuple[str, str]] = []
        plan.at_power_failure(self._forget)

    def _forget(self) -> None:
        """What a power failure takes. A store with versions is a service: it keeps what it acknowledged."""
        for stem, version in [] if self._store.versioned else self._unsynced:
            self._store.delete(stem, version)

    def _remember(self, stem: str, stored: Stored) -> Stored:
        self._unsynced.append((stem, stored.version))
        return stored

    @property
    def versioned(self) -> bool:
        return self._store.versioned

    @property
    def single_put_limit(self) -> int:
        return self._store.single_put_limit

    def put(self, stem: str, body: Body, attempt: Attempt) -> Stored:
        # A late request has its bytes with it, whatever becomes of its sender.
        body = body if isinstance(body, bytes) else list(body)
        effect = lambda: self._remember(stem, self._store.put(stem, body, attempt))  # noqa: E731
        return _perform(self._plan, "objects.put", stem, effect)

    def _upload(self, stem: str, upload: Upload) -> Upload:
        return FaultyUpload(upload, stem, self._plan, lambda stored: self._remember(stem, stored))

    def begin(self, stem: str, attempt: Attempt, size_hint: int) -> Upload:
        effect = lambda: self._store.begin(stem, attempt, size_hint)  # noqa: E731
        return self._upload(stem, _perform(self._plan, "objects.begin", stem, effect))

    def resume(self, stem: str, attempt: Attempt, token: str) -> Upload | None:
        effect = lambda: self._store.resume(stem, attempt, token)  # noqa: E731
        upload = _perform(self._plan, "objects.resume", stem, effect, mutates=False)
        return None if upload is None else self._upload(stem, upload)

    def read(self, stem: str, version: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return _stream(self._plan, "objects.read", stem, self._store.read(stem, version, start, length))

    def versions(self, prefix: str) -> Iterator[Version]:
        return _stream(self._plan, "objects.versions", prefix, self._store.versions(prefix))

    def find(self, stem: str, attempt_id: str) -> Stored | None:
        effect = lambda: self._store.find(stem, attempt_id)  # noqa: E731
        return _perform(self._plan, "objects.find", stem, effect, mutates=False)

    def read_document(self, key: str) -> bytes:
        effect = lambda: self._store.read_document(key)  # noqa: E731
        return _perform(self._plan, "objects.read_document", key, effect, mutates=False)

    def documents(self, prefix: str, after: str = "") -> Iterator[Document]:
        return _stream(self._plan, "objects.documents", prefix, self._store.documents(prefix, after))

    def delete(self, stem: str, version: str) -> None:
        _perform(self._plan, "objects.delete", stem, lambda: self._store.delete(stem, version))

    def mark(self, stem: str) -> None:
        _perform(self._plan, "objects.mark", stem, lambda: self._store.mark(stem))

    def unmark(self, stem: str) -> None:
        _perform(self._plan, "objects.unmark", stem, lambda: self._store.unmark(stem))

    def barrier(self) -> None:
        def effect() -> None:
            # Of several barriers at once none forgets what came after it had begun.
            covered = list(self._unsynced)
            self._store.barrier()
            for one in covered:
                with contextlib.suppress(ValueError):
                    self._unsynced.remove(one)

        _perform(self._plan, "objects.barrier", "", effect)

    def create_document(self, key: str, body: bytes) -> None:
        _perform(self._plan, "objects.create_document", key, lambda: self._store.create_document(key, body))

    def replace_document(self, key: str, body: bytes) -> None:
        _perform(self._plan, "objects.replace_document", key, lambda: self._store.replace_document(key, body))

    def delete_document(self, key: str) -> None:
        _perform(self._plan, "objects.delete_document", key, lambda: self._store.delete_document(key))

    def forget_versions(self, key: str) -> None:
        _perform(self._plan, "objects.forget_versions", key, lambda: self._store.forget_versions(key))

    def past_documents(self, prefix: str) -> Iterator[str]:
        return _stream(self._plan, "objects.past_documents", prefix, self._store.past_documents(prefix))


class FaultyIndex:
    """`stores.base.Index` around another one."""

    def __init__(self, index: Index, plan: FaultPlan) -> None:
        self._index = index
        self._plan = plan

    def read(self, keys: Collection[str]) -> dict[str, Item]:
        shown = ",".join(sorted(keys)[:3])
        return _perform(self._plan, "index.read", shown, lambda: self._index.read(keys), mutates=False)

    def scan(self) -> Iterator[Item]:
        return _stream(self._plan, "index.scan", "", self._index.scan())

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        shown = ",".join(write.item.key for write in writes[:3])
        if len({write.item.key for write in writes}) != len(writes):
            return self._index.write(writes)  # refuses it; nothing is sent that could go wrong
        half = lambda: self._index.write(writes[: (len(writes) + 1) // 2])  # noqa: E731
        return _perform(self._plan, "index.write", shown, lambda: self._index.write(writes), half=half)

    def write_units(self, item: Item) -> int:
        return self._index.write_units(item)
