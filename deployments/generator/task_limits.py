"""Says which tasks the engine takes, and with which sampling. Pure; knows no torch and no asyncio."""

from __future__ import annotations

from deployments.errors import InvalidRequest
from deployments.types import (
    SKILL_OF,
    CaptionTask,
    DetectTask,
    GenerateRequest,
    PointTask,
    QueryTask,
    SamplingParams,
    Task,
)


def check_task(request: GenerateRequest, task: Task) -> None:
    """Raises InvalidRequest naming the field, what it was and what is allowed."""
    _check_messages(request)
    if isinstance(task, CaptionTask):
        if task.prompt is not None:
            _require_text("prompt", task.prompt)
    elif isinstance(task, QueryTask):
        _require_text("question", task.question)
        _check_places(task.spatial_refs)
    else:
        _require_text("object", task.object)
        _check_max_objects(task.max_objects)
        _check_greedy(task, request.sampling)


def _check_messages(request: GenerateRequest) -> None:
    messages = request.messages
    if [message.role for message in messages] != ["user"]:
        raise InvalidRequest(f"a task comes with one user message, not with {len(messages)} messages", "messages")
    [message] = messages
    if len(message.images) > 1:
        raise InvalidRequest(f"a task is about one picture; the message has {len(message.images)}", "messages")
    if message.text:
        raise InvalidRequest("a task says all itself; its message has text of its own", "messages")


def _require_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise InvalidRequest(f"{name} is {text!r}; it must be a text", name)
    if not text.strip():
        raise InvalidRequest(f"{name} is empty", name)


def _check_places(places: tuple[tuple[float, ...], ...]) -> None:
    for place in places:
        if len(place) not in (2, 4) or not all(map(_is_share, place)) or not _is_ordered(place):
            raise InvalidRequest(
                f"spatial_refs has {place}; each is a point (x, y) or a box (x_min, y_min, x_max, y_max), shares "
                "from 0 to 1",
                "spatial_refs",
            )


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _is_ordered(place: tuple[float, ...]) -> bool:
    return len(place) == 2 or (place[0] <= place[2] and place[1] <= place[3])


def _check_max_objects(max_objects: int) -> None:
    if not isinstance(max_objects, int) or isinstance(max_objects, bool) or max_objects < 1:
        raise InvalidRequest(f"max_objects is {max_objects}; it must be a whole number, 1 or more", "max_objects")


def _check_greedy(task: DetectTask | PointTask, sampling: SamplingParams) -> None:
    """Whether another thing follows is not drawn, and there is no text that stop strings could end."""
    skill = SKILL_OF[type(task)]
    if sampling.temperature != 0:
        raise InvalidRequest(f"temperature is {sampling.temperature}; {skill} is always greedy", "temperature")
    if sampling.stop:
        raise InvalidRequest(f"{skill} gives no text that stop could end; leave it out", "stop")
    idle = {
        "repetition_penalty": sampling.repetition_penalty not in (None, 1),
        "presence_penalty": sampling.presence_penalty != 0,
        "frequency_penalty": sampling.frequency_penalty != 0,
        "min_p": sampling.min_p != 0,
        "logprobs": sampling.num_logprobs is not None,
    }
    for name, is_given in idle.items():
        if is_given:
            raise InvalidRequest(f"{name} plays no part in {skill}; leave it out", name)
