"""What a valid `backup.yaml` comes to: defaults, addresses, paths, variables, secrets, and where the file is found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from s3hashsync.config import (
    Config,
    DynamoUrl,
    EncryptionSettings,
    FolderUrl,
    PackSettings,
    S3Url,
    Secret,
    SqliteUrl,
    find_config,
    load,
    parse_duration,
    parse_size,
)
from s3hashsync.errors import ConfigError, ExitCode, UsageError

DAY = 86_400
MIB = 1 << 20
RECIPIENTS = (
    "age1replacemereplacemereplacemereplacemereplacemereplacq6pn0et",
    "age1paperreplacemereplacemereplacemereplacemereplacemerqmr2tsv",
)
SOURCES = "sources: [{name: docs, path: docs}]\n"


def loaded(folder: Path, text: str, **environ: str) -> Config:
    path = folder / "backup.yaml"
    path.write_text(text, encoding="utf-8")
    return load(str(path), {"HOME": "/home/user", **environ}, "box")


def with_repository(folder: Path, keys: str, **environ: str) -> Config:
    return loaded(folder, f"version: 1\nrepository:\n{keys}{SOURCES}", **environ)


def with_source(folder: Path, keys: str, **environ: str) -> Config:
    return loaded(folder, f"version: 1\nrepository: {{objects: /b}}\nsources:\n  - name: docs\n{keys}", **environ)


def test_defaults(tmp_path: Path) -> None:
    config = with_repository(tmp_path, "  objects: /srv/backups\n")
    repository, (source,) = config.repository, config.sources
    assert config.file == str(tmp_path / "backup.yaml")
    assert (config.encryption, config.host, config.upload_threads) == (None, "box", 8)
    assert (config.mass_change_share, config.mass_change_files, config.log_interval_seconds) == (0.5, 100, 120)
    assert (repository.objects, repository.index) == (FolderUrl("/srv/backups"), SqliteUrl("/srv/backups/index.db"))
    assert (repository.storage_class, repository.min_storage_seconds) == ("STANDARD", 0)
    assert repository.keep_deleted_seconds == 30 * DAY
    assert repository.pack == PackSettings(256 << 10, 32 * MIB)
    assert config.verify_uploads
    assert not repository.path_style
    assert not repository.append_only
    unset = (repository.region, repository.profile, repository.role_arn, repository.credentials)
    assert (*unset, repository.s3_endpoint, repository.dynamodb_endpoint) == (None,) * 6
    assert (source.name, source.path) == ("docs", str(tmp_path / "docs"))
    assert source.exclude == source.exclude_regex == source.ignore_files == source.exclude_if_present == ()
    assert (source.exclude_larger_than, source.compare) == (None, {"size", "mtime", "ctime", "inode"})
    assert (source.exclude_caches, source.one_file_system, source.allow_empty) == (False, False, False)


def test_everything_set(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
version: 1
repository:
  objects: s3://bucket/a/b/
  index: dynamodb://my.table
  region: eu-central-1
  role_arn: arn:aws:iam::123456789012:role/backup
  endpoints: {s3: "https://s3.example.org", dynamodb: "http://127.0.0.1:8000/path"}
  path_style: true
  storage_class: DEEP_ARCHIVE
  min_storage_duration: 26w
  keep_deleted: 1y
  append_only: yes
  pack: off
encryption: off
host: laptop
sources:
  - name: docs
    path: /docs
    exclude: ["*.tmp", "!x"]
    exclude_regex: ['~$']
    ignore_files: [.backupignore]
    exclude_caches: true
    exclude_if_present: [.nobackup]
    exclude_larger_than: 1.5KiB
    one_file_system: true
    compare: [size, mtime]
    allow_empty: true
uploads: {threads: 3, verify: false}
guards: {mass_change_share: 0, mass_change_files: 7}
log_interval: 5m
""",
    )
    repository, (source,) = config.repository, config.sources
    assert (repository.objects, repository.index) == (S3Url("bucket", "a/b"), DynamoUrl("my.table"))
    assert (repository.region, repository.role_arn) == ("eu-central-1", "arn:aws:iam::123456789012:role/backup")
    assert repository.s3_endpoint == "https://s3.example.org"
    assert repository.dynamodb_endpoint == "http://127.0.0.1:8000/path"
    assert repository.path_style
    assert repository.append_only
    assert repository.storage_class == "DEEP_ARCHIVE"
    assert repository.pack is None
    assert not config.verify_uploads
    assert (repository.min_storage_seconds, repository.keep_deleted_seconds) == (182 * DAY, 365 * DAY)
    assert (config.encryption, config.host, config.upload_threads) == ("off", "laptop", 3)
    assert (config.mass_change_share, config.mass_change_files, config.log_interval_seconds) == (0, 7, 300)
    assert (source.exclude, source.exclude_regex) == (("*.tmp", "!x"), ("~$",))
    assert (source.ignore_files, source.exclude_if_present) == ((".backupignore",), (".nobackup",))
    assert (source.exclude_larger_than, source.compare) == (1536, {"size", "mtime"})
    assert source.exclude_caches
    assert source.one_file_system
    assert source.allow_empty


@pytest.mark.parametrize("written", ["off", "no", "false", "'off'", "${X:-off}"])
def test_ways_to_say_off(tmp_path: Path, written: str) -> None:
    text = f"version: 1\nrepository: {{objects: /b}}\nencryption: {written}\n{SOURCES}"
    assert loaded(tmp_path, text).encryption == "off"
    assert with_repository(tmp_path, f"  objects: /b\n  pack: {written}\n").repository.pack is None


@pytest.mark.parametrize(
    ("storage_class", "minimum", "keep"),
    [
        ("STANDARD", 0, 30),
        ("INTELLIGENT_TIERING", 0, 30),
        ("STANDARD_IA", 30, 30),
        ("ONEZONE_IA", 30, 30),
        ("GLACIER_IR", 90, 90),
        ("GLACIER", 90, 90),
        ("DEEP_ARCHIVE", 180, 180),
    ],
)
def test_durations_that_a_class_implies(tmp_path: Path, storage_class: str, minimum: int, keep: int) -> None:
    repository = with_repository(tmp_path, f"  objects: /b\n  storage_class: {storage_class}\n").repository
    assert (repository.min_storage_seconds, repository.keep_deleted_seconds) == (minimum * DAY, keep * DAY)


def test_durations_of_ones_own_are_taken_also_below_what_the_class_bills(tmp_path: Path) -> None:
    keys = "  objects: /b\n  storage_class: GLACIER\n  min_storage_duration: 0d\n  keep_deleted: 1s\n"
    repository = with_repository(tmp_path, keys).repository
    assert (repository.min_storage_seconds, repository.keep_deleted_seconds) == (0, 1)


@pytest.mark.parametrize(
    ("storage_class", "below", "size"),
    [
        ("STANDARD", 256 << 10, 32 * MIB),
        ("GLACIER_IR", 256 << 10, 32 * MIB),
        ("GLACIER", 8 * MIB, 64 * MIB),
        ("DEEP_ARCHIVE", 8 * MIB, 64 * MIB),
    ],
)
def test_packs_that_a_class_implies(tmp_path: Path, storage_class: str, below: int, size: int) -> None:
    keys = f"  objects: /b\n  storage_class: {storage_class}\n"
    assert with_repository(tmp_path, keys).repository.pack == PackSettings(below, size)
    assert with_repository(tmp_path, keys + "  pack: {}\n").repository.pack == PackSettings(below, size)


@pytest.mark.parametrize(
    ("written", "below", "size"),
    [
        ("{below: 1MiB, size: 16MiB}", MIB, 16 * MIB),
        ("{below: 64MiB, size: 512MiB}", 64 * MIB, 512 * MIB),
        ("{below: 1B, size: 1MiB}", 1, MIB),
        ("{below: 2MiB, size: 2MiB}", 2 * MIB, 2 * MIB),
        ("{below: 1MiB}", MIB, 64 * MIB),
        ("{size: 128MiB}", 8 * MIB, 128 * MIB),
        ("{size: 4MiB}", 4 * MIB, 4 * MIB),
        ("{below: 64MiB}", 64 * MIB, 64 * MIB),
    ],
)
def test_packs_of_ones_own(tmp_path: Path, written: str, below: int, size: int) -> None:
    """What is left out comes from the class, and gives way to what is there."""
    keys = f"  objects: /b\n  storage_class: DEEP_ARCHIVE\n  pack: {written}\n"
    assert with_repository(tmp_path, keys).repository.pack == PackSettings(below, size)


def test_a_default_size_makes_room_for_what_goes_in(tmp_path: Path) -> None:
    pack = with_repository(tmp_path, "  objects: /b\n  pack: {below: 40MiB}\n").repository.pack
    assert pack == PackSettings(40 * MIB, 40 * MIB)


@pytest.mark.parametrize(
    ("written", "objects", "index"),
    [
        ("file:///srv/b%20c", FolderUrl("/srv/b%20c"), SqliteUrl("/srv/b%20c/index.db")),
        ("FILE:///srv/b/", FolderUrl("/srv/b"), SqliteUrl("/srv/b/index.db")),
        ("~/b", FolderUrl("/home/user/b"), SqliteUrl("/home/user/b/index.db")),
        ("//srv//b/../c/.", FolderUrl("/srv/c"), SqliteUrl("/srv/c/index.db")),
        ("/", FolderUrl("/"), SqliteUrl("/index.db")),
    ],
)
def test_folders(tmp_path: Path, written: str, objects: FolderUrl, index: SqliteUrl) -> None:
    repository = with_repository(tmp_path, f"  objects: {written}\n").repository
    assert (repository.objects, repository.index) == (objects, index)


def test_relative_places_start_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path)
    text = f"version: 1\nrepository: {{objects: b, index: ../i.db}}\n{SOURCES}"
    (tmp_path / "conf" / "backup.yaml").write_text(text)
    config = load("conf/backup.yaml", {}, "box")
    assert config.repository.objects == FolderUrl(str(tmp_path / "conf" / "b"))
    assert config.repository.index == SqliteUrl(str(tmp_path / "i.db"))
    assert config.sources[0].path == str(tmp_path / "conf" / "docs")


@pytest.mark.parametrize(
    ("written", "bucket", "prefix"),
    [("s3://buck", "buck", ""), ("s3://buck/", "buck", ""), ("s3://buck/a b/ü/", "buck", "a b/ü")],
)
def test_buckets(tmp_path: Path, written: str, bucket: str, prefix: str) -> None:
    keys = f"  objects: {written}\n  index: sqlite:///srv/i.db\n"
    repository = with_repository(tmp_path, keys).repository
    assert repository.objects == S3Url(bucket, prefix)
    assert str(repository.objects) == written.rstrip("/")
    assert str(repository.index) == "sqlite:///srv/i.db"


def test_a_folder_goes_with_a_table(tmp_path: Path) -> None:
    repository = with_repository(tmp_path, "  objects: /b\n  index: dynamodb://table\n").repository
    assert (str(repository.objects), str(repository.index)) == ("file:///b", "dynamodb://table")


def test_home_is_needed_only_for_a_tilde(tmp_path: Path) -> None:
    path = tmp_path / "backup.yaml"
    path.write_text(f"version: 1\nrepository: {{objects: ~/b}}\n{SOURCES}")
    with pytest.raises(ConfigError) as caught:
        load(str(path), {}, "box")
    assert [str(fault) for fault in caught.value.faults] == ["2:23: repository.objects: ~ needs HOME in the environment"]


def test_a_machine_without_a_name_has_to_get_one(tmp_path: Path) -> None:
    path = tmp_path / "backup.yaml"
    path.write_text(f"version: 1\nrepository: {{objects: /b}}\n{SOURCES}")
    with pytest.raises(ConfigError) as caught:
        load(str(path), {}, "")
    assert [fault.where for fault in caught.value.faults] == ["host"]
    path.write_text(f"version: 1\nhost: box\nrepository: {{objects: /b}}\n{SOURCES}")
    assert load(str(path), {}, "").host == "box"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("${A}/x", "a/x"),
        ("x${A}${A}", "xaa"),
        ("${EMPTY}x", "x"),
        ("${EMPTY:-d}", "d"),
        ("${UNSET:-}x", "x"),
        ("${UNSET:-a b:-c}", "a b:-c"),
        ("${A:-d}", "a"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$$$A", "$$A"),
        ("x$", "x$"),
        ("$A", "$A"),
        ("${DOLLAR}", "${A}$$"),
    ],
)
def test_variables(tmp_path: Path, written: str, text: str) -> None:
    keys = f"    path: /x\n    exclude: ['{written}']\n"
    assert with_source(tmp_path, keys, A="a", EMPTY="", DOLLAR="${A}$$").sources[0].exclude == (text,)


def test_variables_stay_out_of_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        with_source(tmp_path, "    path: /x\n    ${A}: []\n", A="exclude")
    assert "unknown key ${A}" in str(caught.value.faults[0])


def test_merge_keys_and_aliases(tmp_path: Path) -> None:
    keys = """    path: /docs
    exclude: &tmp ["*.tmp"]
  - &pictures {name: pictures, path: /pictures, exclude: *tmp, exclude_caches: true}
  - &own {<<: *pictures, name: own, exclude: [x]}
  - {<<: [*own, *pictures], name: more}
"""
    sources = with_source(tmp_path, keys).sources
    assert [(source.name, source.path, source.exclude, source.exclude_caches) for source in sources] == [
        ("docs", "/docs", ("*.tmp",), False),
        ("pictures", "/pictures", ("*.tmp",), True),
        ("own", "/pictures", ("x",), True),
        ("more", "/pictures", ("x",), True),
    ]


def test_dates_stay_texts_and_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    config = loaded(tmp_path, f"\ufeffversion: 1\nhost: 2024-01-01\nrepository: {{objects: 2024-02-02}}\n{SOURCES}")
    assert (config.host, config.repository.objects) == ("2024-01-01", FolderUrl(str(tmp_path / "2024-02-02")))


def test_bytes_of_the_environment_that_are_no_utf8_survive_in_a_path(tmp_path: Path) -> None:
    assert with_source(tmp_path, "    path: ${ODD}/x\n", ODD="/a\udcff").sources[0].path == "/a\udcff/x"


# Secrets


def secret_of(folder: Path, written: str, **environ: str) -> Secret:
    keys = f"  objects: /b\n  access_key_id: AKIA\n  secret_access_key: {written}\n"
    credentials = with_repository(folder, keys, **environ).repository.credentials
    assert credentials is not None
    assert credentials.session_token is None
    assert credentials.access_key_id.reveal({}) == "AKIA"
    return credentials.secret_access_key


@pytest.mark.parametrize(
    "written",
    [
        "hush",
        "${FROM}",
        "{env: HUSH}",
        "{file: hush.txt}",
        "{command: [cat, '${DIR}/hush.txt']}",
        "{command: \"cat '${DIR}/hush.txt'\"}",
        "{command: [sh, -c, 'echo $HUSH']}",
    ],
)
def test_ways_to_give_a_secret(tmp_path: Path, written: str) -> None:
    (tmp_path / "hush.txt").write_text("hush\r\n")
    secret = secret_of(tmp_path, written, FROM="hush", DIR=str(tmp_path))
    assert secret.reveal({"HUSH": "hush", "PATH": "/usr/bin:/bin"}) == "hush"
    assert "hush" not in repr(secret) + str(secret)


def test_loading_opens_no_secret(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    secret = secret_of(tmp_path, f"{{command: [touch, {ran}]}}")
    assert not ran.exists()
    with pytest.raises(ConfigError):
        secret.reveal({"PATH": "/usr/bin:/bin"})
    assert ran.exists()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{env: HUSH}", "the variable HUSH is not set"),
        ("{env: EMPTY}", "the variable gives an empty secret"),
        ("{file: /nowhere/hush}", "cannot read /nowhere/hush: No such file or directory"),
        ("{file: /dev/zero}", "the file gives more than 64 KiB: that is no secret"),
        ("{command: [/nowhere/pass, hush]}", "cannot run /nowhere/pass: No such file or directory"),
        ("{command: [sh, -c, 'echo hush; exit 7']}", "sh failed with exit code 7"),
        ("{command: [printf, '\\377']}", "the command gives bytes that are not UTF-8"),
        ('{command: ["a\\0b"]}', None),
    ],
)
def test_a_secret_that_cannot_be_had(tmp_path: Path, written: str, message: str | None) -> None:
    if message is None:
        with pytest.raises(ConfigError):
            secret_of(tmp_path, written)
        return
    with pytest.raises(ConfigError) as caught:
        secret_of(tmp_path, written).reveal({"PATH": "/usr/bin:/bin", "EMPTY": "\n"})
    (fault,) = caught.value.faults
    assert str(fault) == f"5:22: repository.secret_access_key: {message}"
    assert caught.value.exit_code == ExitCode.USAGE


def test_the_words_of_a_command_mean_nothing_to_a_shell(tmp_path: Path) -> None:
    secret = secret_of(tmp_path, "{command: [" + sys.executable + ", -c, 'import sys; print(sys.argv[1])', '; $HOME *']}")
    assert secret.reveal({}) == "; $HOME *"


# Encryption


def encryption_of(folder: Path, written: str, **environ: str) -> EncryptionSettings:
    text = f"version: 1\nrepository: {{objects: /b}}\nencryption: {written}\n{SOURCES}"
    encryption = loaded(folder, text, **environ).encryption
    assert isinstance(encryption, EncryptionSettings)
    return encryption


def test_recipients_alone(tmp_path: Path) -> None:
    written = f"{{recipients: [{RECIPIENTS[0]}, '${{PAPER}}']}}"
    assert encryption_of(tmp_path, written, PAPER=RECIPIENTS[1]) == EncryptionSettings(RECIPIENTS)


def test_encryption_with_everything(tmp_path: Path) -> None:
    (tmp_path / "identity.txt").write_text("# created: today\nthe identity\n")
    encryption = encryption_of(
        tmp_path,
        f"""
  recipients:
    - {RECIPIENTS[0]}
  passphrase: correct horse
  identity: {{file: identity.txt}}
  host_key: ~/keys/host.json
""",
    )
    assert encryption.recipients == RECIPIENTS[:1]
    assert encryption.passphrase is not None
    assert encryption.passphrase.reveal({}) == "correct horse"
    assert encryption.identity is not None
    assert encryption.identity.reveal({}) == "# created: today\nthe identity"
    assert encryption.host_key == "/home/user/keys/host.json"
    assert "horse" not in repr(encryption)


@pytest.mark.parametrize("written", ["{env: KEY}", "{command: 'printf hush'}", "{command: [sh, -c, 'echo $KEY']}"])
def test_an_identity_without_recipients_opens_a_repository(tmp_path: Path, written: str) -> None:
    encryption = encryption_of(tmp_path, f"{{identity: {written}}}")
    assert (encryption.recipients, encryption.passphrase, encryption.host_key) == ((), None, None)
    assert encryption.identity is not None
    assert encryption.identity.reveal({"KEY": "hush", "PATH": "/usr/bin:/bin"}) == "hush"


def test_an_empty_group_says_that_there_is_encryption(tmp_path: Path) -> None:
    assert encryption_of(tmp_path, "{}") == EncryptionSettings()


# Where the file is found


def touch(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def test_the_order_in_which_the_file_is_looked_for(tmp_path: Path) -> None:
    cwd, home, xdg = str(tmp_path / "cwd"), str(tmp_path / "home"), str(tmp_path / "xdg")
    environ = {"HOME": home, "S3HASHSYNC_CONFIG": "other.yaml"}
    in_home = touch(tmp_path / "home" / ".config" / "s3hashsync" / "backup.yaml")
    assert find_config(cwd, {"HOME": home}) == in_home
    assert find_config(cwd, {"HOME": home, "XDG_CONFIG_HOME": "relative"}) == in_home
    in_xdg = touch(tmp_path / "xdg" / "s3hashsync" / "backup.yaml")
    assert find_config(cwd, {"HOME": home, "XDG_CONFIG_HOME": xdg}) == in_xdg
    in_cwd = touch(tmp_path / "cwd" / "backup.yaml")
    assert find_config(cwd, {"HOME": home, "XDG_CONFIG_HOME": xdg, "S3HASHSYNC_CONFIG": ""}) == in_cwd
    assert find_config(cwd, environ) == cwd + "/other.yaml"


def test_a_broken_link_is_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / ".config" / "s3hashsync" / "backup.yaml")
    (tmp_path / "backup.yaml").symlink_to("nowhere")
    assert find_config(str(tmp_path), {"HOME": str(tmp_path)}) == str(tmp_path / "backup.yaml")


def test_no_file_at_all_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find_config(str(tmp_path), {"HOME": "/nowhere"})
    assert caught.value.hint == (
        f"looked for {tmp_path}/backup.yaml and /nowhere/.config/s3hashsync/backup.yaml; "
        "name another file with -c or S3HASHSYNC_CONFIG"
    )
    with pytest.raises(UsageError) as caught:
        find_config(str(tmp_path), {})
    assert "and" not in str(caught.value.hint).split(";")[0].replace(str(tmp_path), "")


# Durations and sizes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("90s", 90), ("2m", 120), ("12h", 43_200), ("30d", 30 * DAY), ("2w", 14 * DAY), ("1000y", 365_000 * DAY)],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "1.5h", "-1d", "1 d", "1d ", "1d\n", "1D", "1M", "٣d", "1001y", "1h30m"])
def test_texts_that_are_no_durations(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("512B", 512),
        ("1kB", 1_000),
        ("1KiB", 1_024),
        ("1.5MB", 1_500_000),
        ("0.1KiB", 102),
        ("2MiB", 2**21),
        ("3GB", 3 * 10**9),
        ("3GiB", 3 * 2**30),
        ("4TB", 4 * 10**12),
        ("8388607TiB", 2**63 - 2**40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "MiB", "1 MiB", "1KB", "1kiB", "-1B", "1.B", ".5MB", "1MiB\n", "٣B", "8388608TiB"])
def test_texts_that_are_no_sizes(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert caught.value.hint
