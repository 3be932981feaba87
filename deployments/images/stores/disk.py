"""Pictures in a folder that the processes of one machine share: the ingress writes, the vision encoder reads."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from deployments.bytes_cache import open_bytes_cache
from deployments.errors import ImageNotFound, PartUnavailable
from deployments.types import ImageRef, StoredImage

T = TypeVar("T")
NUM_THREADS = 2
MAX_HEADER_BYTES = 2048  # a reference has about 200
RETRY_AFTER_S = 5.0

logger = logging.getLogger(__name__)


class DiskImageStore:
    """Least recently used pictures go first when `max_bytes` are exceeded."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._cache = open_bytes_cache(folder, max_bytes, eviction="least-recently-used")
        # Threads of its own: their database connections close when close() ends them.
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="image-store")

    async def put(self, tenant: str, image: StoredImage) -> None:
        key = _key(tenant, image.ref.id)
        await self._in_thread(lambda: self._cache.put(key, to_record(key, image)))

    async def get(self, tenant: str, image_id: str) -> StoredImage:
        key = _key(tenant, image_id)
        return _found(await self._in_thread(lambda: self._get(key)), image_id)

    async def find(self, tenant: str, image_id: str) -> ImageRef:
        """Reads the header alone: whether the picture behind it is whole shows when it is read."""
        key = _key(tenant, image_id)
        return _found(await self._in_thread(lambda: self._find(key)), image_id)

    async def delete(self, tenant: str, image_id: str) -> None:
        if not await self._in_thread(lambda: self._cache.delete(_key(tenant, image_id))):
            raise _not_found(image_id)

    def close(self) -> None:
        """Wait for what is being written."""
        self._threads.shutdown(wait=True)
        self._cache.close()

    def _get(self, key: str) -> StoredImage | None:
        record = self._cache.get(key)
        ref = self._read_ref(key, record)
        return StoredImage(ref, record[record.index(b"\n") + 1 :]) if record is not None and ref is not None else None

    def _find(self, key: str) -> ImageRef | None:
        return self._read_ref(key, self._cache.start_of(key, MAX_HEADER_BYTES))

    def _read_ref(self, key: str, record: bytes | None) -> ImageRef | None:
        """Of a record or its start. One whose header cannot be trusted is dropped."""
        if record is None:
            return None
        ref = ref_of_record(key, record)
        if ref is None:
            self._cache.drop(key, "no picture")
        return ref

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except OSError as error:  # a full disk, a damaged database, files that cannot be opened
            logger.warning("the image store failed", exc_info=True)
            raise PartUnavailable("the image store cannot be read or written", None, RETRY_AFTER_S) from error


def _key(tenant: str, image_id: str) -> str:
    """Hashed: nothing that a client chose becomes a key, and no pair of names can be read as another pair."""
    return hashlib.sha256(json.dumps([tenant, image_id]).encode()).hexdigest()


def to_record(key: str, image: StoredImage) -> bytes:
    """One line, checksum and JSON, then the file as it arrived. One record, so that no half of it can go alone."""
    header = json.dumps(dataclasses.asdict(image.ref)).encode()
    line = _checksum(key, header) + b" " + header + b"\n"
    assert len(line) <= MAX_HEADER_BYTES, "a picture's reference is short"
    return line + image.data


def ref_of_record(key: str, record: bytes) -> ImageRef | None:
    """From the record or its first MAX_HEADER_BYTES; None when they are not what `to_record` made for this key."""
    end = record.find(b"\n", 0, MAX_HEADER_BYTES)
    checksum, _, header = record[: max(end, 0)].partition(b" ")
    return ImageRef(**json.loads(header)) if checksum == _checksum(key, header) else None


def _checksum(key: str, header: bytes) -> bytes:
    """Of its own, because `find` does not read what the checksum of the whole record needs."""
    return hashlib.sha256(key.encode() + b"\n" + header).hexdigest().encode()


def _found(image: T | None, image_id: str) -> T:
    if image is None:
        raise _not_found(image_id)
    return image


def _not_found(image_id: str) -> ImageNotFound:
    return ImageNotFound(f"no picture {image_id[:80]!r}", "image")
