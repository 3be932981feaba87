"""Answers that are cut anywhere and gone on with: what must come after the cut is what came there at first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deployments.generator.answer_text import AnswerText
from deployments.types import Chunk, FinishReason, GenerateRequest, TokenLogprob, Usage

LOGPROB_TOLERANCE = 1e-3  # prompts and single tokens take different ways through float32


@dataclass(frozen=True)
class Heard:
    """An answer, or what came of it after a cut."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...]
    chunks: tuple[Chunk, ...]


async def hear(engine: Any, request: GenerateRequest) -> Heard:
    """Also looks at what every stream must keep to."""
    chunks = tuple([chunk async for chunk in engine.stream(request)])
    for chunk in chunks:
        assert chunk.num_tokens == len(chunk.token_ids)
        assert (chunk.usage is not None) == (chunk.timings is not None) == (chunk is chunks[0] or chunk is chunks[-1])
        assert (chunk.finish_reason is not None) == (chunk is chunks[-1])
    first, last = chunks[0], chunks[-1]
    assert first.usage is not None
    assert last.usage is not None
    assert last.finish_reason is not None
    assert first.usage.completion_tokens == len(request.answered) + first.num_tokens
    token_ids = tuple(token_id for chunk in chunks for token_id in chunk.token_ids)
    assert last.usage.completion_tokens == len(request.answered) + len(token_ids)
    return Heard(
        token_ids,
        "".join(chunk.text for chunk in chunks),
        last.finish_reason,
        last.usage,
        tuple(each for chunk in chunks for each in chunk.logprobs),
        chunks,
    )


async def check_cuts(engine: Any, request: GenerateRequest, cuts: Iterable[int] | None = None) -> Heard:
    """Go on after each number of tokens, after one with the other; returns the answer without a cut."""
    whole = await hear(engine, request)
    for cut in range(len(whole.token_ids) + 1) if cuts is None else cuts:
        await check_cut(engine, request, whole, cut)
    return whole


async def check_cuts_at_once(engine: Any, requests: Sequence[GenerateRequest]) -> list[Heard]:
    """All requests in a batch, then all cuts of all of them."""
    wholes = list(await asyncio.gather(*(hear(engine, request) for request in requests)))
    await asyncio.gather(
        *(
            check_cut(engine, request, whole, cut)
            for request, whole in zip(requests, wholes, strict=True)
            for cut in range(len(whole.token_ids) + 1)
        )
    )
    return wholes


async def check_cut(engine: Any, request: GenerateRequest, whole: Heard, cut: int) -> Heard:
    answered = whole.token_ids[:cut]
    rest = await hear(engine, replace(request, answered=answered))
    assert rest.token_ids == whole.token_ids[cut:], f"after {cut} of {whole.token_ids}"
    assert rest.text == whole.text[len(shown_by(engine, request, whole, cut)) :], f"after {cut} of {whole.token_ids}"
    assert rest.finish_reason == whole.finish_reason
    assert replace(rest.usage, reused_tokens=0) == replace(whole.usage, reused_tokens=0)
    assert 0 <= rest.usage.reused_tokens <= rest.usage.prompt_tokens
    check_logprobs(rest.logprobs, whole.logprobs[cut:])
    return rest


def shown_by(engine: Any, request: GenerateRequest, whole: Heard, cut: int) -> str:
    """The text that the first `cut` tokens settle; where they end a chunk, it is what had been streamed by then."""
    prompts = engine._builder._prompts
    answer = AnswerText(prompts.decode, request.sampling.stop, prompts.byte_token_ids)
    pushed = [answer.push(token_id) for token_id in whole.token_ids[:cut]]
    text, is_stopped = "".join(piece for piece, _ in pushed), any(stopped for _, stopped in pushed)
    if cut == len(whole.token_ids) and not is_stopped and whole.finish_reason == "length":
        text += answer.finish()[0]
    streamed, num_tokens = "", 0
    for chunk in whole.chunks:
        streamed, num_tokens = streamed + chunk.text, num_tokens + chunk.num_tokens
        if num_tokens == cut and chunk.num_tokens:
            assert text == streamed or chunk.finish_reason is not None
    return text


def check_logprobs(given: Sequence[TokenLogprob], expected: Sequence[TokenLogprob]) -> None:
    assert len(given) == len(expected)
    for one, other in zip(given, expected, strict=True):
        assert one.chosen.token_id == other.chosen.token_id
        assert one.chosen.text == other.chosen.text
        for mine, theirs in zip((one.chosen, *one.top), (other.chosen, *other.top), strict=True):
            assert abs(mine.logprob - theirs.logprob) < LOGPROB_TOLERANCE
