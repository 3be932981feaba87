"""What goes into a task about one picture and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from deployments.ingress.turn_types import SamplingWish
from deployments.types import Box, FinishReason, Grounding, ImageRef, Point, Task, Timings, TokenLogprob, Usage


@dataclass(frozen=True, slots=True)
class TaskInput:
    request_id: str
    tenant: str
    task: Task
    image: ImageRef | None = None  # stored already; a QueryTask may go without
    model: str | None = None  # None: the default model where it has the skill, else the first that has
    sampling: SamplingWish = field(default_factory=SamplingWish)


@dataclass(frozen=True, slots=True)
class TaskStarted:
    model: str


@dataclass(frozen=True, slots=True)
class TaskChunk:
    """One of the four is not empty."""

    text: str = ""  # of the answer
    thought: str = ""
    found: tuple[Box | Point, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # of all tokens since the last chunk that had some


@dataclass(frozen=True, slots=True)
class TaskReply:
    request_id: str
    model_used: str
    text: str  # all chunks, joined; "" of detect and point
    thought: str
    grounding: tuple[Grounding, ...]
    found: tuple[Box | Point, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None = None  # of all tokens, thoughts included, if they were asked for
    cost: Decimal | None = None  # by the model's prices; None: it has none


@dataclass(frozen=True, slots=True)
class TaskFinished:
    reply: TaskReply


TaskEvent = TaskStarted | TaskChunk | TaskFinished
