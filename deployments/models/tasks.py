"""The words by which chat models are asked to do a task: a task becomes a user's message. Pure, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from deployments.errors import InvalidRequest
from deployments.types import SKILL_OF, CaptionLength, CaptionTask, Message, QueryTask, Task, TextPart

Captions = Mapping[str, Mapping[CaptionLength, str]]  # by language, ISO 639-1

ENGLISH: Captions = {
    "en": {
        "short": "Describe this image briefly.",
        "normal": "Describe this image.",
        "long": "Describe this image in detail.",
    }
}


def to_messages(task: Task, messages: Sequence[Message], captions: Captions = ENGLISH) -> tuple[Message, ...]:
    """The user message of a task with the words that ask for it.

    Raises InvalidRequest for what a chat model cannot do, naming what it can.
    """
    [message] = messages
    return (replace(message, content=(*message.content, TextPart(_words(task, captions)))),)


def _words(task: Task, captions: Captions) -> str:
    if isinstance(task, CaptionTask):
        return task.prompt or _caption_words(task, captions)
    if isinstance(task, QueryTask):
        return _question(task)
    raise InvalidRequest(f"this model has no skill {SKILL_OF[type(task)]!r}; it has caption and query", "model")


def _caption_words(task: CaptionTask, captions: Captions) -> str:
    if task.language not in captions:
        raise InvalidRequest(
            f"language is {task.language!r}; this model writes captions in {', '.join(captions)}", "language"
        )
    return captions[task.language][task.length]


def _question(task: QueryTask) -> str:
    if task.reasoning:
        raise InvalidRequest("this model has no reasoning; leave out `reasoning`", "reasoning")
    if task.spatial_refs:
        raise InvalidRequest("this model takes no points and boxes; leave out `spatial_refs`", "spatial_refs")
    return task.question
