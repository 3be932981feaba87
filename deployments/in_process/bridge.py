"""One model's graph in this process behind blocking calls: loading, asking, and answers as iterators."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
import weakref
from collections.abc import AsyncGenerator, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, TypeVar

from deployments.capacity import num_cores
from deployments.config import RetinaConfig, parse_config
from deployments.errors import PartUnavailable
from deployments.in_process.graph_thread import GraphThread
from deployments.ingress.task_types import TaskEvent, TaskInput
from deployments.ingress.turn_types import SamplingWish
from deployments.types import Chunk, GenerateRequest, ImageRef, Message, Task

Item = TypeVar("Item")
PATIENCE_S = 86_400.0  # whoever waits here can end the wait by itself
KEPT_PICTURE_BYTES = 256_000_000


class InProcess:
    """Blocking; may be used from several threads at once. It ends with `close`, or when nobody holds it any more."""

    def __init__(
        self,
        model: Mapping[str, object],
        *,
        device: str,
        dtype: str,
        num_threads: int | None,
        num_slots: int,
        max_context_tokens: int,
    ) -> None:
        """Loads the model. Raises CheckpointError, ConfigError."""
        generator: dict[str, object] = {
            "dtype": dtype,
            "num_slots": num_slots,
            "max_context_tokens": max_context_tokens,
            "max_new_tokens": max_context_tokens,
            "max_timeout_s": PATIENCE_S,
        }
        threads = num_cores() if num_threads is None else num_threads
        self._config = _configure(model, device, {"num_threads": threads, **generator}, threads)
        self._thread = GraphThread(self._config)
        self._end = weakref.finalize(self, self._thread.request_stop)
        self._end.atexit = False  # _end_all is earlier

    def add_image(self, data: bytes) -> ImageRef:
        """Raises InvalidImage, UnsupportedImage, ImageTooLarge."""
        return self._thread.call(self._thread.graph.add_image(data))

    def run_task(self, task: Task, image: ImageRef | None, sampling: SamplingWish) -> Pull[TaskEvent]:
        graph = self._thread.graph
        asked = TaskInput(uuid.uuid4().hex, graph.tenant, task, image, sampling=sampling)
        return Pull(self, self._thread, graph.tasks.stream(asked))

    def generate(self, messages: tuple[Message, ...], sampling: SamplingWish) -> Pull[Chunk]:
        """The answer to a conversation that the caller keeps."""
        graph, model = self._thread.graph, self._config.first_model
        request = GenerateRequest(
            request_id=uuid.uuid4().hex,
            tenant=graph.tenant,
            messages=messages,
            sampling=sampling.to_params(self._config.generator_of(model)),
            timeout_s=PATIENCE_S,
        )
        return Pull(self, self._thread, graph.parts.generators[model].stream(request))

    def close(self) -> None:
        """Open answers fail with PartUnavailable. May be called again."""
        self._thread.request_stop()
        self._thread.join()


class Pull(Iterator[Item], Generic[Item]):
    """An async generator of the graph's loop as an iterator; closing it, or leaving its `with`, cancels the answer."""

    def __init__(self, owner: InProcess, thread: GraphThread, items: AsyncGenerator[Item, None]) -> None:
        self._owner = owner  # whose model must live as long as its answers
        self._thread = thread
        self._items = items
        self._turn = threading.Lock()  # of the threads that share this iterator
        self._advancing: asyncio.Task[Item] | None = None

    def __next__(self) -> Item:
        with self._turn:
            try:
                return self._thread.call(self._advance())
            except StopAsyncIteration:
                raise StopIteration from None
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Waits until the answer's place is free. May be called again, and after the model was closed."""
        with contextlib.suppress(PartUnavailable):  # closed, and the answer with it
            self._thread.call(self._finish())

    def __enter__(self) -> Pull[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._thread.post(_close(self._items, self._advancing))

    async def _advance(self) -> Item:
        self._advancing = asyncio.ensure_future(anext(self._items))
        return await self._advancing

    async def _finish(self) -> None:
        await _close(self._items, self._advancing)


async def _close(items: AsyncGenerator[Any, None], advancing: asyncio.Task[Any] | None) -> None:
    if advancing is not None and not advancing.done():
        advancing.cancel()
        await asyncio.wait({advancing})  # a generator that runs cannot be closed
    await items.aclose()


def _configure(
    model: Mapping[str, object], device: str, generator: Mapping[str, object], num_threads: int
) -> RetinaConfig:
    """No sessions, pictures and features on disk. Raises ConfigError."""
    return parse_config(
        {
            "models": [model],
            "device": device,
            "images": {"store": "memory", "store_max_bytes": KEPT_PICTURE_BYTES},
            "ingress": {"turn_timeout_s": PATIENCE_S},
            "session_router": {"store": "memory", "lease_s": 2 * PATIENCE_S},
            "vision_encoder": {"num_threads": num_threads, "disk_cache_bytes": 0, "timeout_s": PATIENCE_S},
            "generator": generator,
        }
    )
