"""OpenAI's own SDK, with and without asyncio, over a real server: all it has for responses that there is here."""

from __future__ import annotations

import asyncio

import openai
import pytest
from ingress.bench import Bench, BuildBench, picture, serving
from ingress.openai.openai_bench import sdk, sdk_at
from ingress.responses.response_bench import RED, message
from openai.types.responses import Response, ResponseTextDeltaEvent
from pydantic import BaseModel

from deployments.errors import InvalidImage, Overloaded
from deployments.fakes import FakeGenerator, Gate

pytestmark = pytest.mark.slow

ANSWER = 'You asked: "Hello".'


class Shape(BaseModel):
    name: str
    sides: int
    tags: list[str]


async def test_create_and_go_on(bench: Bench) -> None:
    async with sdk(bench) as client:
        first = await client.responses.create(model="fake", input="Hello", instructions="Be brief.")
        assert (first.output_text, first.status, first.error) == (
            ANSWER + " I remember 1 messages before this one.",
            "completed",
            None,
        )
        second = await client.responses.create(model="fake", input="Two", previous_response_id=first.id)
        assert "I remember 2 messages" in second.output_text
        assert first.conversation is not None
        third = await client.responses.create(model="fake", input="Three", conversation=first.conversation.id)
        assert "I remember 4 messages" in third.output_text
        assert await client.responses.retrieve(third.id) == third
        assert first.usage is not None
        assert first.usage.total_tokens == first.usage.input_tokens + first.usage.output_tokens


async def test_the_whole_conversation_sent_each_time(bench: Bench) -> None:
    async with sdk(bench) as client:
        items: list[object] = [{"role": "user", "content": "Hello"}]
        first = await client.responses.create(model="fake", input=items, store=False)  # type: ignore[arg-type]
        items += [item.model_dump() for item in first.output]
        items += [{"role": "user", "content": "Two"}]
        second = await client.responses.create(model="fake", input=items, store=False)  # type: ignore[arg-type]
        assert second.output_text == 'You asked: "Two". I remember 2 messages before this one.'


async def test_stream(bench: Bench) -> None:
    async with sdk(bench) as client:
        text, last = "", None
        async for event in await client.responses.create(model="fake", input="Hello", stream=True):
            if isinstance(event, ResponseTextDeltaEvent):
                text += event.delta
            last = event
        assert text == ANSWER
        assert last is not None
        assert last.type == "response.completed"
        assert last.response.output_text == ANSWER


async def test_stream_with_the_context_manager(bench: Bench) -> None:
    async with sdk(bench) as client, client.responses.stream(model="fake", input="Hello") as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        assert "".join(deltas) == ANSWER
        assert (await stream.get_final_response()).output_text == ANSWER


async def test_pictures(bench: Bench) -> None:
    async with sdk(bench) as client:
        seen = await client.responses.create(model="fake", input=[message("Look", RED)])  # type: ignore[list-item]
        assert "40 x 30" in seen.output_text
        file = await client.files.create(file=("wide.png", picture(size=(80, 20))), purpose="vision")
        by_id = [message("Look", {"type": "input_image", "file_id": file.id, "detail": "auto"})]
        assert "80 x 20" in (await client.responses.create(model="fake", input=by_id)).output_text  # type: ignore[arg-type]


async def test_answers_that_fit_a_model_of_pydantic(bench: Bench) -> None:
    async with sdk(bench) as client:
        parsed = await client.responses.parse(model="fake", input="Hello", text_format=Shape)
        assert isinstance(parsed.output_parsed, Shape)
        async with client.responses.stream(model="fake", input="Hello", text_format=Shape) as stream:
            final = await stream.get_final_response()
        assert final.output_parsed == parsed.output_parsed


async def test_background_polled_and_read_again(build_bench: BuildBench) -> None:
    gate = Gate(after_chunks=1)
    bench = build_bench(FakeGenerator(gate=gate))
    async with sdk(bench) as client:
        begun = await client.responses.create(model="fake", input="Hello", background=True)
        assert begun.status == "in_progress"
        await gate.reached.wait()
        assert (await client.responses.retrieve(begun.id)).status == "in_progress"
        gate.opened.set()
        events = [event async for event in await client.responses.retrieve(begun.id, stream=True)]
        assert events[-1].type == "response.completed"
        rest = [event async for event in await client.responses.retrieve(begun.id, stream=True, starting_after=4)]
        assert rest == events[5:]
        done = await client.responses.retrieve(begun.id)
        assert (done.status, done.output_text) == ("completed", ANSWER)


async def test_background_cancelled(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate))
    async with sdk(bench) as client:
        begun = await client.responses.create(model="fake", input="Hello", background=True)
        await gate.reached.wait()
        assert (await client.responses.cancel(begun.id)).status == "cancelled"
        assert (await client.responses.retrieve(begun.id)).status == "cancelled"


async def test_items_and_deletion(bench: Bench) -> None:
    async with sdk(bench) as client:
        asked = [message(str(number)) for number in range(5)]
        response = await client.responses.create(model="fake", input=asked)  # type: ignore[arg-type]
        pages = client.responses.input_items.list(response.id, limit=2, order="asc")
        texts = [item.content[0].text async for item in pages]  # type: ignore[union-attr,index]
        assert texts == ["0", "1", "2", "3", "4"]
        await client.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError) as caught:
            await client.responses.retrieve(response.id)
        assert caught.value.code == "not_found"


async def test_errors_are_the_sdks_own(build_bench: BuildBench) -> None:
    failing = FakeGenerator(failure=Overloaded("full"), fail_after_chunks=1)
    bench = build_bench(failing)
    async with sdk(bench) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            await client.responses.create(model="fake", input="Hello", temperature=3)
        assert (bad.value.param, bad.value.code) == ("temperature", "invalid_value")
        with pytest.raises(openai.NotFoundError) as absent:
            await client.responses.create(model="absent", input="Hello")
        assert absent.value.code == "model_not_found"
        with pytest.raises(openai.InternalServerError) as full:
            await client.responses.create(model="fake", input="Hello")
        assert full.value.status_code == 503
        with pytest.raises(openai.APIError, match="full"):
            async for _ in await client.responses.create(model="fake", input="Hello", stream=True):
                pass


async def test_a_failed_background_response_has_the_sdks_code(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=InvalidImage("no picture", "image")))
    async with sdk(bench) as client:
        begun = await client.responses.create(model="fake", input="Hello", background=True)
        with pytest.raises(openai.APIError, match="no picture"):
            async for _ in await client.responses.retrieve(begun.id, stream=True):
                pass
        failed = await client.responses.retrieve(begun.id)
        assert failed.error is not None
        assert (failed.status, failed.error.code) == ("failed", "invalid_image")


async def test_overload_is_tried_again_by_the_sdk(build_bench: BuildBench) -> None:
    failing = FakeGenerator(failure=Overloaded("full", retry_after_s=0), max_failures=1)
    bench = build_bench(failing)
    async with sdk(bench, max_retries=1) as client:
        assert (await client.responses.create(model="fake", input="Hello")).output_text == ANSWER


async def test_a_timeout_of_the_client_ends_the_response(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate))
    async with sdk(bench, timeout=0.2) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.responses.create(model="fake", input="Hello")
        await asyncio.wait_for(gate.left.wait(), 10)


async def test_without_asyncio(bench: Bench) -> None:
    def use(address: str) -> tuple[Response, str, str, Shape | None]:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            first = client.responses.create(model="fake", input=[message("Hello", RED)])  # type: ignore[list-item]
            with client.responses.create(
                model="fake", input="Two", stream=True, previous_response_id=first.id
            ) as stream:
                text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            with client.responses.stream(model="fake", input="Hello") as helped:
                helped.until_done()
                final = helped.get_final_response().output_text
            parsed = client.responses.parse(model="fake", input="Hello", text_format=Shape).output_parsed
            return first, text, final, parsed

    async with serving(bench.app) as address:
        first, text, final, parsed = await asyncio.to_thread(use, address)
    assert "40 x 30" in first.output_text
    assert "I remember 2 messages" in text
    assert final == ANSWER
    assert isinstance(parsed, Shape)


async def test_many_at_once(bench: Bench) -> None:
    async with serving(bench.app) as address:
        client = sdk_at(address)
        replies = await asyncio.gather(
            *(client.responses.create(model="fake", input=f"q{number}") for number in range(20))
        )
        assert [reply.output_text for reply in replies] == [f'You asked: "q{number}".' for number in range(20)]
        await client.close()
