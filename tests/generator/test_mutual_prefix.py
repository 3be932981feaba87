"""Prompts whose beginning sees itself both ways, as Moondream's pictures do: equal to one pass with the whole mask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from generator.letters import (
    PLACEHOLDER,
    LetterPrompts,
    Pass,
    WatchedLanguage,
    ask,
    features_of,
    mixed_requests,
    read,
    to_ids,
)

from deployments.models.family import Prompt
from deployments.types import GenerateRequest, Task

pytestmark = pytest.mark.torch
OneShot = Callable[[GenerateRequest], list[int]]


class MutualPrompts(LetterPrompts):
    """All up to the last picture's end is mutual; without a picture, the first third."""

    def build(self, messages: Any, task: Task | None = None) -> Prompt:
        prompt = super().build(messages, task)
        ends = [span.start + span.length for span in prompt.images]
        return replace(prompt, num_mutual=max(ends, default=len(prompt.token_ids) // 3))


@pytest.fixture
def one_shot(llama: Any) -> OneShot:
    """Greedy ids without any cache: the whole text goes through the model for every token."""
    import torch

    def generate(request: GenerateRequest, prompts: LetterPrompts | None = None) -> list[int]:
        prompts = prompts or MutualPrompts()
        prompt, ids = prompts.build(request.messages), list[int]()
        with torch.inference_mode():
            embed = llama.get_input_embeddings()
            inputs = embed(torch.tensor([prompt.token_ids])).clone()
            rows = [features_of(image) for message in request.messages for image in message.images]
            if rows:
                inputs[torch.tensor([prompt.token_ids]) == PLACEHOLDER] = torch.from_numpy(np.concatenate(rows))
            while len(ids) < request.sampling.max_new_tokens:
                mask = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool).tril()
                mask[: prompt.num_mutual, : prompt.num_mutual] = True
                output = llama(inputs_embeds=inputs, attention_mask=mask[None, None])
                token_id = int(output.logits[0, -1].argmax())
                if token_id in prompts.stop_token_ids:
                    break
                ids.append(token_id)
                inputs = torch.cat([inputs, embed(torch.tensor([[token_id]]))], dim=1)
        return ids

    return generate


@pytest.mark.parametrize(("mode", "chunk"), [("batch", 16), ("batch", 33), ("batch", 400), ("simple", 64)])
async def test_answers_equal_the_whole_mask_at_once(
    open_test_engine: Any, one_shot: OneShot, mode: str, chunk: int
) -> None:
    engine = open_test_engine(prompts=MutualPrompts(), mode=mode, num_slots=5, prefill_chunk_tokens=chunk)
    answers = await asyncio.gather(*(read(engine.stream(request)) for request in mixed_requests()))
    assert [to_ids(answer.text) for answer in answers] == [one_shot(request) for request in mixed_requests()]


def test_the_mask_matters(one_shot: Any) -> None:
    changed = [request for request in mixed_requests() if one_shot(request) != one_shot(request, LetterPrompts())]
    assert len(changed) >= 10


async def test_the_beginning_is_computed_in_one_pass(open_test_engine: Any, language: WatchedLanguage) -> None:
    engine = open_test_engine(prompts=MutualPrompts(), prefill_chunk_tokens=16)
    await read(engine.stream(ask("z" * 119, max_new_tokens=1)))  # 120 tokens, 40 of them mutual
    assert [each.chunks for each in language.passes] == [(48,), (16,), (16,), (16,), (16,), (8,)]


async def test_neighbours_go_on_in_its_passes(open_test_engine: Any, language: WatchedLanguage) -> None:
    class Endless(MutualPrompts):
        stop_token_ids = frozenset()

    engine = open_test_engine(prompts=Endless(), prefill_chunk_tokens=16)
    running = engine.stream(ask("abc", max_new_tokens=90))
    await anext(running)
    before = len(language.passes)
    long = asyncio.create_task(read(engine.stream(ask("the quick brown fox " * 10, max_new_tokens=2))))
    assert [chunk async for chunk in running]
    await long
    beside = [each for each in language.passes[before:] if each.chunks]
    assert beside[0] == Pass(1, (80,)), "67 mutual tokens"
    assert beside[1:] == [Pass(1, (16,))] * 7 + [Pass(1, (9,))], "a token of the running answer with every chunk"
