"""One request on its way through the engine: prompt, chosen tokens, text, and when each stage began.

Knows no torch and no asyncio. After hand-over only the engine's thread changes it, `is_dropped` excepted.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from deployments.generator.answer_text import AnswerText
from deployments.generator.continuation import extend
from deployments.generator.prefix_tree import NO_MATCH, Content, Match
from deployments.generator.thoughts import Thoughts
from deployments.types import (
    Alternative,
    Box,
    Chunk,
    EncodeSource,
    FeatureSource,
    FinishReason,
    ImageFeatures,
    Point,
    SamplingParams,
    Timings,
    TokenLogprob,
    Usage,
)

if TYPE_CHECKING:
    import torch

    from deployments.generator.draws import Draws
    from deployments.generator.logprobs import TokenScores
    from deployments.generator.penalties import Discount
    from deployments.generator.repetition import Repetition
    from deployments.generator.stream import AnswerStream
    from deployments.generator.token_mask import TokenMask
    from deployments.models.family import Prompt, Rules, Ruling

Stage = Literal["waiting", "encode", "prefill", "decode"]


@dataclass(slots=True)
class Marks:
    """When stages began and ended, in seconds of the monotonic clock; 0 until it happened."""

    arrived: float
    encode_s: float = 0.0  # a duration: the wait for image features
    prefill_began: float = 0.0
    first_token: float = 0.0

    def timings(self, now: float, encode_source: EncodeSource | None) -> Timings:
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
    pulled: frozenset[str]  # ids of the pictures whose features were needed
    encode_source: EncodeSource | None  # None without picture
    sampling: SamplingParams  # with the checkpoint's repetition_penalty where the request has none
    max_new_tokens: int  # of the answer's text; what was asked for, cut to the context
    max_positions: int  # of the KV cache: the context
    answer: AnswerText
    thoughts: Thoughts
    stream: AnswerStream  # where chunks go
    marks: Marks
    priority: int = 0
    answered: tuple[int, ...] = ()  # tokens of the answer that were streamed before; `answer` knows them
    ended: FinishReason | None = None  # why the answer ends with `answered`; None: it goes on
    contents: SequenceOf[Content] = ()  # of the given tokens: what their K/V depend on
    realm: str = ""  # K/V are shared within it
    match: Match = NO_MATCH  # a pinned beginning, until it was laid down
    match_version: int = 0  # of the memory of beginnings when `match` was looked up
    given: Prompt = field(init=False)  # what is prefilled: the prompt and what was answered
    token_ids: list[int] = field(init=False)  # of the answer, what ended it left out; `answered` comes first
    next_token_id: int = 0  # goes into the model in the next step, unless there is a `next_embedding`
    num_prefilled: int = 0  # given tokens whose K/V are there, or pinned to be laid down
    num_reused: int = 0  # of these, those that were not computed for this sequence
    slot: int | None = None  # of the KV cache; set by the runner
    is_dropped: bool = False  # set by the event loop: nobody reads any more
    is_finished: bool = False  # the last chunk was made
    image_rows: torch.Tensor | None = None  # (image_tokens, D) on the device, while prefill needs it
    next_embedding: torch.Tensor | None = None  # (D,), in place of a token's
    mask: TokenMask | None = None  # None: the model may say anything
    rng: Draws | None = None  # this sequence's own chance; set with the three below before the first pass
    repetition: Repetition | None = None  # None: no penalty
    discount: Discount | None = None  # None: no penalty
    rules: Rules | None = None  # None: tokens are text up to a stop token
    scores: TokenScores | None = None  # of the token that was just chosen, if the request asked for log probabilities
    _num_answer_tokens: int = field(init=False)
    _num_sent: int = field(init=False)  # of `token_ids`; the text of the others is held back
    _is_begun: bool = False  # the first chunk was made
    _unsent_thought: str = ""
    _unsent_found: tuple[Box | Point, ...] = ()
    _unsent_logprobs: tuple[TokenLogprob, ...] = ()

    def __post_init__(self) -> None:
        self.given = extend(self.prompt, self.answered)
        self.token_ids = list(self.answered)
        self._num_answer_tokens = self._num_sent = len(self.answered)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt.token_ids)

    @property
    def num_given_tokens(self) -> int:
        return len(self.given.token_ids)

    @property
    def is_prefilled(self) -> bool:
        return self.num_prefilled == self.num_given_tokens

    @property
    def num_positions(self) -> int:
        """Positions of the KV cache that this sequence may have written, an interrupted step's included."""
        return self.num_prompt_tokens + len(self.token_ids)

    @property
    def next_index(self) -> int:
        """Where the next input's K/V go, while decoding."""
        return self.num_positions - 1

    @property
    def next_position(self) -> int:
        """The next input's position for the model, in all position rows, while decoding."""
        return self.prompt.next_position + len(self.token_ids) - 1

    @property
    def is_abandoned(self) -> bool:
        return self.is_dropped or not self.stream.is_reachable

    @property
    def stage(self) -> Stage:
        if len(self.token_ids) > len(self.answered):
            return "decode"
        return "prefill" if self.marks.prefill_began else "waiting"

    def accept(
        self, token_id: int, stop_token_ids: frozenset[int], now: float, ruling: Ruling | None = None
    ) -> Chunk | None:
        """Take the token that was just chosen; the chunk that it makes, if any. One with finish_reason is the last.

        `ruling` is what the answer's rules say of the token, and then `stop_token_ids` say nothing.
        """
        if not self.marks.first_token:
            self.marks.first_token = now
        if ruling is not None:
            return self._obey(token_id, ruling, now)
        if token_id in stop_token_ids:
            return self._finish("", "stop", now)
        self._take(token_id)
        self.next_token_id = token_id
        return self._answer(token_id, now)

    def end_at_once(self, now: float) -> Chunk:
        """The only chunk of an answer that ended with what was streamed before: nothing is computed for it."""
        assert self.ended is not None
        self.marks.prefill_began = self.marks.first_token = now
        self.num_reused = self.num_prompt_tokens
        return self._last_chunk("", self.ended, now)

    def let_go(self) -> None:
        """Forget what lies on the device; whoever reads the stream may hold this sequence for long."""
        self.image_rows = self.next_embedding = None
        self.mask = self.rng = self.repetition = self.discount = self.rules = self.scores = None

    def _obey(self, token_id: int, ruling: Ruling, now: float) -> Chunk | None:
        if ruling.found is not None:
            self._unsent_found += (ruling.found,)
        if ruling.is_last:
            return self._finish("", "stop", now)
        assert ruling.embedding is not None or ruling.token_id >= 0, "rules must say what goes into the model next"
        self._take(token_id)
        self.next_token_id, self.next_embedding = max(ruling.token_id, 0), ruling.embedding
        if ruling.kind == "thought":
            self._unsent_thought += self.thoughts.push(token_id, begins_phrase=ruling.begins_phrase)
        if ruling.grounding is not None:
            self.thoughts.ground(ruling.grounding)
        if ruling.kind == "answer":
            self._unsent_thought += self.thoughts.end()
            return self._answer(token_id, now)
        return self._go_on("", now)

    def _take(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        if self.scores is not None:
            self._unsent_logprobs += (self._describe(token_id, self.scores),)
            self.scores = None

    def _describe(self, token_id: int, scores: TokenScores) -> TokenLogprob:
        text_of = self.answer.text_of
        top = tuple(Alternative(each, text_of(each), logprob) for each, logprob in scores.top)
        return TokenLogprob(Alternative(token_id, text_of(token_id), scores.chosen), top)

    def _answer(self, token_id: int, now: float) -> Chunk | None:
        self._num_answer_tokens += 1
        text, is_stopped = self.answer.push(token_id)
        return self._last_chunk(text, "stop", now) if is_stopped else self._go_on(text, now)

    def _go_on(self, text: str, now: float) -> Chunk | None:
        if self._num_answer_tokens >= self.max_new_tokens or self.num_positions >= self.max_positions:
            return self._finish(text, "length", now)
        return self._chunk(text, now) if text or self._unsent_thought or self._unsent_found else None

    def _finish(self, text: str, reason: FinishReason, now: float) -> Chunk:
        rest, is_stopped = self.answer.finish()
        return self._last_chunk(text + rest, "stop" if is_stopped else reason, now)

    def _chunk(self, text: str, now: float) -> Chunk:
        token_ids = tuple(self.token_ids[self._num_sent :])
        chunk = Chunk(
            text,
            len(token_ids),
            usage=None if self._is_begun else self._usage(),
            timings=None if self._is_begun else self.marks.timings(now, self.encode_source),
            thought=self._unsent_thought,
            found=self._unsent_found,
            logprobs=self._unsent_logprobs,
            token_ids=token_ids,
        )
        self._is_begun, self._num_sent = True, len(self.token_ids)
        self._unsent_thought, self._unsent_found, self._unsent_logprobs = "", (), ()
        return chunk

    def _last_chunk(self, text: str, reason: FinishReason, now: float) -> Chunk:
        self._unsent_thought += self.thoughts.end()
        chunk = replace(
            self._chunk(text, now),
            finish_reason=reason,
            usage=self._usage(),
            timings=self.marks.timings(now, self.encode_source),
            grounding=self.thoughts.groundings,
        )
        self.is_finished = True
        return chunk

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            image_tokens=self.prompt.num_image_tokens,
            reused_tokens=min(self.num_reused, self.num_prompt_tokens),  # what was answered is not the prompt's
            completion_tokens=len(self.token_ids),
        )


def slowest_source(prompt: Prompt, features: Iterable[ImageFeatures]) -> EncodeSource | None:
    """Where the features came from; of several pictures the one that cost most. "kv" where none were needed, None
    without picture."""
    sources = {item.source for item in features}
    order: tuple[FeatureSource, ...] = ("tower", "disk", "memory")
    return next((source for source in order if source in sources), "kv" if prompt.images else None)
