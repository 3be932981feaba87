"""What happens to a request that is cancelled, late, refused or broken, and that its neighbours notice nothing."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from generator.letters import (
    WAIT_S,
    EndlessPrompts,
    LetterEncoder,
    Turnstile,
    WatchedLanguage,
    ask,
    features_of,
    mixed_requests,
    picture,
    read,
    reading,
    to_ids,
    until,
    user,
)

from deployments.errors import (
    DeadlineExceeded,
    ImageNotFound,
    InvalidRequest,
    Overloaded,
    PartUnavailable,
    PromptTooLong,
    RetinaError,
)
from deployments.types import EncodeRequest, GenerateRequest, ImageFeatures

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.torch
Reference = Callable[[GenerateRequest], list[int]]


@pytest.fixture
def turnstile(language: WatchedLanguage) -> Turnstile:
    language.hook = Turnstile()
    return language.hook


async def cancelled(engine: Any) -> dict[str, float]:
    metrics = (await engine.statistics())["metrics"]
    prefix = "generator_cancelled."
    return {name.removeprefix(prefix): count for name, count in metrics.items() if name.startswith(prefix)}


# --------------------------------------------------------------------------------- cancel


async def test_cancel_while_decoding_frees_the_slot_within_a_step(
    open_test_engine: Any, turnstile: Turnstile, language: WatchedLanguage
) -> None:
    engine = open_test_engine(prompts=EndlessPrompts())
    stream, other = (engine.stream(ask(text, max_new_tokens=300)) for text in ("abc", "xyz"))
    turnstile.let_one_through()
    await anext(stream)
    first = asyncio.create_task(anext(other))
    await until(lambda: len(engine._worker.sequences()) == 2)
    for _ in range(3):  # the pass that is under way; then the other's prefill, and a decode beside it
        turnstile.let_one_through()
    await first
    await until(lambda: language.passes[-1] == (2, 1))
    await stream.aclose()  # a pass of both is under way
    num_passes = len(language.passes)
    turnstile.open()
    await anext(other)
    await until(lambda: len(language.passes) > num_passes)
    assert {batch for batch, _ in language.passes[num_passes:]} == {1}, "the very next step computes without it"
    assert (await engine.statistics())["free_slots"] == 3
    assert await cancelled(engine) == {"decode": 1}
    await other.aclose()


async def test_cancel_while_waiting(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine(num_slots=1, prompts=EndlessPrompts())
    async with reading(engine, ask("abc", max_new_tokens=9)) as running, reading(engine, ask("x")) as waiting:
        await turnstile.wait_for_pass()
        await until(lambda: engine._worker.sequences()[1:])
        assert (await engine.statistics())["waiting"] == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await cancelled(engine) == {"waiting": 1}
        turnstile.open()
        assert len((await running).text) == 9


async def test_cancel_while_encoding_cancels_the_pull(open_test_engine: Any) -> None:
    encoder = LetterEncoder(gate=asyncio.Event())
    engine = open_test_engine(encoder=encoder)
    async with reading(engine, ask(user(picture("cat", 3), picture("dog", 3)))) as task:
        await until(lambda: encoder.num_waiting == 2)
        [shown] = (await engine.statistics())["running"]
        assert shown["stage"] == "encode"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: encoder.num_cancelled == 2)
    assert await cancelled(engine) == {"encode": 1}


async def test_cancel_in_the_middle_of_prefill(
    open_test_engine: Any, turnstile: Turnstile, language: WatchedLanguage
) -> None:
    engine = open_test_engine(prefill_chunk_tokens=16)
    async with reading(engine, ask("a" * 100)) as task:
        await turnstile.wait_for_pass()
        turnstile.let_one_through()
        await turnstile.wait_for_pass()
        assert (await engine.statistics())["running"][0]["stage"] == "prefill"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        turnstile.open()
    assert await asyncio.to_thread(engine.wait_idle, WAIT_S)
    assert language.passes == [(1, 16)] * 2
    assert await cancelled(engine) == {"prefill": 1}


async def test_a_stream_that_was_never_read_costs_nothing(open_test_engine: Any) -> None:
    engine = open_test_engine()
    stream = engine.stream(ask("hi"))
    assert (await engine.statistics())["running"] == []
    await stream.aclose()


async def test_closing_after_the_last_chunk_is_no_cancel(open_test_engine: Any) -> None:
    engine = open_test_engine()
    stream = engine.stream(ask("hi", max_new_tokens=1))
    assert (await anext(stream)).finish_reason == "length"
    await stream.aclose()
    assert await cancelled(engine) == {}


def test_when_the_event_loop_is_gone_its_requests_are_too(
    open_test_engine: Any, turnstile: Turnstile, language: WatchedLanguage
) -> None:
    engine = open_test_engine(prompts=EndlessPrompts())
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        stream = engine.stream(ask("abc", max_new_tokens=300))
        task = asyncio.create_task(anext(stream))
        turnstile.let_one_through()
        await task
        abandoned.append(stream)  # not closed, as when a program just stops

    abandoned: list[Any] = []
    loop.run_until_complete(begin())
    loop.close()
    turnstile.open()
    assert engine.wait_idle(WAIT_S)
    assert len(language.passes) <= 3
    assert len(asyncio.run(read(engine.stream(ask("xyz", max_new_tokens=5)))).text) == 5


# --------------------------------------------------------------------------------- deadlines


async def test_deadline_while_waiting(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine(num_slots=1)
    async with reading(engine, ask("abc", max_new_tokens=3)) as running:
        await turnstile.wait_for_pass()
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s \(stage waiting\)"):
            await read(engine.stream(ask("late", timeout_s=0.05)))
        turnstile.open()
        assert await running


async def test_deadline_while_encoding(open_test_engine: Any) -> None:
    encoder = LetterEncoder(gate=asyncio.Event())
    engine = open_test_engine(encoder=encoder)
    with pytest.raises(DeadlineExceeded, match="stage encode"):
        await read(engine.stream(ask(user(picture("cat", 3)), timeout_s=0.05)))
    await until(lambda: encoder.num_cancelled == 1)
    assert encoder.requests[0].timeout_s <= 0.05


async def test_deadline_while_decoding_even_if_nobody_reads(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine(prompts=EndlessPrompts())
    stream = engine.stream(ask("abc", max_new_tokens=300, timeout_s=0.5))
    turnstile.let_one_through()
    first = await anext(stream)
    assert first.num_tokens == 1
    await until(lambda: not engine._live)  # the reader does not come back, its time is over all the same
    turnstile.open()
    assert await asyncio.to_thread(engine.wait_idle, WAIT_S)
    with pytest.raises(DeadlineExceeded, match="stage decode"):
        await read(stream)
    assert (await engine.statistics())["metrics"]["generator_requests.deadline"] == 1


async def test_the_engines_own_limit_caps_the_requests(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine(max_timeout_s=0.05)
    with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
        await read(engine.stream(ask("abc", timeout_s=1000)))
    turnstile.open()


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
async def test_a_request_without_time_left_is_not_begun(open_test_engine: Any, timeout_s: float) -> None:
    engine = open_test_engine()
    with pytest.raises(DeadlineExceeded, match="was over"):
        await read(engine.stream(ask("abc", timeout_s=timeout_s)))


# --------------------------------------------------------------------------------- refusals


async def test_more_than_slots_and_queue_is_overload(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine(num_slots=2, max_waiting_requests=3)
    tasks = [asyncio.create_task(read(engine.stream(ask("abc", max_new_tokens=4)))) for _ in range(5)]
    await until(lambda: len(engine._live) == 5)
    with pytest.raises(Overloaded, match="2 requests running and 3 waiting") as caught:
        await read(engine.stream(ask("abc")))
    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 120
    turnstile.open()
    await asyncio.gather(*tasks)
    assert await read(engine.stream(ask("abc")))
    assert (await engine.statistics())["metrics"]["generator_requests.rejected"] == 1


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_first_come_first_served(open_test_engine: Any, turnstile: Turnstile, mode: str) -> None:
    """Also when the picture of the first takes longer than the prompt of the second."""
    encoder = LetterEncoder(gate=asyncio.Event())
    engine = open_test_engine(num_slots=1, encoder=encoder, mode=mode)
    order: list[str] = []

    async def note(request: GenerateRequest) -> None:
        await read(engine.stream(request))
        order.append(request.request_id)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(note(ask("abc", max_new_tokens=3, request_id="running")))
        await turnstile.wait_for_pass()
        tasks.create_task(note(ask(user(picture("cat", 3)), max_new_tokens=3, request_id="first")))
        await until(lambda: encoder.num_waiting)
        tasks.create_task(note(ask("xyz", max_new_tokens=3, request_id="second")))
        await until(lambda: len(engine._worker.sequences()) == 2)
        encoder.gate.set()
        await until(lambda: len(engine._worker.sequences()) == 3)
        turnstile.open()
    assert order == ["running", "first", "second"]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ask("abc", temperature=-1.0), InvalidRequest),
        (ask("abc", max_new_tokens=513), InvalidRequest),
        (ask("z" * 400), PromptTooLong),
    ],
)
async def test_refusals_are_counted(open_test_engine: Any, request_: GenerateRequest, error: type[Exception]) -> None:
    engine = open_test_engine()
    with pytest.raises(error):
        await read(engine.stream(request_))
    assert (await engine.statistics())["metrics"] == {"generator_requests.rejected": 1}


# --------------------------------------------------------------------------------- faults


async def test_what_the_encoder_raises_reaches_the_client(open_test_engine: Any) -> None:
    encoder = LetterEncoder(failures={"gone": ImageNotFound("no such picture")})
    engine = open_test_engine(encoder=encoder)
    with pytest.raises(ImageNotFound):
        await read(engine.stream(ask(user(picture("gone", 3), picture("cat", 3)))))
    assert await read(engine.stream(ask(user(picture("cat", 3)))))


async def test_an_unknown_fault_before_computing_is_logged_not_shown(
    open_test_engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = LetterEncoder(failures={"cat": ZeroDivisionError("secret detail")})
    engine = open_test_engine(encoder=encoder)
    with pytest.raises(RetinaError, match="its log says why") as caught:
        await read(engine.stream(ask(user(picture("cat", 3)), request_id="the-id")))
    assert "secret" not in str(caught.value)
    assert "secret detail" in caplog.text
    assert "the-id" in caplog.text


@pytest.mark.parametrize("shape", [(5, 64), (4, 63)])
async def test_features_of_a_wrong_shape_fail_their_request_alone(
    open_test_engine: Any, reference: Reference, shape: tuple[int, int]
) -> None:
    wrong = ImageFeatures(np.zeros(shape, np.float32), "float32", "tower", 0)
    engine = open_test_engine(encoder=LetterEncoder(answers={"bad": wrong}))
    good = mixed_requests()[1]
    async with reading(engine, good) as neighbour:
        with pytest.raises(PartUnavailable, match="must run the same checkpoint"):
            await read(engine.stream(ask(user(picture("bad", 4)))))
        assert to_ids((await neighbour).text) == reference(good)


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_features_that_are_no_numbers_fail_their_request_alone(
    open_test_engine: Any, reference: Reference, mode: str
) -> None:
    """Neither a neighbour in the batch nor the next one in the same slot gets anything of it."""
    poison = ImageFeatures(np.full((4, 64), np.nan, np.float32), "float32", "tower", 0)
    engine = open_test_engine(encoder=LetterEncoder(answers={"bad": poison}), num_slots=2, mode=mode)
    good = mixed_requests()
    async with reading(engine, good[1]) as neighbour:
        with pytest.raises(RetinaError, match="not finite"):
            await read(engine.stream(ask("long enough to use many positions", user(picture("bad", 4)))))
        assert to_ids((await neighbour).text) == reference(good[1])
    answers = await asyncio.gather(*(read(engine.stream(request)) for request in good[:4]))
    assert [to_ids(answer.text) for answer in answers] == [reference(request) for request in good[:4]]


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_a_fault_in_prefill_fails_that_request_alone(
    open_test_engine: Any, reference: Reference, language: WatchedLanguage, mode: str
) -> None:
    def break_prompts_of_31(embeddings: torch.Tensor) -> None:
        if embeddings.shape[1] == 31:
            raise RuntimeError("out of luck")

    language.hook = break_prompts_of_31
    engine = open_test_engine(mode=mode)
    good = mixed_requests()[3]
    async with reading(engine, good) as neighbour:
        with pytest.raises(RetinaError, match="engine failed"):
            await read(engine.stream(ask("z" * 30)))
        assert to_ids((await neighbour).text) == reference(good)
    assert (await engine.statistics())["metrics"]["generator_requests.failed"] == 1


async def test_a_fault_in_decode_fails_the_batch_and_the_engine_goes_on(
    open_test_engine: Any, reference: Reference, language: WatchedLanguage
) -> None:
    def break_pairs(embeddings: torch.Tensor) -> None:
        if embeddings.shape[:2] == (2, 1):
            raise RuntimeError("out of luck")

    language.hook = break_pairs
    engine = open_test_engine(prompts=EndlessPrompts())
    pair = (read(engine.stream(ask(text, max_new_tokens=50))) for text in ("abc", "xyz"))
    results = await asyncio.gather(*pair, return_exceptions=True)
    assert [type(result) for result in results] == [RetinaError] * 2
    assert await asyncio.to_thread(engine.wait_idle, WAIT_S)
    assert engine.check() == ()
    assert await read(engine.stream(ask("abc", max_new_tokens=5)))


async def test_a_fault_in_decoding_text_fails_that_request_alone(open_test_engine: Any) -> None:
    class Fragile(EndlessPrompts):
        def decode(self, token_ids: Any) -> str:
            if threading.current_thread() is not threading.main_thread() and token_ids[0] == broken_id:
                raise ValueError("no such token")
            return super().decode(token_ids)

    broken_id = -1
    engine = open_test_engine(prompts=Fragile())
    requests = [ask(text, max_new_tokens=12) for text in ("abc", "xyz")]
    whole = [await read(engine.stream(request)) for request in requests]
    broken_id = to_ids(whole[0].text)[0]
    assert broken_id != to_ids(whole[1].text)[0]
    first, second = await asyncio.gather(*(read(engine.stream(r)) for r in requests), return_exceptions=True)
    assert type(first) is RetinaError
    assert isinstance(second, type(whole[1]))
    assert second.text == whole[1].text


async def test_read_only_and_bfloat16_features_are_taken(open_test_engine: Any, reference: Reference) -> None:
    """As they come out of shared memory: not writable, bfloat16 as uint16 bits."""
    request = ask(user(picture("cat", 16), "?"), max_new_tokens=20)
    exact = features_of(picture("cat", 16))
    exact.flags.writeable = False
    engine = open_test_engine(encoder=LetterEncoder(answers={"cat": ImageFeatures(exact, "float32", "memory", 0)}))
    assert to_ids((await read(engine.stream(request))).text) == reference(request)

    bits = (exact.view(np.uint32) >> 16).astype(np.uint16)
    bits.flags.writeable = False
    rounded = (bits.astype(np.uint32) << 16).view(np.float32)
    texts = []
    for features in (ImageFeatures(bits, "bfloat16", "disk", 0), ImageFeatures(rounded, "float32", "disk", 0)):
        engine = open_test_engine(encoder=LetterEncoder(answers={"cat": features}))
        texts.append((await read(engine.stream(request))).text)
    assert texts[0] == texts[1]


# --------------------------------------------------------------------------------- the end


async def test_closing_fails_open_streams_and_later_ones(open_test_engine: Any, turnstile: Turnstile) -> None:
    encoder = LetterEncoder(gate=asyncio.Event())
    engine = open_test_engine(encoder=encoder, num_slots=1, prompts=EndlessPrompts())
    requests = [ask("abc"), ask("waits"), ask(user(picture("cat", 3)))]
    tasks = [asyncio.create_task(read(engine.stream(request))) for request in requests]
    await turnstile.wait_for_pass()
    await until(lambda: encoder.num_waiting)
    turnstile.open()
    await asyncio.to_thread(engine.close)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [PartUnavailable] * 3
    with pytest.raises(PartUnavailable, match="was closed"):
        await read(engine.stream(ask("abc")))
    engine.close()


async def test_a_fault_of_the_thread_itself_is_told_to_everyone(
    open_test_engine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_test_engine()
    with monkeypatch.context() as patch:
        patch.setattr("deployments.generator.runner.plan_step", lambda *args: 1 / 0)
        with pytest.raises(PartUnavailable, match="internal fault"):
            await read(engine.stream(ask("abc")))
    with pytest.raises(PartUnavailable, match="internal fault"):
        await read(engine.stream(ask("abc")))
    assert "ZeroDivisionError" in caplog.text
    assert engine.closing is not None


async def test_an_idle_engine_sleeps(open_test_engine: Any) -> None:
    engine = open_test_engine()
    await read(engine.stream(ask("abc")))
    assert engine.wait_idle(WAIT_S)
    clock = time.pthread_getcpuclockid(engine._worker._thread.ident)
    before = time.clock_gettime(clock)
    await asyncio.sleep(0.2)  # the time in which a busy thread would show
    assert time.clock_gettime(clock) - before < 0.01


async def test_nothing_outlives_its_request(open_test_engine: Any) -> None:
    from deployments.generator.ticket import Ticket

    arrays: list[weakref.ref[np.ndarray]] = []

    class Noted(LetterEncoder):
        async def encode(self, request: EncodeRequest) -> ImageFeatures:
            features = ImageFeatures(features_of(request.image), "float32", "tower", 0)
            arrays.append(weakref.ref(features.array))
            return features

    engine = open_test_engine(encoder=Noted())
    await asyncio.gather(*(read(engine.stream(request)) for request in mixed_requests(6)))
    gc.collect()
    assert len(arrays) == 7
    assert [array() for array in arrays] == [None] * 7
    tickets = [item for item in gc.get_objects() if type(item) is Ticket]
    assert tickets == [], "held by a timer?"


async def test_check_sees_what_is_left_behind(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine()
    async with reading(engine, ask("abc", request_id="left", max_new_tokens=2)) as task:
        await turnstile.wait_for_pass()
        assert engine.check() == ("request left is still live", "sequence left is still in the worker")
        turnstile.open()
        await task
    engine._worker.runner._cache.slot_layers[1].values[2, 0, 7] = 1
    assert engine.check() == ("KV slots [2] are not clear",)
    engine._worker.runner._cache.clear(2, 8)
