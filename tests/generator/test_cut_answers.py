"""An answer that is cut after any token and gone on with, by another engine as well, comes to the same end: ids, text,
usage and log probabilities, however it is chosen and whoever is in the batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from generator.cuts import check_cut, check_cuts, check_cuts_at_once, hear
from generator.letters import (
    EndlessPrompts,
    LetterEncoder,
    LetterPrompts,
    WatchedLanguage,
    ask,
    mixed_requests,
    picture,
    read,
    reading,
    user,
)

from deployments.errors import InvalidRequest, PartUnavailable
from deployments.types import GenerateRequest

pytestmark = pytest.mark.torch
MODES = ("batch", "simple")
OFF = {"prefix_cache_bytes": 0}


class HalvesPrompts(EndlessPrompts):
    """Each token is a byte, and most characters take two: an answer of any bytes has whole ones, halves and wrong
    ones."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(b"\xc3\xa9a \xe2\x82\xac"[token_id % 7] for token_id in token_ids).decode(errors="replace")


@pytest.mark.parametrize("mode", MODES)
async def test_everywhere_and_alone(open_test_engine: Any, mode: str) -> None:
    engine = open_test_engine(mode=mode, **OFF)
    wholes = [await check_cuts(engine, request) for request in mixed_requests(12)]
    wholes += [await check_cuts(engine, ask("hi", temperature=2.0, seed=seed, max_new_tokens=40)) for seed in range(3)]
    assert {whole.finish_reason for whole in wholes} == {"stop", "length"}


@pytest.mark.parametrize("settings", [OFF, {}, {"num_slots": 3, "prefill_chunk_tokens": 17}])
async def test_everywhere_and_all_at_once(open_test_engine: Any, settings: dict[str, int]) -> None:
    """With and without what is remembered of beginnings."""
    engine = open_test_engine(max_waiting_requests=1000, **settings)
    await check_cuts_at_once(engine, mixed_requests())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0, "seed": 5},
        {"temperature": 1.3, "seed": 6, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
        {"repetition_penalty": 1.8},
        {"presence_penalty": 1.5, "frequency_penalty": 0.7},
        {"presence_penalty": -2.0, "frequency_penalty": -1.0},
        {"temperature": 0.9, "seed": 7, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "num_logprobs": 3},
        {"num_logprobs": 0},
    ],
    ids=lambda sampling: "-".join(sampling),
)
async def test_however_it_is_chosen(open_test_engine: Any, mode: str, sampling: dict[str, Any]) -> None:
    engine = open_test_engine(mode=mode, max_waiting_requests=1000, prompts=EndlessPrompts())
    requests = [replace(request, sampling=replace(request.sampling, **sampling)) for request in mixed_requests(16)[:4]]
    wholes = await check_cuts_at_once(engine, requests)
    plain = await asyncio.gather(*(hear(engine, request) for request in mixed_requests(16)[:4]))
    if sampling.keys() != {"num_logprobs"}:
        assert [whole.token_ids for whole in wholes] != [whole.token_ids for whole in plain]


async def test_penalties_count_what_was_answered(open_test_engine: Any) -> None:
    """Or the test above would show less than it says: told of other tokens, the answer goes on otherwise."""
    engine = open_test_engine(prompts=EndlessPrompts())
    for sampling in ({"repetition_penalty": 9.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}):
        whole = await hear(engine, ask("hi", max_new_tokens=30, **sampling))
        assert len(set(whole.token_ids)) > 15
        plain = await hear(engine, replace(ask("hi", max_new_tokens=30), answered=whole.token_ids[:20]))
        assert plain.token_ids != whole.token_ids[20:]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [1, 2, 4])
async def test_stop_strings(open_test_engine: Any, mode: str, length: int) -> None:
    """One that is met, one that is met half, and one of which the answer's end is a beginning."""
    engine = open_test_engine(mode=mode, prompts=EndlessPrompts())
    text = (await hear(engine, ask("what is it?", max_new_tokens=16))).text
    assert len(text) == 16
    met, half, end = text[8 : 8 + length], text[4:7] + "z", text[14:] + "z"
    stopped = await check_cuts(engine, ask("what is it?", max_new_tokens=16, stop=(met, half, end)))
    assert (stopped.finish_reason, stopped.text) == ("stop", text[: text.index(met)])
    ended = await check_cuts(engine, ask("what is it?", max_new_tokens=16, stop=(half, end)))
    assert (ended.finish_reason, ended.text) == ("length", text)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stop", [(), ("é€",), ("\ufffd\ufffd", "aa")])
async def test_half_characters(open_test_engine: Any, mode: str, stop: tuple[str, ...]) -> None:
    engine = open_test_engine(mode=mode, prompts=HalvesPrompts())
    for words in ("hi", "what?", "and this?"):
        whole = await check_cuts(engine, ask(words, max_new_tokens=24, stop=stop, temperature=1.5, seed=3))
        assert any(chunk.num_tokens > 1 for chunk in whole.chunks), "something must have been held back"


async def test_another_engine_goes_on(open_test_engine: Any) -> None:
    """As when a replica dies: what came from it until then is all that is known."""
    gone = open_test_engine(prefill_chunk_tokens=32, prompts=EndlessPrompts())
    cat = picture("cat", 30)
    request = ask(user(cat, "what is it?"), max_new_tokens=40, temperature=1.0, seed=11)
    whole = await hear(gone, request)
    came = []
    chunks = gone.stream(request)
    async for chunk in chunks:
        came.append(chunk)
        if sum(each.num_tokens for each in came) >= 15:
            break
    await chunks.aclose()
    ids = tuple(token_id for chunk in came for token_id in chunk.token_ids)
    rest = await hear(open_test_engine(mode="simple", prompts=EndlessPrompts()), replace(request, answered=ids))
    assert ids + rest.token_ids == whole.token_ids
    assert "".join(chunk.text for chunk in came) + rest.text == whole.text


async def test_a_full_context(open_test_engine: Any) -> None:
    """The answer ends where the positions do, wherever it is cut."""
    for mode in MODES:
        engine = open_test_engine(mode=mode, max_context_tokens=40, prompts=EndlessPrompts())
        whole = await check_cuts(engine, ask("x" * 19, max_new_tokens=200))
        assert (len(whole.token_ids), whole.finish_reason) == (20, "length")


async def test_what_is_remembered_covers_what_was_answered(open_test_engine: Any, language: WatchedLanguage) -> None:
    encoder = LetterEncoder()
    engine = open_test_engine(encoder, prompts=EndlessPrompts())
    request = ask(user(picture("cat", 41), "what is it?"), max_new_tokens=60)
    whole = await hear(engine, request)
    language.passes.clear()
    encoder.requests.clear()
    rest = await check_cut(engine, request, whole, 50)
    assert rest.usage.reused_tokens == rest.usage.prompt_tokens, "of the prompt, and no more than there is of it"
    assert sum(sum(begun.chunks) for begun in language.passes) <= 16, "the answer's own blocks are found as well"
    assert encoder.requests == []
    assert rest.chunks[-1].timings is not None
    assert rest.chunks[-1].timings.encode_source == "kv"


async def test_what_went_on_is_remembered(open_test_engine: Any, language: WatchedLanguage) -> None:
    """The next turn finds the whole answer, as if it had never been cut."""
    whole = await hear(open_test_engine(prompts=EndlessPrompts()), ask("what is it?", max_new_tokens=80))
    engine = open_test_engine(prompts=EndlessPrompts())
    await hear(engine, replace(ask("what is it?", max_new_tokens=80), answered=whole.token_ids[:33]))
    language.passes.clear()
    await hear(engine, replace(ask("what is it?", max_new_tokens=81), answered=whole.token_ids))
    assert sum(sum(begun.chunks) for begun in language.passes) <= 16


@pytest.mark.parametrize("mode", MODES)
async def test_what_had_ended_costs_nothing(open_test_engine: Any, language: WatchedLanguage, mode: str) -> None:
    encoder = LetterEncoder()
    engine = open_test_engine(encoder, mode=mode, prompts=EndlessPrompts())
    request = ask(user(picture("cat", 9), "what?"), max_new_tokens=5)
    whole = await hear(engine, request)
    language.passes.clear()
    encoder.requests.clear()
    (only,) = (await hear(engine, replace(request, answered=whole.token_ids))).chunks
    assert (only.text, only.token_ids, only.finish_reason) == ("", (), "length")
    assert only.timings is not None
    assert (only.timings.prefill_ms, only.timings.decode_ms, only.timings.encode_ms) == (0, 0, 0)
    assert (language.passes, encoder.requests) == ([], [])
    assert (await engine.statistics())["running"] == []


async def test_refusals_come_before_anything_is_computed(open_test_engine: Any, language: WatchedLanguage) -> None:
    engine = open_test_engine()
    stop = min(LetterPrompts.stop_token_ids)
    for answered in ((292,), (stop,), (1,) * 11):
        with pytest.raises(InvalidRequest) as raised:
            await read(engine.stream(replace(ask("hi", max_new_tokens=10), answered=answered)))
        assert raised.value.param == "answered"
    assert language.passes == []


async def test_what_is_left_counts_for_when_to_come_back(open_test_engine: Any, turnstile: Any) -> None:
    """And a request that is gone on with is described like any other."""
    engine = open_test_engine()
    request: GenerateRequest = replace(ask("hi", max_new_tokens=10), answered=(1, 2, 4))
    async with reading(engine, request) as task:
        await turnstile.wait_for_pass()
        (ticket,) = engine._live
        assert (ticket.num_tokens, ticket.num_remaining, ticket.stage) == (3, 7, "prefill")
        turnstile.open()
        with pytest.raises(AssertionError):  # `read` counts what came, which is not all
            await task
    engine.close()
    with pytest.raises(PartUnavailable):
        await read(engine.stream(request))
