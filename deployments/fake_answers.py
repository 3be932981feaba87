"""What the fake generator says: true of the request and of the picture's size, and of nothing else. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from deployments.errors import InvalidRequest
from deployments.fake_documents import document
from deployments.types import (
    Alternative,
    Box,
    CaptionTask,
    Chunk,
    DetectTask,
    FinishReason,
    GenerateRequest,
    Grounding,
    ImageRef,
    Point,
    PointTask,
    QueryTask,
    Task,
    TokenLogprob,
)

MAX_FOUND = 5
MAX_SHOWN_IDS = 8  # in an error
SEES = "The picture has"  # begins what is said of the picture


def answer(request: GenerateRequest) -> tuple[list[Chunk], FinishReason]:
    """At least one chunk, each of one token: a word with the space before it, or something found. A token's id is its
    place in the answer. Raises InvalidRequest for a grammar that is too much for a fake."""
    task, image = request.task, newest_picture(request)
    if isinstance(task, DetectTask | PointTask):
        if request.sampling.grammar is not None:
            raise InvalidRequest("places are not text; a grammar says nothing of them", "response_format")
        chunks = [Chunk("", 1, found=(place,)) for place in _find(task, image)]
    else:
        thoughts = [Chunk("", 1, thought=word) for word in _words(_thought(task, image))]
        chunks = [*thoughts, *(Chunk(word, 1) for word in _words(_cut(_text(request, image), request.sampling.stop)))]
    limit = request.sampling.max_new_tokens
    given = [_name(index, chunk, request) for index, chunk in enumerate(chunks[:limit] or [Chunk("", 1)])]
    return given, "length" if len(chunks) > limit else "stop"


def rest(request: GenerateRequest, chunks: Sequence[Chunk]) -> list[Chunk]:
    """What comes after the tokens of `request.answered`: an empty chunk where nothing does. Raises InvalidRequest."""
    answered = request.answered
    if answered and request.task is not None:
        raise InvalidRequest("a task's answer cannot be gone on with; answered must be empty", "answered")
    if answered != tuple(range(len(answered))) or len(answered) > len(chunks):
        raise InvalidRequest(
            f"the fake model's answer to this has the token ids 0 to {len(chunks) - 1}; answered, "
            f"{_shorten(answered)}, is not its beginning",
            "answered",
        )
    return list(chunks[len(answered) :]) or [Chunk("", 0)]


def grounding(request: GenerateRequest, chunks: Sequence[Chunk]) -> tuple[Grounding, ...]:
    """Where in the picture it is what the thoughts in these chunks say of it."""
    image = newest_picture(request)
    thought = "".join(chunk.thought for chunk in chunks)
    if image is None or SEES not in thought:
        return ()
    place = _center(next(_boxes(image, SEES)))
    return (Grounding(thought.index(SEES), len(thought), (place,)),)


def newest_picture(request: GenerateRequest) -> ImageRef | None:
    images = [image for message in request.messages for image in message.images]
    return images[-1] if images else None


def text_of(request: GenerateRequest) -> str:
    """All words of the request."""
    return " ".join([*(message.text for message in request.messages), _asked_words(request.task)])


# ------------------------------------------------------------------------------------- texts


def _text(request: GenerateRequest, image: ImageRef | None) -> str:
    text, grammar = _sentences(request, image), request.sampling.grammar
    return text if grammar is None else document(grammar, text)


def _sentences(request: GenerateRequest, image: ImageRef | None) -> str:
    text = _request_words(request)
    if image is not None:
        text += f" {_size(image)}"
    if len(request.messages) > 1:
        text += f" I remember {len(request.messages) - 1} messages before this one."
    return text


def _request_words(request: GenerateRequest) -> str:
    task = request.task
    if isinstance(task, CaptionTask) and task.prompt is None:
        return f"A {task.length} caption in {task.language}."
    asked = request.messages[-1].text if task is None else _asked_words(task)
    return f'You asked: "{asked}".{_places(task)}'


def _asked_words(task: Task | None) -> str:
    match task:
        case CaptionTask():
            return task.prompt or ""
        case QueryTask():
            return task.question
        case DetectTask() | PointTask():
            return task.object
        case None:
            return ""


def _places(task: Task | None) -> str:
    if not (isinstance(task, QueryTask) and task.spatial_refs):
        return ""
    return f" You pointed at {len(task.spatial_refs)} places."


def _thought(task: Task | None, image: ImageRef | None) -> str:
    if not (isinstance(task, QueryTask) and task.reasoning):
        return ""
    seen = f" {_size(image)}" if image is not None else ""
    return f"The question has {len(task.question.split())} words.{seen}"


def _size(image: ImageRef) -> str:
    return f"{SEES} {image.width} x {image.height} pixels."


def _cut(text: str, stops: tuple[str, ...]) -> str:
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def _words(text: str) -> list[str]:
    """They join to the text."""
    if not text:
        return []
    first, *others = text.split(" ")
    return [first, *(f" {word}" for word in others)]


def _name(index: int, chunk: Chunk, request: GenerateRequest) -> Chunk:
    """With the token's id and, if they were asked for, its chances."""
    number = request.sampling.num_logprobs
    logprobs = () if number is None else (_logprob(index, chunk.thought + chunk.text, number),)
    return replace(chunk, token_ids=(index,), logprobs=logprobs)


def _logprob(token_id: int, word: str, number: int) -> TokenLogprob:
    """Half of the chances for the word itself, and half of what is left for each that it doubts more."""
    doubts = [
        Alternative(token_id + doubt, word + "?" * doubt, -(doubt + 1) * math.log(2)) for doubt in range(max(number, 1))
    ]
    return TokenLogprob(doubts[0], tuple(doubts[:number]))


def _shorten(answered: Sequence[int]) -> str:
    shown = ", ".join(map(str, answered[:MAX_SHOWN_IDS]))
    return f"({shown}{', …' if len(answered) > MAX_SHOWN_IDS else ''})"


# ------------------------------------------------------------------------------------- places


def _find(task: DetectTask | PointTask, image: ImageRef | None) -> list[Box | Point]:
    if image is None:
        return []
    boxes = list(_boxes(image, task.object))[: task.max_objects]
    return list(boxes) if isinstance(task, DetectTask) else [_center(box) for box in boxes]


def _boxes(image: ImageRef, name: str) -> Iterator[Box]:
    """1 to MAX_FOUND boxes that follow from picture and name alone."""
    digest = hashlib.sha256(f"{image.id}/{name}".encode()).digest()
    for index in range(1 + digest[0] % MAX_FOUND):
        left, top, width, height = digest[1 + 4 * index : 5 + 4 * index]
        x_min, y_min = left / 512, top / 512  # below 0.5, and so are width and height
        yield Box(x_min, y_min, x_min + (width + 1) / 512, y_min + (height + 1) / 512)


def _center(box: Box) -> Point:
    return Point((box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2)
