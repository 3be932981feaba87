"""Requests whose beginning the engine has computed before: no answer changes by it, no picture is pulled for nothing,
and nobody gets what is not his.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from generator.letters import (
    ASSISTANT,
    WAIT_S,
    EndlessPrompts,
    LetterEncoder,
    LetterPrompts,
    Turnstile,
    WatchedLanguage,
    ask,
    features_of,
    mixed_requests,
    picture,
    read,
    to_ids,
    until,
    user,
)

from deployments.errors import ImageNotFound, PartUnavailable, RetinaError
from deployments.models.family import ImageSpan, Prompt
from deployments.types import EncodeRequest, GenerateRequest, ImageFeatures, Message, Task, TextPart

pytestmark = pytest.mark.torch
Reference = Callable[[GenerateRequest], list[int]]
CAT, DOG, OWL = picture("cat", 20), picture("dog", 16), picture("owl", 41)
QUESTION = "what is to be seen in this picture?"


async def metrics_of(engine: Any) -> dict[str, float]:
    return dict((await engine.statistics())["metrics"])


def reused(answer: Any) -> int:
    return int(answer.last.usage.reused_tokens)


def reusable(answer: Any) -> int:
    """Tokens that the same prompt need not compute again: whole blocks of it and its answer, but for both last ones."""
    num_prompt, num_answer = answer.last.usage.prompt_tokens, answer.last.usage.completion_tokens
    return min((num_prompt + num_answer - 1) // 16 * 16, num_prompt - 1)


# --------------------------------------------------------------------------------- what is reused


async def test_the_same_again_computes_one_token_and_pulls_nothing(
    open_test_engine: Any, reference: Reference, language: WatchedLanguage
) -> None:
    encoder = LetterEncoder()
    engine = open_test_engine(encoder=encoder, prompts=EndlessPrompts())
    request = ask(user(CAT, QUESTION), max_new_tokens=30)
    first, second = [await read(engine.stream(request)) for _ in range(2)]
    length = first.last.usage.prompt_tokens
    assert (length, reused(first), reused(second)) == (20 + 2 + len(QUESTION) + 1, 0, length - 1)
    expected = reference(request)
    assert to_ids(first.text)[: len(expected)] == to_ids(second.text)[: len(expected)] == expected
    assert first.text == second.text
    assert len(encoder.requests) == 1
    assert (first.last.timings.encode_source, second.last.timings.encode_source) == ("tower", "kv")
    assert second.last.timings.encode_ms == 0
    assert second.last.usage.image_tokens == 20
    assert [each.chunks for each in language.passes if each.chunks] == [(length,), (1,)]
    metrics = await metrics_of(engine)
    assert (metrics["generator_prompt_tokens"], metrics["generator_reused_tokens"]) == (length + 1, length - 1)


async def test_a_conversation_computes_only_what_is_new(open_test_engine: Any) -> None:
    """Answers are part of the next turn's beginning, except for their last token and what does not fill a block."""
    encoder, prompts = LetterEncoder(), SameLetters()
    engine = open_test_engine(encoder=encoder, prompts=prompts)
    twin = open_test_engine(prompts=prompts, mode="simple")
    talk: tuple[Message | str, ...] = (user(CAT, QUESTION),)
    for turn in range(4):
        request = ask(*talk, max_new_tokens=24)
        answer = await read(engine.stream(request))
        assert answer.text == (await read(twin.stream(request))).text
        num_before = answer.last.usage.prompt_tokens - len("and more?") - 1  # both turns' tokens but for the answer's
        assert reused(answer) == ((num_before - 1) // 16 * 16 if turn else 0)
        talk = (*talk, Message("assistant", (TextPart(answer.text),)), user("and more?"))
    assert len(encoder.requests) == 1


class SameLetters(EndlessPrompts):
    """An answer of before has the tokens that were generated, and begins as answers begin."""

    def build(self, messages: Any, task: Task | None = None) -> Prompt:
        ids: list[int] = []
        spans: list[ImageSpan] = []
        for message in messages:
            if message.role == "assistant":
                ids += [ASSISTANT, *to_ids(message.text)]
                continue
            part = super().build([message])
            spans += [replace(span, start=span.start + len(ids)) for span in part.images]
            ids += part.token_ids[:-1]
        ids.append(ASSISTANT)
        return Prompt(tuple(ids), np.arange(len(ids), dtype=np.int64)[None], len(ids), tuple(spans), task)


@pytest.mark.parametrize("chunk", [16, 21, 300])
async def test_a_beginning_that_ends_in_a_picture(
    open_test_engine: Any, reference: Reference, language: WatchedLanguage, chunk: int
) -> None:
    """The rest of its rows is laid over the rest of its places, and a picture before it is not asked for."""
    encoder = LetterEncoder()
    engine = open_test_engine(encoder=encoder, prefill_chunk_tokens=chunk)
    text = "z" * 9
    first = ask(user(DOG, text, OWL, "?"), max_new_tokens=20)
    prompt = LetterPrompts().build(first.messages)
    await read(engine.stream(replace(first, messages=(user(DOG, text, OWL),))))
    # Forget what stands behind the middle of the second picture: only whole blocks up to there are remembered.
    again = open_test_engine(encoder=encoder, prefill_chunk_tokens=chunk)
    middle = prompt.images[2].start + 7
    remember_beginning(again, engine, first, middle)
    encoder.requests.clear()
    answer = await read(again.stream(first))
    assert to_ids(answer.text) == reference(first)
    assert reused(answer) == middle // 16 * 16
    assert prompt.images[1].start + prompt.images[1].length < reused(answer) < prompt.images[2].start + 41
    assert [request.image for request in encoder.requests] == [OWL]
    assert answer.last.timings.encode_source == "tower"


def remember_beginning(target: Any, source: Any, request: GenerateRequest, num_tokens: int) -> None:
    """Give `target` what `source` remembers of the first tokens of a request."""
    import torch

    contents, realm = contents_and_realm(request)
    here, there = source._worker.runner.prefix, target._worker.runner.prefix
    match = here.match(realm, contents, least=0)
    slots = target._worker.runner._cache
    with torch.inference_mode():
        blocks = here._blocks[torch.tensor(match.blocks)]  # (n, layers, 2, kv_heads, 16, head_dim)
        slots.slot(0)[..., : 16 * len(blocks), :] = blocks.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)
        there.remember(realm, contents[:num_tokens], 0)
        slots.clear(0, 16 * len(blocks))
    here.unpin(match)


def contents_and_realm(request: GenerateRequest) -> Any:
    from deployments.generator.prompt_contents import contents_of, realm_of

    prompt = LetterPrompts().build(request.messages)
    contents = contents_of(prompt, {})
    return contents, realm_of(prompt, request.tenant, contents)


async def test_those_who_come_together_share_what_the_first_computes(
    open_test_engine: Any, reference: Reference, turnstile: Turnstile
) -> None:
    """They wait for a slot anyway; the beginning that is there when they get one counts."""
    engine = open_test_engine(num_slots=1)
    request = ask("the quick brown fox jumps over the lazy dog", max_new_tokens=4)
    tasks = [asyncio.create_task(read(engine.stream(request))) for _ in range(3)]
    await turnstile.wait_for_pass()
    await until(lambda: len(engine._worker.sequences()) == 3)
    turnstile.open()
    answers = [await task for task in tasks]
    assert sorted(map(reused, answers)) == [0, *[reusable(answers[0])] * 2] == [0, 32, 32]
    assert [to_ids(answer.text) for answer in answers] == [reference(request)] * 3


async def test_features_that_were_pulled_for_nothing_go_with_the_prompt(
    open_test_engine: Any, reference: Reference, turnstile: Turnstile
) -> None:
    """The second one's beginning is not there yet when its picture is pulled, and is when it gets its slot."""
    encoder = LetterEncoder()
    engine = open_test_engine(num_slots=1, encoder=encoder)
    request = ask(user(CAT, QUESTION), max_new_tokens=20)
    tasks = [asyncio.create_task(read(engine.stream(request))) for _ in range(2)]
    await until(lambda: len(engine._worker.sequences()) == 2)
    [_, second] = engine._worker.sequences()
    assert list(second.features) == ["cat"]
    turnstile.open()
    answers = [await task for task in tasks]
    assert (len(encoder.requests), second.features) == (2, {})
    assert reused(answers[1]) == reusable(answers[0]) >= 48
    assert [to_ids(answer.text) for answer in answers] == [reference(request)] * 2


async def test_a_penalty_counts_tokens_that_were_not_computed(open_test_engine: Any, reference: Reference) -> None:
    engine = open_test_engine()
    request = ask("the quick brown fox jumps over the lazy dog", repetition_penalty=1.8, max_new_tokens=24)
    answers = [await read(engine.stream(request)) for _ in range(2)]
    assert reused(answers[1]) == reusable(answers[0]) > 30
    assert [to_ids(answer.text) for answer in answers] == [reference(request)] * 2
    plain = replace(request, sampling=replace(request.sampling, repetition_penalty=1.0))
    assert reference(plain) != reference(request)


async def test_all_of_them_twice_in_any_order_and_room_for_few(open_test_engine: Any, reference: Reference) -> None:
    engine = open_test_engine(prefix_cache_bytes=100_000, num_slots=3, prefill_chunk_tokens=16)
    requests = [*mixed_requests(), *reversed(mixed_requests())]
    answers = await asyncio.gather(*(read(engine.stream(request)) for request in requests))
    assert [to_ids(answer.text) for answer in answers] == [reference(request) for request in requests]
    shown = (await engine.statistics())["prefix_cache"]
    assert shown["evicted"] > 0
    assert (shown["blocks"], shown["pinned"]) == (8, 0)
    assert any(map(reused, answers))


# --------------------------------------------------------------------------------- what is not


async def test_off_means_off(open_test_engine: Any) -> None:
    encoder = LetterEncoder()
    engine = open_test_engine(encoder=encoder, prefix_cache_bytes=0)
    answers = [await read(engine.stream(ask(user(CAT, QUESTION)))) for _ in range(2)]
    assert list(map(reused, answers)) == [0, 0]
    assert len(encoder.requests) == 2
    shown = await engine.statistics()
    assert (shown["prefix_cache"]["blocks"], shown["prefix_cache"]["bytes"]) == (0, 0)


async def test_the_slow_twin_remembers_nothing(open_test_engine: Any) -> None:
    encoder = LetterEncoder()
    engine = open_test_engine(encoder=encoder, mode="simple")
    answers = [await read(engine.stream(ask(user(CAT, QUESTION)))) for _ in range(2)]
    assert list(map(reused, answers)) == [0, 0]
    assert len(encoder.requests) == 2
    assert (await engine.statistics())["prefix_cache"] is None


async def test_nothing_is_shared_between_tenants(open_test_engine: Any) -> None:
    """Not even how long it takes; and whether a picture may be seen is asked for each."""
    encoder = LetterEncoder()
    engine = open_test_engine(encoder=encoder)
    request = ask(user(CAT, QUESTION))
    mine = await read(engine.stream(request))
    others = await read(engine.stream(replace(request, tenant="another")))
    assert (reused(others), others.text) == (0, mine.text)
    assert [request.tenant for request in encoder.requests] == ["tenant", "another"]
    encoder.failures["cat"] = ImageNotFound("not yours")
    with pytest.raises(ImageNotFound):
        await read(engine.stream(replace(request, tenant="a third")))


async def test_other_pictures_are_not_taken_for_this_one(open_test_engine: Any, reference: Reference) -> None:
    """Their tokens are the same."""
    engine = open_test_engine()
    requests = [ask(user(replace(CAT, id=name), QUESTION), max_new_tokens=20) for name in ("cat", "tiger", "cat")]
    answers = [await read(engine.stream(request)) for request in requests]
    assert [to_ids(answer.text) for answer in answers] == [reference(request) for request in requests]
    assert answers[0].text != answers[1].text
    assert list(map(reused, answers)) == [0, 0, reusable(answers[0])]


async def test_what_is_no_number_is_not_remembered(open_test_engine: Any, reference: Reference) -> None:
    encoder = LetterEncoder(answers={"cat": ImageFeatures(np.full((20, 64), np.nan, np.float32), "float32", "disk", 0)})
    engine = open_test_engine(encoder=encoder)
    request = ask(user(CAT, QUESTION), max_new_tokens=20)
    with pytest.raises(RetinaError, match="not finite"):
        await read(engine.stream(request))
    encoder.answers.clear()
    answer = await read(engine.stream(request))
    assert (reused(answer), to_ids(answer.text)) == (0, reference(request))


# --------------------------------------------------------------------------------- another tower


@dataclass
class TowerEncoder(LetterEncoder):
    """Its tower may be replaced, and then sees everything otherwise."""

    tower: str = "old"

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        self.requests.append(request)
        rows = features_of(request.image) * (1 if self.tower == "old" else -1)
        return ImageFeatures(rows, "float32", "tower", 1.0, self.tower)


async def test_what_another_tower_saw_is_not_used(open_test_engine: Any) -> None:
    """Neither by who asks the same again, nor by who asks about one more picture behind it."""
    encoder = TowerEncoder()
    engine, fresh = (open_test_engine(encoder=encoder, prefix_cache_bytes=size) for size in (10**7, 0))
    request, longer = ask(user(CAT, QUESTION)), ask(user(CAT, QUESTION, DOG))
    before = await read(engine.stream(longer))
    encoder.tower = "new"
    await read(engine.stream(ask(user(OWL))))  # by which the engine learns of it
    wanted = [(await read(fresh.stream(each))).text for each in (request, longer)]
    encoder.requests.clear()
    answers = [await read(engine.stream(each)) for each in (request, longer)]
    assert [answer.text for answer in answers] == wanted
    assert wanted[1] != before.text
    assert (reused(answers[0]), reused(answers[1])) == (0, len(QUESTION) + 22)


async def test_a_tower_that_is_replaced_unnoticed(open_test_engine: Any) -> None:
    """It shows by the features of the second picture, when the first one's K and V were already found."""
    encoder = TowerEncoder()
    engine, fresh = (open_test_engine(encoder=encoder, prefix_cache_bytes=size) for size in (10**7, 0))
    request, longer = ask(user(CAT, QUESTION)), ask(user(CAT, QUESTION, DOG), max_new_tokens=30)
    await read(engine.stream(request))
    encoder.tower = "new"
    wanted = [(await read(fresh.stream(each))).text for each in (longer, request)]
    encoder.requests.clear()
    answer = await read(engine.stream(longer))
    assert (answer.text, reused(answer)) == (wanted[0], 0)
    assert [asked.image for asked in encoder.requests] == [DOG, CAT]
    again = await read(engine.stream(request))
    assert (again.text, reused(again)) == (wanted[1], 57), "nothing of the old one is under the new one's name"


# --------------------------------------------------------------------------------- nothing is held for ever


async def test_whoever_leaves_while_encoding_holds_nothing(open_test_engine: Any) -> None:
    encoder = LetterEncoder()
    engine = open_test_engine(encoder=encoder)
    await read(engine.stream(ask(user(CAT, QUESTION))))
    encoder.gate = asyncio.Event()
    task = asyncio.create_task(read(engine.stream(ask(user(CAT, QUESTION, DOG)))))
    await until(lambda: encoder.num_waiting == 1)
    assert (await engine.statistics())["prefix_cache"]["pinned"] > 0
    task.cancel()
    await until(lambda: encoder.num_cancelled == 1)
    assert (await engine.statistics())["prefix_cache"]["pinned"] == 0
    encoder.gate, encoder.failures["dog"] = None, PartUnavailable("no tower")
    with pytest.raises(PartUnavailable):
        await read(engine.stream(ask(user(CAT, QUESTION, DOG))))
    assert (await engine.statistics())["prefix_cache"]["pinned"] == 0


async def test_whoever_leaves_while_waiting_holds_nothing(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine(num_slots=1, prompts=EndlessPrompts())
    turnstile.let_one_through()
    turnstile.let_one_through()
    await read(engine.stream(ask("the quick brown fox", max_new_tokens=2)))
    running = asyncio.create_task(read(engine.stream(ask("xyz", max_new_tokens=2))))
    await turnstile.wait_for_pass()
    waiting = asyncio.create_task(read(engine.stream(ask("the quick brown fox", max_new_tokens=2))))
    await until(lambda: len(engine._worker.sequences()) == 2)
    assert (await engine.statistics())["prefix_cache"]["pinned"] == 1
    waiting.cancel()
    turnstile.open()
    await running
    assert await asyncio.to_thread(engine.wait_idle, WAIT_S)
    assert (await engine.statistics())["prefix_cache"]["pinned"] == 0
