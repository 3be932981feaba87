"""Open the image store that the configuration names."""

from __future__ import annotations

from pathlib import Path

from deployments.config import ImageConfig
from deployments.images.stores.disk import DiskImageStore
from deployments.images.stores.memory import MemoryImageStore


def open_image_store(config: ImageConfig, data_dir: Path) -> DiskImageStore | MemoryImageStore:
    """An ImageStore; close() it when done. Blocks. Raises OSError when the folder cannot be used."""
    if config.store == "memory":
        return MemoryImageStore(config.store_max_bytes)
    return DiskImageStore(data_dir / "images", config.store_max_bytes)
