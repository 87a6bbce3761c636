"""The index in a DynamoDB table.

Decides how conditional writes travel: 25 PartiQL statements a request, each with its own condition and its
own outcome, and how an outcome that the answer leaves open is found out by reading again. Knows nothing of
what items mean, and neither sleeps nor retries: a throttled statement ends in `Unreachable`, and the whole
call may be repeated, for whoever finds its own rev knows that its write was done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from s3hashsync.core.model import Item
from s3hashsync.errors import S3HashSyncError, StoreError, Unreachable
from s3hashsync.stores.aws import from_answer, translated
from s3hashsync.stores.base import Outcome, Write
from s3hashsync.stores.dynamodb_items import (
    KEY,
    REV,
    Attributes,
    attribute_names,
    decode_item,
    encode_item,
    item_size,
    write_units,
)

STATEMENTS_A_REQUEST = 25
KEYS_A_READ = 100
# A request may have 16 MB; how much of that a batch of statements may is not said, for transactions it is
# 4 MB.
BYTES_A_REQUEST = 3 << 20
LARGEST_ITEM = 400 * 1024
# Reads of large items come back in rounds. Only rounds that bring nothing count.
_FRUITLESS_ROUNDS = 3

_T = TypeVar("_T")
_R = TypeVar("_R")


class DynamoIndex:
    """Implements `Index` over a DynamoDB client of `stores.aws`. `threads` requests run at a time."""

    def __init__(self, client: Any, table: str, *, threads: int = 4) -> None:
        self._client = client
        self._table = table
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="dynamodb")

    def close(self) -> None:
        self._pool.shutdown()

    def read(self, keys: Collection[str]) -> dict[str, Item]:
        wanted = list(dict.fromkeys(keys))
        parts = self._each(self._read_some, list(_batched(wanted, KEYS_A_READ)))
        return {key: item for part in parts for key, item in part.items()}

    def scan(self) -> Iterator[Item]:
        position: dict[str, Any] = {}
        while True:
            with translated(f"reading the table {self._table}"):
                page = self._client.scan(TableName=self._table, ConsistentRead=True, **position)
            yield from map(decode_item, page["Items"])
            if not page.get("LastEvaluatedKey"):
                return
            position = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        if len({write.item.key for write in writes}) != len(writes):
            raise ValueError("two writes of one call have the same key")
        outcomes: dict[str, Outcome] = {}
        for part in self._each(self._write_some, list(_request_sized(writes))):
            outcomes |= part
        return [outcomes[write.item.key] for write in writes]

    def write_units(self, item: Item) -> int:
        return write_units(item)

    def _each(self, work: Callable[[_T], _R], parts: Sequence[_T]) -> list[_R]:
        """All parts are tried, also when one fails, so that as much as possible is done before it is
        repeated."""
        if len(parts) <= 1:
            return [work(part) for part in parts]
        futures = [self._pool.submit(work, part) for part in parts]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            # What will not go away by itself counts for more than what may.
            raise min(errors, key=lambda error: isinstance(error, S3HashSyncError) and error.transient)
        return [future.result() for future in futures]

    def _read_some(self, keys: Sequence[str]) -> dict[str, Item]:
        found: dict[str, Item] = {}
        left: list[Any] = [{KEY: {"S": key}} for key in keys]
        fruitless = 0
        while left:
            request = {self._table: {"Keys": left, "ConsistentRead": True}}
            with translated(f"reading items of the table {self._table}"):
                answer = self._client.batch_get_item(RequestItems=request)
            items = [decode_item(item) for item in answer["Responses"].get(self._table, ())]
            found |= {item.key: item for item in items}
            remaining = answer.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", [])
            fruitless = fruitless + 1 if len(remaining) >= len(left) else 0
            if fruitless >= _FRUITLESS_ROUNDS:
                # A key that was not read is unknown, never absent.
                raise Unreachable(f"the table {self._table} left {len(remaining)} keys unread: it is too busy")
            left = remaining
        return found

    def _write_some(self, writes: Sequence[Write]) -> dict[str, Outcome]:
        """One request. Every statement is judged on its own; then the first failure, if any, is raised."""
        statements = [self._statement(write) for write in writes]
        with translated(f"writing {len(writes)} items to the table {self._table}"):
            answers = self._client.batch_execute_statement(Statements=statements)["Responses"]
        if len(answers) != len(writes):
            raise Unreachable(f"the table {self._table} answered {len(answers)} of {len(writes)} writes")
        outcomes: dict[str, Outcome] = {}
        unclear: list[Write] = []
        failures: list[S3HashSyncError] = []
        for write, answer in zip(writes, answers, strict=True):
            match self._judged(write, answer):
                case Outcome() as outcome:
                    outcomes[write.item.key] = outcome
                case S3HashSyncError() as failure:
                    failures.append(failure)
                case None:
                    unclear.append(write)
        if failures:
            raise min(failures, key=lambda failure: failure.transient)
        # A duplicate INSERT does not show what stood in the way.
        now = self._each(self._read_some, [[write.item.key for write in unclear]] if unclear else [])
        for write in unclear:
            outcomes[write.item.key] = _compared(write, now[0].get(write.item.key))
        return outcomes

    def _judged(self, write: Write, answer: Any) -> Outcome | S3HashSyncError | None:
        """What one statement came to; None when only another read can tell."""
        error = answer.get("Error")
        if error is None:
            return Outcome(True)
        if error.get("Code") in ("ConditionalCheckFailed", "DuplicateItem"):
            old = error.get("Item")
            return _compared(write, decode_item(old)) if old else None
        doing = f"writing the item {write.item.key} ({item_size(encode_item(write.item))} bytes) to {self._table}"
        return from_answer(answer, doing)

    def _statement(self, write: Write) -> dict[str, Any]:
        attributes = encode_item(write.item)
        if (size := item_size(attributes)) > LARGEST_ITEM:
            # DynamoDB would refuse it, and DynamoDB Local the whole request with it.
            raise StoreError(
                f"the item {write.item.key} has {size} bytes: the table {self._table} takes {LARGEST_ITEM}",
                "its names have to go to overflow items",
            )
        if write.expects is None:
            text, parameters = _insert(self._table, attributes)
        else:
            text, parameters = _replace(self._table, write, attributes)
        return {"Statement": text, "Parameters": parameters, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}


def _insert(table: str, attributes: Attributes) -> tuple[str, list[Any]]:
    """A put on condition that there is no item: a duplicate is reported."""
    fields = ", ".join(f"'{name}': ?" for name in attributes)
    return f'INSERT INTO "{table}" VALUE {{{fields}}}', list(attributes.values())


def _replace(table: str, write: Write, attributes: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """The whole item anew on condition of its rev: what it no longer has is removed."""
    names = attribute_names(write.item)
    kept = [name for name in names if name in attributes]
    changes = [f'SET "{name}" = ?' for name in kept]
    changes += [f'REMOVE "{name}"' for name in names if name not in attributes]
    text = f'UPDATE "{table}" {" ".join(changes)} WHERE "{KEY}" = ? AND "{REV}" = ?'
    expects = (write.expects or b"").hex()
    return text, [*(attributes[name] for name in kept), {"S": write.item.key}, {"S": expects}]


def _compared(write: Write, found: Item | None) -> Outcome:
    if found is not None and found.rev == write.item.rev:
        return Outcome(True)
    return Outcome(False, found)


def _batched(values: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _request_sized(writes: Sequence[Write]) -> Iterator[Sequence[Write]]:
    """Parts within both limits: statements and bytes."""
    first, size = 0, 0
    for at, write in enumerate(writes):
        own = item_size(encode_item(write.item))
        if at > first and (at - first == STATEMENTS_A_REQUEST or size + own > BYTES_A_REQUEST):
            yield writes[first:at]
            first, size = at, 0
        size += own
    if first < len(writes):
        yield writes[first:]
