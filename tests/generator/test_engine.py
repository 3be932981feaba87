"""Answers of the engine equal transformers' greedy `generate`: alone, in any mix, in any chunking, in both modes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from generator.letters import (
    EndlessPrompts,
    LetterEncoder,
    LetterPrompts,
    Pass,
    Turnstile,
    WatchedLanguage,
    ask,
    mixed_requests,
    picture,
    read,
    to_ids,
    until,
    user,
)

from deployments.models.family import Prompt
from deployments.types import GenerateRequest, ImageRef, Message, TextPart

pytestmark = pytest.mark.torch
Reference = Callable[[GenerateRequest], list[int]]


async def test_each_alone_equals_generate(open_test_engine: Any, reference: Reference) -> None:
    engine = open_test_engine()
    answers = [to_ids((await read(engine.stream(request))).text) for request in mixed_requests()]
    expected = [reference(request) for request in mixed_requests()]
    assert answers == expected
    assert len({tuple(answer) for answer in expected}) == 12, "the prompts should be told apart by their answers"
    assert any(len(answer) < 20 for answer in expected), "some answers should end by a stop token"


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_all_at_once_equal_generate(open_test_engine: Any, reference: Reference, mode: str) -> None:
    engine = open_test_engine(mode=mode)
    answers = await asyncio.gather(*(read(engine.stream(request)) for request in mixed_requests()))
    assert [to_ids(answer.text) for answer in answers] == [reference(request) for request in mixed_requests()]


@pytest.mark.parametrize("seed", range(4))
async def test_joins_and_leaves_at_random_equal_generate(
    open_test_engine: Any, reference: Reference, language: WatchedLanguage, seed: int
) -> None:
    """Requests come when others are in the middle, and some of those leave in the middle."""
    engine = open_test_engine(num_slots=3 + seed, prefill_chunk_tokens=16 + 15 * seed)
    chance = random.Random(seed)
    tasks = []
    for request in mixed_requests(40):
        leaver = asyncio.create_task(_read_some(engine, request, chance.randrange(1, 6)))
        tasks.append(asyncio.create_task(read(engine.stream(request))))
        if chance.random() < 0.7:
            await leaver
        else:
            leaver.cancel()
    answers = await asyncio.gather(*tasks)
    assert [to_ids(answer.text) for answer in answers] == [reference(request) for request in mixed_requests(40)]
    assert max(each.num_decodes for each in language.passes) == 3 + seed, "the batch should have been full at times"


async def _read_some(engine: Any, request: GenerateRequest, num_chunks: int) -> None:
    stream = engine.stream(request)
    async for _ in stream:
        num_chunks -= 1
        if not num_chunks:
            break
    await stream.aclose()


@pytest.mark.parametrize("chunk", [16, 17, 33, 399])
async def test_chunked_prefill_changes_nothing(
    open_test_engine: Any, reference: Reference, language: WatchedLanguage, chunk: int
) -> None:
    engine = open_test_engine(prefill_chunk_tokens=chunk)
    request = mixed_requests()[3]
    answer = await read(engine.stream(request))
    assert to_ids(answer.text) == reference(request)
    length = answer.last.usage.prompt_tokens
    prefills = [size for each in language.passes for size in each.chunks]
    assert prefills == [chunk] * (length // chunk) + [length % chunk]


async def test_a_long_prompt_does_not_stall_a_running_answer(open_test_engine: Any, language: WatchedLanguage) -> None:
    engine = open_test_engine(prompts=EndlessPrompts(), prefill_chunk_tokens=16)
    running = engine.stream(ask("abc", max_new_tokens=200))
    await anext(running)
    before = len(language.passes)
    long = asyncio.create_task(read(engine.stream(ask("the quick brown fox " * 10, max_new_tokens=2))))
    rest = [chunk async for chunk in running]
    assert rest
    await long
    beside = [each for each in language.passes[before:] if each.chunks]
    assert beside == [Pass(1, (16,))] * 12 + [Pass(1, (9,))], "a token of the running answer with every chunk"


async def test_chunks_beside_a_running_answer_begin_small(open_test_engine: Any, language: WatchedLanguage) -> None:
    """What a prompt token costs on this machine is not known yet; nobody waits for those of an empty engine."""
    engine = open_test_engine(prompts=EndlessPrompts(), prefill_chunk_tokens=300)
    running = engine.stream(ask("abc" * 60, max_new_tokens=200))
    await anext(running)
    await read(engine.stream(ask("the quick brown fox " * 15, max_new_tokens=1)))
    await running.aclose()
    first, *beside = [each.chunks for each in language.passes if each.chunks]
    assert (first, beside[0]) == ((181,), (64,))
    assert sum(size for chunks in beside for size in chunks) == 301
    assert all(16 <= size <= 300 for [size] in beside[:-1])


async def test_decode_computes_only_running_rows(
    open_test_engine: Any, language: WatchedLanguage, turnstile: Turnstile
) -> None:
    engine = open_test_engine(num_slots=16, prompts=EndlessPrompts())
    answers = asyncio.gather(*(read(engine.stream(ask("abc" + "d" * n, max_new_tokens=9))) for n in range(3)))
    await until(lambda: len(engine._worker.sequences()) == 3)
    turnstile.open()
    await answers
    assert max(each.num_decodes for each in language.passes) == 3


async def test_usage_and_timings(open_test_engine: Any) -> None:
    engine = open_test_engine()
    answer = await read(engine.stream(mixed_requests()[2]))
    usage, timings = answer.last.usage, answer.last.timings
    assert (usage.prompt_tokens, usage.image_tokens, usage.reused_tokens) == (16 + 2 + len("and this?") + 1, 16, 0)
    assert usage.completion_tokens == len(answer.text)
    assert timings.encode_source == "tower"
    assert timings.encode_ms > 0
    assert timings.prefill_ms > 0
    assert timings.decode_ms > 0
    parts = timings.queue_ms + timings.encode_ms + timings.prefill_ms
    assert timings.first_token_ms == pytest.approx(parts, abs=0.01)
    text_only = await read(engine.stream(mixed_requests()[0]))
    assert (text_only.last.timings.encode_ms, text_only.last.timings.encode_source) == (0, None)


async def test_the_answer_is_cut_at_the_context(open_test_engine: Any, reference: Reference) -> None:
    engine = open_test_engine(max_context_tokens=64)
    request = ask("z" * 53, max_new_tokens=100)  # 54 tokens of prompt leave room for 10
    answer = await read(engine.stream(request))
    assert to_ids(answer.text) == reference(request)[:10]
    assert (answer.last.finish_reason, len(answer.text)) == ("length", 10)


async def test_the_longest_prompt_fits_and_one_more_does_not(open_test_engine: Any) -> None:
    engine = open_test_engine(max_context_tokens=64)
    assert (await read(engine.stream(ask("z" * 62)))).last.usage.prompt_tokens == 63
    with pytest.raises(Exception, match=r"64 tokens \(0 image tokens \+ 64 text tokens\).*context of 64") as caught:
        await read(engine.stream(ask("z" * 63)))
    assert caught.value.code == "prompt_too_long"


def long_talk(num_exchanges: int, image: ImageRef | None = None) -> tuple[Message, ...]:
    """About 40 tokens an exchange, and a question at the end; the picture stands in the first message."""
    turns: list[Message] = []
    for number in range(num_exchanges):
        turns += [user(f"question {number} of a long talk"), Message("assistant", (TextPart(f"answer {number}"),))]
    if image is not None:
        turns[0] = user(image, turns[0].text)
    return (*turns, user("and now?"))


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_a_long_talk_is_answered_without_its_beginning(
    open_test_engine: Any, reference: Reference, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """The picture of its beginning moves to the first question that stays."""
    caplog.set_level("INFO", logger="deployments.generator.sequence_builder")
    encoder, cat = LetterEncoder(), picture("cat", 16)
    engine = open_test_engine(encoder=encoder, mode=mode)
    talk = long_talk(20, cat)
    answer = await read(engine.stream(ask(*talk, max_new_tokens=24)))
    usage = answer.last.usage
    assert usage.prompt_tokens <= 400 - 24
    assert (usage.image_tokens, [request.image for request in encoder.requests]) == (16, [cat])
    num_kept = next(n for n in range(20, 0, -1) if _num_tokens(_with_picture(talk[-2 * n - 1 :], cat)) <= 400 - 24)
    kept = _with_picture(talk[-2 * num_kept - 1 :], cat)
    assert to_ids(answer.text) == reference(ask(*kept, max_new_tokens=24))
    assert f"its {len(talk) - len(kept)} oldest messages do not fit" in caplog.text


def _with_picture(messages: tuple[Message, ...], image: ImageRef) -> tuple[Message, ...]:
    return (user(image, messages[0].text), *messages[1:])


def _num_tokens(messages: tuple[Message, ...]) -> int:
    return len(LetterPrompts().build(messages).token_ids)


async def test_history_goes_before_the_answer_is_cut_short(open_test_engine: Any) -> None:
    engine = open_test_engine(prompts=EndlessPrompts())
    talk = next(long_talk(n) for n in range(20, 0, -1) if _num_tokens(long_talk(n)) < 400)
    assert 400 - _num_tokens(talk) < 50, "as it stands it fits, but without much of an answer"
    answer = await read(engine.stream(ask(*talk, max_new_tokens=50)))
    assert (len(answer.text), answer.last.finish_reason) == (50, "length")
    assert answer.last.usage.prompt_tokens < _num_tokens(talk)


async def test_the_checkpoints_own_limit_wins_when_lower(open_test_engine: Any) -> None:
    engine = open_test_engine(max_context_tokens=100_000, num_slots=1)
    assert (await engine.statistics())["context_tokens"] == 512


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_a_stop_string_ends_the_answer_before_it(open_test_engine: Any, mode: str) -> None:
    engine = open_test_engine(mode=mode)
    whole = (await read(engine.stream(mixed_requests()[0]))).text
    assert len(whole) > 12
    stop = whole[5:8]
    answer = await read(engine.stream(ask("hi", stop=("never", stop), max_new_tokens=24)))
    assert answer.text == whole[: whole.index(stop)]
    assert answer.last.finish_reason == "stop"


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_a_seed_gives_the_same_answer_in_any_company(open_test_engine: Any, mode: str) -> None:
    engine = open_test_engine(mode=mode, num_slots=8)
    drawn = {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "max_new_tokens": 30}
    alone = await read(engine.stream(ask("hello", seed=11, **drawn)))
    company = [ask("hello", seed=seed, **drawn) for seed in (11, 12, 13, None)] + mixed_requests()[:4]
    together = await asyncio.gather(*(read(engine.stream(request)) for request in company))
    assert together[0].text == alone.text
    assert len({answer.text for answer in together[:4]}) == 4


async def test_simple_and_batch_draw_the_same(open_test_engine: Any) -> None:
    requests = [ask(f"say {seed}", temperature=1.3, seed=seed, max_new_tokens=30) for seed in range(6)]
    fast, slow = open_test_engine(num_slots=8), open_test_engine(mode="simple")
    answers = await asyncio.gather(*(read(fast.stream(request)) for request in requests))
    assert [a.text for a in answers] == [(await read(slow.stream(request))).text for request in requests]


async def test_one_greedy_row_is_not_touched_by_drawn_ones(open_test_engine: Any, reference: Reference) -> None:
    engine = open_test_engine(num_slots=8)
    greedy = mixed_requests()[1]
    drawn = [ask("abc", temperature=1.5, max_new_tokens=30, seed=seed) for seed in range(5)]
    answers = await asyncio.gather(*(read(engine.stream(request)) for request in [*drawn, greedy]))
    assert to_ids(answers[-1].text) == reference(greedy)


async def test_pictures_of_a_prompt_are_pulled_together_and_once_each(open_test_engine: Any) -> None:
    encoder = LetterEncoder(gate=asyncio.Event())
    engine = open_test_engine(encoder=encoder)
    cat, dog = picture("cat", 4), picture("dog", 6)
    task = asyncio.create_task(read(engine.stream(ask(user(cat, dog, cat), max_new_tokens=3))))
    await until(lambda: encoder.num_waiting == 2)
    assert [request.image for request in encoder.requests] == [cat, dog]
    assert {request.model for request in encoder.requests} == {"tiny"}
    assert all(0 < request.timeout_s <= 60 for request in encoder.requests)
    encoder.gate.set()
    assert (await task).last.usage.image_tokens == 14


async def test_a_slow_reader_gets_merged_chunks(open_test_engine: Any, reference: Reference) -> None:
    engine = open_test_engine()
    request = ask("hi", max_new_tokens=24)
    stream = engine.stream(request)
    first = await anext(stream)
    assert await asyncio.to_thread(engine.wait_idle, 20)  # the engine is done, the reader has not read
    rest = [chunk async for chunk in stream]
    assert len(rest) == 1
    assert rest[0].finish_reason is not None
    assert to_ids(first.text + rest[0].text) == reference(request)


async def test_statistics_show_what_runs(open_test_engine: Any) -> None:
    engine = open_test_engine(prefix_cache_bytes=130_000)  # 10 blocks of 12,288 bytes
    await read(engine.stream(ask("hi", max_new_tokens=5)))
    shown = await engine.statistics()
    about = {"model": "tiny", "mode": "batch", "device": "cpu", "dtype": "float32", "num_slots": 4, "free_slots": 4}
    assert about.items() <= shown.items()
    assert (shown["waiting"], shown["running"]) == (0, [])
    slots = 3 * 2 * 4 * 2 * 400 * 16 * 4  # layers, K and V, slots, heads, length, dim, bytes
    block = 3 * 2 * 2 * 16 * 16 * 4
    assert shown["prefix_cache"]["bytes"] == 10 * block
    assert shown["kv_cache_bytes"] == slots + 10 * block
    assert shown["tokens_per_s"] > 0
    plans = [(plan["prefill_tokens"], plan["decode_batch"], plan["new_tokens"]) for plan in shown["last_plans"]]
    assert plans == [(3, 0, 1)] + [(0, 1, 1)] * 4
    assert shown["metrics"]["generator_prompt_tokens"] == 3
    assert shown["metrics"]["generator_completion_tokens"] == 5
    assert shown["metrics"]["generator_requests.length"] == 1


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_positions_of_three_rows_that_run_behind_the_index(
    open_test_engine: Any, language: WatchedLanguage, mode: str
) -> None:
    """As models have them that count a picture's height and width instead of its tokens."""

    class ThreeRows(EndlessPrompts):
        def build(self, messages: Any) -> Prompt:
            prompt = super().build(messages)
            length = len(prompt.token_ids)
            positions = np.stack([np.arange(length), np.arange(length) // 2, np.arange(length) // 3])
            return replace(prompt, positions=positions, next_position=length // 2)

    seen: list[list[list[int]]] = []

    class OneRow:
        def run(self, embeddings: Any, positions: Any, attend: Any, last: Any) -> Any:
            assert positions.shape == (3, len(embeddings))
            seen.append(positions[:, : len(embeddings) - attend._num_padding].tolist())
            return original.run(embeddings, positions[:1], attend, last)

        def forward(self, embeddings: Any, positions: Any, cache: Any, mask: Any) -> Any:
            assert positions.shape == (3, *embeddings.shape[:2])
            seen.append(positions[:, 0].tolist())
            return original.forward(embeddings, positions[:1], cache, mask)

        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

    original, language.inner = language.inner, OneRow()
    engine = open_test_engine(prompts=ThreeRows(), mode=mode)
    await read(engine.stream(ask("a" * 11, max_new_tokens=3)))
    whole = list(range(12))
    assert seen == [
        [whole, [index // 2 for index in whole], [index // 3 for index in whole]],
        [[6]] * 3,
        [[7]] * 3,
    ]
