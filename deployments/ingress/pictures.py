"""Pictures on their way in: checked in a bounded thread pool, named, stored; from then on an ImageRef."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

from deployments.config import RetinaConfig
from deployments.errors import ImageNotFound, InvalidRequest, Overloaded
from deployments.images.check import check_image, image_id_of
from deployments.images.scale_down import scale_down
from deployments.images.secret import tenant_secret
from deployments.ingress.unattended import Unattended
from deployments.types import ImageRef, ImageStore, StoredImage

IMAGE_ID = re.compile(r"[0-9a-f]{64}")
RETRY_AFTER_S = 1.0


class PictureIntake:
    """Used by one event loop."""

    def __init__(self, images: ImageStore, config: RetinaConfig, secret: bytes) -> None:
        self._images = images
        self._limits = config.images
        self._secret = secret
        self._max_waiting = config.ingress.max_waiting_pictures
        self._num_waiting = 0
        # Waiting happens here and not in the pool's own queue, which keeps the bytes of clients that have left.
        self._free = asyncio.Semaphore(config.ingress.picture_threads)
        self._threads = ThreadPoolExecutor(config.ingress.picture_threads, thread_name_prefix="picture-check")
        self._unattended = Unattended()

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    async def take(self, tenant: str, data: bytes | None, image_id: str | None) -> ImageRef | None:
        """The picture that a request brings or names, if any. Raises what `add` and `find` do; InvalidRequest."""
        if data is not None and image_id is not None:
            raise InvalidRequest("image and image_id both name a picture; send one of them", "image_id")
        if data is not None:
            return await self.add(tenant, data)
        return await self.find(tenant, image_id) if image_id is not None else None

    async def add(self, tenant: str, data: bytes, max_side_px: int | None = None) -> ImageRef:
        """Check and store what is not stored yet, scaled down to `max_side_px` where it is larger.

        Cancelled while it waits, it does nothing; once begun, it goes on without its caller.
        Raises InvalidImage, UnsupportedImage, ImageTooLarge; Overloaded when too many wait; PartUnavailable.
        """
        await self._wait_for_thread()
        # A check in a thread cannot be stopped, so its place is free when it ends and not when its client leaves.
        # Storing keeps the place, too: a slow disk would pile up checked pictures otherwise.
        taking = self._unattended.start(self._check_and_store(tenant, data, max_side_px))
        taking.add_done_callback(lambda _: self._free.release())
        return await asyncio.shield(taking)

    async def get(self, tenant: str, image_id: str) -> StoredImage:
        """Raises ImageNotFound, also for what could never be an id; PartUnavailable."""
        check_image_id(image_id)
        return await self._images.get(tenant, image_id)

    async def find(self, tenant: str, image_id: str) -> ImageRef:
        """Does not read the picture. Raises ImageNotFound, also for what could never be an id; PartUnavailable."""
        check_image_id(image_id)
        return await self._images.find(tenant, image_id)

    async def delete(self, tenant: str, image_id: str) -> None:
        """Raises ImageNotFound, PartUnavailable."""
        check_image_id(image_id)
        await self._images.delete(tenant, image_id)

    async def drain(self) -> None:
        """Wait for pictures whose clients are gone; neither does our cancellation reach them, nor their failure us."""
        await self._unattended.drain()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _wait_for_thread(self) -> None:
        if not self._free.locked():
            await self._free.acquire()  # does not wait
            return
        if self._num_waiting >= self._max_waiting:
            raise Overloaded(f"{self._num_waiting} pictures wait to be checked already", "image", RETRY_AFTER_S)
        self._num_waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._num_waiting -= 1

    async def _check_and_store(self, tenant: str, data: bytes, max_side_px: int | None) -> ImageRef:
        loop = asyncio.get_running_loop()
        key = tenant_secret(self._secret, tenant)
        if max_side_px is not None:
            data = await loop.run_in_executor(self._threads, scale_down, data, max_side_px, self._limits)
        # Clients that hold their conversation send all its pictures again with every question: a name is found many
        # times faster than a picture is decoded.
        name = await loop.run_in_executor(self._threads, image_id_of, data, key)
        try:
            return await self._images.find(tenant, name)
        except ImageNotFound:
            image = await loop.run_in_executor(self._threads, check_image, data, self._limits, key)
        await self._images.put(tenant, image)
        return image.ref


def check_image_id(image_id: str) -> None:
    if not IMAGE_ID.fullmatch(image_id):
        raise ImageNotFound("there is no picture with this id; ids are 64 hex digits, as POST /images gives them")
