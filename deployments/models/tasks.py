"""The words by which chat models are asked to do a task: a task becomes a user's message. Pure, no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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


def caption_prompt(task: CaptionTask) -> str | None:
    """The words that a caption is asked for with, if the task has some. Raises InvalidRequest for empty ones."""
    if task.prompt is not None and not task.prompt.strip():
        raise InvalidRequest("prompt is empty; say what to write, or leave it out", "prompt")
    return task.prompt


def choose_language(language: str, choices: Collection[str]) -> str:
    """The one of the choices that is asked for: `pt` for pt-BR, where there is no pt-BR.

    Raises InvalidRequest naming the choices.
    """
    tag = language.lower()
    for known in (tag, tag.partition("-")[0]):
        if known in choices:
            return known
    raise InvalidRequest(f"language is {language!r}; this model writes captions in {', '.join(choices)}", "language")


def choose_length(length: CaptionLength, choices: Collection[CaptionLength]) -> CaptionLength:
    """The same, if it is one of the choices. Raises InvalidRequest naming them."""
    if length not in choices:
        raise InvalidRequest(f"length is {length!r}; this model has {', '.join(choices)}", "length")
    return length


def _words(task: Task, captions: Captions) -> str:
    if isinstance(task, CaptionTask):
        return caption_prompt(task) or _caption_words(task, captions)
    if isinstance(task, QueryTask):
        return _question(task)
    raise InvalidRequest(f"this model has no skill {SKILL_OF[type(task)]!r}; it has caption and query", "model")


def _caption_words(task: CaptionTask, captions: Captions) -> str:
    by_length = captions[choose_language(task.language, captions)]
    return by_length[choose_length(task.length, by_length)]


def _question(task: QueryTask) -> str:
    if task.reasoning:
        raise InvalidRequest("this model has no reasoning; leave out `reasoning`", "reasoning")
    if task.spatial_refs:
        raise InvalidRequest("this model takes no points and boxes; leave out `spatial_refs`", "spatial_refs")
    return task.question
