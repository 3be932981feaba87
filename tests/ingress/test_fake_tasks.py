"""The fake generator does every task: true words, places that follow from the picture, limits kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deployments.errors import InvalidRequest
from deployments.fakes import FakeGenerator
from deployments.types import (
    Box,
    CaptionTask,
    Chunk,
    DetectTask,
    GenerateRequest,
    Grammar,
    ImagePart,
    ImageRef,
    Message,
    Point,
    PointTask,
    QueryTask,
    SamplingParams,
    Task,
)

IMAGES = [ImageRef(f"{number:064x}", 64 + number, 48, 1000, "image/png") for number in range(50)]


async def do(task: Task, image: ImageRef | None = IMAGES[0], **sampling: object) -> list[Chunk]:
    message = Message("user", (ImagePart(image),) if image is not None else ())
    params = SamplingParams(**sampling)  # type: ignore[arg-type]
    request = GenerateRequest("r", "public", (message,), params, 10.0, task=task)
    return [chunk async for chunk in FakeGenerator().stream(request)]


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (CaptionTask(), "A normal caption in en. The picture has 64 x 48 pixels."),
        (CaptionTask("long", "ja"), "A long caption in ja. The picture has 64 x 48 pixels."),
        (CaptionTask(prompt="Name it"), 'You asked: "Name it". The picture has 64 x 48 pixels.'),
        (QueryTask("What?"), 'You asked: "What?". The picture has 64 x 48 pixels.'),
        (
            QueryTask("What?", spatial_refs=((0.5, 0.5), (0, 0, 1, 1))),
            'You asked: "What?". You pointed at 2 places. The picture has 64 x 48 pixels.',
        ),
    ],
)
async def test_what_it_says(task: Task, said: str) -> None:
    chunks = await do(task)
    assert text(chunks) == said
    assert not any(chunk.thought or chunk.found or chunk.grounding for chunk in chunks)


async def test_a_question_without_a_picture() -> None:
    assert text(await do(QueryTask("Why?"), None)) == 'You asked: "Why?".'


async def test_thoughts_come_first_and_are_grounded() -> None:
    chunks = await do(QueryTask("What is it?", reasoning=True))
    thought = "".join(chunk.thought for chunk in chunks)
    assert thought == "The question has 3 words. The picture has 64 x 48 pixels."
    kinds = [bool(chunk.thought) for chunk in chunks]
    assert kinds == sorted(kinds, reverse=True)
    (grounding,) = chunks[-1].grounding
    assert thought[grounding.start : grounding.end] == "The picture has 64 x 48 pixels."
    (point,) = grounding.points
    assert 0 <= point.x <= 1
    assert 0 <= point.y <= 1


async def test_grounding_is_of_the_thoughts_that_were_said() -> None:
    chunks = await do(QueryTask("What is it?", reasoning=True), max_new_tokens=9)
    thought = "".join(chunk.thought for chunk in chunks)
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].grounding[0].end == len(thought)
    assert (await do(QueryTask("What is it?", reasoning=True), max_new_tokens=3))[-1].grounding == ()


async def test_places_follow_from_the_picture_and_lie_in_it() -> None:
    numbers = set()
    for image in IMAGES:
        chunks = await do(DetectTask("circle"), image)
        boxes = [box for chunk in chunks for box in chunk.found]
        assert [box for chunk in await do(DetectTask("circle"), image) for box in chunk.found] == boxes
        points = [point for chunk in await do(PointTask("circle"), image) for point in chunk.found]
        assert len(points) == len(boxes)
        for box, point in zip(boxes, points, strict=True):
            assert isinstance(box, Box)
            assert isinstance(point, Point)
            assert 0 <= box.x_min < point.x < box.x_max <= 1
            assert 0 <= box.y_min < point.y < box.y_max <= 1
        numbers.add(len(boxes))
        assert text(chunks) == ""
    assert numbers == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("task", "refused"),
    [
        (QueryTask("What?"), {"answered": (0,)}),
        (DetectTask("circle"), {"answered": (0,)}),
        (PointTask("circle"), {"sampling": SamplingParams(grammar=Grammar("json_object"))}),
    ],
)
async def test_what_tasks_have_not(task: Task, refused: dict[str, Any]) -> None:
    request = GenerateRequest("r", "public", (Message("user", ()),), SamplingParams(), 10.0, task=task)
    with pytest.raises(InvalidRequest):
        await anext(FakeGenerator().stream(replace(request, **refused)))


@pytest.mark.parametrize("task", [DetectTask("circle", 2), PointTask("circle", 2)])
async def test_at_most_max_objects(task: Task) -> None:
    numbers = {sum(len(chunk.found) for chunk in await do(task, image)) for image in IMAGES}
    assert numbers == {1, 2}


async def test_without_a_picture_nothing_is_found() -> None:
    (chunk,) = await do(DetectTask("circle"), None)
    assert (chunk.found, chunk.finish_reason) == ((), "stop")


@pytest.mark.parametrize(
    "task", [CaptionTask(), QueryTask("What?", reasoning=True), DetectTask("circle"), PointTask("circle")]
)
async def test_only_the_last_chunk_has_the_end(task: Task) -> None:
    *chunks, last = await do(task)
    assert all((c.finish_reason, c.grounding) == (None, ()) for c in chunks)
    assert all((c.usage, c.timings) == (None, None) for c in chunks[1:])
    assert last.finish_reason == "stop"
    assert last.usage is not None
    assert last.timings is not None
    assert last.usage.completion_tokens == sum(chunk.num_tokens for chunk in [*chunks, last])
    assert last.usage.prompt_tokens >= last.usage.image_tokens == 16
