"""The events of a response, in their order: a pure function of the response as it was opened and of what its turn says.

That is why any replica can send them again from any point: it makes them from the beginning and leaves out the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from fastapi.sse import format_sse_event

from deployments.ingress.body import Body
from deployments.ingress.completion_types import CompletionChunk, CompletionEvent, CompletionFinished, CompletionStarted
from deployments.ingress.openai.error_shape import CODES, INVALID, SERVER, OpenAIErrorBody
from deployments.ingress.responses.naming import param_here, words_here
from deployments.ingress.responses.resource import OutputMessage, OutputText, ResponseBody, TextLogprob
from deployments.ingress.responses.states import (
    FINAL_EVENT,
    Outcome,
    answer_item,
    answered,
    failed,
    message_id,
    to_logprobs,
)
from deployments.ingress.turn_types import KeptEvent, TurnChunk, TurnFailed, TurnFinished, TurnStarted
from deployments.types import TokenLogprob

END = b"data: [DONE]\n\n"
_to_json = json.JSONEncoder(ensure_ascii=False).encode

Said = KeptEvent | CompletionEvent


class Event(Body):
    type: str
    sequence_number: int


class StateEvent(Event):
    """`response.created`, `.in_progress`, and the last one: `.completed`, `.incomplete` or `.failed`."""

    response: ResponseBody


class ItemEvent(Event):
    """`response.output_item.added` and `.done`."""

    output_index: Literal[0] = 0
    item: OutputMessage


class PartEvent(Event):
    """`response.content_part.added` and `.done`."""

    item_id: str
    output_index: Literal[0] = 0
    content_index: Literal[0] = 0
    part: OutputText


class TextDoneEvent(Event):
    """`response.output_text.done`."""

    item_id: str
    output_index: Literal[0] = 0
    content_index: Literal[0] = 0
    text: str
    logprobs: list[TextLogprob]


class ErrorEvent(Event):
    """Comes before `response.failed`. Open Responses has the words in `error`, OpenAI's SDK beside it."""

    error: OpenAIErrorBody
    code: str | None
    message: str
    param: str | None


@dataclass(slots=True)
class ResponseEvents:
    """Give it everything that was said, in order, from the beginning."""

    response: ResponseBody  # as it was opened
    _num_sent: int = 0
    _has_item: bool = False
    _texts: list[str] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)

    def encode(self, said: Said, after: int = -1) -> bytes:
        """Server-sent events, those with a sequence number up to `after` left out."""
        first = self._num_sent
        lines = list(self._encode(said))
        self._num_sent = first + len(lines)
        return b"".join(lines[max(after + 1 - first, 0) :])

    def _encode(self, said: Said) -> Iterator[bytes]:
        match said:
            case TurnStarted() | CompletionStarted():
                self.response = self.response.model_copy(update={"model": said.model})
                return self._begin()
            case TurnChunk() | CompletionChunk():
                return self._add(said.text, said.logprobs)
            case TurnFinished():
                return self._finish(Outcome.of_turn(said.reply))
            case CompletionFinished():
                return self._finish(Outcome.of_completion(self.response.model, said))
            case TurnFailed():
                return self._fail(said)

    def _begin(self) -> Iterator[bytes]:
        for number, kind in enumerate(("created", "in_progress"), self._num_sent):
            yield _line(StateEvent(type=f"response.{kind}", sequence_number=number, response=self.response))

    def _add(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> Iterator[bytes]:
        number = self._num_sent
        if not self._has_item:
            yield from self._open_item(number)
            number += 2
        self._texts.append(text)
        self._logprobs.extend(logprobs)
        yield self._delta(number, text, logprobs)

    def _open_item(self, number: int) -> Iterator[bytes]:
        self._has_item = True
        item = OutputMessage(id=message_id(self.response.id), status="in_progress", content=[])
        yield _line(ItemEvent(type="response.output_item.added", sequence_number=number, item=item))
        yield self._part("added", number + 1, OutputText(text=""))

    def _part(self, kind: str, number: int, part: OutputText) -> bytes:
        return _line(
            PartEvent(
                type=f"response.content_part.{kind}",
                sequence_number=number,
                item_id=message_id(self.response.id),
                part=part,
            )
        )

    def _delta(self, number: int, text: str, logprobs: tuple[TokenLogprob, ...]) -> bytes:
        """Without a model of pydantic, which takes five times as long: there is one for each token."""
        kind = "response.output_text.delta"
        data = {
            "type": kind,
            "sequence_number": number,
            "item_id": message_id(self.response.id),
            "output_index": 0,
            "content_index": 0,
            "delta": text,
            "logprobs": [each.model_dump() for each in to_logprobs(logprobs)],
        }
        return format_sse_event(event=kind, data_str=_to_json(data), id=str(number))

    def _finish(self, outcome: Outcome) -> Iterator[bytes]:
        number = self._num_sent
        final = answered(self.response, outcome)
        if final.output and not self._has_item:
            yield from self._open_item(number)
            number += 2
        if self._has_item:
            yield from self._close_item(number, outcome)
            number += 3
        yield _line(StateEvent(type=FINAL_EVENT[final.status], sequence_number=number, response=final))

    def _close_item(self, number: int, outcome: Outcome) -> Iterator[bytes]:
        item = answer_item(self.response, outcome.text, outcome.end, outcome.logprobs)
        part = item.content[0]
        yield _line(
            TextDoneEvent(
                type="response.output_text.done",
                sequence_number=number,
                item_id=item.id,
                text=part.text,
                logprobs=part.logprobs,
            )
        )
        yield self._part("done", number + 1, part)
        yield _line(ItemEvent(type="response.output_item.done", sequence_number=number + 2, item=item))

    def _fail(self, failure: TurnFailed) -> Iterator[bytes]:
        error = _to_error(failure)
        number = self._num_sent
        yield _line(
            ErrorEvent(
                type="error",
                sequence_number=number,
                error=error,
                code=error.code,
                message=error.message,
                param=error.param,
            )
        )
        final = failed(self.response, failure)
        yield _line(StateEvent(type=FINAL_EVENT[final.status], sequence_number=number + 1, response=final))


def _to_error(failure: TurnFailed) -> OpenAIErrorBody:
    return OpenAIErrorBody(
        message=words_here(failure.message, failure.param),
        type=INVALID if failure.status < 500 else SERVER,
        param=param_here(failure.param),
        code=CODES.get(failure.code, failure.code),
    )


def _line(event: Event) -> bytes:
    return format_sse_event(
        event=event.type, data_str=event.model_dump_json(by_alias=True), id=str(event.sequence_number)
    )
