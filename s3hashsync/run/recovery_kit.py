"""The recovery kit: a sheet to print, and scripts that restore with stock tools alone.

Decides what the sheet says of a repository and which files make up a kit. Everything in it is public, but for copies of the
encrypted key files where they are asked for: it is made without any key, and opens nothing. The scripts themselves are in
`s3hashsync/recovery/`, as they are handed out. Knows nothing of commands.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources

from s3hashsync.codec.key_files import RECIPIENTS, fingerprint_text
from s3hashsync.config import Config, FolderUrl, S3Url
from s3hashsync.errors import Corrupt, Refused, S3HashSyncError
from s3hashsync.run.history import sources_with_logs
from s3hashsync.run.repository import PLAIN, STORE, Identity
from s3hashsync.run.unlock import LOST, PREFIX, stated_recipients
from s3hashsync.stores.base import ObjectReader

_SCRIPTS = ("common.sh", "list-source.sh", "restore-object.sh", "restore-source.sh", "thaw-source.sh")
# A name out of a bucket becomes a file's name: nothing else may.
_KEY_FILE = re.compile(r"keys/(?:[0-9]+(?:\.[0-9]+)?\.age|recipients\.json|sources/[A-Za-z0-9][A-Za-z0-9._-]{0,63}\.age)")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a kit is about. `recipients` are the public halves of the identities that open the repository, `passphrases` how many
    passphrases do; without encryption neither. `keys`: copies of the repository's encrypted key files, by their names."""

    config: Config
    identity: Identity
    sources: Sequence[str]
    recipients: Sequence[str] = ()
    passphrases: int = 0
    keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def encrypted(self) -> bool:
        return self.identity.encryption != PLAIN


@dataclass(frozen=True, slots=True)
class KitFile:
    name: str
    body: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class Written:
    """The names of the files that were written, and of those that were there with the same bytes."""

    written: tuple[str, ...]
    unchanged: tuple[str, ...]


def facts_of(config: Config, identity: Identity, objects: ObjectReader, *, with_keys: bool = False) -> Facts:
    """What the object store says, for no key is needed to ask it."""
    sources = sources_with_logs(objects)
    if identity.encryption == PLAIN:
        return Facts(config, identity, sources)
    said = stated_recipients(objects)
    if said is None:
        raise Corrupt(f"the repository is encrypted, but {RECIPIENTS} is not there", LOST)
    found = [document.key for document in objects.documents(PREFIX)] if with_keys else []
    keys = {key: objects.read_document(key) for key in found if _KEY_FILE.fullmatch(key)}
    return Facts(config, identity, sources, said.stated.recipients, said.stated.passphrases, keys)


def kit(facts: Facts) -> list[KitFile]:
    """The same bytes for the same repository, so that a kit can be made again beside itself."""
    folder = resources.files("s3hashsync") / "recovery"
    files = [
        KitFile("RECOVERY.txt", _sheet(facts).encode(), 0o644),
        KitFile("restore.yaml", _configuration(facts).encode(), 0o644),
        KitFile("repository.sh", _settings(facts).encode(), 0o644),
    ]
    for name in _SCRIPTS:
        if name.startswith("thaw") and not isinstance(facts.config.repository.objects, S3Url):
            continue
        files.append(KitFile(name, (folder / name).read_bytes(), 0o644 if name == "common.sh" else 0o755))
    # Encrypted, but not for everybody's eyes: a passphrase can be guessed at.
    files += [KitFile(name, body, 0o600) for name, body in sorted(facts.keys.items())]
    return files


def write_kit(folder: str, files: Sequence[KitFile], *, force: bool) -> Written:
    """All of them or, where something else is in the way and `force` does not say to replace it, none."""
    try:
        os.makedirs(folder, exist_ok=True)
        same = {file.name for file in files if _is_there(os.path.join(folder, file.name), file.body)}
        others = [file for file in files if file.name not in same]
        taken = [file.name for file in others if os.path.lexists(os.path.join(folder, file.name))]
        if taken and not force:
            raise Refused(
                f"{', '.join(taken)} in {folder} {'is' if len(taken) == 1 else 'are'} there already and not the same",
                "choose another folder, or replace what is there: --force",
            )
        for file in others:
            _write(folder, file)
    except OSError as error:
        raise S3HashSyncError(f"cannot write the recovery kit to {folder}: {error.strerror}") from error
    return Written(tuple(file.name for file in others), tuple(sorted(same)))


def _is_there(path: str, body: bytes) -> bool:
    if os.path.islink(path) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(body) + 1) == body


def _write(folder: str, file: KitFile) -> None:
    """Beside it first: a symlink of that name is replaced, never followed."""
    path = os.path.join(folder, file.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb") as target:
            target.write(file.body)
            os.fchmod(fd, file.mode)
        os.replace(beside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(beside)
        raise


# What the scripts have to know


def _settings(facts: Facts) -> str:
    config, identity = facts.config.repository, facts.identity
    objects = config.objects
    values = {
        "REPOSITORY": objects.path if isinstance(objects, FolderUrl) else "",
        "BUCKET": objects.bucket if isinstance(objects, S3Url) else "",
        "PREFIX": objects.prefix if isinstance(objects, S3Url) else "",
        "REGION": (config.region or "") if isinstance(objects, S3Url) else "",
        "ENDPOINT": (config.s3_endpoint or "") if isinstance(objects, S3Url) else "",
    }
    # The environment may say that the repository lies elsewhere now.
    lines = [f"{name}=${{{name}-{shlex.quote(value)}}}" if value else f"{name}=${{{name}-}}" for name, value in values.items()]
    fixed = {
        "ID": identity.id,
        "VERSIONS": identity.versions,
        "ENCRYPTION": identity.encryption,
        "FINGERPRINT": identity.fingerprint,
    }
    lines += [f"{name}={shlex.quote(value)}" for name, value in fixed.items()]
    return "\n".join(["# Where the repository is, and what tells it from others. No secret is in here.", *lines, ""])


def _configuration(facts: Facts) -> str:
    """JSON is YAML, and what the program restores with. Nothing can be backed up by it as it stands."""
    config = facts.config.repository
    repository: dict[str, object] = {"objects": _literal(str(config.objects)), "index": _literal(str(config.index))}
    if config.region:
        repository["region"] = config.region
    endpoints = {"s3": config.s3_endpoint, "dynamodb": config.dynamodb_endpoint}
    if any(endpoints.values()):
        repository["endpoints"] = {name: _literal(url) for name, url in endpoints.items() if url}
    body = {
        "version": 1,
        "repository": repository,
        "encryption": {"recipients": list(facts.recipients)} if facts.encrypted else "off",
        "host": "recovery",
        "sources": [{"name": name, "path": f"./recovered/{name}"} for name in facts.sources or ("none",)],
    }
    return json.dumps(body, indent=2) + "\n"


def _literal(text: str) -> str:
    return text.replace("$", "$$")


# The sheet


def _sheet(facts: Facts) -> str:
    parts = [_about(facts), _openers(facts), _with_program(facts), _with_scripts(facts), _by_hand(facts), _trouble(facts)]
    return "\n\n".join(parts) + "\n"


def _about(facts: Facts) -> str:
    config, identity = facts.config.repository, facts.identity
    remote = isinstance(config.objects, S3Url)
    where = [f"  contents     {config.objects}"]
    where += [f"  region       {config.region}"] if remote and config.region else []
    where += [f"  S3 server    {config.s3_endpoint}"] if remote and config.s3_endpoint else []
    encryption = f"age, fingerprint {fingerprint_text(identity.fingerprint)}" if facts.encrypted else "none"
    return "\n".join(
        [
            "RECOVERY SHEET OF A BACKUP MADE WITH S3HASHSYNC",
            "",
            "How to get the files back, with the program and without it. Neither this sheet",
            "nor the files beside it hold a secret: whoever finds them can open nothing with",
            "them. Print the sheet, and keep all of it where the backup is not.",
            "",
            "THE REPOSITORY",
            "",
            f"  id           {identity.id}",
            *where,
            f"  index        {config.index} (not needed here)",
            f"  encryption   {encryption}",
            f"  sources      {', '.join(facts.sources) or 'none yet'}",
        ]
    )


def _openers(facts: Facts) -> str:
    if not facts.encrypted:
        access = "Nothing is encrypted: whoever can read the place above can read the files."
        return f"WHAT OPENS IT\n\n{access}{_access(facts)}"
    lines = ["WHAT OPENS IT", "", "Any one of these. Without one of them nobody can read anything, not even with"]
    lines += ["this kit and the whole repository at hand.", ""]
    lines += [f"  - the age identity file (AGE-SECRET-KEY-1...) that belongs to\n    {one}" for one in facts.recipients]
    if facts.passphrases:
        lines.append("  - the passphrase" if facts.passphrases == 1 else f"  - any one of {facts.passphrases} passphrases")
    lines += ["", "Where they are kept (to be filled in by hand; never write the secret itself here):", "", f"  {'_' * 74}"]
    return "\n".join(lines) + _access(facts)


def _access(facts: Facts) -> str:
    if isinstance(facts.config.repository.objects, S3Url):
        return "\n\nBesides, credentials that may list and read the bucket (and thaw, where contents\nlie in an archive class)."
    return ""


def _with_program(facts: Facts) -> str:
    identity = " --identity FILE" if facts.encrypted else ""
    return "\n".join(
        [
            "WITH THE PROGRAM",
            "",
            "It needs Python 3.11 or newer, and is not on PyPI: install it from its checkout, or",
            "from the archive of a release. Keep a copy of that beside this sheet.",
            "",
            "  pip install ./s3hashsync",
            f"  s3hashsync -c restore.yaml restore --to DIR{identity}",
            "",
            "restore.yaml is beside this sheet. A lost index is made anew by",
            f"  s3hashsync -c restore.yaml rebuild --index{identity}",
            "with the address of a new one under index:.",
        ]
    )


def _with_scripts(facts: Facts) -> str:
    config = facts.config.repository
    tools = ["jq", "zstd", "tar"]
    tools += ["age", "openssl"] if facts.encrypted else []
    tools += ["awscli"] if isinstance(config.objects, S3Url) else []
    option = "-i IDENTITY " if facts.encrypted else ""
    source = facts.sources[0] if facts.sources else "SOURCE"
    lines = [
        "WITHOUT THE PROGRAM",
        "",
        "On any Linux with bash:  apt install " + " ".join(tools),
        "",
        "  ./list-source.sh                            the names of the sources",
        f"  ./list-source.sh {option}{source}",
        "                                              what is in one",
        f"  ./restore-source.sh {option}{source} DIR",
        "                                              all of it, into an empty folder",
        f"  ./restore-source.sh {option}-p letters {source} DIR",
        "                                              a part of it",
        f"  ./restore-source.sh {option}-a 20260131T020000Z {source} DIR",
        "                                              as it was at that time (UTC)",
        f"  ./restore-object.sh {option}HASH LOCATION > FILE",
        "                                              one content, as list-source.sh names it",
    ]
    if isinstance(config.objects, S3Url):
        lines += [
            f"  ./thaw-source.sh {option}{source}",
            "                                              what lies in an archive class has to be",
        ]
        lines += ["                                              thawed first; AWS charges for it"]
    else:
        lines += ["", "Where the disk is mounted elsewhere: REPOSITORY=/media/disk/backups ./list-source.sh"]
    if facts.passphrases:
        lines += ["", "Without -i the passphrase is asked for."]
    lines += ["", "Every file is compared with its SHA-256. What cannot be restored is named, and the", "exit code is then 1."]
    return "\n".join(lines)


def _by_hand(facts: Facts) -> str:
    return "\n".join(["WITHOUT THESE SCRIPTS", "", *_steps(facts)])


def _steps(facts: Facts) -> Iterator[str]:
    suffix = facts.identity.versions != STORE
    fan = "ab/" if isinstance(facts.config.repository.objects, FolderUrl) else ""
    opened = "age -d -i epochs.txt FILE | zstd -dc" if facts.encrypted else "zstd -dc FILE"
    yield "Everything is in stock formats. Fetch a file, then:"
    yield ""
    if facts.encrypted:
        yield "  age -d -i IDENTITY keys/1.age > epochs.txt       and 2.age, 3.age ... behind it"
        if facts.passphrases:
            yield "  age -d keys/1.1.age > epochs.txt                 with the passphrase"
    yield f"  {opened + ' | jq .':<48} of runs/SOURCE/...: what there was"
    yield f"  {opened:<48} of objects/...: one content"
    yield f"  {opened + ' | tar x':<48} of packs/...: many small ones"
    yield ""
    yield "The newest name under runs/SOURCE/ is the newest run; `previous` in its first line"
    yield 'names the one before, back to one of the kind `checkpoint` or to "". Each further'
    yield "line is a path, with the SHA-256 of its content and a `location`:"
    yield ""
    version = ".VERSION" if suffix else "   (with that version id)"
    yield f"  1o:VERSION            objects/{fan}HASH{version}"
    yield f"  1p:PACK:VERSION:...   packs/{fan}PACK{version}; in it the file named HASH"
    if fan:
        yield ""
        yield "ab: the first two digits of the name that follows."
    yield ""
    yield "All formats: docs/formats.md of s3hashsync; the same by hand: docs/recovery.md."


def _trouble(facts: Facts) -> str:
    lines = ["BEFORE IT IS NEEDED", ""]
    if facts.encrypted:
        lines += ["  - Keep the identity (or passphrase) in two places, neither of them only on the"]
        lines += ["    machine that is backed up. Try it once a year: list-source.sh is enough."]
        if facts.keys:
            lines += ["  - The folder keys/ beside this sheet is a copy of the repository's. It is encrypted to"]
            lines += ["    the recipients above, and is used when the repository has lost its own. After a"]
            lines += ["    recipient was removed, replace it: the old copy still opens to him."]
        else:
            lines += ["  - Keep a copy of the folder keys/ of the repository (recovery-kit --with-keys). It is"]
            lines += ["    encrypted; if it gets lost, so is all the rest."]
    else:
        lines += ["  - Try it once a year: restore one folder with these scripts."]
    lines += ["  - Make the kit again when a source or a recipient was added: recovery-kit --force."]
    return "\n".join(lines)
