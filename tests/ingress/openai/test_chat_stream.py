"""Streams of POST /v1/chat/completions: the chunks' shape, when they come, failures, and clients that leave."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from ingress.bench import Bench, BuildBench, ScriptedGenerator, asking, serving
from ingress.openai.openai_bench import PATIENCE_S, chunks_of, complete, openai_error, text_of

from deployments.errors import ImageNotFound, Overloaded
from deployments.fakes import FakeGenerator, Gate
from deployments.types import Chunk, Timings, Usage

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]
COMMON = {"id", "object", "created", "model", "system_fingerprint", "service_tier", "choices"}


async def test_the_shape_of_chunks(bench: Bench) -> None:
    reply = await complete(bench, stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    chunks = chunks_of(reply.text)
    assert all(set(chunk) == COMMON and chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    choices = [chunk["choices"] for chunk in chunks]
    whole = {"index": 0, "logprobs": None, "finish_reason": None}
    assert choices == [
        [{**whole, "delta": {"role": "assistant", "content": "", "refusal": None}}],
        [{**whole, "delta": {"content": "You"}}],
        [{**whole, "delta": {"content": " asked:"}}],
        [{**whole, "delta": {"content": ' "Hello".'}}],
        [{**whole, "delta": {}, "finish_reason": "stop"}],
    ]


async def test_usage_comes_once_without_choices_before_the_end(bench: Bench) -> None:
    *chunks, last = chunks_of((await complete(bench, stream=True, stream_options={"include_usage": True})).text)
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == (await complete(bench)).json()["usage"]


@pytest.mark.parametrize("options", [{"include_usage": False}, {"include_usage": None}, {}, None])
async def test_usage_is_left_out(bench: Bench, options: object) -> None:
    chunks = chunks_of((await complete(bench, stream=True, stream_options=options)).text)
    assert all("usage" not in chunk for chunk in chunks)


async def test_several_choices_each_begin_and_end(bench: Bench) -> None:
    asked = {"n": 3, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = chunks_of((await complete(bench, **asked)).text)
    assert last["usage"]["completion_tokens"] == 9  # type: ignore[index]
    for index in range(3):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]  # type: ignore[attr-defined]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content") or "" for choice in own) == 'You asked: "Hello".'
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]


async def test_an_answer_without_words(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((Chunk("", 0, "stop", Usage(1, 0, 0, 0), Timings(0, 0, 0, 0, 0)),))
    bench = build_bench(generator)
    first, last = chunks_of((await complete(bench, stream=True)).text)
    assert first["choices"][0]["delta"]["role"] == "assistant"  # type: ignore[index]
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}  # type: ignore[index]
    assert text_of(await complete(bench)) == ""


async def test_text_that_json_must_escape(bench: Bench) -> None:
    question = 'a"b\\c\nd\r\u2028 é 🦊\x00'
    chunks = chunks_of((await complete(bench, question, stream=True)).text)
    joined = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])  # type: ignore[attr-defined]
    assert joined == text_of(await complete(bench, question))
    assert question in joined


# ------------------------------------------------------------------------------------- failures


async def test_before_the_first_token_a_failure_has_a_status(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=Overloaded("full", None, 2.5)))
    reply = await complete(bench, stream=True)
    assert openai_error(reply, 503)["code"] == "overloaded"
    assert reply.headers["retry-after"] == "3"


@pytest.mark.parametrize("num_choices", [1, 2])
async def test_in_mid_stream_it_is_the_last_event(build_bench: BuildBench, num_choices: int) -> None:
    bench = build_bench(FakeGenerator(failure=ImageNotFound("gone", "image"), fail_after_chunks=2))
    events = (await complete(bench, stream=True, n=num_choices)).text.removesuffix("\n\n").split("\n\n")
    assert json.loads(events[-1].removeprefix("data: ")) == {
        "error": {"message": "gone", "type": "invalid_request_error", "param": "messages", "code": "image_not_found"}
    }
    assert "[DONE]" not in str(events)


async def test_what_nobody_foresaw_in_mid_stream_keeps_its_details(
    build_bench: BuildBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = build_bench(FakeGenerator(failure=ZeroDivisionError("secret"), fail_after_chunks=2))
    body = (await complete(bench, stream=True)).text
    error = json.loads(body.removesuffix("\n\n").split("\n\n")[-1].removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in body
    assert "secret" in caplog.text


async def test_the_deadline_is_not_tried_again(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(gate=Gate()), ingress={"turn_timeout_s": 0.05})
    reply = await complete(bench)
    assert openai_error(reply, 504)["code"] == "deadline_exceeded"
    assert reply.headers["x-should-retry"] == "false"


# ------------------------------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("num_choices", [1, 3])
@pytest.mark.parametrize(("after_chunks", "stage"), [(0, "first_token"), (2, "stream")])
@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_frees_the_slots(
    build_bench: BuildBench, num_choices: int, after_chunks: int, stage: str, stream: bool
) -> None:
    gate = Gate(after_chunks)
    generator = FakeGenerator(gate=gate)
    bench = build_bench(generator)
    asked = {"messages": MESSAGES, "stream": stream, "n": num_choices}
    async with asyncio.timeout(PATIENCE_S), serving(bench.app) as address:
        async with asking(address, PATH, **asked) as reader:
            await gate.reached.wait()
            if stream and after_chunks:
                await reader.readuntil(b'"content":"You"')
        await gate.left.wait()
    assert await generator.statistics() == {"running": 0, "stop": 0, "length": 0, "cancelled": num_choices, "failed": 0}
    statistics = bench.services.completions.statistics()
    assert statistics["open_completions"] == 0
    assert statistics[f"ingress_completions_cancelled.{stage}"] == 1
    assert statistics["ingress_requests.cancelled"] == 1


async def test_chunks_arrive_while_the_answer_is_made(build_bench: BuildBench) -> None:
    gate = Gate(after_chunks=2)
    bench = build_bench(FakeGenerator(gate=gate))
    asked = {"messages": MESSAGES, "stream": True}
    async with asyncio.timeout(PATIENCE_S), serving(bench.app) as address, asking(address, PATH, **asked) as reader:
        await reader.readuntil(b'"delta":{"content":" asked:"}')
        gate.opened.set()
        await reader.readuntil(b"data: [DONE]\n\n")


async def test_many_at_once_get_their_own_answers(bench: Bench) -> None:
    async def ask(client: httpx.AsyncClient, number: int) -> None:
        asked = {"messages": [{"role": "user", "content": f"number {number}"}], "stream": number % 2 == 0, "n": 2}
        reply = await client.post(PATH, json=asked)
        assert reply.status_code == 200, reply.text
        if number % 2:
            texts = {choice["message"]["content"] for choice in reply.json()["choices"]}
        else:
            chunks = chunks_of(reply.text)
            texts = {
                "".join(c["delta"].get("content") or "" for d in chunks for c in d["choices"] if c["index"] == index)  # type: ignore[attr-defined]
                for index in range(2)
            }
        assert texts == {f'You asked: "number {number}".'}

    async with asyncio.timeout(60), serving(bench.app) as address, httpx.AsyncClient(base_url=address) as client:
        await asyncio.gather(*(ask(client, number) for number in range(24)))
    assert bench.services.completions.statistics()["open_completions"] == 0
