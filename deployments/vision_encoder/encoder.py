"""The route of one encode request: is the picture still there, then memory, disk, or preprocessing and tower, once for
all who ask meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cachetools import LRUCache

from deployments.config import RetinaConfig
from deployments.errors import (
    DeadlineExceeded,
    ImageNotFound,
    InvalidImage,
    Overloaded,
    PartUnavailable,
    RetinaError,
    UnknownModel,
)
from deployments.metrics import Metrics
from deployments.types import EncodeRequest, FeatureSource, ImageFeatures, ImageStore, Json
from deployments.vision_encoder.cache import FeatureCache, Features, open_feature_cache
from deployments.vision_encoder.lanes import Lane, open_lane
from deployments.vision_encoder.line import Job
from deployments.vision_encoder.preparer import Preparer
from deployments.vision_encoder.towers import LoadedTower, load_towers, share_towers, torch_thread

MAX_REFUSED = 10_000  # pictures remembered as bad
FIRST_RETRY_AFTER_S = 1.0  # while nothing has been measured

Seen = tuple[Features, FeatureSource]


@dataclass(eq=False, slots=True)
class Flight:
    """One picture being looked at for everybody who asked meanwhile."""

    key: str
    tenant: str
    image_id: str
    lane: Lane
    task: asyncio.Task[Seen] = field(init=False)  # set as it is made
    num_waiters: int = 0
    job: Job | None = None  # once its pixels wait for the tower
    is_picture_gone: bool = False  # deleted meanwhile: those who wait get their answer, nothing of it is kept

    @property
    def has_reached_tower(self) -> bool:
        return self.job is not None and (self.job.future.running() or self.job.future.done())


class Encoder:
    """A VisionEncoder. Used from one event loop; `await close()` when done."""

    def __init__(
        self,
        towers: Mapping[str, LoadedTower],
        cache: FeatureCache,
        images: ImageStore,
        config: RetinaConfig,
        metrics: Metrics,
        tower_thread: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._config = config.vision_encoder
        self._cache = cache
        self._metrics = metrics
        self._images = images
        self._lanes = [open_lane(shared, self._config, metrics, tower_thread) for shared in share_towers(towers)]
        self._lane_of = {model: lane for lane in self._lanes for model in lane.shared.models}
        self._flights: dict[str, Flight] = {}  # by feature key
        self._refused: LRUCache[str, InvalidImage] = LRUCache(MAX_REFUSED)  # by feature key
        self._preparer = Preparer(images, config.images, self._config.num_preprocess_threads)
        self._is_closed = False

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        """Features of one picture. When the last who waits for a picture goes away, its work is dropped.

        Raises UnknownModel, ImageNotFound, InvalidImage, Overloaded, DeadlineExceeded, PartUnavailable.
        """
        started = time.perf_counter()
        try:
            (features, source), outcome = await self._find_in_time(request)
        except BaseException as error:
            self._metrics.count("vision_encoder_requests", label=_outcome(error))
            raise
        self._metrics.count("vision_encoder_requests", label=outcome)
        encode_ms = (time.perf_counter() - started) * 1000
        tower = self._lane_of[request.model].name
        return ImageFeatures(features.array, features.dtype, source, encode_ms, tower)

    @property
    def closing(self) -> str | None:
        """Why no more pictures can be looked at, None while all is well: a replica that says why must be replaced."""
        return next((lane.batcher.closing for lane in self._lanes if lane.batcher.closing is not None), None)

    async def statistics(self) -> Json:
        return {
            "closing": self.closing,
            "towers": [lane.describe() for lane in self._lanes],
            "cache": await self._cache.statistics(),
            "waiting": self._num_waiting,
            "in_flight": len(self._flights),
            "max_waiting": self._config.max_waiting_images,
            "refused": len(self._refused),
            "metrics": self._metrics.snapshot(),
        }

    async def close(self) -> None:
        """Drop what waits, write what was computed, end all threads."""
        self._is_closed = True
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lane in self._lanes:
            await asyncio.to_thread(lane.batcher.close)
        await asyncio.to_thread(self._preparer.close)
        await self._cache.close()

    # ------------------------------------------------------------------------------- finding

    async def _find_in_time(self, request: EncodeRequest) -> tuple[Seen, str]:
        timeout_s = min(request.timeout_s, self._config.timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._find(request)
        except TimeoutError as error:  # ours: stores and flights end with RetinaErrors
            raise DeadlineExceeded(f"the picture was not encoded within {timeout_s:g} s") from error

    async def _find(self, request: EncodeRequest) -> tuple[Seen, str]:
        """Features and source, and under which label to count the request."""
        lane = self._lane_of.get(request.model)
        if lane is None:
            known = ", ".join(self._lane_of)
            raise UnknownModel(f"no model {request.model!r} with a vision tower; there is {known}", "model")
        await self._require_picture(request.tenant, request.image.id)
        key = lane.key(request.tenant, request.image.id)
        hit = self._cache.in_memory(key)
        if hit is not None:
            return (hit, "memory"), "memory"
        bad = self._refused.get(key)
        if bad is not None:
            raise type(bad)(*bad.args)
        flight = self._flights.get(key)
        if flight is not None:
            return await self._wait(flight), "shared"
        seen = await self._wait(self._take_off(key, request, lane))
        return seen, seen[1]

    async def _require_picture(self, tenant: str, image_id: str) -> None:
        """Raises ImageNotFound, and forgets what was seen: nobody is told any more of a picture that was deleted."""
        try:
            await self._images.find(tenant, image_id)
        except ImageNotFound:
            keys = [lane.key(tenant, image_id) for lane in self._lanes]
            for key in keys:
                self._refused.pop(key, None)
                if key in self._flights:
                    self._flights[key].is_picture_gone = True
            if not self._is_closed:
                await self._cache.drop(keys)
            raise

    def _take_off(self, key: str, request: EncodeRequest, lane: Lane) -> Flight:
        if self._is_closed:
            raise _stopped()
        waiting = self._num_waiting
        if waiting >= self._config.max_waiting_images:
            raise Overloaded(f"{waiting} pictures wait for the vision encoder", None, self._retry_after_s(lane))
        flight = Flight(key, request.tenant, request.image.id, lane)
        flight.task = asyncio.create_task(self._fly(flight))
        flight.task.add_done_callback(lambda task: self._land(flight))
        self._flights[key] = flight
        return flight

    async def _wait(self, flight: Flight) -> Seen:
        """Shielded: whoever goes away leaves the flight to the others."""
        flight.num_waiters += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_closed and flight.task.cancelled() and not (task and task.cancelling()):
                raise _stopped() from None
            raise
        finally:
            flight.num_waiters -= 1
            if flight.num_waiters == 0:
                self._abandon(flight)

    def _abandon(self, flight: Flight) -> None:
        """Nobody waits any more. What the tower has begun is as good as done: let it reach the cache, so that a
        picture slower than everybody's patience is there next time."""
        if not flight.has_reached_tower and not flight.task.done():
            flight.task.cancel()
            self._forget(flight)

    def _land(self, flight: Flight) -> None:
        self._forget(flight)
        if not flight.task.cancelled():
            flight.task.exception()  # seen: asyncio complains about errors of flights that everybody left

    def _forget(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    # ------------------------------------------------------------------------------- looking

    async def _fly(self, flight: Flight) -> Seen:
        seen = await self._see(flight)
        if flight.is_picture_gone:
            await self._cache.drop([flight.key])
        return seen

    async def _see(self, flight: Flight) -> Seen:
        stored = await self._cache.on_disk(flight.key)
        if stored is not None:
            return stored, "disk"
        try:
            features = await self._look(flight)
        except InvalidImage as error:
            if not isinstance(error.__cause__, MemoryError):  # that one may fit another time
                # A copy: the original holds pixels through its traceback.
                self._refused[flight.key] = type(error)(*error.args)
            raise
        self._cache.add(flight.key, features)
        return features, "tower"

    async def _look(self, flight: Flight) -> Features:
        async with flight.lane.room:
            preprocess = flight.lane.shared.loaded.preprocess
            pixels = await self._preparer.prepare(flight.tenant, flight.image_id, preprocess)
            flight.job = flight.lane.batcher.submit(pixels)
            del pixels  # the batcher's now: they are large
            return await asyncio.wrap_future(flight.job.future)

    # ------------------------------------------------------------------------------- figures

    @property
    def _num_waiting(self) -> int:
        """Pictures on their way that no tower has begun."""
        return len(self._flights) - sum(flight.has_reached_tower for flight in self._flights.values())

    def _retry_after_s(self, lane: Lane) -> float:
        slowest = max(self._preparer.seconds_per_image, lane.batcher.pace.seconds_per_image)
        return round(self._num_waiting * slowest, 3) or FIRST_RETRY_AFTER_S


def _outcome(error: BaseException) -> str:
    if isinstance(error, RetinaError):
        return error.code
    return "cancelled" if isinstance(error, asyncio.CancelledError) else "failed"


def _stopped() -> PartUnavailable:
    return PartUnavailable("the vision encoder has stopped", None, 5.0)


def open_encoder(config: RetinaConfig, images: ImageStore) -> Encoder:
    """Load the towers of the configured models and open the cache under `data_dir`/features.

    Blocks while loading. Raises CheckpointError, ConfigError.
    """
    metrics = Metrics()
    towers = load_towers(config)
    cache = open_feature_cache(config.vision_encoder, Path(config.data_dir) / "features", metrics)
    tower_thread = partial(torch_thread, config.vision_encoder.num_threads)
    return Encoder(towers, cache, images, config, metrics, tower_thread)
