"""A request that the engine admitted, until its stream ends. Belongs to the event loop."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from deployments.generator.sequence import Sequence, Stage
from deployments.generator.stream import AnswerStream
from deployments.types import GenerateRequest, Json


@dataclass(slots=True, eq=False)
class Ticket:
    number: int  # order of arrival
    request: GenerateRequest
    stream: AnswerStream
    arrived: float  # monotonic s
    deadline: float  # monotonic s
    is_encoding: bool = False
    sequence: Sequence | None = None  # once it was handed to the worker
    preparing: asyncio.Task[None] | None = field(default=None, repr=False)
    expiry: asyncio.TimerHandle | None = field(default=None, repr=False)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to compute; its reader may still have chunks to fetch."""
        return self.sequence is not None and self.sequence.is_finished

    @property
    def stage(self) -> Stage:
        if self.sequence is not None:
            return self.sequence.stage
        return "encode" if self.is_encoding else "waiting"

    @property
    def num_tokens(self) -> int:
        """Of the answer, those included that were streamed before."""
        return len(self.sequence.token_ids if self.sequence is not None else self.request.answered)

    @property
    def num_remaining(self) -> int:
        # Thoughts and steps without text may be more than what was asked for.
        return max(self.request.sampling.max_new_tokens - self.num_tokens, 0)

    def describe(self) -> Json:
        """For statistics, JSON-ready."""
        sequence = self.sequence
        return {
            "request_id": self.request.request_id,
            "stage": self.stage,
            "tokens": self.num_tokens,
            "prompt_tokens": sequence.num_prompt_tokens if sequence is not None else None,
            "slot": sequence.slot if sequence is not None else None,
            "age_s": round(time.monotonic() - self.arrived, 3),
        }
