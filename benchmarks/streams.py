"""Requests of exact length through an Engine of its own, without a service, a vision encoder or Ray around it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.summary import Record

if TYPE_CHECKING:
    from deployments.generator.engine import Engine
    from deployments.models.family import Prompt, PromptFormat
    from deployments.types import EncodeRequest, GenerateRequest, ImageFeatures, Json, Message, Task

ANSWER_WITHIN_S = 3600.0
STEADY_AFTER_TOKENS = 40  # chunks, to be exact: a half character comes with the next token
PICTURE_PX = 256


@dataclass(frozen=True, slots=True)
class EngineSettings:
    checkpoint: Path
    family: str
    dtype: str
    device: str
    num_threads: int
    num_slots: int
    context_tokens: int
    image_tokens: int  # of a picture; 0: prompts are words alone
    prefix_cache_bytes: int | None = None  # None: what a configuration gets that says nothing


@dataclass(frozen=True, slots=True)
class Asked:
    num_prompt_tokens: int
    num_new_tokens: int
    key: str  # prompts of different keys have nothing in common but their first token


@dataclass(slots=True)
class ExactPrompts:
    """A checkpoint's prompt format, but prompts are as long as was asked, of tokens by chance, and nothing stops."""

    real: PromptFormat
    vocab_size: int
    image_tokens: int
    position_rows: int
    stop_token_ids: frozenset[int] = frozenset()
    repetition_penalty: float = 1.0
    byte_token_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.byte_token_ids = self.real.byte_token_ids

    def build(self, messages: Sequence[Message], task: Task | None = None) -> Prompt:
        import numpy as np

        from deployments.models.family import ImageSpan, Prompt

        num_tokens, key = messages[-1].text.split(" ", 1)
        length, chance = int(num_tokens), random.Random(key)
        spans = tuple(ImageSpan(image.id, 1, self.image_tokens) for image in messages[-1].images)
        return Prompt(
            token_ids=(0, *(chance.randrange(self.vocab_size // 2, self.vocab_size) for _ in range(length - 1))),
            positions=np.tile(np.arange(length), (self.position_rows, 1)),
            next_position=length,
            images=spans,
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.real.decode(token_ids)


@dataclass(slots=True)
class RandomFeatures:
    """A vision encoder that has everything at once: what a picture costs the engine alone."""

    image_tokens: int
    width: int
    dtype: str

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        import numpy as np

        from deployments.types import ImageFeatures

        chance = np.random.default_rng(int(request.image.id[:8], 16))
        array = chance.standard_normal((self.image_tokens, self.width), dtype=np.float32)
        if self.dtype == "bfloat16":
            return ImageFeatures((array.view(np.uint32) >> 16).astype(np.uint16), "bfloat16", "tower", 0.0)
        if self.dtype == "float16":
            return ImageFeatures(array.astype(np.float16), "float16", "tower", 0.0)
        return ImageFeatures(array, "float32", "tower", 0.0)

    async def statistics(self) -> Json:
        return {}


@contextlib.contextmanager
def open_engine(settings: EngineSettings) -> Iterator[Engine]:
    """Blocks while weights load; sets the number of torch's threads here to 1. Raises CheckpointError."""
    import torch

    from deployments.config import GeneratorConfig
    from deployments.generator.engine import Engine
    from deployments.models.registry import open_family
    from deployments.types import Message, TextPart

    torch.set_num_threads(1)  # while loading, as a replica does; the engine's thread has its own number
    family = open_family(settings.family)
    real = family.open_prompt_format(settings.checkpoint)
    language = family.open_language(settings.checkpoint, settings.device, settings.dtype)
    language.pack()
    rows = real.build((Message("user", (TextPart("Hello."),)),)).positions.shape[0]
    prompts = ExactPrompts(real, language.vocab_size, settings.image_tokens, rows)
    encoder = RandomFeatures(settings.image_tokens, language.feature_width, settings.dtype)
    config = GeneratorConfig(
        num_threads=settings.num_threads,
        num_slots=settings.num_slots,
        max_context_tokens=settings.context_tokens,
        max_new_tokens=settings.context_tokens,
        default_new_tokens=1,
        max_timeout_s=ANSWER_WITHIN_S,
        **({} if settings.prefix_cache_bytes is None else {"prefix_cache_bytes": settings.prefix_cache_bytes}),
    )
    engine = Engine(language, prompts, encoder, config)
    try:
        yield engine
    finally:
        engine.close()


async def ask_all(engine: Engine, asked: Sequence[Asked], image_tokens: int) -> list[Record]:
    """All at once; one record for each."""
    tasks = [_ask(engine, each, image_tokens, number) for number, each in enumerate(asked)]
    return list(await asyncio.gather(*tasks))


async def _ask(engine: Engine, asked: Asked, image_tokens: int, number: int) -> Record:
    times: list[float] = []
    usage = None
    sent_s = time.perf_counter()
    async for chunk_s, num_tokens, used in _chunks(engine, asked, image_tokens):
        times += [chunk_s] * bool(num_tokens)
        usage = used or usage
    assert usage is not None, "the last chunk has usage"
    return Record(
        user=number,
        request=0,
        turn=0,
        sent_s=sent_s,
        times_s=tuple(times),
        end_s=time.perf_counter(),
        num_tokens=usage[1],
        num_prompt_tokens=usage[0],
        num_reused_tokens=usage[2],
    )


async def _chunks(
    engine: Engine, asked: Asked, image_tokens: int
) -> AsyncIterator[tuple[float, int, tuple[int, int, int] | None]]:
    async with contextlib.aclosing(engine.stream(to_request(asked, image_tokens))) as chunks:
        async for chunk in chunks:
            usage = chunk.usage
            used = (usage.prompt_tokens, usage.completion_tokens, usage.reused_tokens) if usage is not None else None
            yield time.perf_counter(), chunk.num_tokens, used


def to_request(asked: Asked, image_tokens: int) -> GenerateRequest:
    from deployments.types import GenerateRequest, ImagePart, ImageRef, Message, SamplingParams, TextPart

    text = TextPart(f"{asked.num_prompt_tokens} {asked.key}")
    picture = ImageRef(hashlib.sha256(asked.key.encode()).hexdigest(), PICTURE_PX, PICTURE_PX, 1000, "image/png")
    content = (ImagePart(picture), text) if image_tokens else (text,)
    return GenerateRequest(
        request_id=asked.key,
        tenant="benchmark",
        messages=(Message("user", content),),
        sampling=SamplingParams(max_new_tokens=asked.num_new_tokens),
        timeout_s=ANSWER_WITHIN_S,
    )


async def long_prompt_among_streams(
    engine: Engine, streams: Sequence[Asked], long: Asked
) -> tuple[list[tuple[float, ...]], Record]:
    """When each stream's tokens came, and the long prompt, which is asked when all streams run steadily. The streams
    are left when it has its answer."""
    steady = asyncio.Barrier(len(streams) + 1)
    times: list[list[float]] = [[] for _ in streams]
    readers = [
        asyncio.create_task(_read(engine, asked, own, steady)) for asked, own in zip(streams, times, strict=True)
    ]
    try:
        await steady.wait()
        record = await _ask(engine, long, 0, len(streams))
    except asyncio.BrokenBarrierError:  # a reader's own error, which comes out below, says why
        record = None
    for reader in readers:
        reader.cancel()
    ends = await asyncio.gather(*readers, return_exceptions=True)
    errors = [end for end in ends if isinstance(end, Exception) and not isinstance(end, asyncio.BrokenBarrierError)]
    if errors:
        raise errors[0]
    assert record is not None, "only a reader breaks the barrier"
    return [tuple(own) for own in times], record


async def _read(engine: Engine, asked: Asked, times: list[float], steady: asyncio.Barrier) -> None:
    """Until it is cancelled. Raises RuntimeError when the stream ends before that."""
    try:
        async for chunk_s, num_tokens, _ in _chunks(engine, asked, 0):
            times += [chunk_s] * bool(num_tokens)
            if len(times) == STEADY_AFTER_TOKENS:
                await steady.wait()
        raise RuntimeError("a stream ended before the long prompt had its answer: it needs more tokens")
    except Exception:
        await steady.abort()  # or the others would wait for ever
        raise


# ------------------------------------------------------------------------------------- gaps of several streams


def steady_gaps_s(records: Sequence[Record], num_positions: int, within: int) -> list[float]:
    """Gaps while all streams decode, from the last one's first token to the first one's last, of streams that are
    about so long at the moment. Raises RuntimeError when there is none: some had ended before all had begun."""
    begins = max(record.times_s[0] for record in records)
    ends = min(record.times_s[-1] for record in records)
    gaps = [
        after - before
        for record in records
        for length, (before, after) in enumerate(itertools.pairwise(record.times_s), record.num_prompt_tokens + 1)
        if begins <= before and after <= ends and abs(length - num_positions) <= within
    ]
    if not gaps:
        raise RuntimeError(f"no step had all {len(records)} streams at a length of about {num_positions}")
    return gaps


def gaps_around_s(streams: Sequence[Sequence[float]], long: Record) -> tuple[list[float], list[float]]:
    """Of the streams: gaps before the long prompt came, and those that touch the time until its first token."""
    pairs = list(itertools.chain.from_iterable(itertools.pairwise(times) for times in streams))
    before = [right - left for left, right in pairs if right < long.sent_s]
    during = [right - left for left, right in pairs if right >= long.sent_s and left < long.times_s[0]]
    return before, during
