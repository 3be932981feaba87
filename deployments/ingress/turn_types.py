"""What goes into a turn and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from deployments.config import GeneratorConfig
from deployments.errors import InvalidRequest
from deployments.record_types import RecordKind
from deployments.types import (
    FinishReason,
    Grammar,
    ImageRef,
    Message,
    SamplingParams,
    Timings,
    TokenLogprob,
    Usage,
)

TurnEnd = FinishReason | Literal["cancelled"]  # cancelled: stopped by who asked, the answer is what came until then

SHOWN_DIGITS = 20  # of a number that is refused: JSON's integers have no end


@dataclass(frozen=True, slots=True)
class SamplingWish:
    """Sampling as a client asks for it, before the model is known."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int | None = None  # None: the model's default_new_tokens
    stop: tuple[str, ...] = ()
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float | None = None  # None: the checkpoint's own
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    num_logprobs: int | None = None  # None: no log probabilities
    grammar: Grammar | None = None  # None: the model may say anything

    def to_params(self, limits: GeneratorConfig) -> SamplingParams:
        """Raises InvalidRequest when more tokens or stops are asked for than the model's settings allow."""
        if self.max_new_tokens is not None and self.max_new_tokens > limits.max_new_tokens:
            raise InvalidRequest(
                f"max_new_tokens is {str(self.max_new_tokens)[:SHOWN_DIGITS]}; this model gives at most "
                f"{limits.max_new_tokens}",
                "max_new_tokens",
            )
        self._check_stops(limits)
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=limits.default_new_tokens if self.max_new_tokens is None else self.max_new_tokens,
            stop=self.stop,
            seed=self.seed,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            num_logprobs=self.num_logprobs,
            grammar=self.grammar,
        )

    def _check_stops(self, limits: GeneratorConfig) -> None:
        if len(self.stop) > limits.max_stop_strings:
            raise InvalidRequest(
                f"stop has {len(self.stop)} strings; this model takes at most {limits.max_stop_strings}", "stop"
            )
        longest = max(map(len, self.stop), default=0)
        if longest > limits.max_stop_chars:
            raise InvalidRequest(
                f"stop has a string of {longest} characters; this model takes at most {limits.max_stop_chars} in each",
                "stop",
            )


@dataclass(frozen=True, slots=True)
class Draft:
    """What becomes a record when the turn's answer is there."""

    kind: RecordKind
    id: str
    body: str  # JSON text, for whoever completes it


@dataclass(frozen=True, slots=True)
class TurnInput:
    request_id: str
    tenant: str
    text: str = ""
    session_id: str | None = None  # None: a new session
    image: ImageRef | None = None  # stored already
    model: str | None = None
    sampling: SamplingWish = SamplingWish()
    input: tuple[Message, ...] = ()  # in place of text and image; its pictures are stored already
    instructions: str = ""  # a system message for this turn alone
    follows: str | None = None  # lease of the turn that must be the session's last one
    draft: Draft | None = None  # of a record that is stored with the answer
    keeps_all: bool = False  # too long a conversation is refused, instead of going on without its oldest exchanges


@dataclass(frozen=True, slots=True)
class TurnStarted:
    session_id: str
    model: str
    stream_id: str | None = None  # of a stream that is kept: names it for going on and for stopping


@dataclass(frozen=True, slots=True)
class TurnChunk:
    text: str  # empty only where there are log probabilities of tokens without text
    logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: tuple[int, ...] = ()  # up to here, since the chunk before


@dataclass(frozen=True, slots=True)
class TurnReply:
    request_id: str
    message: str  # the question
    response: str  # the answer: all chunks, joined
    has_image: bool  # the prompt of this turn showed the model a picture, new or kept from an earlier turn
    model_used: str
    session_id: str
    conversation_length: int  # messages kept, this exchange included
    finish_reason: TurnEnd
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None = None  # of all tokens, if they were asked for
    lease: str = ""  # of the turn: what `TurnInput.follows` names
    cost: Decimal | None = None  # by the model's prices; None: it has none


@dataclass(frozen=True, slots=True)
class TurnFinished:
    reply: TurnReply


@dataclass(frozen=True, slots=True)
class TurnFailed:
    """Why a kept stream ended without an answer; streams that are not kept raise instead."""

    code: str  # RetinaError's
    message: str
    param: str | None = None
    status: int = 500


TurnEvent = TurnStarted | TurnChunk | TurnFinished
KeptEvent = TurnEvent | TurnFailed
