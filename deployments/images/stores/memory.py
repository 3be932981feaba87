"""Pictures in this process's memory: for tests and single-process graphs, gone when it ends."""

from __future__ import annotations

from collections import OrderedDict

from deployments.errors import ImageNotFound
from deployments.types import ImageRef, StoredImage


class MemoryImageStore:
    """Least recently used pictures go first when `max_bytes` are exceeded; the newest always stays."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._images: OrderedDict[tuple[str, str], StoredImage] = OrderedDict()  # oldest use first

    async def put(self, tenant: str, image: StoredImage) -> None:
        self._forget((tenant, image.ref.id))
        self._images[tenant, image.ref.id] = image
        self._num_bytes += len(image.data)
        while self._num_bytes > self._max_bytes and len(self._images) > 1:
            self._forget(next(iter(self._images)))

    async def get(self, tenant: str, image_id: str) -> StoredImage:
        return self._use((tenant, image_id))

    async def find(self, tenant: str, image_id: str) -> ImageRef:
        return self._use((tenant, image_id)).ref

    async def delete(self, tenant: str, image_id: str) -> None:
        if not self._forget((tenant, image_id)):
            raise _not_found(image_id)

    def close(self) -> None:
        self._images.clear()
        self._num_bytes = 0

    def _use(self, key: tuple[str, str]) -> StoredImage:
        image = self._images.get(key)
        if image is None:
            raise _not_found(key[1])
        self._images.move_to_end(key)
        return image

    def _forget(self, key: tuple[str, str]) -> bool:
        image = self._images.pop(key, None)
        if image is not None:
            self._num_bytes -= len(image.data)
        return image is not None


def _not_found(image_id: str) -> ImageNotFound:
    return ImageNotFound(f"no picture {image_id[:80]!r}", "image")
