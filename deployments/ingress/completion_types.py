"""What goes into a completion and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from deployments.ingress.turn_types import SamplingWish
from deployments.types import FinishReason, Message, Timings, TokenLogprob, Usage


@dataclass(frozen=True, slots=True)
class CompletionInput:
    request_id: str
    tenant: str
    messages: tuple[Message, ...]  # the whole prompt; its pictures are stored already
    model: str | None = None  # None: the default
    sampling: SamplingWish = field(default_factory=SamplingWish)
    num_choices: int = 1
    affinity: str = ""  # what requests have in common that should go to one replica; hashed before it leaves
    keeps_all: bool = True  # whoever holds the conversation is told when it is too long; False: its oldest part is cut


@dataclass(frozen=True, slots=True)
class CompletionStarted:
    model: str


@dataclass(frozen=True, slots=True)
class CompletionChunk:
    text: str  # empty only where there are log probabilities of tokens without text
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0  # of the choice


@dataclass(frozen=True, slots=True)
class CompletionFinished:
    """One choice is whole."""

    index: int
    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None = None  # of all tokens, if they were asked for


CompletionEvent = CompletionStarted | CompletionChunk | CompletionFinished
