"""The route of a completion: what generators get, the order of events, several choices, ends and counts."""

from __future__ import annotations

import asyncio

import pytest
from ingress.bench import Bench, BuildBench, ScriptedGenerator

from deployments.errors import DeadlineExceeded, InvalidRequest, Overloaded, PartUnavailable, UnknownModel
from deployments.fakes import FakeGenerator, Gate
from deployments.ingress.completions import (
    CompletionChunk,
    CompletionEvent,
    CompletionFinished,
    CompletionInput,
    CompletionStarted,
)
from deployments.ingress.turn_types import SamplingWish
from deployments.types import Chunk, Message, TextPart, Timings, Usage

PATIENCE_S = 10.0
USAGE, TIMINGS = Usage(3, 0, 0, 2), Timings(0, 0, 0, 0, 0)
ENDED = {"running": 0, "stop": 0, "length": 0, "cancelled": 0, "failed": 0}


def hello(**fields: object) -> CompletionInput:
    messages = (Message("user", (TextPart("Hello"),)),)
    return CompletionInput("r1", "public", messages, **fields)  # type: ignore[arg-type]


async def collect(bench: Bench, asked: CompletionInput) -> list[CompletionEvent]:
    return [event async for event in bench.services.completions.stream(asked)]


def scripted(*texts: str) -> ScriptedGenerator:
    chunks = [Chunk(text, 1) for text in texts]
    return ScriptedGenerator((*chunks, Chunk("", 0, "stop", USAGE, TIMINGS)))


# ------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("num_choices", [1, 3])
async def test_events_come_in_order_and_join_to_the_choices(bench: Bench, num_choices: int) -> None:
    started, *events = await collect(bench, hello(num_choices=num_choices))
    assert started == CompletionStarted("fake")
    model, choices = await bench.services.completions.reply(hello(num_choices=num_choices))
    assert (model, [choice.index for choice in choices]) == ("fake", list(range(num_choices)))
    for choice in choices:
        own = [event for event in events if getattr(event, "index", None) == choice.index]
        *chunks, finished = own
        assert isinstance(finished, CompletionFinished)
        assert all(isinstance(chunk, CompletionChunk) and chunk.text for chunk in chunks)
        assert "".join(chunk.text for chunk in chunks) == finished.text == choice.text == 'You asked: "Hello".'  # type: ignore[union-attr]
        assert (finished.finish_reason, finished.usage) == ("stop", choice.usage)


async def test_the_generator_gets_the_conversation_as_it_is(build_bench: BuildBench) -> None:
    generator = scripted("a")
    wish = SamplingWish(temperature=0.5, max_new_tokens=7, stop=("x",))
    await collect(build_bench(generator), hello(sampling=wish))
    (request,) = generator.requests
    assert (request.request_id, request.tenant, request.messages) == ("r1", "public", hello().messages)
    assert 100 < request.timeout_s <= 120
    assert (request.sampling.temperature, request.sampling.max_new_tokens, request.sampling.stop) == (0.5, 7, ("x",))
    assert request.keeps_all
    assert generator.num_ended == 1


@pytest.mark.parametrize(("seed", "seeds"), [(None, [None] * 3), (7, [7, 8, 9]), (2**63 - 1, [2**63 - 1, 0, 1])])
async def test_each_choice_draws_its_own(build_bench: BuildBench, seed: int | None, seeds: list[int | None]) -> None:
    generator = scripted("a")
    await collect(build_bench(generator), hello(num_choices=3, sampling=SamplingWish(temperature=1.0, seed=seed)))
    assert [request.sampling.seed for request in generator.requests] == seeds


async def test_affinity_is_a_keyed_hash(build_bench: BuildBench) -> None:
    generator = scripted("a")
    bench = build_bench(generator)
    for affinity in ("mine", "mine", "other", "\ud800", ""):
        await collect(bench, hello(affinity=affinity))
    first, again, other, odd, none = (request.session_key for request in generator.requests)
    assert first == again
    assert len({first, other, odd, none}) == 4
    assert none == ""
    assert all(len(key) == 64 and "mine" not in key for key in (first, other, odd))


async def test_equal_keys_of_two_tenants_are_two(build_bench: BuildBench) -> None:
    generator = scripted("a")
    bench = build_bench(generator)
    for tenant in ("one", "two"):
        await collect(bench, CompletionInput("r", tenant, hello().messages, affinity="mine"))
    assert len({request.session_key for request in generator.requests}) == 2


async def test_models(bench: Bench) -> None:
    assert (await collect(bench, hello(model="other")))[0] == CompletionStarted("other")
    with pytest.raises(UnknownModel, match="choose one of: fake, other"):
        await collect(bench, hello(model="gpt"))


@pytest.mark.parametrize("num_choices", [0, 9, -1])
async def test_numbers_of_choices_that_are_refused(bench: Bench, num_choices: int) -> None:
    with pytest.raises(InvalidRequest, match=r"n must be 1 to 8 \(ingress\.max_choices\)"):
        await collect(bench, hello(num_choices=num_choices))


# ------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("num_choices", [1, 2])
@pytest.mark.parametrize("after_chunks", [0, 2])
async def test_leaving_cancels_all_choices(build_bench: BuildBench, num_choices: int, after_chunks: int) -> None:
    gate = Gate(after_chunks)
    generator = FakeGenerator(gate=gate)
    bench = build_bench(generator)
    async with asyncio.timeout(PATIENCE_S):
        working = asyncio.ensure_future(collect(bench, hello(num_choices=num_choices)))
        await gate.reached.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
    assert await generator.statistics() == {**ENDED, "cancelled": num_choices}
    statistics = bench.services.completions.statistics()
    assert statistics["open_completions"] == 0
    assert statistics["ingress_completions.cancelled"] == 1
    assert statistics[f"ingress_completions_cancelled.{'stream' if after_chunks else 'first_token'}"] == 1


@pytest.mark.parametrize("num_choices", [1, 2])
async def test_closing_in_mid_stream_returns_when_the_slots_are_free(build_bench: BuildBench, num_choices: int) -> None:
    generator = FakeGenerator()
    bench = build_bench(generator)
    events = bench.services.completions.stream(hello(num_choices=num_choices))
    assert [await anext(events), await anext(events)][0] == CompletionStarted("fake")
    await events.aclose()
    statistics = await generator.statistics()
    assert (statistics["running"], statistics["failed"]) == (0, 0)
    assert bench.services.completions.statistics()["ingress_completions.cancelled"] == 1


async def test_one_failing_choice_ends_the_others(build_bench: BuildBench) -> None:
    gate = Gate(after_chunks=2)  # the one that does not fail waits here
    generator = FakeGenerator(gate=gate, failure=Overloaded("full", None, 2.0), fail_after_chunks=1, max_failures=1)
    bench = build_bench(generator)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(Overloaded, match="full"):
            await collect(bench, hello(num_choices=2))
    assert await generator.statistics() == {**ENDED, "cancelled": 1, "failed": 1}
    assert bench.services.completions.statistics()["ingress_completions.failed"] == 1


@pytest.mark.parametrize("num_choices", [1, 2])
async def test_the_deadline(build_bench: BuildBench, num_choices: int) -> None:
    generator = FakeGenerator(gate=Gate(after_chunks=1))
    bench = build_bench(generator, ingress={"turn_timeout_s": 0.05})
    with pytest.raises(DeadlineExceeded):
        await collect(bench, hello(num_choices=num_choices))
    assert (await generator.statistics())["running"] == 0
    assert bench.services.completions.statistics()["ingress_completions.deadline"] == 1


async def test_an_answer_without_an_end_is_an_error(build_bench: BuildBench) -> None:
    bench = build_bench(ScriptedGenerator((Chunk("half", 1),)))
    with pytest.raises(PartUnavailable, match="stopped in the middle"):
        await collect(bench, hello(num_choices=2))


async def test_counts(bench: Bench) -> None:
    await collect(bench, hello())
    await collect(bench, hello(num_choices=2, sampling=SamplingWish(max_new_tokens=1)))
    with pytest.raises(UnknownModel):
        await collect(bench, hello(model="gpt"))
    counts = (await bench.client.get("/-/ingress")).json()
    outcomes = {"stop": 1, "length": 1, "refused": 1}
    assert {f"ingress_completions.{outcome}": count for outcome, count in outcomes.items()}.items() <= counts.items()
    assert counts["open_completions"] == 0
