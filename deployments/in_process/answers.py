"""What the models give back: an answer as a text that knows how it came about, or its pieces as they come."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.in_process.bridge import Pull
from deployments.ingress.task_types import TaskChunk, TaskEvent, TaskFinished, TaskReply
from deployments.types import Grounding, Timings, TokenLogprob, Usage


class Answer(str):
    """The text of an answer, with what is known of how it came about.

    >>> from deployments.vlm import SmolVLM
    >>> with SmolVLM() as model:
    ...     answer = model.query("demo/images/red-circle.png", "What color is the circle?")
    >>> answer, answer.usage.image_tokens
    ('It is red.', 16)
    """

    thought: str  # what the model said to itself before; "" without reasoning
    grounding: tuple[Grounding, ...]  # what the thoughts spoke of
    logprobs: tuple[TokenLogprob, ...] | None  # of all tokens, if they were asked for
    usage: Usage
    timings: Timings

    @classmethod
    def from_reply(cls, reply: TaskReply) -> Answer:
        answer = cls(reply.text)
        answer.thought, answer.grounding, answer.logprobs = reply.thought, reply.grounding, reply.logprobs
        answer.usage, answer.timings = reply.usage, reply.timings
        return answer


class AnswerStream(Iterator[str]):
    """Pieces of an answer as they come. `close` cancels what is left of it, and so does letting go of it.

    >>> from deployments.vlm import SmolVLM
    >>> with SmolVLM() as model:
    ...     stream = model.query("demo/images/red-circle.png", "What color is the circle?", stream=True)
    ...     list(stream)
    ['It', ' is', ' red', '.']
    >>> stream.answer.usage.completion_tokens
    4
    """

    def __init__(self, events: Pull[TaskEvent]) -> None:
        self._events = events
        self.answer: Answer | None = None  # set at the end

    def __next__(self) -> str:
        for event in self._events:
            if isinstance(event, TaskChunk) and event.text:
                return event.text
            if isinstance(event, TaskFinished):
                self.answer = Answer.from_reply(event.reply)
        raise StopIteration

    def close(self) -> None:
        self._events.close()


def finish(events: Pull[TaskEvent]) -> TaskReply:
    with events:
        for event in events:
            if isinstance(event, TaskFinished):
                return event.reply
    raise AssertionError("a task ends with TaskFinished or raises")
