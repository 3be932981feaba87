"""From a picture's id to the pixels a tower takes: fetch, decode and preprocess, in threads off the event loop."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from deployments.config import ImageConfig
from deployments.errors import InvalidImage, Overloaded, PartUnavailable, RetinaError
from deployments.images.decode import decode_picture
from deployments.models.family import Pixels, Preprocessor
from deployments.types import ImageStore
from deployments.vision_encoder.batcher import Pace

RETRY_AFTER_S = 1.0


class Preparer:
    """Used from one event loop."""

    def __init__(self, images: ImageStore, limits: ImageConfig, num_threads: int) -> None:
        self._images = images
        self._limits = limits
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="preprocess")
        self._desks = asyncio.Semaphore(num_threads)  # files are fetched only when a thread is free: they are large
        self._pace = Pace()

    @property
    def seconds_per_image(self) -> float:
        """All threads together; 0 while nothing has been measured."""
        return self._pace.seconds_per_image / self._num_threads

    async def prepare(self, tenant: str, image_id: str, preprocess: Preprocessor) -> Pixels:
        """Raises ImageNotFound, InvalidImage, Overloaded, PartUnavailable."""
        async with self._desks:
            data = await self._fetch(tenant, image_id)
            started = time.perf_counter()
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._threads, to_pixels, data, self._limits, preprocess)
            self._pace.observe(time.perf_counter() - started, 1)
            return pixels

    def close(self) -> None:
        """Blocks until the threads have ended."""
        self._threads.shutdown()

    async def _fetch(self, tenant: str, image_id: str) -> bytes:
        try:
            return (await self._images.get(tenant, image_id)).data
        except OSError as error:
            raise PartUnavailable("the image store cannot be read", None, RETRY_AFTER_S) from error


def to_pixels(data: bytes, limits: ImageConfig, preprocess: Preprocessor) -> Pixels:
    """Blocks. Raises InvalidImage; lack of memory is Overloaded, for it is not the picture's fault."""
    picture = decode_picture(data, limits)
    try:
        return preprocess(picture)
    except RetinaError:
        raise
    except MemoryError as error:
        raise Overloaded("there is no memory to prepare the picture", None, RETRY_AFTER_S) from error
    except Exception as error:  # image processors raise all kinds of errors on sizes they did not think of
        raise InvalidImage("the picture could not be prepared for the vision tower", "image") from error
