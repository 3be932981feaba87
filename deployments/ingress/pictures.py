"""Pictures on their way in: checked in a bounded thread pool, named, stored; from then on an ImageRef."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

from deployments.config import ImageConfig
from deployments.errors import ImageNotFound
from deployments.images.check import check_image
from deployments.images.secret import tenant_secret
from deployments.types import ImageRef, ImageStore, StoredImage

IMAGE_ID = re.compile(r"[0-9a-f]{64}")


class PictureIntake:
    def __init__(self, images: ImageStore, limits: ImageConfig, secret: bytes, num_threads: int) -> None:
        self._images = images
        self._limits = limits
        self._secret = secret
        # Its own pool: a check that was started cannot be stopped, so a semaphore over the shared one would let
        # clients that leave pile up more of them than num_threads.
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="picture-check")

    async def add(self, tenant: str, data: bytes) -> ImageRef:
        """Check and store. Raises InvalidImage, UnsupportedImage, ImageTooLarge."""
        loop = asyncio.get_running_loop()
        key = tenant_secret(self._secret, tenant)
        image = await loop.run_in_executor(self._threads, check_image, data, self._limits, key)
        await self._images.put(tenant, image)
        return image.ref

    async def get(self, tenant: str, image_id: str) -> StoredImage:
        """Raises ImageNotFound, also for what could never be an id."""
        check_image_id(image_id)
        return await self._images.get(tenant, image_id)

    async def delete(self, tenant: str, image_id: str) -> None:
        """Raises ImageNotFound."""
        check_image_id(image_id)
        await self._images.delete(tenant, image_id)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def check_image_id(image_id: str) -> None:
    if not IMAGE_ID.fullmatch(image_id):
        raise ImageNotFound("there is no picture with this id; ids are 64 hex digits, as POST /images gives them")
