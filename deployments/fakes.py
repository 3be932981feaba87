"""Generator and vision encoder without models: for tests, and for `make serve-fake`, where the page and every route
work within a second and no answer means anything."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from deployments.errors import DeadlineExceeded
from deployments.fake_answers import answer, grounding, newest_picture, rest, text_of
from deployments.types import (
    Chunk,
    EncodeRequest,
    FeatureSource,
    GenerateRequest,
    ImageFeatures,
    Json,
    Timings,
    Usage,
    VisionEncoder,
)

IMAGE_TOKENS = 16  # rows of a picture's features
FEATURE_WIDTH = 8
MAX_REMEMBERED_IMAGES = 1000


@dataclass(slots=True)
class Gate:
    """Where a test holds the streams of a FakeGenerator, and sees them come and go."""

    after_chunks: int = 0  # 0: before the first token
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # a stream has ended, in whatever way


class FakeGenerator:
    """Says back the question and the picture's size, one word a chunk; finds what is nowhere, one place a chunk.

    The same prompt always gets the same answer: temperature, top_p, top_k, min_p, penalties and seed change nothing.
    max_new_tokens (words and places here), stop, logprobs and the deadline are kept. A token's id is its place in the
    answer, so `answered` must be 0, 1, 2, ... and the answer goes on after so many words. A grammar wraps the answer
    into the least JSON that fits (`fake_documents.py`). With a vision encoder it asks for the picture's features first.
    """

    def __init__(
        self,
        model: str = "fake",
        vision_encoder: VisionEncoder | None = None,
        *,
        word_delay_s: float = 0.0,
        gate: Gate | None = None,
        failure: Exception | None = None,
        fail_after_chunks: int = 0,  # of the failure, if there is one
        max_failures: int | None = None,  # streams that fail, the first ones; None: all
    ) -> None:
        self._model = model
        self._vision_encoder = vision_encoder
        self._word_delay_s = word_delay_s
        self._gate = gate
        self._failure = failure
        self._fail_after_chunks = fail_after_chunks
        self._num_failures_left = math.inf if max_failures is None else max_failures
        self._num_running = 0
        self._ended = {"stop": 0, "length": 0, "cancelled": 0, "failed": 0}

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        outcome = "cancelled"
        self._num_running += 1
        try:
            clock = _Clock(request.timeout_s)
            chunks, reason = answer(request)
            left, num_tokens = rest(request, chunks), len(request.answered)
            features = await self._look(request)
            for position, chunk in enumerate(left):
                await self._pause(position, clock)
                num_tokens += chunk.num_tokens
                is_last = position == len(left) - 1
                if position == 0 or is_last:
                    chunk = replace(chunk, usage=_usage(request, num_tokens), timings=clock.timings(features))
                if is_last:
                    outcome = reason
                    chunk = replace(chunk, finish_reason=reason, grounding=grounding(request, chunks))
                yield chunk
        except Exception:
            outcome = "failed"
            raise
        finally:
            self._num_running -= 1
            self._ended[outcome] += 1
            if self._gate is not None:
                self._gate.left.set()

    async def statistics(self) -> Json:
        return {"running": self._num_running, **self._ended}

    async def _look(self, request: GenerateRequest) -> ImageFeatures | None:
        image = newest_picture(request)
        if image is None or self._vision_encoder is None:
            return None
        return await self._vision_encoder.encode(EncodeRequest(request.tenant, self._model, image, request.timeout_s))

    async def _pause(self, position: int, clock: _Clock) -> None:
        """What comes before the chunk at `position`."""
        if self._failure is not None and position == self._fail_after_chunks and self._num_failures_left > 0:
            self._num_failures_left -= 1
            raise self._failure
        try:
            async with asyncio.timeout_at(clock.deadline):
                if self._gate is not None and position == self._gate.after_chunks:
                    self._gate.reached.set()
                    await self._gate.opened.wait()
                await asyncio.sleep(self._word_delay_s)
        except TimeoutError as error:
            raise DeadlineExceeded("the fake generator ran out of time") from error
        clock.note_token()


class FakeVisionEncoder:
    """Features that depend on nothing but the picture's id; it remembers which pictures it has seen."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._counts = {"tower": 0, "memory": 0}

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        import numpy as np

        started_s = time.perf_counter()
        source = self._remember(f"{request.tenant}/{request.model}/{request.image.id}")
        seed = int.from_bytes(hashlib.sha256(request.image.id.encode()).digest()[:8])
        array = np.random.default_rng(seed).standard_normal((IMAGE_TOKENS, FEATURE_WIDTH), dtype=np.float32)
        return ImageFeatures(array, "float32", source, (time.perf_counter() - started_s) * 1000)

    async def statistics(self) -> Json:
        return {"images": len(self._seen), **self._counts}

    @property
    def closing(self) -> None:
        """It never fails."""

    async def close(self) -> None:
        """There is nothing to finish."""

    def _remember(self, key: str) -> FeatureSource:
        source: FeatureSource = "memory" if key in self._seen else "tower"
        self._counts[source] += 1
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_REMEMBERED_IMAGES:
            self._seen.popitem(last=False)
        return source


class _Clock:
    """Deadline and timings of one answer."""

    def __init__(self, timeout_s: float) -> None:
        self.deadline = asyncio.get_running_loop().time() + timeout_s
        self._started_s = time.perf_counter()
        self._first_s: float | None = None

    def note_token(self) -> None:
        if self._first_s is None:
            self._first_s = time.perf_counter()

    def timings(self, features: ImageFeatures | None) -> Timings:
        now_s = time.perf_counter()
        first_s = now_s if self._first_s is None else self._first_s
        first_token_ms = (first_s - self._started_s) * 1000
        encode_ms = features.encode_ms if features is not None else 0.0
        return Timings(
            queue_ms=0.0,
            encode_ms=encode_ms,
            prefill_ms=max(first_token_ms - encode_ms, 0.0),
            decode_ms=(now_s - first_s) * 1000,
            first_token_ms=first_token_ms,
            encode_source=features.source if features is not None else None,
        )


def _usage(request: GenerateRequest, num_tokens: int) -> Usage:
    image_tokens = IMAGE_TOKENS * sum(len(message.images) for message in request.messages)
    return Usage(image_tokens + len(text_of(request).split()), image_tokens, 0, num_tokens)
