"""What there is of an answer while it comes, and what an answer that ends early says of itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from deployments.types import Chunk, Timings, TokenLogprob, Usage

NO_USAGE = Usage(0, 0, 0, 0)
NO_TIMINGS = Timings(0, 0, 0, 0, 0)


@dataclass(slots=True)
class Said:
    """What there is of an answer."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    num_tokens: int = 0
    usage: Usage | None = None  # as the first chunk told it
    timings: Timings | None = None  # as the first chunk told them
    first_s: float = field(default_factory=time.monotonic)  # when that was

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, chunk: Chunk) -> None:
        if self.usage is None:
            self.usage, self.timings, self.first_s = chunk.usage, chunk.timings, time.monotonic()
        self.texts.append(chunk.text)
        self.logprobs.extend(chunk.logprobs)
        self.token_ids.extend(chunk.token_ids)
        self.num_tokens += chunk.num_tokens

    def usage_so_far(self) -> Usage:
        return replace(self.usage or NO_USAGE, completion_tokens=self.num_tokens)

    def timings_so_far(self) -> Timings:
        return replace(self.timings or NO_TIMINGS, decode_ms=(time.monotonic() - self.first_s) * 1000)
