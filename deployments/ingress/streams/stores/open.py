"""Open the stream store that a config names."""

from __future__ import annotations

from pathlib import Path

from deployments.config import StreamConfig
from deployments.ingress.streams.stores import StreamStore
from deployments.ingress.streams.stores.memory import MemoryStreamStore


def open_stream_store(config: StreamConfig, data_dir: Path) -> StreamStore:
    """Blocks for as long as a disk takes; close() when done. Raises StartupError."""
    if config.store == "memory":
        return MemoryStreamStore()
    from deployments.ingress.streams.stores.disk import DiskStreamStore

    return DiskStreamStore(data_dir / "streams")
