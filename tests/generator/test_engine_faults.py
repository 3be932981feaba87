"""Requests that break, by their features or in the model: their neighbours notice nothing and the engine goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from generator.letters import (
    WAIT_S,
    EndlessPrompts,
    LetterEncoder,
    LetterPrompts,
    Pass,
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

from deployments.errors import ImageNotFound, PartUnavailable, RetinaError
from deployments.types import GenerateRequest, ImageFeatures

pytestmark = pytest.mark.torch
Reference = Callable[[GenerateRequest], list[int]]


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


def break_if(condition: Callable[[Pass], bool]) -> Callable[[Pass], None]:
    def hook(begun: Pass) -> None:
        if condition(begun):
            raise RuntimeError("out of luck")

    return hook


@pytest.mark.usefixtures("whole_chunks")
@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_a_fault_in_prefill_fails_that_request_alone(
    open_test_engine: Any, reference: Reference, language: WatchedLanguage, mode: str
) -> None:
    """Also when its prompt goes through the model together with the next token of a neighbour."""
    language.hook = break_if(lambda begun: 31 in begun.chunks)
    engine = open_test_engine(mode=mode)
    good = mixed_requests()[3]
    async with reading(engine, good) as neighbour:
        await until(lambda: Pass(1) in language.passes)  # its prompt is done and shares no chunk with the next one
        with pytest.raises(RetinaError, match="engine failed"):
            await read(engine.stream(ask("z" * 30)))
        assert to_ids((await neighbour).text) == reference(good)
    assert (await engine.statistics())["metrics"]["generator_requests.failed"] == 1


@pytest.mark.usefixtures("whole_chunks")
async def test_of_several_prompts_in_one_pass_only_the_faulty_one_fails(
    open_test_engine: Any,
    reference: Reference,
    language: WatchedLanguage,
    turnstile: Turnstile,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = open_test_engine(num_slots=8, prefill_chunk_tokens=200)
    running, good = mixed_requests()[11], mixed_requests()[:3]
    async with reading(engine, running) as neighbour:
        await turnstile.wait_for_pass()
        together = [read(engine.stream(request)) for request in [*good[:2], ask("z" * 30), good[2]]]
        answers = asyncio.gather(*together, return_exceptions=True)
        await until(lambda: len(engine._worker.sequences()) == 5)
        language.hook = break_if(lambda begun: 31 in begun.chunks)
        turnstile.open()
        first, second, bad, last = await answers
        assert to_ids((await neighbour).text) == reference(running)
    assert (type(bad), str(bad)) == (RetinaError, "the engine failed while it computed this request; its log says why")
    assert [to_ids(answer.text) for answer in (first, second, last)] == [reference(request) for request in good]
    lengths = [
        len(LetterPrompts().build(request.messages).token_ids) for request in [*good[:2], ask("z" * 30), good[2]]
    ]
    apart = [Pass(1), *(Pass(0, (length,)) for length in lengths)]
    assert language.passes[1:7] == [Pass(1, tuple(lengths)), *apart]
    assert "a pass over 5 parts failed; each is tried alone" in caplog.text


async def test_a_fault_in_decode_fails_the_batch_and_the_engine_goes_on(
    open_test_engine: Any, reference: Reference, language: WatchedLanguage
) -> None:
    language.hook = break_if(lambda begun: begun == Pass(2))
    engine = open_test_engine(prompts=EndlessPrompts())
    pair = (read(engine.stream(ask(text, max_new_tokens=50))) for text in ("abc", "xyz"))
    results = await asyncio.gather(*pair, return_exceptions=True)
    assert [type(result) for result in results] == [RetinaError] * 2
    assert await asyncio.to_thread(engine.wait_idle, WAIT_S)
    assert engine.check() == ()
    assert await read(engine.stream(ask("abc", max_new_tokens=5)))


@pytest.mark.usefixtures("whole_chunks")
async def test_a_fault_in_decode_spares_the_prompts_beside_it(
    open_test_engine: Any, reference: Reference, language: WatchedLanguage, turnstile: Turnstile
) -> None:
    """A new prompt moves up into the slots of those who failed and answers as if it had been alone."""
    engine = open_test_engine(num_slots=8)
    good = [mixed_requests()[4], mixed_requests()[2]]
    pair = [asyncio.create_task(read(engine.stream(ask(text, max_new_tokens=50)))) for text in ("abc", "xyz")]
    await turnstile.wait_for_pass()
    await until(lambda: len(engine._worker.sequences()) == 2)
    while language.passes[-1] != Pass(2):
        turnstile.let_one_through()
        await turnstile.wait_for_pass()
    newcomers = asyncio.gather(*(read(engine.stream(request)) for request in good))
    await until(lambda: len(engine._worker.sequences()) == 4)
    language.hook = break_if(lambda begun: begun.num_decodes == 2)
    turnstile.open()
    results = await asyncio.gather(*pair, return_exceptions=True)
    language.hook = lambda begun: None
    assert [type(result) for result in results] == [RetinaError] * 2
    assert [to_ids(answer.text) for answer in await newcomers] == [reference(request) for request in good]


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_a_fault_that_stays_fails_everybody_and_nobody_for_longer(
    open_test_engine: Any, reference: Reference, language: WatchedLanguage, mode: str
) -> None:
    language.hook = break_if(lambda begun: True)
    engine = open_test_engine(mode=mode)
    answers = (read(engine.stream(request)) for request in mixed_requests())
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert [type(result) for result in results] == [RetinaError] * 12
    assert await asyncio.to_thread(engine.wait_idle, WAIT_S)
    assert engine.check() == ()
    language.hook = lambda begun: None
    answers = (read(engine.stream(request)) for request in mixed_requests())
    assert [to_ids(answer.text) for answer in await asyncio.gather(*answers)] == list(map(reference, mixed_requests()))


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
