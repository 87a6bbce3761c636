"""What could not be restored because it has to be thawed first.

Decides what a person is told of it. Requests nothing itself: a thaw is paid for. Knows nothing of files on the disk.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from s3hashsync.config import Config, S3Url
from s3hashsync.core.model import Content, ContentHash, Control, pack_key, pack_stem
from s3hashsync.core.plan import Problem
from s3hashsync.errors import StoreError, ThawPending
from s3hashsync.run.contents import StoredAt, stored_at
from s3hashsync.run.repository import STORE, Identity
from s3hashsync.stores.base import IndexReader

_DAYS = 14
_PACKS = pack_stem("")


@dataclass(frozen=True, slots=True)
class ArchivedObject:
    """An object or pack that cannot be read yet. `stored` in bytes: of a pack the whole, for no part of it can be
    thawed; where the index does not know that, what is wanted of it."""

    at: StoredAt
    storage_class: str
    stored: int


@dataclass(frozen=True, slots=True)
class Thaw:
    """The objects to thaw, each once, and the files that wait for them: one "problem" each."""

    objects: tuple[ArchivedObject, ...]
    files: tuple[Problem, ...]

    def totals(self) -> dict[str, tuple[int, int]]:
        """For each storage class the number of objects and their bytes as stored."""
        out: dict[str, tuple[int, int]] = {}
        for one in self.objects:
            count, stored = out.get(one.storage_class, (0, 0))
            out[one.storage_class] = count + 1, stored + one.stored
        return out

    def error(self, config: Config, identity: Identity) -> ThawPending:
        parts = ", ".join(
            f"{count:,} {'object' if count == 1 else 'objects'} ({stored:,} bytes) in {name or 'an archive class'}"
            for name, (count, stored) in sorted(self.totals().items())
        )
        command = thaw_command(config, identity, self.objects[0])
        hint = "thaw them, each with a command like this one, and run the same restore again; what is there is kept"
        waiting = "1 file waits" if len(self.files) == 1 else f"{len(self.files):,} files wait"
        return ThawPending(f"{waiting} for a thaw: {parts}", f"{hint}:\n{command}" if command else hint)


def thaw_command(config: Config, identity: Identity, one: ArchivedObject) -> str:
    """What asks AWS for one object; "" where the objects are not in a bucket."""
    settings = config.repository
    if not isinstance(settings.objects, S3Url):
        return ""
    own = identity.versions == STORE
    key = one.at.stem if own else f"{one.at.stem}.{one.at.version}"
    words = ["aws", "s3api", "restore-object", "--bucket", settings.objects.bucket]
    words += ["--key", f"{settings.objects.prefix}/{key}" if settings.objects.prefix else key]
    words += ["--version-id", one.at.version] if own else []
    # INTELLIGENT_TIERING moves the object back for good, so it takes no number of days.
    days = "" if one.storage_class == "INTELLIGENT_TIERING" else f"Days={_DAYS},"
    words += ["--restore-request", f"{days}GlacierJobParameters={{Tier=Bulk}}"]
    for option, value in (
        ("--region", settings.region),
        ("--profile", settings.profile),
        ("--endpoint-url", settings.s3_endpoint),
    ):
        words += [option, value] if value else []
    return shlex.join(words)


class Archive:
    """Collects while a restore goes on. Not for several threads at once."""

    def __init__(self) -> None:
        self._objects: dict[StoredAt, ArchivedObject] = {}
        self._contents: set[ContentHash] = set()
        self._files: list[Problem] = []

    def add(self, file: Problem, content: Content) -> None:
        self._files.append(file)
        if content.hash not in self._contents:
            self._contents.add(content.hash)
            at = stored_at(content)
            before = self._objects[at].stored if at in self._objects else 0
            self._objects[at] = ArchivedObject(at, content.storage_class, before + content.stored)

    def thaw(self, index: IndexReader) -> Thaw | None:
        """None when nothing has to be thawed."""
        if not self._files:
            return None
        sizes = self._pack_sizes(index)
        objects = (replace(one, stored=sizes.get(one.at.stem, one.stored)) for one in self._objects.values())
        return Thaw(tuple(objects), tuple(self._files))

    def _pack_sizes(self, index: IndexReader) -> dict[str, int]:
        stems = {pack_key(at.stem.removeprefix(_PACKS)): at.stem for at in self._objects if at.stem.startswith(_PACKS)}
        try:
            items = index.read(list(stems)).values() if stems else ()
        except StoreError:
            return {}
        said = {stems[item.key]: item.get("stored") for item in items if isinstance(item, Control)}
        return {stem: int(text) for stem, text in said.items() if text.isascii() and text.isdigit()}
