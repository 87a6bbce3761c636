"""Secrets that stand in the configuration itself, where others on this machine can read it.

Decides which settings are secret, and when the file's rights are too wide for them. Warns of nothing by itself.
"""

from __future__ import annotations

import os
import stat

from s3hashsync.config.model import Config, EncryptionSettings
from s3hashsync.config.secret import Secret

_READABLE = stat.S_IRGRP | stat.S_IROTH


def exposed(config: Config) -> str | None:
    """What others can read there, and the cure; None where nothing is wrong."""
    written = [secret.origin.where for secret in _secrets(config) if secret is not None and secret.kind == "text"]
    if not written or not _is_readable(config.file):
        return None
    return (
        f"{config.file} holds {' and '.join(written)} in the clear, and others on this machine can read it:"
        f" chmod 600 {config.file}, or let it name a variable (env), a file or a command"
    )


def _secrets(config: Config) -> tuple[Secret | None, ...]:
    keys, encryption = config.repository.credentials, config.encryption
    settings = encryption if isinstance(encryption, EncryptionSettings) else EncryptionSettings()
    return (
        settings.passphrase,
        settings.identity,
        keys.secret_access_key if keys else None,
        keys.session_token if keys else None,
    )


def _is_readable(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & _READABLE)
    except OSError:
        return False
