"""The route of one turn: order of events, what the generator gets, what is stored when, and what failures leave."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from ingress.bench import Bench, BuildBench, ScriptedGenerator, collect, open_turns, stored, turn

from deployments.errors import ImageNotFound, InvalidRequest, LeaseLost, Overloaded, PartUnavailable, UnknownModel
from deployments.fakes import FakeGenerator, Gate
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.ingress.turns import SamplingWish, TurnChunk, TurnFinished, TurnReply, Turns, TurnStarted
from deployments.types import Chunk, ImageRef, StoredImage, Timings, Usage

# ------------------------------------------------------------------------------------- answers


async def test_events_come_in_order_and_join_to_the_reply(bench: Bench) -> None:
    started, *chunks, finished = await collect(bench.turns, turn())
    assert started == TurnStarted("s", "fake")
    assert isinstance(finished, TurnFinished)
    assert all(isinstance(chunk, TurnChunk) and chunk.text for chunk in chunks)
    assert (
        finished.reply.response == 'You asked: "Hello".' == "".join(c.text for c in chunks if isinstance(c, TurnChunk))
    )
    assert finished.reply.conversation_length == 2
    assert finished.reply.request_id == "r1"
    assert not finished.reply.has_image


async def test_the_plain_reply_is_the_last_event(bench: Bench) -> None:
    reply = await bench.turns.reply(turn(session_id="a"))
    finished = (await collect(bench.turns, turn(session_id="b")))[-1]
    assert isinstance(finished, TurnFinished)
    assert reply.response == finished.reply.response
    assert reply.usage == finished.reply.usage


async def test_the_turn_is_stored_before_the_last_text_is_seen(bench: Bench) -> None:
    seen = [(type(event), await stored(bench)) async for event in bench.turns.stream(turn())]
    assert seen[-3:] == [(TurnChunk, 0), (TurnChunk, 2), (TurnFinished, 2)]


async def test_leaving_at_the_last_text_loses_nothing(bench: Bench) -> None:
    async with contextlib.aclosing(bench.turns.stream(turn())) as events:
        async for event in events:
            if isinstance(event, TurnChunk) and await stored(bench):
                break
    assert await stored(bench) == 2
    assert "ingress_cancelled.stream" not in bench.turns.metrics.snapshot()


async def test_a_finished_generator_comes_to_its_own_end(build_bench: BuildBench) -> None:
    last = Chunk("end", 1, "stop", Usage(1, 0, 0, 2), Timings(0, 0, 0, 0, 0))
    scripted = ScriptedGenerator((Chunk("the ", 1), last))
    assert (await build_bench(scripted).turns.reply(turn())).response == "the end"
    assert scripted.num_ended == 1


async def test_the_generator_gets_prompt_sampling_and_time(build_bench: BuildBench) -> None:
    scripted = ScriptedGenerator(())
    bench = build_bench(scripted)
    wish = SamplingWish(temperature=0.5, top_p=0.9, top_k=7, stop=("x",), seed=3)
    with pytest.raises(PartUnavailable):
        await bench.turns.reply(turn("What?", sampling=wish))
    (request,) = scripted.requests
    assert [message.text for message in request.messages] == ["What?"]
    assert (request.request_id, request.tenant) == ("r1", PUBLIC_TENANT)
    assert request.session_key
    assert 100 < request.timeout_s <= 120
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.stop, sampling.seed) == (
        0.5,
        0.9,
        7,
        ("x",),
        3,
    )
    assert sampling.max_new_tokens == 256


async def test_turns_of_one_session_do_not_interleave(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate))
    first: asyncio.Task[TurnReply] = asyncio.create_task(bench.turns.reply(turn("one")))
    await gate.reached.wait()
    second = asyncio.create_task(bench.turns.reply(turn("two", model="other")))
    gate.opened.set()
    assert (await first).conversation_length == 2
    assert (await second).conversation_length == 4
    assert "remember 2 messages" in (await second).response


# ------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("fail_after_chunks", [0, 2])
async def test_a_failure_leaves_the_session_as_it_was(build_bench: BuildBench, fail_after_chunks: int) -> None:
    failing = FakeGenerator(failure=Overloaded("full", None, 3.0), fail_after_chunks=fail_after_chunks)
    bench = build_bench(failing)
    await bench.turns.reply(turn(model="other"))
    before = await bench.router.history(PUBLIC_TENANT, "s")
    with pytest.raises(Overloaded) as caught:
        await bench.turns.reply(turn("Again", model="fake"))
    assert caught.value.retry_after_s == 3.0
    assert await bench.router.history(PUBLIC_TENANT, "s") == before
    assert await open_turns(bench) == 0
    assert (await bench.turns.reply(turn("Again", model="other"))).conversation_length == 4


async def test_an_answer_without_end_is_an_error_and_not_stored(build_bench: BuildBench) -> None:
    bench = build_bench(ScriptedGenerator((Chunk("half", 1),)))
    with pytest.raises(PartUnavailable, match="in the middle"):
        await bench.turns.reply(turn())
    assert await stored(bench) == 0
    assert await open_turns(bench) == 0


async def test_a_session_deleted_during_the_turn_is_not_brought_back(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate))
    task = asyncio.create_task(bench.turns.reply(turn()))
    await gate.reached.wait()
    await bench.router.delete_session(PUBLIC_TENANT, "s")
    gate.opened.set()
    with pytest.raises(LeaseLost):
        await task
    assert await stored(bench) == 0


async def test_an_unknown_model_opens_nothing(bench: Bench) -> None:
    with pytest.raises(UnknownModel, match="fake, other"):
        await bench.turns.reply(turn(model="none"))
    assert await open_turns(bench) == 0


async def test_a_configured_model_without_generator_is_unavailable(build_bench: BuildBench) -> None:
    bench = build_bench()
    turns = Turns(bench.router, {}, bench.images, bench.config)
    with pytest.raises(PartUnavailable, match="'fake'"):
        await turns.reply(turn())
    assert await open_turns(bench) == 0


async def test_a_deleted_picture_of_the_session_is_not_shown_again(bench: Bench) -> None:
    first, second = [StoredImage(ImageRef(letter * 64, 1, 1, 3, "image/png"), b"png") for letter in "ab"]
    for image in (first, second):
        await bench.images.put(PUBLIC_TENANT, image)
    await bench.turns.reply(turn(image=first.ref))
    assert (await bench.turns.reply(turn("And now?"))).has_image
    await bench.images.delete(PUBLIC_TENANT, first.ref.id)
    with pytest.raises(ImageNotFound, match="the session's picture is no longer stored") as caught:
        await bench.turns.reply(turn("And now?"))
    assert caught.value.param == "image"
    assert await open_turns(bench) == 0
    assert await stored(bench) == 4
    assert (await bench.turns.reply(turn("And this?", image=second.ref))).has_image


async def test_a_picture_deleted_while_it_is_spoken_of_lets_the_turn_finish(build_bench: BuildBench) -> None:
    gate = Gate(after_chunks=1)
    bench = build_bench(FakeGenerator(gate=gate))
    image = StoredImage(ImageRef("a" * 64, 1, 1, 3, "image/png"), b"png")
    await bench.images.put(PUBLIC_TENANT, image)
    reply = asyncio.create_task(bench.turns.reply(turn(image=image.ref)))
    await gate.reached.wait()
    await bench.images.delete(PUBLIC_TENANT, image.ref.id)
    gate.opened.set()
    assert (await reply).conversation_length == 2


async def test_a_store_that_fails_is_not_a_picture_that_is_gone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    image = StoredImage(ImageRef("a" * 64, 1, 1, 3, "image/png"), b"png")
    await bench.images.put(PUBLIC_TENANT, image)
    await bench.turns.reply(turn(image=image.ref))

    async def fail(tenant: str, image_id: str) -> ImageRef:
        raise PartUnavailable("the store is away")

    monkeypatch.setattr(bench.images, "find", fail)
    with pytest.raises(PartUnavailable, match="away"):
        await bench.turns.reply(turn("And now?"))
    assert await open_turns(bench) == 0


async def test_more_tokens_than_the_model_gives_are_refused(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="at most 4096") as caught:
        await bench.turns.reply(turn(sampling=SamplingWish(max_new_tokens=4097)))
    assert caught.value.param == "max_new_tokens"
    assert await open_turns(bench) == 0
