"""A response from state to state: answered, failed, or as it was before. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deployments.errors import RetinaError
from deployments.ingress.completion_types import CompletionFinished
from deployments.ingress.responses.naming import param_here, words_here
from deployments.ingress.responses.resource import (
    AlternativeLogprob,
    IncompleteDetails,
    OutputMessage,
    OutputText,
    ResponseBody,
    ResponseFault,
    ResponseUsage,
    Status,
    TextLogprob,
)
from deployments.ingress.sampling_schemas import LEAST_LOGPROB
from deployments.ingress.turn_types import TurnEnd, TurnFailed, TurnReply
from deployments.types import Alternative, Timings, TokenLogprob, Usage

NO_CHARACTER = "\ufffd"
STATUS_OF: Mapping[TurnEnd, Status] = {"stop": "completed", "length": "incomplete", "cancelled": "cancelled"}
# There is no event of its own for a response that was stopped.
FINAL_EVENT: Mapping[Status, str] = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "cancelled": "response.incomplete",
    "failed": "response.failed",
}
# OpenAI's words for why a response failed; its SDK knows no others.
FAULTS: Mapping[str, str] = {
    "overloaded": "rate_limit_exceeded",
    "invalid_image": "invalid_image",
    "unsupported_image": "unsupported_image_media_type",
    "image_too_large": "image_too_large",
    "image_not_found": "image_file_not_found",
    "lease_lost": "server_error",
    "stream_abandoned": "server_error",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, whichever way it was got."""

    model: str
    text: str
    end: TurnEnd
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()

    @classmethod
    def of_turn(cls, reply: TurnReply) -> Outcome:
        return cls(
            reply.model_used, reply.response, reply.finish_reason, reply.usage, reply.timings, reply.logprobs or ()
        )

    @classmethod
    def of_completion(cls, model: str, done: CompletionFinished) -> Outcome:
        return cls(model, done.text, done.finish_reason, done.usage, done.timings, done.logprobs or ())


def answered(response: ResponseBody, outcome: Outcome) -> ResponseBody:
    """By reply and response alone, so that a stream that is read again ends with the same object."""
    status = STATUS_OF[outcome.end]
    took_s = (outcome.timings.first_token_ms + outcome.timings.decode_ms) / 1000
    return response.model_copy(
        update={
            "status": status,
            "model": outcome.model,
            "completed_at": response.created_at + round(took_s) if status == "completed" else None,
            "incomplete_details": IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None,
            "output": _output(response, outcome),
            "usage": ResponseUsage.from_usage(outcome.usage),
        }
    )


def failed(response: ResponseBody, failure: TurnFailed) -> ResponseBody:
    """Without what was said until then: the conversation has not got it either."""
    return response.model_copy(update={"status": "failed", "error": _to_fault(failure)})


def reopened(response: ResponseBody) -> ResponseBody:
    """As it was before anything was said."""
    return response.model_copy(
        update={
            "status": "in_progress",
            "completed_at": None,
            "incomplete_details": None,
            "error": None,
            "output": [],
            "usage": None,
        }
    )


def failure_of(error: RetinaError) -> TurnFailed:
    return TurnFailed(error.code, error.message, error.param, error.status)


def message_id(response_id: str) -> str:
    """Of the answer's one item."""
    return response_id.replace("resp_", "msg_", 1)


def answer_item(response: ResponseBody, text: str, end: TurnEnd, logprobs: Iterable[TokenLogprob]) -> OutputMessage:
    return OutputMessage(
        id=message_id(response.id),
        status="completed" if end == "stop" else "incomplete",
        content=[OutputText(text=text, logprobs=to_logprobs(logprobs))],
    )


def to_logprobs(tokens: Iterable[TokenLogprob]) -> list[TextLogprob]:
    return [
        TextLogprob(
            **_alternative(token.chosen), top_logprobs=[AlternativeLogprob(**_alternative(t)) for t in token.top]
        )
        for token in tokens
    ]


def _output(response: ResponseBody, outcome: Outcome) -> list[OutputMessage]:
    if outcome.end == "cancelled" and not (outcome.text or outcome.logprobs):
        return []  # stopped before its first word
    return [answer_item(response, outcome.text, outcome.end, outcome.logprobs)]


def _alternative(given: Alternative) -> dict[str, object]:
    whole = NO_CHARACTER not in given.text
    return {
        "token": given.text,
        "logprob": max(given.logprob, LEAST_LOGPROB),
        "bytes": list(given.text.encode(errors="replace")) if whole else [],
    }


def _to_fault(failure: TurnFailed) -> ResponseFault:
    ours = "server_error" if failure.status >= 500 else "invalid_prompt"
    message = words_here(failure.message, failure.param)
    return ResponseFault(code=FAULTS.get(failure.code, ours), message=message, param=param_here(failure.param))
