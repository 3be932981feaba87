"""The server's secret, under which picture ids are keyed hashes that nobody outside can compute."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from deployments.errors import ConfigError
from deployments.private_folder import make_private_folder

SECRET_BYTES = 32


def open_secret(data_dir: Path) -> bytes:
    """Read the secret in `data_dir`, or make it: file mode 0600, and 0700 for a folder that was not there yet.

    Several processes may start at once; all get the same secret. Raises ConfigError when the file is not one of ours.
    """
    make_private_folder(data_dir)
    path = data_dir / "secret"
    if not path.exists():
        _publish(secrets.token_bytes(SECRET_BYTES), path)
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"{path} holds {len(secret)} bytes instead of {SECRET_BYTES}: restore it, or remove it")
    return secret


def tenant_secret(secret: bytes, tenant: str) -> bytes:
    """The tenant's own key: ids of one tenant say nothing about pictures of another."""
    return hmac.digest(secret, b"tenant\0" + tenant.encode(), hashlib.sha256)


def _publish(secret: bytes, path: Path) -> None:
    """Give the file its name only when it is whole; whoever comes first wins."""
    draft = path.with_name(f"secret.{os.getpid()}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename it does not replace the secret of another process
    finally:
        draft.unlink()
