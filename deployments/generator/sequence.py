"""One request on its way through the engine: prompt, generated tokens, text, and when each stage began.

Knows no torch and no asyncio. After hand-over only the engine's thread changes it, `is_dropped` excepted.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from deployments.generator.detokenizer import Detokenizer
from deployments.types import Chunk, FeatureSource, FinishReason, ImageFeatures, SamplingParams, Timings, Usage

if TYPE_CHECKING:
    import torch

    from deployments.generator.stream import AnswerStream
    from deployments.models.family import Prompt

Stage = Literal["waiting", "encode", "prefill", "decode"]


class StopScanner:
    """Ends a text before the first stop string, holding back what could be the beginning of one."""

    def __init__(self, stop: abc.Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Text that is safe to show now, and whether a stop string was met; nothing may be pushed after one."""
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        safe = len(text) - held
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


class AnswerText:
    """From token ids to the text a client may see: whole characters, up to the first stop string.

    White space before the answer's first character is left out: chat templates such as SmolVLM's end the prompt with
    "Assistant:" and write a stored answer as "Assistant: answer", so the space belongs to the template. Kept, it would
    be doubled in the next turn's prompt. Stop strings do not see it either: they are about what clients see.
    """

    def __init__(self, decode: Callable[[abc.Sequence[int]], str], stop: abc.Sequence[str]) -> None:
        self._detokenizer = Detokenizer(decode)
        self._scanner = StopScanner(stop)
        self._has_begun = False  # a character that is not white space was seen

    def push(self, token_id: int) -> tuple[str, bool]:
        """New text, and whether it ends here because of a stop string."""
        return self._scanner.push(self._begin(self._detokenizer.push(token_id)))

    def finish(self) -> tuple[str, bool]:
        """The held-back rest, and whether a stop string ended it."""
        text, stopped = self._scanner.push(self._begin(self._detokenizer.flush()))
        return (text, True) if stopped else (text + self._scanner.flush(), False)

    def _begin(self, text: str) -> str:
        if not self._has_begun:
            text = text.lstrip()
            self._has_begun = bool(text)
        return text


@dataclass(slots=True)
class Marks:
    """When stages began and ended, in seconds of the monotonic clock; 0 until it happened."""

    arrived: float
    encode_s: float = 0.0  # a duration: the wait for image features
    prefill_began: float = 0.0
    first_token: float = 0.0

    def timings(self, now: float, encode_source: FeatureSource | None) -> Timings:
        return Timings(
            queue_ms=_ms(self.prefill_began - self.arrived - self.encode_s),
            encode_ms=_ms(self.encode_s),
            prefill_ms=_ms(self.first_token - self.prefill_began),
            decode_ms=_ms(now - self.first_token),
            first_token_ms=_ms(self.first_token - self.arrived),
            encode_source=encode_source,
        )


def _ms(seconds: float) -> float:
    return round(max(seconds, 0.0) * 1000, 3)


@dataclass(slots=True, eq=False)
class Sequence:
    number: int  # order of arrival
    request_id: str
    prompt: Prompt
    features: dict[str, ImageFeatures]  # by picture id; emptied once `image_rows` are made
    encode_source: FeatureSource | None  # None without picture
    sampling: SamplingParams
    max_new_tokens: int  # what was asked for, cut to the context
    answer: AnswerText
    stream: AnswerStream  # where chunks go
    marks: Marks
    token_ids: list[int] = field(default_factory=list)  # generated, stop tokens left out
    num_prefilled: int = 0  # prompt tokens whose K/V are there
    slot: int | None = None  # of the KV cache; set by the runner
    is_dropped: bool = False  # set by the event loop: nobody reads any more
    is_finished: bool = False  # the last chunk was made
    image_rows: torch.Tensor | None = None  # (image_tokens, D) on the device, while prefill needs it
    rng: torch.Generator | None = None  # this sequence's own draws; set by the runner when sampling
    _num_unsent: int = 0  # tokens since the last chunk, their text is held back

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt.token_ids)

    @property
    def is_prefilled(self) -> bool:
        return self.num_prefilled == self.num_prompt_tokens

    @property
    def num_positions(self) -> int:
        """Positions of the KV cache that this sequence may have written, an interrupted step's included."""
        return self.num_prompt_tokens + len(self.token_ids)

    @property
    def is_abandoned(self) -> bool:
        return self.is_dropped or not self.stream.is_reachable

    @property
    def stage(self) -> Stage:
        if self.token_ids:
            return "decode"
        return "prefill" if self.marks.prefill_began else "waiting"

    def accept(self, token_id: int, stop_token_ids: frozenset[int], now: float) -> Chunk | None:
        """Take the next generated token; the chunk that it makes, if any. One with finish_reason is the last."""
        if not self.marks.first_token:
            self.marks.first_token = now
        if token_id in stop_token_ids:
            return self._finish("", "stop", now)
        self.token_ids.append(token_id)
        self._num_unsent += 1
        text, is_stopped = self.answer.push(token_id)
        if is_stopped:
            return self._last_chunk(text, "stop", now)
        if len(self.token_ids) >= self.max_new_tokens:
            return self._finish(text, "length", now)
        return self._chunk(text) if text else None

    def _finish(self, text: str, reason: FinishReason, now: float) -> Chunk:
        rest, is_stopped = self.answer.finish()
        return self._last_chunk(text + rest, "stop" if is_stopped else reason, now)

    def _chunk(self, text: str) -> Chunk:
        num_tokens, self._num_unsent = self._num_unsent, 0
        return Chunk(text, num_tokens)

    def _last_chunk(self, text: str, reason: FinishReason, now: float) -> Chunk:
        usage = Usage(
            prompt_tokens=self.num_prompt_tokens,
            image_tokens=self.prompt.num_image_tokens,
            reused_tokens=0,
            completion_tokens=len(self.token_ids),
        )
        timings = self.marks.timings(now, self.encode_source)
        self.is_finished = True
        return Chunk(text, self._num_unsent, reason, usage, timings)


def slowest_source(features: Iterable[ImageFeatures]) -> FeatureSource | None:
    """Where the features came from; of several pictures the one that cost most. None without picture."""
    sources = {item.source for item in features}
    order: tuple[FeatureSource, ...] = ("tower", "disk", "memory")
    return next((source for source in order if source in sources), None)
