"""What this host knows of the repositories that it is enrolled in: its key files as pins.

Decides where these files lie, and when a repository contradicts them: another id or fingerprint at the same address, or one that
says that nothing is encrypted. What else a key file is good for is `run.keys`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from s3hashsync.codec.key_files import HostKey, fingerprint_text, parse_host_key
from s3hashsync.disk.host_key import PrivateFile, files_in
from s3hashsync.errors import S3HashSyncError, WrongKey
from s3hashsync.run.repository import AGE, Identity


def _unheard(text: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class HostPlace:
    """Where this host keeps its keys: the folder of all repositories' files, and the file that the configuration names, if it
    does. `url` is where the configuration says that the repository is; `warn` hears of a file that had to be done without."""

    folder: str
    url: str
    named: str | None = None
    warn: Callable[[str], None] = field(default=_unheard, compare=False)

    def file(self, repository: str) -> PrivateFile:
        return PrivateFile(self.named or os.path.join(self.folder, f"{repository}.json"))

    def known(self) -> Iterator[tuple[PrivateFile, HostKey]]:
        """Every repository that this host is enrolled in."""
        return (one for one in self._files() if not one[1].founding)

    def unfinished(self) -> Iterator[tuple[PrivateFile, HostKey]]:
        """Every repository that an `init` on this host has begun."""
        return (one for one in self._files() if one[1].founding)

    def unreadable(self) -> Iterator[S3HashSyncError]:
        """Why one or the other of the files says nothing."""
        for file in self._all():
            try:
                parsed(file)
            except S3HashSyncError as error:
                yield error

    def _files(self) -> Iterator[tuple[PrivateFile, HostKey]]:
        for file in self._all():
            # One that cannot be read says nothing about the others; whoever needs that one is told.
            with suppress(S3HashSyncError):
                if (key := parsed(file)) is not None:
                    yield file, key

    def _all(self) -> tuple[PrivateFile, ...]:
        return (*([PrivateFile(self.named)] if self.named else []), *files_in(self.folder))


def parsed(file: PrivateFile) -> HostKey | None:
    """What stands in a host key file, None when it is not there. Raises `Corrupt` and others when it cannot be read."""
    data = file.read()
    return None if data is None else parse_host_key(data, file.path)


def check_pins(place: HostPlace, about: Identity) -> None:
    """Raises `WrongKey` when the repository is not what this host knows under that address or that id. A pin that is damaged is
    still one: beside it, a repository that says that nothing is encrypted is refused. (One that is encrypted takes an identity
    that proves it, or a key file that can be read.)"""
    if about.encryption != AGE:
        for error in place.unreadable():
            raise WrongKey(
                f"the repository at {place.url} says that nothing is encrypted, and this host cannot tell whether that is so:"
                f" {error.message}",
                "if it was encrypted, repository.json was exchanged: restore an older version; if it never was, delete that file",
            )
    for file, key in place.known():
        if key.repository != about.id and (key.objects == place.url or file.path == place.named):
            differs = f"its id is {about.id}, this host knows {key.repository}"
        elif key.repository != about.id:
            continue
        elif about.encryption != AGE:
            differs = "it says that nothing is encrypted"
        elif about.fingerprint != key.fingerprint:
            shown, known = fingerprint_text(about.fingerprint), fingerprint_text(key.fingerprint)
            differs = f"its fingerprint is {shown}, this host knows {known}"
        elif key.versions not in ("", about.versions):
            differs = f"it says that versions are kept by {about.versions}, this host knows {key.versions}"
        else:
            continue
        raise WrongKey(
            f"the repository at {place.url} is not the one that this host was enrolled in: {differs}",
            f"was it exchanged? if the old one is gone for good and this is meant, delete {file.path}",
        )


def check_new(place: HostPlace, repository: str) -> None:
    """Where there is no repository, or a new one is to be made: raises `WrongKey` when this host knows another one under that
    address."""
    for file, key in place.known():
        if key.objects == place.url and key.repository != repository:
            raise WrongKey(
                f"this host is enrolled in a repository at {place.url} ({key.repository[:8]}), and it is not there",
                f"is the disk mounted, and the address right? if it is gone for good, delete {file.path}",
            )
