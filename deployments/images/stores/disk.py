"""Pictures in a folder that the processes of one machine share: the ingress writes, the vision encoder reads."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from deployments.bytes_cache import open_bytes_cache
from deployments.errors import ImageNotFound
from deployments.types import ImageRef, StoredImage

T = TypeVar("T")
NUM_THREADS = 2


class DiskImageStore:
    """Least recently used pictures go first when `max_bytes` are exceeded. Raises OSError when the disk fails."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._cache = open_bytes_cache(folder, max_bytes, eviction="least-recently-used")
        # Threads of its own: their database connections close when close() ends them.
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="image-store")

    async def put(self, tenant: str, image: StoredImage) -> None:
        await self._in_thread(lambda: self._cache.put(_key(tenant, image.ref.id), to_record(image)))

    async def get(self, tenant: str, image_id: str) -> StoredImage:
        record = await self._in_thread(lambda: self._cache.get(_key(tenant, image_id)))
        if record is None:
            raise ImageNotFound(f"no picture {image_id[:80]!r}", "image")
        return from_record(record)

    async def delete(self, tenant: str, image_id: str) -> None:
        if not await self._in_thread(lambda: self._cache.delete(_key(tenant, image_id))):
            raise ImageNotFound(f"no picture {image_id[:80]!r}", "image")

    def close(self) -> None:
        """Wait for what is being written."""
        self._threads.shutdown(wait=True)
        self._cache.close()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _key(tenant: str, image_id: str) -> str:
    """Hashed: nothing that a client chose becomes a key, and no pair of names can be read as another pair."""
    return hashlib.sha256(json.dumps([tenant, image_id]).encode()).hexdigest()


def to_record(image: StoredImage) -> bytes:
    """One line of JSON, then the file as it arrived."""
    return json.dumps(dataclasses.asdict(image.ref)).encode() + b"\n" + image.data


def from_record(record: bytes) -> StoredImage:
    header, _, data = record.partition(b"\n")
    return StoredImage(ImageRef(**json.loads(header)), data)
