"""A graph on an event loop in a thread of its own.

Whoever waits here can be interrupted, whoever forgets to close does not keep the process from ending, and nothing that
the garbage collector calls ever waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future, wait
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from deployments.config import RetinaConfig
from deployments.errors import PartUnavailable

if TYPE_CHECKING:
    from deployments.local import Graph

T = TypeVar("T")
END_WITHIN_S = 30.0  # of a graph that is closed at the end of the process
LOOK_AGAIN_S = 1.0  # whether the thread still lives, while an answer is waited for


class GraphThread:
    """The thread, its loop and the graph on it."""

    def __init__(self, config: RetinaConfig) -> None:
        """Blocks while the model loads. `data_dir` is replaced. Raises CheckpointError, ConfigError."""
        self._config = config
        self._opened: Future[Graph] = Future()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._pid = os.getpid()
        # A daemon: interpreters wait for other threads before anybody can ask this one to end.
        self._thread = threading.Thread(target=self._run, name="retina-graph", daemon=True)
        _end_all_with_the_process()
        _open_threads.add(self)
        self._thread.start()
        try:
            self.graph = self._opened.result()
        except BaseException:  # Ctrl-C while it loads
            self.request_stop()
            raise

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the loop and wait. An interrupt of the wait cancels the work. Raises PartUnavailable when closed."""
        try:
            self._require_open()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except BaseException:
            work.close()
            raise
        try:
            # A loop that ended in this instant has no more turns for what was handed to it.
            while not wait({future}, LOOK_AGAIN_S).done:
                if not self._thread.is_alive():
                    raise PartUnavailable("the model was closed")
            return future.result()
        except CancelledError as error:
            raise PartUnavailable("the model was closed") from error
        except BaseException:
            future.cancel()
            raise

    def post(self, work: Coroutine[Any, Any, object]) -> None:
        """Run on the loop without waiting; nothing, when it has ended. For the garbage collector."""
        if self._pid != os.getpid() or self._loop.is_closed():
            work.close()
            return
        with contextlib.suppress(RuntimeError):  # it was closed in this instant
            asyncio.run_coroutine_threadsafe(work, self._loop)

    def request_stop(self) -> None:
        """Does not wait. Open answers fail with PartUnavailable."""
        if self._pid == os.getpid() and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it was closed in this instant
                self._loop.call_soon_threadsafe(self._stop.set)

    def join(self, timeout_s: float | None = None) -> None:
        if self._pid == os.getpid():
            self._thread.join(timeout_s)

    def _require_open(self) -> None:
        if self._pid != os.getpid():
            raise PartUnavailable("the model was loaded in the process that this one was forked from; load it here")
        if not self._thread.is_alive() or self._stop.is_set():
            raise PartUnavailable("the model was closed")

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        from deployments.local import open_graph

        try:
            async with contextlib.AsyncExitStack() as stack:
                # Nothing in it outlives the process.
                data_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="retina-"))
                config = self._config.model_copy(update={"data_dir": data_dir})
                graph = await stack.enter_async_context(open_graph(config))
                self._opened.set_result(graph)
                await self._stop.wait()
        except BaseException as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)


_open_threads: weakref.WeakSet[GraphThread] = weakref.WeakSet()


def _end_all() -> None:
    """Torch must not compute while the interpreter is taken apart."""
    threads = list(_open_threads)
    for thread in threads:
        thread.request_stop()
    for thread in threads:
        thread.join(END_WITHIN_S)


@cache
def _end_all_with_the_process() -> None:
    """Private, and the hook that concurrent.futures uses itself: plain atexit runs when its executors refuse work
    already, which closing a graph needs. The hooks run in reverse order, so theirs must be registered first."""
    import concurrent.futures.thread  # noqa: F401

    threading._register_atexit(_end_all)  # type: ignore[attr-defined]
