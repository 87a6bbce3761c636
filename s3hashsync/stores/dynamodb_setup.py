"""The table: making it, and whether it is as the index needs it.

Decides which settings are right, which are only a missing protection, and which break the invariants of the
write protocol and are refused. Of a table that is there already it changes nothing, but for point-in-time
recovery when that is asked for. Knows nothing of items.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from s3hashsync.errors import Denied, Unsupported
from s3hashsync.stores.aws import NoStore, translated
from s3hashsync.stores.finding import Finding, looked, made

_POLL_SECONDS = 1
_POLLS = 120


def prepare_table(client: Any, table: str, *, point_in_time_recovery: bool = False) -> list[Finding]:
    """Makes the table if it is missing, then looks at everything. Point-in-time recovery costs money: only
    on request."""
    done: list[Finding] = []
    if _table(client, table) is None:
        with translated(f"creating the table {table}"):
            client.create_table(
                TableName=table,
                AttributeDefinitions=[{"AttributeName": "hash", "AttributeType": "S"}],
                KeySchema=[{"AttributeName": "hash", "KeyType": "HASH"}],
                BillingMode="PAY_PER_REQUEST",
                DeletionProtectionEnabled=True,
            )
            client.get_waiter("table_exists").wait(TableName=table, WaiterConfig={"Delay": _POLL_SECONDS, "MaxAttempts": _POLLS})
        done.append(Finding("created", f"table {table}"))
    if point_in_time_recovery and not _recovery_is_on(client, table):
        done += made("point-in-time recovery", lambda: _switch_recovery_on(client, table))
    return done + inspect_table(client, table)


def inspect_table(client: Any, table: str) -> list[Finding]:
    description = _table(client, table)
    if description is None:
        return [Finding("refused", f"there is no table {table}", "`s3hashsync init` creates it")]
    return [
        *_key(description),
        *_billing(description),
        *_replicas(description),
        *_deletion_protection(description),
        *looked("time to live", lambda: _time_to_live(client, table)),
        *looked("point-in-time recovery", lambda: _recovery(client, table)),
    ]


def _switch_recovery_on(client: Any, table: str) -> None:
    specification = {"PointInTimeRecoveryEnabled": True}
    client.update_continuous_backups(TableName=table, PointInTimeRecoverySpecification=specification)


def _table(client: Any, table: str) -> Any:
    try:
        with translated(f"looking at the table {table}"):
            return client.describe_table(TableName=table)["Table"]
    except NoStore:
        return None


def _key(description: Any) -> Iterator[Finding]:
    types = {each["AttributeName"]: each["AttributeType"] for each in description["AttributeDefinitions"]}
    keys = [(each["AttributeName"], each["KeyType"]) for each in description["KeySchema"]]
    if keys == [("hash", "HASH")] and types.get("hash") == "S":
        yield Finding("ok", "the table's key is `hash`, a string")
    else:
        hint = "this table was made for something else: name another one"
        yield Finding("refused", "the table's key is not `hash` alone, a string", hint)


def _billing(description: Any) -> Iterator[Finding]:
    if description.get("BillingModeSummary", {}).get("BillingMode") == "PAY_PER_REQUEST":
        yield Finding("ok", "the table is billed on demand")
    else:
        hint = "on-demand capacity is cheaper for backups, which write in bursts"
        yield Finding("warning", "the table has provisioned capacity", hint)


def _replicas(description: Any) -> Iterator[Finding]:
    if description.get("Replicas") or description.get("GlobalTableVersion"):
        hint = "conditional writes hold in one region only: remove the replicas"
        yield Finding("refused", "the table is a global table", hint)


def _deletion_protection(description: Any) -> Iterator[Finding]:
    if description.get("DeletionProtectionEnabled"):
        yield Finding("ok", "the table is protected from deletion")
    else:
        hint = "switch it on: `aws dynamodb update-table --deletion-protection-enabled`"
        yield Finding("warning", "missing protection: the table can be deleted", hint)


def _time_to_live(client: Any, table: str) -> Iterator[Finding]:
    answer = client.describe_time_to_live(TableName=table).get("TimeToLiveDescription", {})
    if answer.get("TimeToLiveStatus", "DISABLED") in ("ENABLED", "ENABLING"):
        hint = "switch it off: items are never deleted, and `expiration` is no time to live"
        yield Finding("refused", "the table has a time to live: DynamoDB would delete records", hint)
    else:
        yield Finding("ok", "the table has no time to live")


def _recovery(client: Any, table: str) -> Iterator[Finding]:
    if _recovery_status(client, table) == "ENABLED":
        yield Finding("ok", "point-in-time recovery is on")
    else:
        # No warning: it costs money, and the index can be rebuilt from the run logs.
        hint = "`aws dynamodb update-continuous-backups` switches it on; the run logs can rebuild the index too"
        yield Finding("ok", "point-in-time recovery is off", hint)


def _recovery_is_on(client: Any, table: str) -> bool:
    try:
        with translated(f"looking at the backups of the table {table}"):
            return _recovery_status(client, table) == "ENABLED"
    except (Unsupported, Denied):
        return False


def _recovery_status(client: Any, table: str) -> str:
    answer = client.describe_continuous_backups(TableName=table).get("ContinuousBackupsDescription", {})
    return str(answer.get("PointInTimeRecoveryDescription", {}).get("PointInTimeRecoveryStatus", "DISABLED"))
