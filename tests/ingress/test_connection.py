"""Clients that leave, over real sockets: each frees its slot and its session."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import httpx
import pytest
from ingress.bench import Bench, BuildBench, asking, parse_events, serving
from starlette.requests import ClientDisconnect
from starlette.types import Message

from deployments.fakes import FakeGenerator, Gate
from deployments.ingress.connection import run_while_connected
from deployments.metrics import Metrics
from deployments.session_router.service import Router
from deployments.types import Turn, TurnOutcome, TurnRequest

PATIENCE_S = 10.0
QUESTION = {"message": "Hello you", "session_id": "s"}


async def assert_given_back(bench: Bench, generator: FakeGenerator) -> None:
    """The next turn on the same session waits for the lease of the one that was left."""
    reply = await bench.ask(session_id="s", model="other")
    assert reply.json()["conversation_length"] == 2
    await bench.turns.drain()
    assert await generator.statistics() == {"running": 0, "stop": 0, "length": 0, "cancelled": 1, "failed": 0}


@pytest.mark.parametrize(
    ("stream", "after_chunks", "stage"),
    [(True, 0, "first_token"), (True, 2, "stream"), (False, 0, "first_token"), (False, 2, "stream")],
)
async def test_leaving_frees_slot_and_session(
    build_bench: BuildBench, stream: bool, after_chunks: int, stage: str
) -> None:
    gate = Gate(after_chunks)
    generator = FakeGenerator(gate=gate)
    bench = build_bench(generator)
    async with asyncio.timeout(PATIENCE_S), serving(bench.app) as address:
        async with asking(address, **QUESTION, stream=stream) as reader:
            await gate.reached.wait()
            if stream and after_chunks:
                await reader.readuntil(b'data: {"text":"You"}')
        await gate.left.wait()
        await assert_given_back(bench, generator)
    counts = bench.turns.metrics.snapshot()
    assert counts[f"ingress_cancelled.{stage}"] == 1
    assert counts["ingress_requests.cancelled"] == 1


class ObservedRouter:
    """Tells when a second turn asks to be opened."""

    def __init__(self) -> None:
        self.inner: Router | None = None
        self.num_asked = 0
        self.second_asked = asyncio.Event()

    def around(self, router: Router) -> ObservedRouter:
        self.inner = router
        return self

    async def open_turn(self, request: TurnRequest) -> Turn:
        assert self.inner is not None
        self.num_asked += 1
        if self.num_asked == 2:
            self.second_asked.set()
        return await self.inner.open_turn(request)

    async def close_turn(self, outcome: TurnOutcome) -> int:
        assert self.inner is not None
        return await self.inner.close_turn(outcome)


class ObservedMetrics(Metrics):
    """Tells when something was counted."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def count(self, name: str, amount: float = 1, label: str = "") -> None:
        super().count(name, amount, label)
        self.counted[f"{name}.{label}"].set()


async def test_leaving_while_the_session_is_busy(build_bench: BuildBench) -> None:
    gate, router, metrics = Gate(), ObservedRouter(), ObservedMetrics()
    bench = build_bench(FakeGenerator(gate=gate), router.around, metrics)
    async with asyncio.timeout(PATIENCE_S), serving(bench.app) as address:
        first = asyncio.create_task(bench.ask(session_id="s"))
        await gate.reached.wait()
        async with asking(address, **QUESTION):
            await router.second_asked.wait()
        await metrics.counted["ingress_cancelled.open"].wait()
        gate.opened.set()
        assert (await first).json()["conversation_length"] == 2
        assert (await bench.ask(session_id="s")).json()["conversation_length"] == 4


@pytest.mark.parametrize("stream", [True, False])
async def test_pieces_arrive_while_the_answer_is_made(build_bench: BuildBench, stream: bool) -> None:
    gate = Gate(after_chunks=2)
    bench = build_bench(FakeGenerator(gate=gate))
    async with (
        asyncio.timeout(PATIENCE_S),
        serving(bench.app) as address,
        asking(address, **QUESTION, stream=stream) as reader,
    ):
        await gate.reached.wait()
        if stream:
            await reader.readuntil(b'event: chunk\ndata: {"text":" asked:"}\nid: 2\n\n')
        gate.opened.set()
        await reader.readuntil(b'"response":"You asked: \\"Hello you\\"."')


async def test_many_streams_at_once(build_bench: BuildBench) -> None:
    bench = build_bench()

    async def stream(client: httpx.AsyncClient, number: int) -> None:
        reply = await client.post("/chat", json={"message": f"number {number}", "stream": True})
        done = list(parse_events(reply.text))[-1][1]
        assert done["response"] == f'You asked: "number {number}".'

    async with serving(bench.app) as address, httpx.AsyncClient(base_url=address) as client:
        await asyncio.gather(*(stream(client, number) for number in range(16)))
    assert bench.turns.statistics()["open_turns"] == 0


# ------------------------------------------------------------------------------------- run_while_connected


class Client:
    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_the_result_of_the_work() -> None:
    async def work() -> int:
        return 3

    assert await run_while_connected(Client().receive, work()) == 3


async def test_the_error_of_the_work() -> None:
    async def work() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run_while_connected(Client().receive, work())


async def test_it_returns_when_the_clean_up_is_done() -> None:
    client, cleaned = Client(), []

    async def work() -> None:
        try:
            client.left.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    with pytest.raises(ClientDisconnect):
        await run_while_connected(client.receive, work())
    assert cleaned == [True]


async def test_being_cancelled_cancels_the_work() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(run_while_connected(Client().receive, work()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
