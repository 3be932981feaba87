"""The route of one task: order of events, what the generator gets, what is counted, and what failures leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from ingress.bench import Bench, BuildBench, ScriptedGenerator, collect_task, task

from deployments.errors import DeadlineExceeded, InvalidRequest, Overloaded, PartUnavailable, UnknownModel
from deployments.fakes import FakeGenerator, Gate
from deployments.ingress.task_types import TaskChunk, TaskFinished, TaskStarted
from deployments.ingress.tasks import Tasks
from deployments.ingress.turn_types import SamplingWish
from deployments.types import (
    Box,
    CaptionTask,
    Chunk,
    DetectTask,
    GenerateRequest,
    Grounding,
    ImagePart,
    ImageRef,
    Message,
    Point,
    PointTask,
    QueryTask,
    Task,
    Timings,
    Usage,
)

IMAGE = ImageRef("a" * 64, 64, 48, 1000, "image/png")
TASKS = [
    CaptionTask(),
    QueryTask("What?"),
    QueryTask("What?", reasoning=True, spatial_refs=((0.1, 0.2),)),
    DetectTask("circle"),
    PointTask("circle"),
]
USAGE, TIMINGS = Usage(1, 0, 0, 3), Timings(0, 0, 0, 0, 0)


class SlowToClose(ScriptedGenerator):
    """Half an answer, then nothing; its clean-up waits for the test."""

    def __init__(self, *, may_close: bool = False) -> None:
        super().__init__(())
        self.closing, self.may_close = asyncio.Event(), asyncio.Event()
        self.is_clean = False
        if may_close:
            self.may_close.set()

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        try:
            yield Chunk("half", 1)
            await asyncio.Event().wait()
        finally:
            self.closing.set()
            await self.may_close.wait()
            self.is_clean = True


# ------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("asked", TASKS, ids=str)
async def test_events_come_in_order_and_join_to_the_reply(build_bench: BuildBench, asked: Task) -> None:
    bench = build_bench()
    started, *chunks, finished = await collect_task(bench.tasks, task(asked, IMAGE))
    assert started == TaskStarted("fake")
    assert isinstance(finished, TaskFinished)
    pieces = [chunk for chunk in chunks if isinstance(chunk, TaskChunk)]
    assert len(pieces) == len(chunks) > 0
    assert all(bool(piece.text) + bool(piece.thought) + bool(piece.found) == 1 for piece in pieces)
    reply = finished.reply
    assert reply.text == "".join(piece.text for piece in pieces)
    assert reply.thought == "".join(piece.thought for piece in pieces)
    assert reply.found == tuple(found for piece in pieces for found in piece.found)
    assert reply.text or reply.found
    assert (reply.request_id, reply.model_used, reply.finish_reason) == ("r1", "fake", "stop")
    plain = await bench.tasks.reply(task(asked, IMAGE))
    assert (plain.text, plain.thought, plain.found, plain.grounding) == (
        reply.text,
        reply.thought,
        reply.found,
        reply.grounding,
    )
    assert plain.usage == reply.usage


async def test_a_chunk_of_all_kinds_becomes_a_piece_of_each(build_bench: BuildBench) -> None:
    found = Box(0, 0, 1, 1), Box(0.5, 0.5, 1, 1)
    grounding = (Grounding(0, 2, (Point(0.1, 0.2),)),)
    last = Chunk("", 0, "length", USAGE, TIMINGS, grounding=grounding)
    scripted = ScriptedGenerator((Chunk("text", 1, thought="hm", found=found), Chunk("", 1), last))
    events = await collect_task(build_bench(scripted).tasks, task(DetectTask("x"), IMAGE))
    assert events[1:-1] == [TaskChunk(thought="hm"), TaskChunk(text="text"), TaskChunk(found=found)]
    finished = events[-1]
    assert isinstance(finished, TaskFinished)
    assert (finished.reply.finish_reason, finished.reply.grounding) == ("length", grounding)
    assert scripted.num_ended == 1


async def test_the_generator_gets_task_picture_sampling_and_time(build_bench: BuildBench) -> None:
    scripted = ScriptedGenerator(())
    wish = SamplingWish(temperature=0.5, max_new_tokens=7, stop=("x",))
    with pytest.raises(PartUnavailable):
        await build_bench(scripted).tasks.reply(task(CaptionTask("short"), IMAGE, sampling=wish))
    (request,) = scripted.requests
    assert (request.request_id, request.tenant) == ("r1", "public")
    assert request.messages == (Message("user", (ImagePart(IMAGE),)),)
    assert request.task == CaptionTask("short")
    assert 100 < request.timeout_s <= 120
    assert (request.sampling.temperature, request.sampling.max_new_tokens, request.sampling.stop) == (0.5, 7, ("x",))


async def test_equal_pictures_go_to_one_replica_and_a_question_without_one_anywhere(build_bench: BuildBench) -> None:
    scripted = ScriptedGenerator(())
    bench = build_bench(scripted)
    for image in (IMAGE, IMAGE, None):
        with pytest.raises(PartUnavailable):
            await bench.tasks.reply(task(QueryTask("What?"), image))
    assert [request.session_key for request in scripted.requests] == [IMAGE.id, IMAGE.id, ""]
    assert scripted.requests[-1].messages == (Message("user", ()),)


@pytest.mark.parametrize(
    ("asked", "max_new_tokens"),
    [(CaptionTask(), 30), (QueryTask("x"), 30), (DetectTask("x"), 40), (PointTask("x"), 40)],
)
async def test_places_end_by_their_number_and_not_by_the_default_of_tokens(
    build_bench: BuildBench, asked: Task, max_new_tokens: int
) -> None:
    scripted = ScriptedGenerator(())
    limits = {"max_new_tokens": 40, "default_new_tokens": 30}
    bench = build_bench(scripted, models=[{"name": "fake", "family": "fake", "generator": limits}])
    with pytest.raises(PartUnavailable):
        await bench.tasks.reply(task(asked, IMAGE))
    assert scripted.requests[0].sampling.max_new_tokens == max_new_tokens


async def test_without_a_model_the_first_that_can(build_bench: BuildBench) -> None:
    models = [{"name": "other", "family": "smolvlm", "checkpoint": "x"}, {"name": "fake", "family": "fake"}]
    bench = build_bench(models=models)
    assert (await bench.tasks.reply(task(CaptionTask(), IMAGE))).model_used == "other"
    assert (await bench.tasks.reply(task(DetectTask("x"), IMAGE))).model_used == "fake"
    with pytest.raises(InvalidRequest, match="choose one of: fake"):
        await bench.tasks.reply(task(PointTask("x"), IMAGE, model="other"))


# ------------------------------------------------------------------------------------- refusals and failures


@pytest.mark.parametrize(
    "asked", [CaptionTask(), DetectTask("x"), PointTask("x"), QueryTask("x", spatial_refs=((0.5, 0.5),))], ids=str
)
async def test_a_missing_picture(build_bench: BuildBench, asked: Task) -> None:
    with pytest.raises(InvalidRequest, match="image_id") as raised:
        await build_bench().tasks.reply(task(asked))
    assert raised.value.param == "image"


async def test_a_question_may_go_without_a_picture(build_bench: BuildBench) -> None:
    assert (await build_bench().tasks.reply(task(QueryTask("Why?")))).text == 'You asked: "Why?".'


async def test_a_configured_model_without_generator_is_unavailable(build_bench: BuildBench) -> None:
    tasks = Tasks({}, build_bench().config)
    with pytest.raises(PartUnavailable, match="'fake'"):
        await tasks.reply(task(CaptionTask(), IMAGE))
    assert tasks.statistics() == {"open_tasks": 0, "ending_tasks": 0, "ingress_tasks.caption.failed": 1}


async def test_an_answer_without_end_is_an_error(build_bench: BuildBench) -> None:
    with pytest.raises(PartUnavailable, match="in the middle"):
        await build_bench(ScriptedGenerator((Chunk("half", 1),))).tasks.reply(task(CaptionTask(), IMAGE))


@pytest.mark.parametrize("fail_after_chunks", [0, 2])
async def test_a_failure_comes_through(build_bench: BuildBench, fail_after_chunks: int) -> None:
    failing = FakeGenerator(failure=Overloaded("full", None, 3.0), fail_after_chunks=fail_after_chunks)
    with pytest.raises(Overloaded) as raised:
        await build_bench(failing).tasks.reply(task(CaptionTask(), IMAGE))
    assert raised.value.retry_after_s == 3.0


async def test_a_task_has_a_deadline(build_bench: BuildBench) -> None:
    hanging = SlowToClose(may_close=True)
    bench = build_bench(hanging, ingress={"turn_timeout_s": 0.05})
    with pytest.raises(DeadlineExceeded, match=r"the task did not end within 0\.05 s \(ingress\.turn_timeout_s\)"):
        await bench.tasks.reply(task(CaptionTask(), IMAGE))
    assert hanging.is_clean
    assert bench.tasks.statistics()["ingress_tasks.caption.deadline"] == 1


# ------------------------------------------------------------------------------------- cancelled


@pytest.mark.parametrize(("after_chunks", "stage"), [(0, "first_token"), (2, "stream")])
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_cancelling_frees_the_slot(
    build_bench: BuildBench, after_chunks: int, stage: str, is_streamed: bool
) -> None:
    gate = Gate(after_chunks)
    generator = FakeGenerator(gate=gate)
    bench = build_bench(generator)
    asked = task(QueryTask("What?", reasoning=True), IMAGE)
    work = collect_task(bench.tasks, asked) if is_streamed else bench.tasks.reply(asked)
    running = asyncio.ensure_future(work)
    await gate.reached.wait()
    assert bench.tasks.statistics()["open_tasks"] == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await generator.statistics() == {"running": 0, "stop": 0, "length": 0, "cancelled": 1, "failed": 0}
    assert bench.tasks.statistics() == {
        "open_tasks": 0,
        "ending_tasks": 0,
        "ingress_tasks.query.cancelled": 1,
        f"ingress_tasks_cancelled.{stage}": 1,
    }


@pytest.mark.parametrize(("num_pulled", "stage"), [(1, "first_token"), (2, "stream")])
async def test_closing_the_iterator_frees_the_slot(build_bench: BuildBench, num_pulled: int, stage: str) -> None:
    generator = FakeGenerator()
    bench = build_bench(generator)
    events = bench.tasks.stream(task(CaptionTask(), IMAGE))
    for _ in range(num_pulled):
        await anext(events)
    await events.aclose()
    statistics = await generator.statistics()
    assert statistics["running"] == statistics["stop"] == 0
    assert bench.tasks.statistics()[f"ingress_tasks_cancelled.{stage}"] == 1


async def test_leaving_at_the_last_piece_is_no_cancellation(build_bench: BuildBench) -> None:
    generator = FakeGenerator()
    bench = build_bench(generator)
    events = bench.tasks.stream(task(CaptionTask(), IMAGE, sampling=SamplingWish(max_new_tokens=1)))
    assert await anext(events) == TaskStarted("fake")
    assert isinstance(await anext(events), TaskChunk)
    await events.aclose()
    assert (await generator.statistics())["length"] == 1
    assert bench.tasks.statistics() == {"open_tasks": 0, "ending_tasks": 0, "ingress_tasks.caption.length": 1}


async def leave_twice(bench: Bench, slow: SlowToClose) -> None:
    """A client leaves, and what closes its task is cancelled as well."""
    events = bench.tasks.stream(task(CaptionTask(), IMAGE))
    assert await anext(events) == TaskStarted("fake")
    assert await anext(events) == TaskChunk("half")
    closing = asyncio.ensure_future(events.aclose())
    await slow.closing.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing


async def test_a_second_cancellation_does_not_stop_the_clean_up(build_bench: BuildBench) -> None:
    slow = SlowToClose()
    bench = build_bench(slow)
    await leave_twice(bench, slow)
    assert not slow.is_clean
    assert bench.tasks.statistics()["ending_tasks"] == 1
    slow.may_close.set()
    await bench.tasks.drain()
    assert slow.is_clean


async def test_the_app_ends_after_the_clean_up(build_bench: BuildBench) -> None:
    slow = SlowToClose()
    bench = build_bench(slow)
    async with bench.app.router.lifespan_context(bench.app):
        await leave_twice(bench, slow)
        slow.may_close.set()
    assert slow.is_clean


# ------------------------------------------------------------------------------------- counted


async def test_tasks_are_counted_by_skill_and_outcome(build_bench: BuildBench) -> None:
    bench = build_bench()
    for asked in TASKS:
        await bench.tasks.reply(task(asked, IMAGE))
    await bench.tasks.reply(task(CaptionTask(), IMAGE, sampling=SamplingWish(max_new_tokens=2)))
    for refused in (task(CaptionTask()), task(CaptionTask(), IMAGE, sampling=SamplingWish(max_new_tokens=9999))):
        with pytest.raises(InvalidRequest):
            await bench.tasks.reply(refused)
    with pytest.raises(UnknownModel):
        await bench.tasks.reply(task(PointTask("x"), IMAGE, model="none"))
    assert bench.tasks.statistics() == {
        "open_tasks": 0,
        "ending_tasks": 0,
        "ingress_tasks.caption.length": 1,
        "ingress_tasks.caption.refused": 2,
        "ingress_tasks.caption.stop": 1,
        "ingress_tasks.detect.stop": 1,
        "ingress_tasks.point.refused": 1,
        "ingress_tasks.point.stop": 1,
        "ingress_tasks.query.stop": 2,
    }


async def test_many_tasks_at_once(build_bench: BuildBench) -> None:
    bench = build_bench()
    questions = [f"number {number}" for number in range(20)]
    replies = await asyncio.gather(*(bench.tasks.reply(task(QueryTask(question))) for question in questions))
    assert [reply.text for reply in replies] == [f'You asked: "{question}".' for question in questions]
