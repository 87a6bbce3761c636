"""What the DynamoDB adapter alone has: failures of a real server, its limits, foreign items."""

from __future__ import annotations

import dataclasses
import secrets

import pytest

from s3hashsync.core.model import ContentHash, Control, ObjectAt, Record, RecordState, Rev, StoredName
from s3hashsync.errors import Corrupt, StoreError, Unreachable
from s3hashsync.stores.aws import NoStore, connect
from s3hashsync.stores.base import Outcome, Write
from s3hashsync.stores.dynamodb import DynamoIndex
from s3hashsync.stores.dynamodb_items import encode_item, item_size
from s3hashsync.stores.dynamodb_setup import inspect_table, prepare_table
from tests.aws_places import fresh_index, fresh_table, settings
from tests.servers import free_port


def rev() -> Rev:
    return Rev(secrets.token_bytes(12))


def record(*names: str) -> Record:
    return Record(
        hash=ContentHash(secrets.token_bytes(32)),
        state=RecordState.LIVE,
        rev=rev(),
        names=frozenset(map(StoredName, names)),
        size=5,
        location=ObjectAt("v"),
    )


def large(size: int) -> Record:
    return record(*(f"source/{number:0993}" for number in range(size // 1000)))


def test_a_missing_table_is_no_absent_item(dynamodb_local: str) -> None:
    index = DynamoIndex(connect(settings(dynamodb_local)).dynamodb(), "no-such-table")
    for call in (
        lambda: index.read(["a"]),
        lambda: list(index.scan()),
        lambda: index.write([Write(record(), None)]),
    ):
        with pytest.raises(NoStore, match="no-such-table"):
            call()


def test_a_dead_port_is_unreachable() -> None:
    index = DynamoIndex(connect(settings(f"http://127.0.0.1:{free_port()}")).dynamodb(), "any")
    with pytest.raises(Unreachable):
        index.read(["a"])


def test_many_writes_of_both_kinds_in_one_call(dynamodb_local: str) -> None:
    index = fresh_index(dynamodb_local)
    old = [record("s/old") for _ in range(130)]
    assert index.write([Write(item, None) for item in old]) == [Outcome(True)] * 130
    fresh = [dataclasses.replace(item, rev=rev()) for item in old]
    conditions = [(item.rev, rev(), None)[number % 3] for number, item in enumerate(old)]
    writes = [Write(item, expects) for item, expects in zip(fresh, conditions, strict=True)]
    outcomes = index.write(writes)
    for number, outcome in enumerate(outcomes):
        assert outcome == (Outcome(True) if number % 3 == 0 else Outcome(False, old[number]))
    assert index.write(writes)[0] == Outcome(True), "a repeated call finds its own revs"


def test_many_reads_of_large_items(dynamodb_local: str) -> None:
    """An answer holds 16 MB, so these come back in rounds; a write request has a limit as well."""
    index = fresh_index(dynamodb_local)
    items = [large(390_000) for _ in range(50)] + [record("s/a") for _ in range(80)]
    assert all(outcome.written for outcome in index.write([Write(item, None) for item in items]))
    assert index.read([item.key for item in items] + ["absent"]) == {item.key: item for item in items}
    assert {item.key for item in index.scan()} == {item.key for item in items}


def test_an_item_that_is_too_large_is_refused_alone(dynamodb_local: str) -> None:
    index = fresh_index(dynamodb_local)
    item = large(420_000)
    with pytest.raises(StoreError, match="bytes") as caught:
        index.write([Write(item, None)])
    assert not caught.value.transient
    assert list(index.scan()) == []


def test_the_size_is_counted_as_dynamodb_counts(dynamodb_local: str) -> None:
    """At the limit: one byte more is refused by the server too."""
    client, table = fresh_table(dynamodb_local)
    base = item_size(encode_item(Control("k", Rev(b"r"), (("f", ""),))))
    fitting = Control("k", Rev(b"r"), (("f", "x" * (400 * 1024 - base)),))
    assert item_size(encode_item(fitting)) == 400 * 1024
    assert DynamoIndex(client, table).write([Write(fitting, None)]) == [Outcome(True)]
    with pytest.raises(client.exceptions.ClientError, match="size"):
        client.put_item(TableName=table, Item=encode_item(Control("k2", Rev(b"r"), (("f", "x" * (400 * 1024 - base)),))))


def test_foreign_items_are_corrupt(dynamodb_local: str) -> None:
    client, table = fresh_table(dynamodb_local)
    index = DynamoIndex(client, table)
    good = encode_item(record("s/a"))
    for number, wrong in enumerate(
        [
            {"hash": {"S": "source:x"}},
            good | {"rev": {"N": "5"}},
            good | {"state": {"S": "asleep"}},
            good | {"location": {"S": "9z:1"}},
            good | {"size": {"S": "5"}},
            {"hash": {"S": "source:x"}, "rev": {"S": "no hex"}},
        ]
    ):
        client.put_item(TableName=table, Item=wrong)
        with pytest.raises(Corrupt):
            index.read([wrong["hash"]["S"]])
        client.update_table(TableName=table, DeletionProtectionEnabled=False) if number == 0 else None
        client.delete_item(TableName=table, Key={"hash": wrong["hash"]})


def test_a_table_is_prepared_and_inspected(dynamodb_local: str) -> None:
    client = connect(settings(dynamodb_local)).dynamodb()
    table = f"made-{secrets.token_hex(4)}"
    assert [finding.severity for finding in inspect_table(client, table)] == ["refused"]
    assert any(f.severity == "created" for f in prepare_table(client, table))
    again = prepare_table(client, table, point_in_time_recovery=True)
    assert not any(finding.severity == "refused" for finding in again)
    what = {"Enabled": True, "AttributeName": "expiration"}
    client.update_time_to_live(TableName=table, TimeToLiveSpecification=what)
    assert any("time to live" in f.what for f in inspect_table(client, table) if f.severity == "refused")


def test_a_table_of_another_shape_is_refused(dynamodb_local: str) -> None:
    client, table = connect(settings(dynamodb_local)).dynamodb(), f"other-{secrets.token_hex(4)}"
    client.create_table(
        TableName=table,
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        ProvisionedThroughput={"ReadCapacityUnits": 1, "WriteCapacityUnits": 1},
    )
    findings = prepare_table(client, table)
    assert {f.severity for f in findings} >= {"refused", "warning"}
