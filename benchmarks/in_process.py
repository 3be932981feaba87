"""The same load on the same graph in this process, without HTTP and Ray: what those two cost is the difference."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load import Measured
from benchmarks.servers import GraphSettings
from benchmarks.speakers import Answer, BadAnswer, Question
from benchmarks.summary import summarize
from benchmarks.users import Load, LoadFailed, Reply, run_load, warm_up

if TYPE_CHECKING:
    from deployments.config import RetinaConfig
    from deployments.ingress.turns import TurnInput
    from deployments.local import Graph


@contextlib.contextmanager
def opened(settings: GraphSettings) -> Iterator[Callable[[Load], Measured]]:
    """Loads the models once; every call then runs one load. Raises LoadFailed, StartupError."""
    from deployments.config import parse_config
    from deployments.local import open_graph

    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with asyncio.Runner() as runner:
            config: RetinaConfig = parse_config(settings.arguments(folder / "data"))
            context = open_graph(config)
            graph = runner.run(context.__aenter__())
            try:
                yield lambda load: runner.run(_measure(graph, load))
            finally:
                runner.run(context.__aexit__(None, None, None))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _measure(graph: Graph, load: Load) -> Measured:
    def open_talk() -> GraphTalk:
        return GraphTalk(graph)

    try:
        await warm_up(load, open_talk)
    except Exception as error:
        raise LoadFailed(f"the warm-up in process: {type(error).__name__}: {error}") from error
    return Measured(summarize(await run_load(load, open_talk)), usage=None)


@dataclass(slots=True)
class GraphTalk:
    graph: Graph
    session_id: str | None = field(default=None, init=False)

    async def ask(self, question: Question) -> Reply:
        from deployments.ingress.turns import TurnChunk, TurnFinished, TurnStarted

        times: list[float] = []
        reply = None
        sent_s = time.perf_counter()
        async for event in self.graph.stream(await self._turn(question)):
            if isinstance(event, TurnStarted):
                self.session_id = event.session_id
            elif isinstance(event, TurnChunk):
                times.append(time.perf_counter())
            elif isinstance(event, TurnFinished):
                reply = event.reply
        end_s = time.perf_counter()
        if reply is None or not times:
            raise BadAnswer("the turn ended without an answer")
        usage = reply.usage
        answer = Answer(reply.response, tuple(times), usage.completion_tokens, usage.prompt_tokens, usage.reused_tokens)
        return Reply(sent_s, end_s, answer)

    async def _turn(self, question: Question) -> TurnInput:
        from deployments.ingress.turns import SamplingWish, TurnInput

        image = None if question.picture is None else await self.graph.add_image(question.picture)
        return TurnInput(
            request_id="benchmark",
            tenant=self.graph.tenant,
            text=question.text,
            session_id=self.session_id,
            image=image,
            sampling=SamplingWish(max_new_tokens=question.max_tokens),
        )
