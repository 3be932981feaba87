"""Clients of the routes for one picture that leave, over real sockets, and many of them at once."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from ingress.bench import BuildBench, asking, parse_events, picture, serving
from ingress.vision_bench import ASKED, IMAGE_URL

from deployments.fakes import FakeGenerator, Gate

PATIENCE_S = 10.0


@pytest.mark.parametrize(
    ("path", "after_chunks", "stage"),
    [
        ("/caption", 0, "first_token"),
        ("/caption", 2, "stream"),
        ("/query", 2, "stream"),
        ("/detect", 0, "first_token"),
        ("/point", 0, "first_token"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_frees_the_slot(
    build_bench: BuildBench, path: str, after_chunks: int, stage: str, stream: bool
) -> None:
    gate = Gate(after_chunks)
    generator = FakeGenerator(gate=gate)
    bench = build_bench(generator)
    async with asyncio.timeout(PATIENCE_S), serving(bench.app) as address:
        async with asking(address, path, **ASKED[path], image=IMAGE_URL, stream=stream) as reader:
            await gate.reached.wait()
            if stream and after_chunks:
                await reader.readuntil(b"event: chunk")
        await gate.left.wait()
    assert await generator.statistics() == {"running": 0, "stop": 0, "length": 0, "cancelled": 1, "failed": 0}
    statistics = bench.tasks.statistics()
    assert statistics["open_tasks"] == 0
    assert statistics[f"ingress_tasks.{path[1:]}.cancelled"] == 1
    assert statistics[f"ingress_tasks_cancelled.{stage}"] == 1
    assert statistics["ingress_requests.cancelled"] == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_pieces_arrive_while_the_answer_is_made(build_bench: BuildBench, stream: bool) -> None:
    gate = Gate(after_chunks=2)
    bench = build_bench(FakeGenerator(gate=gate))
    asked = {"question": "Hello you", "stream": stream}
    async with asyncio.timeout(PATIENCE_S), serving(bench.app) as address, asking(address, "/query", **asked) as reader:
        await gate.reached.wait()
        if stream:
            await reader.readuntil(b'event: chunk\ndata: {"text":" asked:"}\nid: 2\n\n')
        gate.opened.set()
        await reader.readuntil(b'"answer":"You asked: \\"Hello you\\"."')


async def test_many_at_once_get_their_own_answers(build_bench: BuildBench) -> None:
    bench = build_bench()

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        path = list(ASKED)[number % len(ASKED)]
        texts = dict.fromkeys(ASKED[path], f"number {number}")
        form = {**texts, "stream": "true" if number % 3 else "false"}
        reply = await client.post(path, data=form, files={"image": picture(size=(number + 1, 7))})
        assert reply.status_code == 200, reply.text
        body = list(parse_events(reply.text))[-1][1] if number % 3 else reply.json()
        text = str(body.get("caption") or body.get("answer") or "")
        assert (f"{number + 1} x 7 pixels" in text) == (path in ("/caption", "/query"))
        assert ('"number' in text) == (path == "/query")
        assert body["image_id"] in (await client.get(f"/images/{body['image_id']}")).headers["etag"]

    async with asyncio.timeout(60), serving(bench.app) as address, httpx.AsyncClient(base_url=address) as client:
        await asyncio.gather(*(ask(client, number) for number in range(24)))
        counts = (await client.get("/-/ingress")).json()
    assert (counts["open_tasks"], counts["open_turns"]) == (0, 0)
    assert {f"ingress_tasks.{path[1:]}.stop": 6 for path in ASKED}.items() <= counts.items()
