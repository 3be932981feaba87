"""What tests of the generator share: a prompt format and an encoder without weights, requests, and readers of answers.

No torch: fast tests use it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deployments.models.family import ImageSpan, Output, Prompt
from deployments.types import (
    Box,
    Chunk,
    DetectTask,
    EncodeRequest,
    GenerateRequest,
    ImageFeatures,
    ImagePart,
    ImageRef,
    Json,
    Message,
    Point,
    PointTask,
    QueryTask,
    SamplingParams,
    Task,
    TextPart,
)

if TYPE_CHECKING:
    import torch

    from deployments.generator.engine import Engine

WIDTH = 64  # of embeddings and features
NUM_TEXT_IDS = 290
PLACEHOLDER, ASSISTANT = 290, 291
VOCAB_SIZE = 292
FIRST_CHARACTER = 0x4E00
WAIT_S = 20  # for things that happen at once unless they are broken


class LetterPrompts:
    """One token per character of the prompt, one character per generated token: text tells the tokens exactly.

    What a task asks comes after the picture.
    """

    stop_token_ids: frozenset[int] = frozenset({3, 5, 8, 13, 21, 34})
    repetition_penalty = 1.0
    byte_token_ids: frozenset[int] = frozenset()

    def build(self, messages: Sequence[Message], task: Task | None = None) -> Prompt:
        ids: list[int] = []
        spans: list[ImageSpan] = []
        for message in messages:
            for part in message.content:
                if isinstance(part, TextPart):
                    ids += [ord(letter) % NUM_TEXT_IDS for letter in part.text]
                else:
                    self._place(part.image, ids, spans)
        ids += [ord(letter) % NUM_TEXT_IDS for letter in words_of(task)] + [ASSISTANT]
        positions = np.arange(len(ids), dtype=np.int64)[None]
        return Prompt(tuple(ids), positions, len(ids), tuple(spans), task)

    def _place(self, image: ImageRef, ids: list[int], spans: list[ImageSpan]) -> None:
        """A picture has as many tokens as it is wide, in two spans with a token between them, as tiles have."""
        for length in (image.width // 2, image.width - image.width // 2):
            spans.append(ImageSpan(image.id, len(ids), length))
            ids += [PLACEHOLDER] * length + [7]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(FIRST_CHARACTER + token_id) for token_id in token_ids)


def words_of(task: Task | None) -> str:
    if isinstance(task, QueryTask):
        return task.question
    return task.object if isinstance(task, DetectTask | PointTask) else ""


class EndlessPrompts(LetterPrompts):
    """Answers end by their length only."""

    stop_token_ids = frozenset()


def to_ids(text: str) -> list[int]:
    return [ord(letter) - FIRST_CHARACTER for letter in text]


@dataclass
class LetterEncoder:
    """Features made of the picture's id. `gate` holds answers back, `failures` and `answers` replace them."""

    gate: asyncio.Event | None = None
    failures: dict[str, Exception] = field(default_factory=dict)
    answers: dict[str, ImageFeatures] = field(default_factory=dict)
    requests: list[EncodeRequest] = field(default_factory=list)
    num_cancelled: int = 0
    num_waiting: int = 0

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        self.requests.append(request)
        if self.gate is not None:
            self.num_waiting += 1
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
        if request.image.id in self.failures:
            raise self.failures[request.image.id]
        if request.image.id in self.answers:
            return self.answers[request.image.id]
        return ImageFeatures(features_of(request.image), "float32", "tower", 1.0)

    async def statistics(self) -> Json:
        return {}


def features_of(image: ImageRef) -> np.ndarray:
    seed = int.from_bytes(image.id.encode(), "big") % 2**32
    rng = np.random.default_rng(seed)
    return rng.standard_normal((image.width, WIDTH)).astype(np.float32)


def picture(name: str, width: int) -> ImageRef:
    return ImageRef(name, width, 10, 100, "image/png")


def user(*parts: str | ImageRef) -> Message:
    return Message("user", tuple(TextPart(part) if isinstance(part, str) else ImagePart(part) for part in parts))


def ask(*messages: Message | str, timeout_s: float = 60, request_id: str = "r", **sampling: Any) -> GenerateRequest:
    turns = tuple(user(message) if isinstance(message, str) else message for message in messages)
    return GenerateRequest(request_id, "tenant", turns, SamplingParams(**sampling), timeout_s)


def ask_task(task: Task, *images: ImageRef, request_id: str = "r", **sampling: Any) -> GenerateRequest:
    return replace(ask(user(*images), request_id=request_id, **sampling), task=task)


def mixed_requests(max_new_tokens: int = 24) -> list[GenerateRequest]:
    """12 requests: no picture, one of several sizes, several turns, one picture shown twice, short and long."""
    fox = "the quick brown fox jumps over the lazy dog; "
    cat, dog, owl = picture("cat", 3), picture("dog", 16), picture("owl", 41)
    prompts: list[tuple[Message | str, ...]] = [
        ("hi",),
        ("what is this?", user(cat, "a cat?")),
        (user(dog, "and this?"),),
        (fox * 4,),
        (user(owl, "who?"), Message("assistant", (TextPart("an owl"),)), "are you sure?"),
        (fox, user(cat), fox),
        ("x",),
        (user(owl),),
        ("tell me", "more", "and more", fox),
        (user("before ", dog, " after"),),
        (user(cat), "the same again:", user(cat)),
        (fox * 2 + "?",),
    ]
    return [
        ask(*prompt, request_id=f"r{number}", max_new_tokens=max_new_tokens - number % 3)
        for number, prompt in enumerate(prompts)
    ]


@dataclass(frozen=True)
class Pass:
    """What goes through the model at once."""

    num_decodes: int  # rows of one token each
    chunks: tuple[int, ...] = ()  # tokens of each stretch of a prompt


@dataclass
class WatchedLanguage:
    """A language model whose passes a test can see, hold and break. `hook` runs on the engine's thread."""

    inner: Any
    hook: Callable[[Pass], None] = lambda begun: None
    passes: list[Pass] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.inner.embed(token_ids)
        return embeddings

    def run(self, embeddings: torch.Tensor, positions: Any, attend: Any, last: Any) -> Output:
        pieces = getattr(attend, "_pieces", ())  # decode steps of fixed shape have none
        chunks = tuple(piece.length for piece in pieces)
        self._begin(Pass(len(embeddings) - sum(chunks) - getattr(attend, "_num_padding", 0), chunks))
        output: Output = self.inner.run(embeddings, positions, attend, last)
        return output

    def forward(self, embeddings: torch.Tensor, positions: Any, cache: Any, mask: Any) -> Output:
        """The slow twin's: one sequence, and its first pass is its whole prompt."""
        assert len(embeddings) == 1
        self._begin(Pass(0, (embeddings.shape[1],)) if mask.shape[2] == mask.shape[3] else Pass(1))
        output: Output = self.inner.forward(embeddings, positions, cache, mask)
        return output

    def _begin(self, begun: Pass) -> None:
        self.passes.append(begun)
        self.hook(begun)


class Turnstile:
    """Lets the engine's thread through one pass at a time."""

    def __init__(self) -> None:
        self._waiting = threading.Semaphore(0)
        self._allowed = threading.Semaphore(0)
        self._is_open = False

    def __call__(self, begun: Pass) -> None:
        self._waiting.release()
        if not self._is_open:
            assert self._allowed.acquire(timeout=WAIT_S), "the test left a pass waiting"

    async def wait_for_pass(self) -> None:
        """Until a pass has begun."""
        assert await asyncio.to_thread(self._waiting.acquire, timeout=WAIT_S), "no pass began"

    def let_one_through(self) -> None:
        self._allowed.release()

    def open(self) -> None:
        self._is_open = True
        self._allowed.release(1000)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what another thread, or a task that nobody awaits, is about to do."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.001)


@dataclass
class Answer:
    text: str
    chunks: list[Chunk]

    @property
    def thought(self) -> str:
        return "".join(chunk.thought for chunk in self.chunks)

    @property
    def found(self) -> tuple[Box | Point, ...]:
        return tuple(item for chunk in self.chunks for item in chunk.found)

    @property
    def last(self) -> Chunk:
        return self.chunks[-1]


async def read(chunks: AsyncIterator[Chunk]) -> Answer:
    received = [chunk async for chunk in chunks]
    assert all(chunk.finish_reason is None for chunk in received[:-1])
    assert received[-1].usage is not None
    assert sum(chunk.num_tokens for chunk in received) == received[-1].usage.completion_tokens
    return Answer("".join(chunk.text for chunk in received), received)


@contextlib.asynccontextmanager
async def reading(engine: Engine, request: GenerateRequest) -> AsyncIterator[asyncio.Task[Answer]]:
    """The answer being read by a task; cancelled at the end if it is not done."""
    task = asyncio.create_task(read(engine.stream(request)))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
