"""Answers with rules (found points and boxes, thoughts, banned tokens) ride in the same batch as plain ones.

All are held against plain loops over transformers' model.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from generator.letters import (
    WAIT_S,
    Answer,
    EndlessPrompts,
    LetterPrompts,
    Turnstile,
    WatchedLanguage,
    ask,
    ask_task,
    mixed_requests,
    picture,
    read,
    reading,
    to_ids,
    until,
)

from deployments.errors import DeadlineExceeded, InvalidRequest, RetinaError
from deployments.models.family import Prompt, Ruling
from deployments.types import Chunk, DetectTask, GenerateRequest, Point, QueryTask, Task

if TYPE_CHECKING:
    import torch
    from generator.toy_rules import Expected

pytestmark = pytest.mark.torch
Reference = Callable[[GenerateRequest], list[int]]
FollowRules = Callable[..., "Expected"]


@pytest.fixture
def language(llama: Any) -> WatchedLanguage:
    from generator.toy_rules import RuledLanguage

    return WatchedLanguage(RuledLanguage(llama))


@pytest.fixture(scope="module")
def follow(llama: Any) -> Iterator[FollowRules]:
    import torch
    from generator.toy_rules import follow_rules

    def follow(request: GenerateRequest, max_steps: int = 1000) -> Expected:
        prompt = LetterPrompts().build(request.messages, request.task)
        with torch.inference_mode():
            return follow_rules(llama, request, prompt, max_steps)

    return follow


def ruled_requests(max_new_tokens: int = 24) -> list[GenerateRequest]:
    """Found things and thoughts, with and without picture, one without rules among them."""
    tasks: list[Task] = [
        DetectTask("star", 3),
        DetectTask("moon", 7),
        QueryTask("why?", reasoning=True),
        DetectTask("sun", 1),
        QueryTask("who is this?", reasoning=True),
        QueryTask("what?"),
        QueryTask("how did it come to this?", reasoning=True),
        DetectTask("owl"),
    ]
    images = [picture("cat", 5), picture("dog", 16), picture("owl", 33)]
    return [
        ask_task(task, *images[number % 4 : number % 4 + 1], request_id=f"t{number}", max_new_tokens=max_new_tokens)
        for number, task in enumerate(tasks)
    ]


def check(answer: Answer, expected: Expected) -> None:
    assert to_ids(answer.text) == expected.answer
    assert to_ids(answer.thought) == expected.thought
    assert list(answer.found) == expected.found
    assert list(answer.last.grounding) == expected.grounding
    assert answer.last.usage.completion_tokens == expected.num_chosen  # type: ignore[union-attr]
    assert answer.last.finish_reason == ("stop" if expected.is_last else "length")


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_each_alone(open_test_engine: Any, follow: FollowRules, reference: Reference, mode: str) -> None:
    engine = open_test_engine(mode=mode)
    for request in ruled_requests():
        answer = await read(engine.stream(request))
        if request.task == QueryTask("what?"):
            assert to_ids(answer.text) == reference(request)
        else:
            check(answer, follow(request))


async def test_the_requests_use_all_that_rules_may_do(follow: FollowRules) -> None:
    """Or the tests here would show less than they say."""
    made = [follow(request) for request in ruled_requests() if request.task != QueryTask("what?")]
    assert {expected.is_last for expected in made} == {True, False}
    assert {type(item).__name__ for expected in made for item in expected.found} == {"Point", "Box"}
    assert sum(len(expected.thought) > 20 and len(expected.grounding) >= 2 for expected in made) == 3
    assert len({tuple(expected.answer) for expected in made}) == len(made)
    assert any(len(expected.answer) < expected.num_chosen / 2 for expected in made)


@pytest.mark.parametrize(("mode", "num_slots", "chunk"), [("batch", 16, 64), ("batch", 5, 17), ("simple", 1, 64)])
async def test_among_plain_ones(
    open_test_engine: Any, follow: FollowRules, reference: Reference, mode: str, num_slots: int, chunk: int
) -> None:
    engine = open_test_engine(mode=mode, num_slots=num_slots, prefill_chunk_tokens=chunk)
    requests = ruled_requests() + mixed_requests()
    random.Random(num_slots).shuffle(requests)
    answers = await asyncio.gather(*(read(engine.stream(request)) for request in requests))
    for request, answer in zip(requests, answers, strict=True):
        if request.task is None or request.task == QueryTask("what?"):
            assert to_ids(answer.text) == reference(request)
            assert (answer.found, answer.thought, answer.last.grounding) == ((), "", ())
        else:
            check(answer, follow(request))


@pytest.mark.parametrize("seed", range(3))
async def test_joins_and_leaves_at_random(
    open_test_engine: Any, follow: FollowRules, reference: Reference, language: WatchedLanguage, seed: int
) -> None:
    engine = open_test_engine(num_slots=4, prefill_chunk_tokens=16 + 20 * seed)
    chance = random.Random(seed)
    requests = ruled_requests(30) + mixed_requests(30)[:6]
    chance.shuffle(requests)
    tasks = []
    for request in requests:
        leaver = engine.stream(chance.choice(requests))
        tasks.append(asyncio.create_task(read(engine.stream(request))))
        for _ in range(chance.randrange(1, 5)):
            if (await anext(leaver)).finish_reason is not None:
                break
        await leaver.aclose()
    answers = await asyncio.gather(*tasks)
    for request, answer in zip(requests, answers, strict=True):
        if request.task is None or request.task == QueryTask("what?"):
            assert to_ids(answer.text) == reference(request)
        else:
            check(answer, follow(request))
    assert max(each.num_decodes for each in language.passes) == 4, "the batch should have been full at times"


async def test_what_is_found_goes_out_at_once_one_by_one(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine()
    stream = engine.stream(ask_task(DetectTask("star", 2), max_new_tokens=24))
    chunks: list[Chunk] = []
    for _ in range(6):  # two letters and a point, two letters and a box: a chunk after every pass
        turnstile.let_one_through()
        chunks.append(await anext(stream))
    turnstile.open()
    chunks += [chunk async for chunk in stream]
    assert [len(chunk.text) for chunk in chunks] == [1, 1, 0, 1, 1, 0, 0]
    assert [len(chunk.found) for chunk in chunks] == [0, 0, 1, 0, 0, 1, 0]
    assert [chunk.num_tokens for chunk in chunks] == [1] * 6 + [0]


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_a_slow_reader_loses_nothing_and_holds_nothing(
    open_test_engine: Any, follow: FollowRules, mode: str
) -> None:
    engine = open_test_engine(mode=mode)
    for request in ruled_requests():
        stream = engine.stream(request)
        chunks = [await anext(stream)]
        assert await asyncio.to_thread(engine.wait_idle, WAIT_S)
        [ticket] = engine._live
        assert (ticket.sequence.rules, ticket.sequence.next_embedding) == (None, None), "of the device"
        chunks += [chunk async for chunk in stream]
        assert len(chunks) <= 2
        if request.task != QueryTask("what?"):
            check(Answer("".join(chunk.text for chunk in chunks), chunks), follow(request))


async def test_the_context_is_the_end_of_every_answer(open_test_engine: Any, follow: FollowRules) -> None:
    """Thoughts and silent steps take positions too."""
    for mode in ("batch", "simple"):
        engine = open_test_engine(max_context_tokens=64, mode=mode)
        for task in (DetectTask("star" * 7, 50), QueryTask("why?" * 7, reasoning=True)):
            answer = await read(engine.stream(ask_task(task, max_new_tokens=30)))
            assert answer.last.usage.prompt_tokens == 29
            check(answer, follow(ask_task(task, max_new_tokens=30), max_steps=64 - 29))
            assert answer.last.usage.completion_tokens == 64 - 29
            assert answer.last.finish_reason == "length"


async def test_stop_strings_are_about_the_answer_not_the_thoughts(open_test_engine: Any) -> None:
    engine = open_test_engine()
    task = QueryTask("why?", reasoning=True)
    whole = await read(engine.stream(ask_task(task, max_new_tokens=24)))
    thought = await read(engine.stream(ask_task(task, max_new_tokens=24, stop=(whole.thought[4:7],))))
    assert (thought.text, thought.thought) == (whole.text, whole.thought)
    answer = await read(engine.stream(ask_task(task, max_new_tokens=24, stop=(whole.text[2:4],))))
    assert (answer.text, answer.last.finish_reason) == (whole.text[: whole.text.index(whole.text[2:4])], "stop")


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_cancel_in_the_middle(open_test_engine: Any, follow: FollowRules, mode: str) -> None:
    """Found points and thoughts are left behind; whoever comes next into their slots notices nothing."""
    engine = open_test_engine(mode=mode, num_slots=2)
    request = ruled_requests()[4]
    async with reading(engine, request) as neighbour:
        for task in (DetectTask("moon", 50), QueryTask("why?", reasoning=True)):
            stream = engine.stream(ask_task(task, max_new_tokens=100))
            for _ in range(4):
                await anext(stream)
            await stream.aclose()
        check(await neighbour, follow(request))
    check(await read(engine.stream(request)), follow(request))


@pytest.mark.parametrize("task", [DetectTask("moon", 50), QueryTask("why?", reasoning=True)])
async def test_deadline_in_the_middle(
    open_test_engine: Any, turnstile: Turnstile, follow: FollowRules, task: Task
) -> None:
    engine = open_test_engine(num_slots=2)
    stream = engine.stream(replace(ask_task(task, max_new_tokens=100), timeout_s=0.5))
    for _ in range(4):
        turnstile.let_one_through()
        await anext(stream)
    await until(lambda: not engine._live)
    turnstile.open()
    with pytest.raises(DeadlineExceeded, match="stage decode"):
        await read(stream)
    request = ruled_requests()[4]
    check(await read(engine.stream(request)), follow(request))


async def test_a_seed_draws_the_same_in_any_company(open_test_engine: Any) -> None:
    fast, slow = open_test_engine(num_slots=8), open_test_engine(mode="simple")
    thinking = QueryTask("why?", reasoning=True)
    requests = [ask_task(thinking, temperature=1.2, seed=seed, max_new_tokens=24) for seed in (4, 5)]
    plain = [ask(f"say {seed}", temperature=1.3, seed=seed, max_new_tokens=30) for seed in range(4)]
    together = await asyncio.gather(*(read(fast.stream(request)) for request in [*plain, *requests]))
    for request, answer in zip([*plain, *requests], together, strict=True):
        alone = await read(slow.stream(request))
        assert (alone.text, alone.thought, alone.found) == (answer.text, answer.thought, answer.found)


# --------------------------------------------------------------------------------- faults


class Faulty:
    """Rules that break after some steps, in one of the ways they can."""

    def __init__(self, way: str) -> None:
        self._way = way
        self._num_steps = 0

    def banned_token_ids(self) -> list[int]:
        if self._num_steps == 3 and self._way == "no list":
            raise ZeroDivisionError("a fault of its own")
        return [10**6] if self._num_steps == 3 and self._way == "no such token" else []

    def accept(self, token_id: int, hidden: torch.Tensor) -> Ruling:
        self._num_steps += 1
        if self._num_steps == 3:
            if self._way == "no ruling":
                raise ZeroDivisionError("a fault of its own")
            if self._way == "nothing next":
                return Ruling()
            if self._way == "too wide":
                return Ruling(embedding=hidden.repeat(2))
            if self._way == "no numbers":
                return Ruling(embedding=hidden * float("nan"))
        return Ruling(token_id=token_id)


@pytest.mark.parametrize("way", ["no list", "no such token", "no ruling", "nothing next", "too wide", "no numbers"])
@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_a_fault_in_rules_is_that_requests_own(
    open_test_engine: Any, language: WatchedLanguage, reference: Reference, mode: str, way: str
) -> None:
    inner, language.inner = language.inner, _with_rules(language.inner, Faulty, way)
    engine = open_test_engine(mode=mode, prompts=EndlessPrompts())
    good = ask("abc", max_new_tokens=150)
    async with reading(engine, good) as neighbour:
        await until(engine._worker.sequences)
        with pytest.raises(RetinaError, match=r"engine failed|not finite"):
            await read(engine.stream(ask_task(DetectTask("star"))))
        await neighbour
    alone = await read(engine.stream(good))
    assert neighbour.result().text == alone.text
    language.inner = inner


async def test_rules_that_cannot_be_opened_fail_their_request(open_test_engine: Any, language: WatchedLanguage) -> None:
    def refuse() -> Any:
        raise InvalidRequest("no such thing here", "object")

    language.inner = _with_rules(language.inner, refuse)
    engine = open_test_engine()
    with pytest.raises(InvalidRequest, match="no such thing here"):
        await read(engine.stream(ask_task(DetectTask("star"))))
    assert (await read(engine.stream(ask("hi", max_new_tokens=5)))).text


def _with_rules(inner: Any, make: Callable[..., Any], *args: Any) -> Any:
    class Other:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def open_rules(self, prompt: Prompt, max_new_tokens: int) -> Any:
            return make(*args) if prompt.task is not None else None

    return Other()


# --------------------------------------------------------------------------------- tasks before they are computed


async def test_a_task_that_the_model_lacks_reaches_the_client_as_such(open_test_engine: Any) -> None:
    class NoDetect(LetterPrompts):
        def build(self, messages: Any, task: Task | None = None) -> Prompt:
            if task is not None:
                raise InvalidRequest("this model has no skill 'detect'; it has caption", "task")
            return super().build(messages)

    engine = open_test_engine(prompts=NoDetect())
    with pytest.raises(InvalidRequest, match="it has caption") as caught:
        await read(engine.stream(ask_task(DetectTask("star"))))
    assert (caught.value.status, caught.value.param) == (400, "task")
    assert (await engine.statistics())["metrics"]["generator_requests.rejected"] == 1


async def test_a_task_is_never_shortened(open_test_engine: Any) -> None:
    engine = open_test_engine(max_context_tokens=64)
    with pytest.raises(InvalidRequest, match=r"^the prompt has 71 tokens .*context of 64") as caught:
        await read(engine.stream(ask_task(DetectTask("x" * 70))))
    assert caught.value.code == "prompt_too_long"


async def test_points_are_found_in_a_statistics_row(open_test_engine: Any, turnstile: Turnstile) -> None:
    """A step that gives no text still counts as a token, and a request with more steps than tokens shows no debt."""
    engine = open_test_engine()
    stream = engine.stream(ask_task(DetectTask("star", 4), max_new_tokens=1_0))
    chunks = []
    for _ in range(12):
        turnstile.let_one_through()
        chunks.append(await anext(stream))
    [shown] = (await engine.statistics())["running"]
    assert shown["tokens"] == 12
    assert isinstance(chunks[2].found[0], Point)
    [ticket] = engine._live
    assert ticket.num_remaining == 0
    turnstile.open()
    rest = [chunk async for chunk in stream]
    assert rest[-1].usage is not None
    await until(lambda: not engine._live)
    metrics = (await engine.statistics())["metrics"]
    assert metrics["generator_completion_tokens"] == rest[-1].usage.completion_tokens
