"""Open the session store that a config names."""

from __future__ import annotations

from pathlib import Path

from deployments.config import SessionRouterConfig
from deployments.session_router.stores import SessionStore
from deployments.session_router.stores.disk import DiskSessionStore
from deployments.session_router.stores.memory import MemorySessionStore


def open_session_store(config: SessionRouterConfig, data_dir: Path) -> SessionStore:
    """Blocks for as long as a disk takes; close() when done. Raises StartupError."""
    if config.store == "memory":
        return MemorySessionStore()
    return DiskSessionStore(data_dir / "sessions")
