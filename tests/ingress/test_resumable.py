"""Kept streams over HTTP: broken off at any event and gone on with, through this replica or another; stopped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse
from ingress.bench import Bench, BuildBench, asking, error_of, serving, stored

from deployments.errors import Overloaded
from deployments.fakes import FakeGenerator, Gate

ANSWER = 'You asked: "Hello".'
NUM_EVENTS = 5
ASKED = {"message": "Hello", "session_id": "s", "stream": True, "resumable": True}
PATIENCE_S = 20.0


@dataclass(slots=True)
class Reader:
    client: httpx.AsyncClient

    @contextlib.asynccontextmanager
    async def events(self, method: str, path: str, **request: object) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
        async with (
            asyncio.timeout(PATIENCE_S),
            aconnect_sse(self.client, method, path, **request) as source,  # type: ignore[arg-type]
        ):
            assert source.response.status_code == 200, await source.response.aread()
            yield source.aiter_sse()

    async def read(
        self, method: str, path: str, num_events: int = NUM_EVENTS, **request: object
    ) -> list[ServerSentEvent]:
        """At most so many events; then it leaves."""
        got = []
        async with self.events(method, path, **request) as events:
            async for event in events:
                got.append(event)
                if len(got) == num_events:
                    break
        return got

    async def ask(self, num_events: int = NUM_EVENTS) -> list[ServerSentEvent]:
        return await self.read("POST", "/chat", num_events, json=ASKED)


@contextlib.asynccontextmanager
async def reader_of(bench: Bench) -> AsyncIterator[Reader]:
    async with serving(bench.app) as address, httpx.AsyncClient(base_url=address, timeout=PATIENCE_S) as client:
        yield Reader(client)


def stream_of(events: list[ServerSentEvent]) -> str:
    return str(events[0].json()["stream_id"])


def text_of(events: list[ServerSentEvent]) -> str:
    return "".join(event.json()["text"] for event in events if event.event == "chunk")


def assert_whole(events: list[ServerSentEvent]) -> None:
    stream_id = stream_of(events)
    assert [event.id for event in events] == [f"{stream_id}.{index}" for index in range(NUM_EVENTS)]
    assert text_of(events) == ANSWER == events[-1].json()["response"]


async def come_back(reader: Reader, how: str, stream_id: str, last: str) -> list[ServerSentEvent]:
    """The rest, by each of the ways that there are."""
    if how == "header":
        return await reader.read("GET", f"/chat/streams/{stream_id}", headers={"Last-Event-ID": last})
    if how == "query":
        index = last.rpartition(".")[2]
        return await reader.read("GET", f"/chat/streams/{stream_id}?after={index}")
    return await reader.read("POST", "/chat", json=ASKED, headers={"Last-Event-ID": last})


@pytest.mark.parametrize("how", ["header", "query", "post"])
@pytest.mark.parametrize("index", range(NUM_EVENTS - 1))
async def test_broken_off_at_any_event(build_bench: BuildBench, index: int, how: str) -> None:
    gate = Gate(min(index, 2))
    bench = build_bench(FakeGenerator(gate=gate))
    if index == NUM_EVENTS - 2:
        gate.opened.set()
    async with reader_of(bench) as reader:
        seen = await reader.ask(index + 1)
        gate.opened.set()
        rest = await come_back(reader, how, stream_of(seen), seen[-1].id)
    assert_whole(seen + rest)
    assert await stored(bench) == 2  # one turn, however often it was posted
    assert bench.turns.metrics.snapshot()["ingress_streams.kept"] == 1


async def test_a_kept_stream_says_its_address(bench: Bench) -> None:
    asked = await bench.client.post("/chat", json=ASKED)
    address = asked.request.url.join(asked.headers["content-location"])
    assert (await bench.client.get(address)).text == asked.text
    plain = await bench.client.post("/chat", json={**ASKED, "resumable": False})
    assert "content-location" not in plain.headers


async def test_it_goes_on_without_a_reader(build_bench: BuildBench) -> None:
    gate = Gate(1)
    bench = build_bench(FakeGenerator(gate=gate))
    async with reader_of(bench) as reader:
        path = f"/chat/streams/{stream_of(await reader.ask(2))}"
        async with asyncio.timeout(PATIENCE_S):
            while (await bench.services.streams.statistics())["readers"]:  # noqa: ASYNC110 - it shows no event
                await asyncio.sleep(0.005)
        assert (await bench.services.streams.statistics())["running"] == 1
        gate.opened.set()
        async with asyncio.timeout(PATIENCE_S):
            while await stored(bench) == 0:  # noqa: ASYNC110 - it shows no event
                await asyncio.sleep(0.005)
        assert_whole(await reader.read("GET", path))


async def test_the_answer_is_the_same_as_without(bench: Bench) -> None:
    async with reader_of(bench) as reader:
        kept = await reader.ask()
    plain = (await bench.ask()).json()
    done = kept[-1].json()
    assert set(done) == set(plain)
    assert all(done[name] == plain[name] for name in ("response", "usage", "finish_reason", "conversation_length"))


async def test_start_comes_before_the_first_token(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate))
    async with reader_of(bench) as reader:
        start = await reader.ask(1)
        assert (start[0].event, start[0].id) == ("start", f"{stream_of(start)}.0")
        assert not gate.left.is_set()
        gate.opened.set()


@pytest.mark.parametrize("after_chunks", [0, 2])
async def test_a_failure_is_the_last_event(build_bench: BuildBench, after_chunks: int) -> None:
    bench = build_bench(FakeGenerator(failure=Overloaded("full", "message"), fail_after_chunks=after_chunks))
    async with reader_of(bench) as reader:
        events = await reader.ask(NUM_EVENTS)
        assert [event.event for event in events] == ["start", *["chunk"] * after_chunks, "error"]
        assert events[-1].json()["error"]["code"] == "overloaded"
        assert events[-1].id == f"{stream_of(events)}.{len(events) - 1}"


@pytest.mark.parametrize("after_chunks", [0, 1, 2])
async def test_stopped(build_bench: BuildBench, after_chunks: int) -> None:
    gate = Gate(after_chunks)
    bench = build_bench(FakeGenerator(gate=gate))
    async with reader_of(bench) as reader:
        seen = await reader.ask(1 + after_chunks)
        path = f"/chat/streams/{stream_of(seen)}"
        await gate.reached.wait()
        for _ in range(2):
            reply = await reader.client.post(f"{path}/stop")
            assert (reply.status_code, reply.json()) == (200, {"stream_id": stream_of(seen)})
        (done,) = await reader.read("GET", path, headers={"Last-Event-ID": seen[-1].id})
    assert (done.event, done.json()["finish_reason"]) == ("done", "cancelled")
    assert done.json()["response"] == text_of(seen) == "".join(["You", " asked:"][:after_chunks])
    assert done.json()["usage"]["completion_tokens"] == after_chunks
    assert await stored(bench) == (2 if after_chunks else 0)


async def test_the_end_is_nothing_to_come_back_for(bench: Bench) -> None:
    async with reader_of(bench) as reader:
        events = await reader.ask()
        path = f"/chat/streams/{stream_of(events)}"
        reply = await reader.client.get(path, headers={"Last-Event-ID": events[-1].id})
        assert (reply.status_code, reply.content) == (204, b"")
        assert_whole(await reader.read("GET", path))


@pytest.mark.parametrize("given", ["3", "none.3", "x.y", "a.-1", "a.٣", "a.9999999999", "."])
async def test_what_names_no_kept_event(bench: Bench, given: str) -> None:
    headers = {"Last-Event-ID": given.encode()}
    reply = await bench.client.post("/chat", json=ASKED, headers=headers)
    error = error_of(reply, 404, "stream_not_found")
    assert "resumable" in str(error["message"])
    assert await stored(bench) == 0


async def test_events_that_cannot_have_been_seen(bench: Bench) -> None:
    async with reader_of(bench) as reader:
        stream_id = stream_of(await reader.ask())
    path = f"/chat/streams/{stream_id}"
    error_of(await bench.client.get(path, params={"after": 17}), 400, "invalid_request")
    error_of(await bench.client.get(path, params={"after": -2}), 422, "invalid_request")
    error_of(await bench.client.get(path, params={"from": 1}), 422, "invalid_request")
    other = await bench.client.get(path, headers={"Last-Event-ID": "stream-other.1"})
    assert error_of(other, 400, "invalid_request")["param"] == "Last-Event-ID"


async def test_the_header_counts_more_than_the_query(bench: Bench) -> None:
    async with reader_of(bench) as reader:
        seen = await reader.ask()
        path = f"/chat/streams/{stream_of(seen)}?after=0"
        rest = await reader.read("GET", path, headers={"Last-Event-ID": seen[2].id})
    assert_whole(seen[:3] + rest)


async def test_streams_that_do_not_exist(bench: Bench) -> None:
    error_of(await bench.client.get("/chat/streams/none"), 404, "stream_not_found")
    error_of(await bench.client.post("/chat/streams/none/stop"), 404, "stream_not_found")


async def test_resumable_is_for_streams(bench: Bench) -> None:
    assert error_of(await bench.ask(resumable=True), 400, "invalid_request")["param"] == "resumable"


async def test_forms_ask_for_it_too(bench: Bench) -> None:
    reply = await bench.client.post("/chat", data={"message": "Hello", "stream": "true", "resumable": "true"})
    assert '"stream_id":"stream-' in reply.text


async def test_what_opening_raises_is_a_status(build_bench: BuildBench) -> None:
    bench = build_bench(ingress={"streams": {"store": "memory", "max_streams": 1}})
    error_of(await bench.ask(**{**ASKED, "model": "none"}), 400, "unknown_model")
    assert (await bench.ask(**ASKED)).status_code == 200
    assert error_of(await bench.ask(**ASKED), 503, "overloaded")["param"] == "resumable"


async def test_leaving_before_the_turn_is_open_begins_nothing(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate))
    async with serving(bench.app) as address:
        first = asyncio.create_task(bench.ask(session_id="s"))
        await gate.reached.wait()
        async with asking(address, **ASKED), asyncio.timeout(PATIENCE_S):
            while (await bench.router.statistics())["waiting_turns"] != 1:  # noqa: ASYNC110 - it shows no event
                await asyncio.sleep(0.005)
        async with asyncio.timeout(PATIENCE_S):
            while (await bench.router.statistics())["waiting_turns"]:  # noqa: ASYNC110 - it shows no event
                await asyncio.sleep(0.005)
        gate.opened.set()
        await first
    assert "ingress_streams.kept" not in bench.turns.metrics.snapshot()
    assert await stored(bench) == 2


async def test_what_the_ingress_shows(bench: Bench) -> None:
    await bench.ask(**ASKED)
    shown = (await bench.client.get("/-/ingress")).json()
    assert shown["streams"] == {"store": "memory", "owned": 0, "readers": 0, "running": 0, "ended": 1}
    assert shown["ingress_streams.kept"] == 1
