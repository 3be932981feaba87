"""Responses that go on without their client: polled, read again from any point, stopped, and through any replica."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from ingress.bench import Bench, BuildBench, ScriptedGenerator, asking, open_turns, serving
from ingress.openai.openai_bench import openai_error
from ingress.responses.conftest import AddReplica
from ingress.responses.response_bench import (
    Body,
    chat,
    create,
    events_of,
    fetch,
    post,
    read,
    said,
    session_of,
    stream,
    text_of,
    types_of,
)

from deployments.errors import InvalidImage, Overloaded
from deployments.fakes import FakeGenerator, Gate
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.types import Chunk, Timings, Usage

ANSWER = 'You asked: "Hello".'
KEPT = pytest.mark.parametrize("fields", [{"background": True}, {"resumable": True}])


async def ended(client: httpx.AsyncClient, response_id: str) -> Body:
    """Polls as clients do."""
    async with asyncio.timeout(10):
        while True:
            response = read(await client.get(f"/v1/responses/{response_id}"))
            if response["status"] not in ("queued", "in_progress"):
                return response
            await asyncio.sleep(0.01)


async def replay(client: httpx.AsyncClient, response_id: str, after: int | None = None, **headers: str) -> list[Body]:
    query = {"stream": "true"} | ({} if after is None else {"starting_after": str(after)})
    reply = await client.get(f"/v1/responses/{response_id}", params=query, headers=headers)
    first = max(-1 if after is None else after, int(headers.get("Last-Event-ID", -1))) + 1
    return events_of(reply, first)


async def cancel(client: httpx.AsyncClient, response_id: str) -> Body:
    return read(await client.post(f"/v1/responses/{response_id}/cancel"))


# ------------------------------------------------------------------------------------- polling


async def test_it_replies_at_once_and_is_there_when_asked_for(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate))
    begun = await create(bench, background=True)
    assert (begun["status"], begun["background"], begun["output"], begun["usage"]) == ("in_progress", True, [], None)
    await gate.reached.wait()
    assert await fetch(bench, begun["id"]) == begun
    gate.opened.set()
    done = await ended(bench.client, begun["id"])
    assert (done["status"], said(done)) == ("completed", ANSWER)
    assert len(await bench.history(session_of(begun))) == 2


async def test_it_names_the_model_of_its_conversation(bench: Bench) -> None:
    begun = await chat(bench, "One", model="other")
    assert (await create(bench, "Two", conversation=begun["session_id"], background=True))["model"] == "other"


async def test_what_cannot_begin_is_refused_and_leaves_no_record(build_bench: BuildBench) -> None:
    bench = build_bench(ingress={"streams": {"store": "memory", "max_streams": 1}})
    await create(bench, background=True)
    openai_error(await post(bench, background=True), 503, "overloaded", "resumable")
    openai_error(await post(bench, background=True, model="absent"), 404, "model_not_found", "model")
    assert len(await bench.router.records(PUBLIC_TENANT, "response", 10)) == 1


async def test_a_failure_is_told_when_asked_for_and_remembered(build_bench: BuildBench) -> None:
    failure = InvalidImage("no picture", "image")
    bench = build_bench(FakeGenerator(failure=failure), ingress={"streams": {"store": "memory", "retain_s": 0}})
    begun = await create(bench, background=True)
    failed = await ended(bench.client, begun["id"])
    assert (failed["status"], failed["output"]) == ("failed", [])
    assert await fetch(bench, begun["id"]) == failed


async def test_why_it_failed_is_told(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=Overloaded("full")))
    failed = await ended(bench.client, (await create(bench, background=True))["id"])
    assert failed["error"] == {"code": "rate_limit_exceeded", "message": "full", "param": None}
    assert await bench.history(session_of(failed)) == []
    reply = await post(bench, "Two", previous_response_id=failed["id"])
    assert "no answer to go on from" in openai_error(reply, 400, "invalid_value", "previous_response_id")["message"]


async def test_one_that_is_under_way_cannot_be_gone_on_from(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(gate=Gate()))
    begun = await create(bench, background=True)
    reply = await post(bench, "Two", previous_response_id=begun["id"])
    assert "none yet" in openai_error(reply, 400, "invalid_value", "previous_response_id")["message"]
    await cancel(bench.client, begun["id"])


async def test_one_whose_stream_was_lost_has_failed(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(gate=Gate()))
    begun = await create(bench, background=True)
    other = build_bench()  # another process, whose streams are its own
    for record in await bench.router.records(PUBLIC_TENANT, "response", 10):
        await other.router.put_record(PUBLIC_TENANT, record)
    lost = await fetch(other, begun["id"])
    assert (lost["status"], lost["error"]["code"]) == ("failed", "server_error")
    await cancel(bench.client, begun["id"])


# ------------------------------------------------------------------------------------- reading again


@KEPT
async def test_read_again_from_every_point(bench: Bench, fields: Body) -> None:
    events = await stream(bench, top_logprobs=1, **fields)
    response_id = events[0]["response"]["id"]
    assert await replay(bench.client, response_id) == events
    for after in range(len(events)):
        assert await replay(bench.client, response_id, after) == events[after + 1 :]
        assert await replay(bench.client, response_id, **{"Last-Event-ID": str(after)}) == events[after + 1 :]
    assert await replay(bench.client, response_id, 2, **{"Last-Event-ID": "5"}) == events[6:]


@KEPT
async def test_broken_off_and_gone_on_with_nothing_is_lost_or_said_twice(build_bench: BuildBench, fields: Body) -> None:
    gate = Gate(after_chunks=1)
    bench = build_bench(FakeGenerator(gate=gate))
    async with serving(bench.app) as address:
        async with asking(address, "/v1/responses", input="Hello", stream=True, **fields) as reader:
            head = await reader.readuntil(b'"delta":')
            await gate.reached.wait()
        response_id = head.decode().split('"id":"')[1].split('"')[0]
        seen = 4  # the first delta
        gate.opened.set()
        rest = await replay(bench.client, response_id, seen)
    assert "You" + text_of(rest) == ANSWER
    assert types_of(rest)[-1] == "response.completed"
    assert (await fetch(bench, response_id))["status"] == "completed"


async def test_begun_without_stream_and_read_with_it(build_bench: BuildBench) -> None:
    gate = Gate(after_chunks=1)
    bench = build_bench(FakeGenerator(gate=gate))
    begun = await create(bench, background=True)
    reading = asyncio.create_task(replay(bench.client, begun["id"]))
    await gate.reached.wait()
    gate.opened.set()
    events = await reading
    assert text_of(events) == ANSWER
    assert events[0]["response"] == begun


async def test_events_that_are_not_kept(build_bench: BuildBench) -> None:
    bench = build_bench(ingress={"streams": {"store": "memory", "retain_s": 0}})
    for fields in ({}, {"background": True}):
        response = await create(bench, **fields)
        await ended(bench.client, response["id"])
        reply = await bench.client.get(f"/v1/responses/{response['id']}?stream=true")
        openai_error(reply, 404, "stream_not_found", "stream")


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "1" * 10, "²"])
async def test_a_last_event_id_that_is_none(bench: Bench, given: str) -> None:
    response_id = (await stream(bench, resumable=True))[0]["response"]["id"]
    headers = {"Last-Event-ID": given.encode()}
    reply = await bench.client.get(f"/v1/responses/{response_id}?stream=true", headers=headers)
    openai_error(reply, 400, "invalid_value", "Last-Event-ID")


# ------------------------------------------------------------------------------------- stopping


@KEPT
@pytest.mark.parametrize("after", [0, 1])
async def test_cancelled(build_bench: BuildBench, fields: Body, after: int) -> None:
    gate = Gate(after_chunks=after)
    bench = build_bench(FakeGenerator(gate=gate))
    reading = asyncio.create_task(stream(bench, **fields))
    await gate.reached.wait()
    (record,) = await bench.router.records(PUBLIC_TENANT, "response", 10)
    cancelled = await cancel(bench.client, record.id)
    assert (cancelled["status"], said(cancelled)) == ("cancelled", "You" if after else "")
    assert cancelled["incomplete_details"] is cancelled["completed_at"] is None
    events = await reading
    assert types_of(events)[-1] == "response.incomplete"
    assert events[-1]["response"] == cancelled == await fetch(bench, record.id)
    assert await cancel(bench.client, record.id) == cancelled
    assert await open_turns(bench) == 0
    assert gate.left.is_set()
    assert len(await bench.history(session_of(cancelled))) == (2 if after else 0)


async def test_what_was_said_until_then_can_be_gone_on_from(build_bench: BuildBench) -> None:
    gate = Gate(after_chunks=2)
    bench = build_bench(FakeGenerator(gate=gate))
    begun = await create(bench, background=True)
    await gate.reached.wait()
    await cancel(bench.client, begun["id"])
    gate.opened.set()
    assert "I remember 2 messages" in said(await create(bench, "Two", previous_response_id=begun["id"]))


async def test_an_answer_that_is_whole_cannot_be_stopped_any_more(bench: Bench) -> None:
    begun = await create(bench, background=True)
    done = await ended(bench.client, begun["id"])
    assert await cancel(bench.client, begun["id"]) == done


async def test_only_kept_ones_can_be_cancelled(bench: Bench) -> None:
    response = await create(bench)
    reply = await bench.client.post(f"/v1/responses/{response['id']}/cancel")
    openai_error(reply, 400, "invalid_value", "response_id")
    openai_error(await bench.client.post("/v1/responses/resp_absent/cancel"), 404, "not_found", "response_id")


async def test_deleting_one_that_is_under_way_stops_it(build_bench: BuildBench) -> None:
    gate = Gate(after_chunks=1)
    bench = build_bench(FakeGenerator(gate=gate))
    begun = await create(bench, background=True)
    await gate.reached.wait()
    assert (await bench.client.delete(f"/v1/responses/{begun['id']}")).status_code == 200
    assert gate.left.is_set()
    openai_error(await bench.client.get(f"/v1/responses/{begun['id']}"), 404)
    assert await bench.router.records(PUBLIC_TENANT, "response", 10) == ()


async def test_a_resumable_one_that_nobody_comes_back_to_is_given_up(build_bench: BuildBench) -> None:
    gate = Gate(after_chunks=1)
    bench = build_bench(FakeGenerator(gate=gate), ingress={"streams": {"store": "memory", "keep_s": 0}})
    async with serving(bench.app) as address:
        async with asking(address, "/v1/responses", input="Hello", stream=True, resumable=True) as reader:
            await reader.readuntil(b'"delta":')
        await asyncio.wait_for(gate.left.wait(), 10)
    (record,) = await bench.router.records(PUBLIC_TENANT, "response", 10)
    given_up = await ended(bench.client, record.id)
    assert (given_up["status"], given_up["error"]["code"]) == ("failed", "server_error")


# ------------------------------------------------------------------------------------- replicas


async def test_any_replica_tells_and_stops(add_replica: AddReplica) -> None:
    gate = Gate(after_chunks=1)
    owner, other = add_replica(FakeGenerator(gate=gate)), add_replica()
    begun = read(await owner.client.post("/v1/responses", json={"input": "Hello", "background": True}))
    await gate.reached.wait()
    assert read(await other.client.get(f"/v1/responses/{begun['id']}")) == begun
    reading = asyncio.create_task(replay(other.client, begun["id"], 1))
    assert said(await cancel(other.client, begun["id"])) == "You"
    assert types_of(await reading)[-1] == "response.incomplete"


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_a_killed_replica_is_replaced(add_replica: AddReplica, after: int) -> None:
    gate = Gate(after_chunks=after)
    owner, other = add_replica(FakeGenerator(gate=gate)), add_replica()
    begun = read(await owner.client.post("/v1/responses", json={"input": "Hello", "background": True}))
    await gate.reached.wait()
    owner.cable.cut()
    other.services.streams.start()  # as a replica does that serves anything kept
    done = await ended(other.client, begun["id"])
    assert (done["status"], said(done)) == ("completed", ANSWER)
    events = await replay(other.client, begun["id"])
    assert (text_of(events), events[-1]["response"]) == (ANSWER, done)
    assert len(await other.services.archive.history(PUBLIC_TENANT, session_of(done))) == 2


async def test_a_reader_goes_on_at_another_replica_when_the_owner_is_killed(add_replica: AddReplica) -> None:
    gate = Gate(after_chunks=2)
    owner, other = add_replica(FakeGenerator(gate=gate)), add_replica()
    asked = {"input": "Hello", "resumable": True, "background": True}
    begun = read(await owner.client.post("/v1/responses", json=asked))
    await gate.reached.wait()
    reading = asyncio.create_task(replay(other.client, begun["id"], 4))
    owner.cable.cut()
    rest = await reading
    assert "You" + text_of(rest) == ANSWER
    assert rest[-1]["response"] == read(await other.client.get(f"/v1/responses/{begun['id']}"))


async def test_streams_of_an_empty_answer_end(build_bench: BuildBench) -> None:
    empty = Chunk("", 0, "stop", Usage(1, 0, 0, 0), Timings(0, 0, 0, 0, 0))
    bench = build_bench(ScriptedGenerator((empty,)))
    done = await ended(bench.client, (await create(bench, background=True))["id"])
    assert (done["status"], said(done)) == ("completed", "")
