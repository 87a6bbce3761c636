"""Trying again, in one place: both protocols around a store, with the same protocols.

Decides when an operation is tried again, and makes each of them repeatable: a stream goes on where it
broke, and a create whose answer was lost is told from a key that somebody else took. Whether an error may
pass is the error's own knowledge (`transient`); what a store is, and what the operations mean to the
program, is not known here.

Attempts and total time are both bounded. The first try costs no machinery: small local operations are too
cheap for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import tenacity

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


@dataclass(frozen=True, slots=True)
class RetryEvent:
    """What is about to be tried again, told before the wait. `attempt` is the one that failed, from 1."""

    operation: str
    attempt: int
    wait_seconds: float
    error: errors.S3HashSyncError


def _unheard(event: RetryEvent) -> None:
    return None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`total_seconds` count from the first failure: a slow upload that breaks late is tried again all the
    same."""

    attempts: int = 8
    total_seconds: float = 120.0
    first_wait: float = 0.5
    longest_wait: float = 30.0
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class _Retrier:
    """A policy, and who is told before each wait."""

    policy: RetryPolicy
    on_retry: Callable[[RetryEvent], None]

    def run(self, operation: str, function: Callable[[], T]) -> T:
        """The function's result, at the first try that does not fail, or fails for good."""
        try:
            return function()
        except errors.S3HashSyncError as error:
            if not error.transient:
                raise
            return self._again(operation, function, error)

    def _again(self, operation: str, function: Callable[[], T], first: errors.S3HashSyncError) -> T:
        failed = [first]

        def attempt() -> T:
            if failed:
                raise failed.pop()
            return function()

        def tell(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, errors.S3HashSyncError):
                self.on_retry(RetryEvent(operation, state.attempt_number, state.upcoming_sleep, error))

        policy = self.policy
        jitter = min(1.0, 2 * policy.first_wait)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=tenacity.wait_exponential_jitter(multiplier=policy.first_wait, max=policy.longest_wait, jitter=jitter),
            stop=self._is_enough,
            sleep=policy.sleep,
            before_sleep=tell,
            reraise=True,
        )
        return retrying(attempt)

    def _is_enough(self, state: tenacity.RetryCallState) -> bool:
        spent = max(state.seconds_since_start or 0.0, state.idle_for) + state.upcoming_sleep
        return state.attempt_number >= self.policy.attempts or spent > self.policy.total_seconds

    def stream(self, operation: str, again: Callable[[], Iterator[T]]) -> Iterator[T]:
        """What `again` yields; after a failure it is called anew and has to begin with what was not yielded
        yet."""
        source: Iterator[T] | None = None
        end = object()

        def step() -> T | object:
            nonlocal source
            try:
                source = again() if source is None else source
                return next(source, end)
            except BaseException:
                source = None  # a generator that raised is exhausted, and would look like the end
                raise

        while (item := self.run(operation, step)) is not end:
            yield item  # type: ignore[misc]


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, errors.S3HashSyncError) and error.transient


class RetryingUpload:
    """`stores.base.Upload`."""

    def __init__(self, store: ObjectStore, upload: Upload, place: tuple[str, Attempt], retrier: _Retrier) -> None:
        self.token = upload.token
        self.part_size = upload.part_size
        self._store = store
        self._upload = upload
        self._stem, self._attempt = place
        self._retrier = retrier

    def write_part(self, number: int, data: bytes) -> None:
        self._retrier.run("upload part", lambda: self._upload.write_part(number, data))

    def holds_other(self, number: int, data: bytes) -> bool:
        return self._upload.holds_other(number, data)

    def complete(self) -> Stored:
        """An upload that is complete is no longer known as an upload: after a lost answer its version is
        looked for."""
        in_doubt = False

        def attempt() -> Stored:
            nonlocal in_doubt
            try:
                return self._upload.complete()
            except errors.StoreError as error:
                if in_doubt and not error.transient:
                    found = self._store.find(self._stem, self._attempt.id)
                    if found is not None:
                        return found
                in_doubt = in_doubt or error.transient
                raise

        return self._retrier.run("complete upload", attempt)

    def abort(self) -> None:
        self._retrier.run("abort upload", self._upload.abort)


class RetryingObjects:
    """`stores.base.ObjectStore` around another one."""

    def __init__(self, store: ObjectStore, policy: RetryPolicy, on_retry: Callable[[RetryEvent], None] = _unheard) -> None:
        self._store = store
        self._retrier = _Retrier(policy, on_retry)

    @property
    def versioned(self) -> bool:
        return self._store.versioned

    @property
    def single_put_limit(self) -> int:
        return self._store.single_put_limit

    def put(self, stem: str, body: Body, attempt: Attempt) -> Stored:
        return self._retrier.run("put", lambda: self._store.put(stem, body, attempt))

    def begin(self, stem: str, attempt: Attempt, size_hint: int) -> Upload:
        """One whose answer was lost stays behind without parts; the lifecycle rule takes it."""
        upload = self._retrier.run("begin upload", lambda: self._store.begin(stem, attempt, size_hint))
        return RetryingUpload(self._store, upload, (stem, attempt), self._retrier)

    def resume(self, stem: str, attempt: Attempt, token: str) -> Upload | None:
        upload = self._retrier.run("resume upload", lambda: self._store.resume(stem, attempt, token))
        return None if upload is None else RetryingUpload(self._store, upload, (stem, attempt), self._retrier)

    def read(self, stem: str, version: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        done = 0

        def rest() -> Iterator[bytes]:
            if length is not None and done >= length > 0:
                return iter(())
            return self._store.read(stem, version, start + done, None if length is None else length - done)

        for chunk in self._retrier.stream("read", rest):
            done += len(chunk)
            yield chunk

    def versions(self, prefix: str) -> Iterator[Version]:
        """Listed anew after a failure; the order of stems says what was yielded before."""
        last, seen = "", set[tuple[str, bool]]()

        def rest() -> Iterator[Version]:
            broke_at, yielded = last, frozenset(seen)
            for one in self._store.versions(prefix):
                if one.stem > broke_at or (one.stem == broke_at and (one.version, one.is_marker) not in yielded):
                    yield one

        for version in self._retrier.stream("list versions", rest):
            if version.stem != last:
                last, seen = version.stem, set()
            seen.add((version.version, version.is_marker))
            yield version

    def find(self, stem: str, attempt_id: str) -> Stored | None:
        return self._retrier.run("find", lambda: self._store.find(stem, attempt_id))

    def read_document(self, key: str) -> bytes:
        return self._retrier.run("read document", lambda: self._store.read_document(key))

    def documents(self, prefix: str, after: str = "") -> Iterator[Document]:
        last = after

        def rest() -> Iterator[Document]:
            return self._store.documents(prefix, last)

        for document in self._retrier.stream("list documents", rest):
            last = document.key
            yield document

    def delete(self, stem: str, version: str) -> None:
        self._retrier.run("delete", lambda: self._store.delete(stem, version))

    def mark(self, stem: str) -> None:
        self._retrier.run("mark", lambda: self._store.mark(stem))

    def unmark(self, stem: str) -> None:
        self._retrier.run("unmark", lambda: self._store.unmark(stem))

    def barrier(self) -> None:
        self._retrier.run("barrier", self._store.barrier)

    def create_document(self, key: str, body: bytes) -> None:
        """A key that is taken after a try of ours may have got through, and holds our bytes, was taken by
        us."""
        in_doubt = False

        def attempt() -> None:
            nonlocal in_doubt
            try:
                self._store.create_document(key, body)
            except errors.AlreadyThere:
                if not in_doubt or self._store.read_document(key) != body:
                    raise
            except errors.StoreError as error:
                in_doubt = in_doubt or error.transient
                raise

        self._retrier.run("create document", attempt)

    def replace_document(self, key: str, body: bytes) -> None:
        self._retrier.run("replace document", lambda: self._store.replace_document(key, body))

    def delete_document(self, key: str) -> None:
        self._retrier.run("delete document", lambda: self._store.delete_document(key))

    def forget_versions(self, key: str) -> None:
        self._retrier.run("forget versions", lambda: self._store.forget_versions(key))

    def past_documents(self, prefix: str) -> Iterator[str]:
        """Listed anew after a failure; the order of keys says what was yielded before."""
        last = ""

        def rest() -> Iterator[str]:
            broke_at = last
            return (key for key in self._store.past_documents(prefix) if key > broke_at)

        for key in self._retrier.stream("list past documents", rest):
            last = key
            yield key


class RetryingIndex:
    """`stores.base.Index` around another one."""

    def __init__(self, index: Index, policy: RetryPolicy, on_retry: Callable[[RetryEvent], None] = _unheard) -> None:
        self._index = index
        self._retrier = _Retrier(policy, on_retry)

    def read(self, keys: Collection[str]) -> dict[str, Item]:
        return self._retrier.run("read index", lambda: self._index.read(keys))

    def scan(self) -> Iterator[Item]:
        """Begun anew after a failure, since items have no order: some are yielded twice then, as I3 allows.
        As every new beginning yields something, only their number ends a scan that breaks again and again."""
        beginnings = 0

        def again() -> Iterator[Item]:
            nonlocal beginnings
            beginnings += 1
            if beginnings > self._retrier.policy.attempts:
                raise errors.StoreError(f"the scan of the index broke {beginnings - 1} times", "try again later")
            return self._index.scan()

        return self._retrier.stream("scan index", again)

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        """The same revs every time: what a try whose answer was lost has written is known by them (I5)."""
        return self._retrier.run("write index", lambda: self._index.write(writes))

    def write_units(self, item: Item) -> int:
        return self._index.write_units(item)
