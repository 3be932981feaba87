"""The official SDK, asynchronous, over a real server: answers, streams, files, structured output, errors, retries."""

from __future__ import annotations

import asyncio

import openai
import pytest
from ingress.bench import Bench, BuildBench, picture, serving
from ingress.openai.openai_bench import PATIENCE_S, RED, image, sdk, sdk_at, user
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from deployments.errors import Overloaded, PartUnavailable
from deployments.fakes import FakeGenerator, Gate

pytestmark = pytest.mark.slow

HELLO: list = [user("Hello", RED)]
ANSWER = 'You asked: "Hello". The picture has 40 x 30 pixels.'


class Colours(BaseModel):
    main: str
    others: list[str]


async def test_an_answer_with_all_its_fields(bench: Bench) -> None:
    async with sdk(bench) as client:
        done = await client.chat.completions.create(model="fake", messages=HELLO)
        ChatCompletion.model_validate(done.model_dump(), strict=True)
        assert done.choices[0].message.content == ANSWER
        assert done.usage is not None
        assert done.usage.prompt_tokens_details is not None
        assert done.usage.prompt_tokens_details.image_tokens == 16
        assert done._request_id  # the SDK's own name for the header x-request-id


async def test_an_answer_goes_back_as_it_came(bench: Bench) -> None:
    async with sdk(bench) as client:
        first = await client.chat.completions.create(model="fake", messages=HELLO)
        talk = [*HELLO, first.choices[0].message, user("And now?")]
        for message in (first.choices[0].message, first.choices[0].message.model_dump()):
            talk[1] = message
            second = await client.chat.completions.create(model="fake", messages=talk)
            assert "I remember 2 messages" in str(second.choices[0].message.content)


async def test_a_stream(bench: Bench) -> None:
    async with sdk(bench) as client:
        stream = await client.chat.completions.create(
            model="fake", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER
        whole = await client.chat.completions.create(model="fake", messages=HELLO)
        assert chunks[-1].usage == whole.usage


async def test_the_sdks_own_accumulation_of_streams(bench: Bench) -> None:
    async with sdk(bench) as client:
        asked = client.chat.completions.stream(model="fake", messages=HELLO, logprobs=True, top_logprobs=2, n=2)
        async with asked as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()
        assert {"chunk", "content.delta", "content.done", "logprobs.content.done"} <= set(kinds)
        whole = await client.chat.completions.create(model="fake", messages=HELLO, logprobs=True, top_logprobs=2, n=2)
        assert [choice.message.content for choice in final.choices] == [ANSWER, ANSWER]
        for one, other in zip(final.choices, whole.choices, strict=True):
            assert one.logprobs is not None
            assert other.logprobs is not None
            assert one.logprobs.content == other.logprobs.content


async def test_structured_output(bench: Bench) -> None:
    async with sdk(bench) as client:
        parsed = await client.chat.completions.parse(model="fake", messages=HELLO, response_format=Colours)
        assert isinstance(parsed.choices[0].message.parsed, Colours)
        async with client.chat.completions.stream(model="fake", messages=HELLO, response_format=Colours) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.parsed == parsed.choices[0].message.parsed
        with pytest.raises(openai.LengthFinishReasonError):
            await client.chat.completions.parse(
                model="fake", messages=HELLO, response_format=Colours, max_completion_tokens=1
            )


async def test_structured_output_with_tools_is_refused(bench: Bench) -> None:
    tool = openai.pydantic_function_tool(Colours)
    async with sdk(bench) as client:
        with pytest.raises(openai.BadRequestError, match="function tools are not supported") as refused:
            await client.chat.completions.parse(model="fake", messages=HELLO, tools=[tool])
    assert (refused.value.param, refused.value.code) == ("tools", "unsupported_parameter")


async def test_files(bench: Bench) -> None:
    async with sdk(bench) as client:
        file = await client.files.create(
            file=("a.png", picture()), purpose="vision", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert (file.filename, file.purpose, file.status) == ("a.png", "vision", "processed")
        others = [await client.files.create(file=picture(size=(n, 5)), purpose="user_data") for n in range(1, 4)]
        assert [each.id async for each in client.files.list(limit=2)] == [each.id for each in [*others[::-1], file]]
        assert await client.files.retrieve(file.id) == file
        assert (await client.files.content(file.id)).content == picture()
        by_file: list = [user("Hello", {"type": "file", "file": {"file_id": file.id}}), user("Hello", image(file.id))]
        for message in by_file:
            done = await client.chat.completions.create(model="fake", messages=[message])
            assert done.choices[0].message.content == ANSWER
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)


async def test_models(bench: Bench) -> None:
    async with sdk(bench) as client:
        assert [model.id async for model in client.models.list()] == ["fake", "other"]
        assert (await client.models.retrieve("other")).owned_by == "retina"
        with pytest.raises(openai.NotFoundError) as error:
            await client.models.retrieve("gpt-4o")
    assert error.value.code == "model_not_found"


# ------------------------------------------------------------------------------------- errors


async def test_errors_have_their_classes_and_are_not_tried_again(bench: Bench) -> None:
    async with serving(bench.app) as address, sdk_at(address, max_retries=3) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        assert unknown.value.type == "invalid_request_error"
        with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
            await client.chat.completions.create(model="fake", messages=HELLO, temperature=3)
        assert (wrong.value.code, wrong.value.param) == ("invalid_value", "temperature")
        with pytest.raises(openai.BadRequestError, match="unknown"):
            await client.chat.completions.create(model="fake", messages=HELLO, extra_body={"unknown": 1})
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="fake", input="x")
        counts = await client.get("/../-/ingress", cast_to=dict[str, float])  # type: ignore[type-var]
    assert counts["ingress_requests.400"] == 2
    assert counts["ingress_requests.404"] == 2


async def test_an_overload_is_tried_again(build_bench: BuildBench) -> None:
    generator = FakeGenerator(failure=Overloaded("full", None, 0.01), max_failures=2)
    bench = build_bench(generator)
    async with serving(bench.app) as address, sdk_at(address, max_retries=2, timeout=PATIENCE_S) as client:
        raw = await client.chat.completions.with_raw_response.create(model="fake", messages=HELLO)
    assert raw.retries_taken == 2
    assert raw.headers["x-request-id"]
    assert raw.parse().choices[0].message.content == ANSWER
    assert (await generator.statistics())["failed"] == 2


async def test_an_overload_that_stays(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=Overloaded("full", None, 7.0)))
    async with sdk(bench) as client:
        with pytest.raises(openai.InternalServerError, match="full") as error:
            await client.chat.completions.create(model="fake", messages=HELLO)
    assert (error.value.status_code, error.value.code) == (503, "overloaded")
    assert error.value.response.headers["retry-after"] == "7"


async def test_our_deadline_is_not_tried_again(build_bench: BuildBench) -> None:
    generator = FakeGenerator(gate=Gate())
    bench = build_bench(generator, ingress={"turn_timeout_s": 0.05})
    async with serving(bench.app) as address, sdk_at(address, max_retries=3) as client:
        with pytest.raises(openai.InternalServerError) as error:
            await client.chat.completions.create(model="fake", messages=HELLO)
    assert error.value.status_code == 504
    assert sum((await generator.statistics()).values()) == 1  # type: ignore[arg-type]


async def test_a_failure_in_mid_stream(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=PartUnavailable("a replica died"), fail_after_chunks=2))
    async with sdk(bench) as client:
        stream = await client.chat.completions.create(model="fake", messages=HELLO, stream=True)
        chunks = [await anext(stream) for _ in range(3)]
        with pytest.raises(openai.APIError, match="a replica died") as error:
            await anext(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You asked:"
    assert (error.value.type, error.value.code) == ("server_error", "part_unavailable")


async def test_the_clients_timeout_cancels_the_answer(build_bench: BuildBench) -> None:
    gate = Gate()
    generator = FakeGenerator(gate=gate)
    bench = build_bench(generator)
    async with asyncio.timeout(PATIENCE_S), serving(bench.app) as address, sdk_at(address) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.3).chat.completions.create(model="fake", messages=HELLO)
        await gate.left.wait()
    assert (await generator.statistics())["cancelled"] == 1


@pytest.mark.parametrize("num_choices", [1, 2])
async def test_a_stream_closed_early_cancels_the_answer(build_bench: BuildBench, num_choices: int) -> None:
    gate = Gate(after_chunks=3)
    generator = FakeGenerator(gate=gate)
    bench = build_bench(generator)
    async with asyncio.timeout(PATIENCE_S), serving(bench.app) as address, sdk_at(address) as client:
        stream = await client.chat.completions.create(model="fake", messages=HELLO, stream=True, n=num_choices)
        async for chunk in stream:
            if chunk.choices[0].delta.content == "You":
                break
        await stream.close()
        await gate.left.wait()
    assert await generator.statistics() == {"running": 0, "stop": 0, "length": 0, "cancelled": num_choices, "failed": 0}
