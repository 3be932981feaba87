"""One model's graph in this process behind plain blocking calls: a thin bridge to `local.py`, with no logic of its own.

The graph lives on an event loop in a thread of its own (anyio's blocking portal); every call here waits for that loop.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from deployments.config import RetinaConfig, parse_config
from deployments.ingress.task_types import TaskEvent, TaskInput
from deployments.ingress.turn_types import SamplingWish
from deployments.types import Chunk, GenerateRequest, ImageRef, Message, Task

if TYPE_CHECKING:
    from deployments.local import Graph

Item = TypeVar("Item")
PATIENCE_S = 86_400.0  # whoever waits here can end the wait by itself


class InProcess:
    """Blocking; may be used from several threads at once. `close` ends it, also in the middle of answers."""

    def __init__(
        self, model: Mapping[str, object], device: str, dtype: str, num_threads: int | None, num_slots: int
    ) -> None:
        """Loads the model. Raises CheckpointError, ConfigError."""
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            data_dir = opening.enter_context(tempfile.TemporaryDirectory(prefix="retina-"))
            self._config = _configure(model, device, dtype, num_threads or _num_cores(), num_slots, data_dir)
            self._portal: BlockingPortal = opening.enter_context(start_blocking_portal())
            self._graph: Graph = opening.enter_context(self._portal.wrap_async_context_manager(_open(self._config)))
            self._stack = opening.pop_all()

    def add_image(self, data: bytes) -> ImageRef:
        """Raises InvalidImage, UnsupportedImage, ImageTooLarge."""
        return self._portal.call(self._graph.add_image, data)

    def run_task(self, task: Task, image: ImageRef | None, sampling: SamplingWish) -> Pull[TaskEvent]:
        asked = TaskInput(uuid.uuid4().hex, self._graph.tenant, task, image, sampling=sampling)
        return Pull(self._portal, lambda: self._graph.tasks.stream(asked))

    def generate(self, messages: tuple[Message, ...], sampling: SamplingWish) -> Pull[Chunk]:
        """The answer to a conversation that the caller keeps."""
        model = self._config.first_model
        request = GenerateRequest(
            request_id=uuid.uuid4().hex,
            tenant=self._graph.tenant,
            messages=messages,
            sampling=sampling.to_params(self._config.generator_of(model)),
            timeout_s=self._config.ingress.turn_timeout_s,
        )
        return Pull(self._portal, lambda: self._graph.parts.generators[model].stream(request))

    def close(self) -> None:
        self._stack.close()


class Pull(Iterator[Item], Generic[Item]):
    """An async generator of the graph's loop as an iterator; closing it, or leaving its `with`, cancels the answer."""

    def __init__(self, portal: BlockingPortal, begin: Callable[[], AsyncGenerator[Item, None]]) -> None:
        self._portal = portal
        self._items = portal.call(begin)

    def __next__(self) -> Item:
        try:
            item: Item = self._portal.call(anext, self._items)
        except StopAsyncIteration:
            raise StopIteration from None
        return item

    def close(self) -> None:
        """May be called again, and after the graph was closed."""
        with contextlib.suppress(RuntimeError):  # the portal is closed, and with it the answer
            self._portal.call(self._items.aclose)

    def __enter__(self) -> Pull[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(config: RetinaConfig) -> contextlib.AbstractAsyncContextManager[Graph]:
    from deployments.local import open_graph

    return open_graph(config)


def _configure(
    model: Mapping[str, object], device: str, dtype: str, num_threads: int, num_slots: int, data_dir: str
) -> RetinaConfig:
    """Nothing on disk outlives the process: no sessions, no pictures, no features. Raises ConfigError."""
    return parse_config(
        {
            "models": [model],
            "data_dir": data_dir,
            "device": device,
            "images": {"store": "memory"},
            "ingress": {"turn_timeout_s": PATIENCE_S},
            "session_router": {"store": "memory", "lease_s": 2 * PATIENCE_S},
            "vision_encoder": {"num_threads": num_threads, "disk_cache_bytes": 0, "timeout_s": PATIENCE_S},
            "generator": {
                "num_threads": num_threads,
                "num_slots": num_slots,
                "dtype": dtype,
                "max_timeout_s": PATIENCE_S,
            },
        }
    )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))
