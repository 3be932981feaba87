"""A generator that computes nothing: all streams get a token at each step, as an engine gives them.

The first token of an answer says when it was made.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from deployments.generator.stream import AnswerStream, Delivery, deliver_soon
from deployments.types import Chunk, FinishReason, GenerateRequest, Json, Timings, Usage

WORD = " token"
STAMP = re.compile(rb"@(\d+)@")  # nanoseconds of the monotonic clock, which all processes of a machine share


@dataclass(slots=True, eq=False)
class _Answer:
    stream: AnswerStream
    num_tokens: int
    num_sent: int = 0
    is_left: bool = False

    @property
    def is_over(self) -> bool:
        return self.is_left or self.num_sent == self.num_tokens

    def next_token(self) -> Delivery:
        self.num_sent += 1
        ids = (self.num_sent - 1,)
        if 1 < self.num_sent < self.num_tokens:
            return self.stream, Chunk(WORD, 1, token_ids=ids)
        text = f"{WORD}@{time.monotonic_ns()}@" if self.num_sent == 1 else WORD
        reason: FinishReason | None = "length" if self.num_sent == self.num_tokens else None
        usage, timings = Usage(1, 0, 0, self.num_sent), Timings(0, 0, 0, 0, 0)
        return self.stream, Chunk(text, 1, reason, usage, timings, token_ids=ids)


class PacedGenerator:
    """A Generator with one thread, which sleeps where an engine would compute. It knows no deadline."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._answers: list[_Answer] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="paced", daemon=True).start()

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        answer = _Answer(AnswerStream(), request.sampling.max_new_tokens)
        with self._changed:
            self._answers.append(answer)
            self._changed.notify()
        try:
            is_whole = False
            while not is_whole:
                chunk = await answer.stream.next_chunk()
                is_whole = chunk.finish_reason is not None
                yield chunk
        finally:
            answer.is_left = True

    async def statistics(self) -> Json:
        return {"running": len(self._answers)}

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._answers)
            time.sleep(self._step_s)
            with self._changed:
                deliver_soon([answer.next_token() for answer in self._answers if not answer.is_over])
                self._answers = [answer for answer in self._answers if not answer.is_over]
