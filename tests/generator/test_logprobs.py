"""Log probabilities: the model's own, one for each token of the answer, whatever the neighbours ask for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from generator.letters import Answer, LetterPrompts, ask, mixed_requests, read, to_ids

from deployments.generator.answer_text import AnswerText
from deployments.types import GenerateRequest, TokenLogprob

torch_only = pytest.mark.torch


def logprobs_of(answer: Answer) -> tuple[TokenLogprob, ...]:
    return tuple(each for chunk in answer.chunks for each in chunk.logprobs)


@torch_only
@pytest.mark.parametrize("wished", [[None, None], [0, None], [2, 0, None, 5], [20] * 3])
def test_rows_are_scored_as_they_wish(wished: list[int | None]) -> None:
    import torch

    from deployments.generator.logprobs import read as read_scores
    from deployments.generator.logprobs import score

    logits = torch.randn(len(wished), 7, generator=torch.Generator().manual_seed(1)) * 3
    expected = logits.log_softmax(dim=-1)
    scored = score(logits, wished)
    logits.fill_(0)  # what happens to them later plays no part
    ids = torch.arange(len(wished))
    ids[-1] = -1  # no token
    chosen, scores = read_scores(ids, scored)
    assert chosen == ids.tolist()
    assert list(scores) == [row for row, number in enumerate(wished) if number is not None]
    for row, each in scores.items():
        best = expected[row].sort(descending=True)
        number = min(wished[row] or 0, 7)
        assert [token_id for token_id, _ in each.top] == best.indices[:number].tolist()
        assert [logprob for _, logprob in each.top] == pytest.approx(best.values[:number].tolist(), abs=1e-5)
        assert each.chosen == pytest.approx(expected[row, max(chosen[row], 0)].item(), abs=1e-5)


@torch_only
def test_large_ids_survive_the_one_transfer() -> None:
    import torch

    from deployments.generator.logprobs import read as read_scores
    from deployments.generator.logprobs import score

    logits = torch.zeros(1, 300_001)
    logits[0, 299_999] = 20.0
    chosen, scores = read_scores(torch.tensor([300_000]), score(logits, [1]))
    assert chosen == [300_000]
    assert scores[0].top[0][0] == 299_999


# --------------------------------------------------------------------------------- in the engine


def expected_logprobs(llama: Any, request: GenerateRequest, answer: list[int]) -> Any:
    """(num_tokens, vocab_size) of a forward pass over the whole text."""
    import torch

    prompt = LetterPrompts().build(request.messages).token_ids
    with torch.inference_mode():
        logits = llama(torch.tensor([[*prompt, *answer]])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(dim=-1)


WISHES: list[dict[str, Any]] = [
    {"num_logprobs": 3},
    {},
    {"num_logprobs": 0, "temperature": 1.5, "top_p": 0.9, "seed": 3},
    {"num_logprobs": 20, "presence_penalty": 2.0, "repetition_penalty": 1.3},
    {"num_logprobs": 1, "temperature": 0.8, "min_p": 0.1, "frequency_penalty": 1.0, "seed": 4},
]


@torch_only
@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_log_probabilities_equal_a_whole_pass(open_test_engine: Any, llama: Any, mode: str) -> None:
    engine = open_test_engine(mode=mode, num_slots=5)
    words = ["say it", "the quick brown fox", "why", "x", "tell me more"]
    requests = [ask(word, max_new_tokens=15, **wish) for word, wish in zip(words, WISHES, strict=True)]
    answers = await asyncio.gather(*(read(engine.stream(request)) for request in requests))
    for request, answer in zip(requests, answers, strict=True):
        ids, logprobs = to_ids(answer.text), logprobs_of(answer)
        if request.sampling.num_logprobs is None:
            assert logprobs == ()
            continue
        assert [each.chosen.token_id for each in logprobs] == ids
        assert all(len(chunk.logprobs) == chunk.num_tokens for chunk in answer.chunks)
        rows = expected_logprobs(llama, request, ids)
        for each, row in zip(logprobs, rows, strict=True):
            assert each.chosen.logprob == pytest.approx(row[each.chosen.token_id].item(), abs=1e-4)
            best = row.topk(request.sampling.num_logprobs)
            assert [top.token_id for top in each.top] == best.indices.tolist()
            assert [top.logprob for top in each.top] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert all(to_ids(one.text) == [one.token_id] for one in (each.chosen, *each.top))


@torch_only
async def test_asking_changes_no_answer(open_test_engine: Any) -> None:
    engine = open_test_engine(num_slots=8)
    plain = await asyncio.gather(*(read(engine.stream(request)) for request in mixed_requests()))
    asking = [replace(each, sampling=replace(each.sampling, num_logprobs=2)) for each in mixed_requests()]
    answers = await asyncio.gather(*(read(engine.stream(request)) for request in asking))
    assert [answer.text for answer in answers] == [answer.text for answer in plain]
    assert any(answer.last.finish_reason == "stop" for answer in answers), "a stop token is none of the answer's"
    for answer in answers:
        assert [each.chosen.token_id for each in logprobs_of(answer)] == to_ids(answer.text)


@torch_only
async def test_a_slow_reader_loses_none(open_test_engine: Any) -> None:
    engine = open_test_engine()
    stream = engine.stream(ask("hi", max_new_tokens=24, num_logprobs=1))
    first = await anext(stream)
    assert await asyncio.to_thread(engine.wait_idle, 20)
    [rest] = [chunk async for chunk in stream]
    ids = to_ids(first.text + rest.text)
    assert [each.chosen.token_id for each in first.logprobs + rest.logprobs] == ids


@torch_only
async def test_text_that_is_held_back_or_cut_off_keeps_its_log_probabilities(open_test_engine: Any) -> None:
    engine = open_test_engine()
    whole = await read(engine.stream(ask("hi", max_new_tokens=24)))
    stop = whole.text[5:8]
    answer = await read(engine.stream(ask("hi", max_new_tokens=24, stop=(stop,), num_logprobs=0)))
    assert answer.text == whole.text[:5]
    assert [each.chosen.token_id for each in logprobs_of(answer)] == to_ids(whole.text[:8])


# --------------------------------------------------------------------------------- texts of tokens


def test_a_tokens_text_is_its_own() -> None:
    words = {0: " It", 1: " is", 2: " ", 3: "", 4: ","}

    def decode(token_ids: Any) -> str:
        return "".join(words[token_id] for token_id in token_ids).removeprefix(" ")

    answer = AnswerText(decode, ())
    assert [answer.text_of(token_id) for token_id in (0, 1, 2, 3, 4, 0)] == [" It", " is", " ", "", ",", " It"]


def test_half_a_character_shows_as_such() -> None:
    answer = AnswerText(lambda token_ids: bytes(token_ids).decode("utf-8", errors="replace"), ())
    assert [answer.text_of(byte) for byte in (0xC3, 0xA9, ord("e"))] == ["\N{REPLACEMENT CHARACTER}"] * 2 + ["e"]
