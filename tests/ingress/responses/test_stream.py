"""POST /v1/responses with `stream`: which events come, in which order, and how streams end that do not end well."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from httpx_sse import EventSource
from ingress.bench import Bench, BuildBench, ScriptedGenerator, asking, serving
from ingress.openai.openai_bench import openai_error
from ingress.responses.response_bench import (
    ORDER,
    create,
    events_of,
    fetch,
    message,
    post,
    said,
    stream,
    text_of,
    types_of,
    without_repeats,
)

from deployments.errors import InvalidImage, Overloaded
from deployments.fakes import FakeGenerator, Gate
from deployments.types import Alternative, Chunk, Timings, TokenLogprob, Usage

USAGE, TIMINGS = Usage(1, 0, 0, 1), Timings(0, 0, 0, 0, 0)
KINDS = pytest.mark.parametrize("fields", [{}, {"store": False}, {"resumable": True}, {"background": True}])


@KINDS
async def test_events_come_in_their_order(bench: Bench, fields: dict[str, object]) -> None:
    events = await stream(bench, **fields)
    assert without_repeats(types_of(events)) == [*ORDER, "response.completed"]
    assert types_of(events).count("response.output_text.delta") == 3
    assert text_of(events) == 'You asked: "Hello".'


@KINDS
async def test_what_events_say_of_the_whole(bench: Bench, fields: dict[str, object]) -> None:
    events = await stream(bench, top_logprobs=1, **fields)
    by_type = {event["type"]: event for event in events}
    created, last = by_type["response.created"]["response"], events[-1]["response"]
    assert created == by_type["response.in_progress"]["response"]
    assert (created["status"], created["output"], created["usage"]) == ("in_progress", [], None)
    (item,) = last["output"]
    assert by_type["response.output_item.added"]["item"] == {**item, "status": "in_progress", "content": []}
    assert by_type["response.output_item.done"]["item"] == item
    assert by_type["response.content_part.done"]["part"] == item["content"][0]
    assert by_type["response.output_text.done"]["text"] == item["content"][0]["text"] == text_of(events)
    logprobs = [each for event in events for each in event.get("logprobs", []) if "delta" in event]
    assert logprobs == by_type["response.output_text.done"]["logprobs"] == item["content"][0]["logprobs"]
    assert len(logprobs) == 3
    assert {event["item_id"] for event in events if "item_id" in event} == {item["id"]}
    unchanged = {k for k in created if k not in ("status", "output", "usage", "completed_at")}
    assert {k: created[k] for k in unchanged} == {k: last[k] for k in unchanged}


@pytest.mark.parametrize("fields", [{}, {"resumable": True}, {"background": True}])
async def test_the_last_event_has_what_is_stored(bench: Bench, fields: dict[str, object]) -> None:
    events = await stream(bench, **fields)
    assert await fetch(bench, events[-1]["response"]["id"]) == events[-1]["response"]


@KINDS
async def test_streaming_and_not_streaming_say_the_same(bench: Bench, fields: dict[str, object]) -> None:
    whole = await create(bench, [message("What is it?")], store=False)
    assert text_of(await stream(bench, [message("What is it?")], **fields)) == said(whole)


@KINDS
async def test_an_answer_that_was_cut_off_ends_incomplete(bench: Bench, fields: dict[str, object]) -> None:
    events = await stream(bench, max_output_tokens=2, **fields)
    assert without_repeats(types_of(events)) == [*ORDER, "response.incomplete"]
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-2]["item"]["status"] == "incomplete"


@KINDS
async def test_an_empty_answer_has_an_item_without_deltas(build_bench: BuildBench, fields: dict[str, object]) -> None:
    bench = build_bench(ScriptedGenerator((Chunk("", 0, "stop", USAGE, TIMINGS),)))
    assert types_of(await stream(bench, **fields)) == [
        *(kind for kind in ORDER if kind != "response.output_text.delta"),
        "response.completed",
    ]


async def test_log_probabilities_of_a_token_without_text(build_bench: BuildBench) -> None:
    token = TokenLogprob(Alternative(1, "\ufffd", -1.0))
    chunks = (Chunk("", 1, logprobs=(token,)), Chunk("é", 1, "stop", USAGE, TIMINGS, logprobs=(token,)))
    events = await stream(build_bench(ScriptedGenerator(chunks)), include=["message.output_text.logprobs"])
    assert [event["delta"] for event in events if "delta" in event] == ["", "é"]
    assert len(events[-1]["response"]["output"][0]["content"][0]["logprobs"]) == 2


async def test_text_with_every_kind_of_line_end_stays_one_event(build_bench: BuildBench) -> None:
    text = "a\r\nb\rc\n\nd\u2028e\u0085f\x0b"
    bench = build_bench(ScriptedGenerator((Chunk(text, 1, "stop", USAGE, TIMINGS),)))
    assert text_of(await stream(bench)) == text


# ------------------------------------------------------------------------------------- what goes wrong


async def test_what_fails_before_the_first_word_has_a_status(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=Overloaded("full", retry_after_s=3)))
    for fields in ({}, {"store": False}):
        reply = await post(bench, stream=True, **fields)
        openai_error(reply, 503, "overloaded")
        assert reply.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("fields", "after"),
    [
        ({}, 2),
        ({"store": False}, 2),
        *(({kind: True}, after) for kind in ("resumable", "background") for after in (0, 2)),
    ],
)
async def test_what_fails_later_is_told_by_the_last_events(
    build_bench: BuildBench, fields: dict[str, object], after: int
) -> None:
    failure = InvalidImage("the picture is no picture", "image")
    bench = build_bench(FakeGenerator(failure=failure, fail_after_chunks=after))
    events = await stream(bench, **fields)
    assert types_of(events[-2:]) == ["error", "response.failed"]
    assert types_of(events).count("response.output_text.delta") == after
    error, response = events[-2], events[-1]["response"]
    assert error["error"] == {
        "type": "invalid_request_error",
        "code": "invalid_image",
        "message": "the picture is no picture",
        "param": "input",
    }
    assert {name: error[name] for name in ("code", "message", "param")}.items() <= error["error"].items()
    assert response["error"] == {
        "code": "invalid_image",
        "message": "the picture is no picture",
        "param": "input",
    }
    assert (response["status"], response["output"], response["usage"]) == ("failed", [], None)


@KINDS
async def test_bugs_are_told_without_their_details(build_bench: BuildBench, fields: dict[str, object]) -> None:
    bench = build_bench(FakeGenerator(failure=RuntimeError("secret"), fail_after_chunks=1))
    reply = await post(bench, stream=True, **fields)
    assert events_of(reply)[-1]["response"]["error"]["code"] == "server_error"
    assert "secret" not in reply.text


@pytest.mark.parametrize("fields", [{}, {"store": False}])
async def test_a_failed_turn_leaves_nothing(build_bench: BuildBench, fields: dict[str, object]) -> None:
    bench = build_bench(FakeGenerator(failure=Overloaded("full"), fail_after_chunks=1))
    response = (await stream(bench, **fields))[-1]["response"]
    openai_error(await bench.client.get(f"/v1/responses/{response['id']}"), 404, "not_found", "response_id")
    assert (await bench.client.get("/chat/sessions")).json()["count"] == 0


@pytest.mark.parametrize("fields", [{}, {"store": False}])
@pytest.mark.parametrize("after", [0, 1])
async def test_a_client_that_leaves_cancels_its_response(
    build_bench: BuildBench, fields: dict[str, object], after: int
) -> None:
    gate = Gate(after_chunks=after)
    bench = build_bench(FakeGenerator(gate=gate))
    async with serving(bench.app) as address:
        async with asking(address, "/v1/responses", input="Hello", stream=True, **fields):
            await gate.reached.wait()
        await asyncio.wait_for(gate.left.wait(), 10)
    assert (await bench.client.get("/chat/sessions")).json()["count"] == 0


async def test_pieces_arrive_as_they_are_said(build_bench: BuildBench) -> None:
    gate = Gate(after_chunks=2)
    bench = build_bench(FakeGenerator(gate=gate))
    async with (
        serving(bench.app) as address,
        httpx.AsyncClient(base_url=address) as client,
        client.stream("POST", "/v1/responses", json={"input": "Hello", "stream": True}) as reply,
    ):
        events = EventSource(reply).aiter_sse()
        seen = [json.loads((await anext(events)).data) for _ in range(6)]
        assert text_of(seen) == "You asked:"
        gate.opened.set()
        assert [event.event async for event in events][-2:] == ["response.completed", "message"]
