"""The fakes keep the promises of the Protocols that they stand in for."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deployments.errors import DeadlineExceeded, InvalidRequest, PartUnavailable
from deployments.fakes import FEATURE_WIDTH, IMAGE_TOKENS, FakeGenerator, FakeVisionEncoder, Gate
from deployments.types import (
    Chunk,
    EncodeRequest,
    GenerateRequest,
    Grammar,
    ImagePart,
    ImageRef,
    Message,
    Part,
    SamplingParams,
    TextPart,
)

IMAGE = ImageRef("a" * 64, 64, 48, 1000, "image/png")


def request(text: str = "one two", image: ImageRef | None = None, **sampling: object) -> GenerateRequest:
    parts: tuple[Part, ...] = (TextPart(text),) if image is None else (ImagePart(image), TextPart(text))
    return GenerateRequest("r", "public", (Message("user", parts),), SamplingParams(**sampling), 10.0)  # type: ignore[arg-type]


async def collect(generator: FakeGenerator, asked: GenerateRequest) -> list[Chunk]:
    return [chunk async for chunk in generator.stream(asked)]


async def test_only_the_last_chunk_has_the_end_of_the_answer() -> None:
    chunks = await collect(FakeGenerator(vision_encoder=FakeVisionEncoder()), request(image=IMAGE))
    assert "".join(chunk.text for chunk in chunks) == 'You asked: "one two". The picture has 64 x 48 pixels.'
    assert all(c.finish_reason is None for c in chunks[:-1])
    assert all((c.usage, c.timings) == (None, None) for c in chunks[1:-1])
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == sum(chunk.num_tokens for chunk in chunks)
    assert chunks[-1].usage.image_tokens == IMAGE_TOKENS
    assert chunks[-1].timings is not None
    assert chunks[-1].timings.encode_source == "tower"


async def test_the_first_chunk_says_what_was_used_up_to_there() -> None:
    first, *_, last = await collect(FakeGenerator(vision_encoder=FakeVisionEncoder()), request(image=IMAGE))
    assert first.usage is not None
    assert last.usage is not None
    assert first.usage == replace(last.usage, completion_tokens=1)
    assert first.timings is not None
    assert last.timings is not None
    assert first.timings.first_token_ms == last.timings.first_token_ms
    assert first.timings.decode_ms < last.timings.decode_ms


@pytest.mark.parametrize(("limit", "reason"), [(1, "length"), (3, "length"), (4, "stop"), (5, "stop")])
async def test_max_new_tokens(limit: int, reason: str) -> None:
    chunks = await collect(FakeGenerator(), request(max_new_tokens=limit))
    assert len(chunks) == min(limit, 4)
    assert chunks[-1].finish_reason == reason


async def test_stop_ends_before_the_first() -> None:
    chunks = await collect(FakeGenerator(), request(stop=("two", "one")))
    assert "".join(chunk.text for chunk in chunks) == 'You asked: "'


async def test_log_probabilities_of_each_word_if_asked() -> None:
    """Of the word itself and of as many doubts as were asked for, none more probable than those before it."""
    plain = await collect(FakeGenerator(), request())
    assert all(chunk.logprobs == () for chunk in plain)
    for number in (0, 1, 20):
        chunks = await collect(FakeGenerator(), request(num_logprobs=number))
        assert [chunk.text for chunk in chunks] == [chunk.text for chunk in plain]
        for chunk in chunks:
            [token] = chunk.logprobs
            assert token.chosen.text == chunk.text
            assert len(token.top) == number
            assert token.top[:1] == (token.chosen,)[:number]
            assert [each.logprob for each in token.top] == sorted((each.logprob for each in token.top), reverse=True)
            assert len({each.token_id for each in token.top}) == number
            assert sum(math.exp(each.logprob) for each in token.top) < 1


async def test_tokens_are_named_by_their_place() -> None:
    chunks = await collect(FakeGenerator(), request(num_logprobs=2))
    assert [chunk.token_ids for chunk in chunks] == [(place,) for place in range(4)]
    assert [chunk.logprobs[0].chosen.token_id for chunk in chunks] == [0, 1, 2, 3]


@pytest.mark.parametrize("sampling", [{}, {"max_new_tokens": 7}, {"stop": ("64",)}, {"stop": ("You",)}])
async def test_an_answer_goes_on_after_what_was_answered(sampling: dict[str, Any]) -> None:
    asked = request(image=IMAGE, num_logprobs=1, **sampling)
    whole = await collect(FakeGenerator(), asked)
    ids = [token_id for chunk in whole for token_id in chunk.token_ids]
    for count in range(len(ids) + 1):
        others = await collect(FakeGenerator(), replace(asked, answered=tuple(ids[:count])))
        assert "".join(chunk.text for chunk in others) == "".join(chunk.text for chunk in whole[count:])
        assert [token_id for chunk in others for token_id in chunk.token_ids] == ids[count:]
        assert [item for chunk in others for item in chunk.logprobs] == [c.logprobs[0] for c in whole[count:]]
        assert sum(chunk.num_tokens for chunk in others) == len(ids) - count
        assert (others[-1].finish_reason, others[-1].usage) == (whole[-1].finish_reason, whole[-1].usage)
        assert others[0].usage is not None
        assert others[0].usage.completion_tokens == min(count + 1, len(ids))


@pytest.mark.parametrize("answered", [(1,), (0, 2), (0, 1, 2, 3, 4), tuple(range(1, 100))])
async def test_what_is_not_its_answer_is_refused(answered: tuple[int, ...]) -> None:
    generator = FakeGenerator()
    with pytest.raises(InvalidRequest, match="token ids 0 to 3") as raised:
        await collect(generator, replace(request(), answered=answered))
    assert raised.value.param == "answered"
    assert len(str(raised.value)) < 150
    assert (await generator.statistics())["failed"] == 1


async def test_a_failure_that_passes() -> None:
    generator = FakeGenerator(failure=PartUnavailable("gone"), fail_after_chunks=2, max_failures=1)
    failing = generator.stream(request())
    chunks = [await anext(failing), await anext(failing)]
    with pytest.raises(PartUnavailable):
        await anext(failing)
    chunks += await collect(generator, replace(request(), answered=(0, 1)))
    assert "".join(chunk.text for chunk in chunks) == 'You asked: "one two".'
    assert await generator.statistics() == {"running": 0, "stop": 1, "length": 0, "cancelled": 0, "failed": 1}


async def test_grammars_make_documents() -> None:
    chunks = await collect(FakeGenerator(), request(grammar=Grammar("json_object")))
    assert json.loads("".join(chunk.text for chunk in chunks)) == {"answer": 'You asked: "one two".'}
    with pytest.raises(InvalidRequest, match="'pattern'"):
        await collect(FakeGenerator(), request(grammar=Grammar("json_schema", '{"pattern": "a+"}')))


async def test_the_deadline() -> None:
    gate = Gate()
    generator = FakeGenerator(gate=gate)
    asked = GenerateRequest("r", "public", request().messages, SamplingParams(), timeout_s=0.01)
    with pytest.raises(DeadlineExceeded):
        await collect(generator, asked)
    assert gate.left.is_set()
    assert (await generator.statistics())["failed"] == 1


async def test_closing_counts_as_cancelled() -> None:
    generator = FakeGenerator()
    chunks = generator.stream(request())
    await anext(chunks)
    assert (await generator.statistics())["running"] == 1
    await chunks.aclose()
    assert await generator.statistics() == {"running": 0, "stop": 0, "length": 0, "cancelled": 1, "failed": 0}


async def test_a_gate_holds_where_it_says() -> None:
    gate = Gate(after_chunks=2)
    chunks = FakeGenerator(gate=gate).stream(request())
    assert [(await anext(chunks)).text for _ in range(2)] == ["You", " asked:"]
    third = asyncio.ensure_future(anext(chunks))
    await gate.reached.wait()
    assert not third.done()
    gate.opened.set()
    assert (await third).text == ' "one'
    await chunks.aclose()


async def test_features_follow_from_the_picture_alone() -> None:
    asked = EncodeRequest("public", "fake", IMAGE, 1.0)
    encoder = FakeVisionEncoder()
    first, again = await encoder.encode(asked), await encoder.encode(asked)
    elsewhere = await FakeVisionEncoder().encode(asked)
    assert first.array.shape == (IMAGE_TOKENS, FEATURE_WIDTH)
    assert first.array.dtype == np.float32
    assert np.array_equal(first.array, again.array)
    assert np.array_equal(first.array, elsewhere.array)
    assert (first.source, again.source) == ("tower", "memory")
    assert await encoder.statistics() == {"images": 1, "tower": 1, "memory": 1}
