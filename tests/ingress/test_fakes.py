"""The fakes keep the promises of the Protocols that they stand in for."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from deployments.errors import DeadlineExceeded
from deployments.fakes import FEATURE_WIDTH, IMAGE_TOKENS, FakeGenerator, FakeVisionEncoder, Gate
from deployments.types import (
    Chunk,
    EncodeRequest,
    GenerateRequest,
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
    assert all((c.finish_reason, c.usage, c.timings) == (None, None, None) for c in chunks[:-1])
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == sum(chunk.num_tokens for chunk in chunks)
    assert chunks[-1].usage.image_tokens == IMAGE_TOKENS
    assert chunks[-1].timings is not None
    assert chunks[-1].timings.encode_source == "tower"


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
