"""Who may work on a source: one host at a time, and on it one process.

The host's half is a lock file (in `disk.lock`); this is the other half, the item `source:<name>`: host, run and the head of the
run logs. Decides who is refused. A take-over is safe because the owner reads this item again after it has read records and before
it writes them, and because the first run of a new owner writes every name that it keeps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from s3hashsync.core.model import Control, Rev
from s3hashsync.errors import Corrupt, Locked
from s3hashsync.stores.base import Index, IndexReader, Write

PREFIX = "source:"


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the repository knows of a source. `head` is the key of its newest run-log segment ("" before the first); `updated`
    in epoch seconds. `files` and `size` are what it held when a run last said so; `unfinished`: one has begun since. `rewrite`: a
    run was to write every name again (new owner, older table) and has not finished that."""

    name: str
    host: str
    run: str
    head: str
    updated: int
    files: int = 0
    size: int = 0
    rewrite: bool = False
    unfinished: bool = False


def read_source(index: IndexReader, name: str) -> SourceFacts | None:
    item = index.read([PREFIX + name]).get(PREFIX + name)
    return _facts(item) if isinstance(item, Control) else None


def read_sources(index: IndexReader, names: list[str]) -> dict[str, SourceFacts]:
    items = index.read([PREFIX + name for name in names])
    return {f.name: f for item in items.values() if isinstance(item, Control) for f in [_facts(item)]}


def all_sources(index: IndexReader) -> list[SourceFacts]:
    """The sources of the repository, by the list that the item `repository` keeps."""
    item = index.read(["sources"]).get("sources")
    if not isinstance(item, Control):
        return []
    found = read_sources(index, [name for name, _ in item.fields])
    return [found[name] for name in sorted(found)]


def _facts(item: Control) -> SourceFacts:
    return SourceFacts(
        name=item.key.removeprefix(PREFIX),
        host=item.get("host"),
        run=item.get("run"),
        head=item.get("head"),
        updated=int(item.get("updated", "0")),
        files=int(item.get("files", "0")),
        size=int(item.get("size", "0")),
        rewrite=item.get("rewrite") == "1",
        unfinished=item.get("unfinished") == "1",
    )


class Lease:
    """The right to change one source, held by one run. For any thread."""

    def __init__(self, index: Index, facts: SourceFacts, rev: Rev, entropy: Callable[[int], bytes]) -> None:
        self._index = index
        self._entropy = entropy
        # While the item is written, its new rev may be there and not known here.
        self._lock = threading.Lock()
        self._rev = rev
        self.facts = facts

    def guard(self) -> None:
        """Raises `Locked` when another run has taken this source over."""
        with self._lock:
            item = self._index.read([PREFIX + self.facts.name]).get(PREFIX + self.facts.name)
            ours = isinstance(item, Control) and item.rev == self._rev
        if not ours:
            owner = f" by {item.get('host')}" if isinstance(item, Control) else ""
            raise Locked(
                f"source {self.facts.name} was taken over{owner} while this run was working",
                "nothing acknowledged is lost; decide which host backs this source up and run apply there",
            )

    def advance(self, facts: SourceFacts) -> None:
        """Move the head of the run logs: raises `Locked` when the source is no longer ours. What the source holds is said by
        `finish`: the plan is not done yet."""
        self._write(replace(facts, files=self.facts.files, size=self.facts.size))

    def finish(self, files: int, size: int, *, whole: bool) -> None:
        """What the source holds now; `whole`: the run came to its end."""
        self._write(replace(self.facts, files=files, size=size, unfinished=not whole))

    def _write(self, facts: SourceFacts) -> None:
        with self._lock:
            self._rev = write_facts(self._index, facts, self._rev, self._entropy)
            self.facts = facts


def acquire(
    index: Index,
    wanted: SourceFacts,
    entropy: Callable[[int], bytes],
    *,
    seen: str | None = None,
    take_over: bool = False,
) -> tuple[Lease, bool]:
    """The lease for `wanted.host` and `wanted.run`, and whether the source was another host's before. The caller holds the
    host's lock file; the same host takes over silently. Raises `Locked` for another host's source, and when the head of the
    run logs is not `seen` any more: what was planned on it would leave the other run's segment out of the logs.

    The head becomes `wanted.head`: a dead run's segment counts from here on, so that the next one may follow it."""
    item = index.read([PREFIX + wanted.name]).get(PREFIX + wanted.name)
    if item is None:
        enlist(index, wanted.name, entropy)
        facts = replace(wanted, unfinished=True)
        return Lease(index, facts, write_facts(index, facts, None, entropy), entropy), False
    if not isinstance(item, Control):
        raise Corrupt(f"the item {PREFIX}{wanted.name} of the index is not a source")
    now = _facts(item)
    foreign = now.host != wanted.host
    if foreign and not take_over:
        raise Locked(
            f"source {wanted.name} belongs to host {now.host!r}, this is {wanted.host!r}",
            f"set `host: {now.host}` in the configuration if this is the same machine under another name (containers, CI);"
            " use --take-over if this machine replaces it",
        )
    if seen is not None and now.head != seen:
        raise Locked(
            f"source {wanted.name} was backed up by {now.host} since this run looked at it", "run the same command again"
        )
    facts = replace(wanted, files=now.files, size=now.size, rewrite=wanted.rewrite or now.rewrite, unfinished=True)
    return Lease(index, facts, write_facts(index, facts, item.rev, entropy), entropy), foreign


def write_facts(index: Index, facts: SourceFacts, expects: Rev | None, entropy: Callable[[int], bytes]) -> Rev:
    """Write the source's item on the rev that was read (None: there was none); answers its new rev, or raises `Locked`."""
    rev = Rev(entropy(12))
    fields = (
        ("host", facts.host),
        ("run", facts.run),
        ("head", facts.head),
        ("updated", str(facts.updated)),
        ("files", str(facts.files)),
        ("size", str(facts.size)),
        ("rewrite", "1" if facts.rewrite else "0"),
        ("unfinished", "1" if facts.unfinished else "0"),
    )
    (outcome,) = index.write([Write(Control(PREFIX + facts.name, rev, fields), expects)])
    if not outcome.written:
        other = outcome.found.get("host") if isinstance(outcome.found, Control) else "another host"
        raise Locked(f"source {facts.name} was taken by {other} at this very moment", "try again in a minute")
    return rev


def enlist(index: Index, name: str, entropy: Callable[[int], bytes]) -> None:
    """Put the source on the repository's list, so that it can be found without a scan of the whole index."""
    for _ in range(30):
        item = index.read(["sources"]).get("sources")
        fields = item.fields if isinstance(item, Control) else ()
        if any(field == name for field, _ in fields):
            return
        after = Control("sources", Rev(entropy(12)), (*fields, (name, "1")))
        (outcome,) = index.write([Write(after, item.rev if item else None)])
        if outcome.written:
            return
    raise Locked("the repository's list of sources keeps changing", "try again in a minute")
