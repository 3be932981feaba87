"""Remembered beginnings on checkpoints of three families: answers stay those of transformers' full model, and of the
slow twin; what is not computed again is exactly what may be shared; and nothing that is pinned stays so.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generator.letters import EndlessPrompts, LetterEncoder, Turnstile, ask, picture, read, until, user
from generator.watched import Watched, open_watched

from deployments.errors import DeadlineExceeded, PartUnavailable, RetinaError
from deployments.types import EncodeRequest, GenerateRequest, ImageFeatures, ImageRef, Json, Message, TextPart

pytestmark = pytest.mark.torch
FAMILIES = ("smolvlm", "qwen2_vl", "moondream")
CAT, DOG = (ImageRef(name, 200, 150, 1, "image/png") for name in ("1", "2"))
BROKEN = ImageRef("3", 200, 150, 1, "image/png")
MAX_NEW_TOKENS = 24
Parts = tuple[str | ImageRef, ...]
Opened = Callable[..., Watched]


def make_picture(image: ImageRef) -> Any:
    """Blotches of colour, so that no two patches are alike."""
    from PIL import Image

    noise = np.random.default_rng(int(image.id)).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((image.width, image.height), Image.Resampling.BICUBIC)


@dataclass
class TowerEncoder:
    """A VisionEncoder that runs the family's own preprocessor and tower; of one picture it makes what is no number."""

    preprocess: Any
    tower: Any
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  # ids

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        self.asked.append(request.image.id)
        return ImageFeatures(self.see(request.image), "float32", "tower", 0.0, self.tower.fingerprint)

    def see(self, image: ImageRef) -> np.ndarray:
        if image.id not in self.arrays:
            [rows] = self.tower.encode([self.preprocess(make_picture(image))])
            self.arrays[image.id] = rows.numpy() if image != BROKEN else np.full_like(rows.numpy(), np.nan)
        return self.arrays[image.id]

    async def statistics(self) -> Json:
        return {}


@dataclass
class Subject:
    """A checkpoint, and what transformers' full model answers from it."""

    family: str
    folder: Path
    encoder: TowerEncoder
    answer: Callable[[Sequence[Message]], list[int]]  # greedy, what ends it included
    num_asked: Iterator[int] = field(default_factory=itertools.count)

    async def ask(self, watched: Watched, *messages: Message, tenant: str = "tenant") -> Any:
        """Ids with what ends the answer, and the answer."""
        request = replace(ask(*messages, max_new_tokens=MAX_NEW_TOKENS), tenant=tenant)
        request = replace(request, request_id=f"{self.family}-{next(self.num_asked)}")
        answer = await read(watched.engine.stream(request))
        return watched.ids[request.request_id], answer

    async def check(self, watched: Watched, *messages: Message, tenant: str = "tenant") -> Any:
        """The usage, of an answer that is as it must be."""
        ids, answer = await self.ask(watched, *messages, tenant=tenant)
        assert ids == self.answer(messages)
        return answer.last


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    from deployments.models.registry import open_family

    folder = tmp_path_factory.mktemp(request.param)
    answer = {"smolvlm": smolvlm, "qwen2_vl": qwen2_vl, "moondream": moondream}[request.param](folder)
    family = open_family(request.param)
    encoder = TowerEncoder(family.open_preprocessor(folder), family.open_tower(folder, "cpu", "float32"))
    return Subject(request.param, folder, encoder, lambda messages: answer(messages, encoder))


def smolvlm(folder: Path) -> Callable[..., list[int]]:
    from smolvlm_original import Original
    from tiny_checkpoints import build_smolvlm

    return full_model(Original(build_smolvlm(folder, variant="256m", seed=0)))


def qwen2_vl(folder: Path) -> Callable[..., list[int]]:
    from qwen2_vl_original import Original
    from tiny_qwen2_vl import build_qwen2_vl

    return full_model(Original(build_qwen2_vl(folder, variant="2b", seed=3)))


def full_model(original: Any) -> Callable[..., list[int]]:
    def answer(messages: Sequence[Message], encoder: TowerEncoder) -> list[int]:
        turns = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
                    for part in message.content
                ],
            }
            for message in messages
        ]
        pictures = [make_picture(image) for message in messages for image in message.images]
        ids: list[int] = original.answer(turns, pictures, MAX_NEW_TOKENS)
        return ids

    return answer


def moondream(folder: Path) -> Callable[..., list[int]]:
    """transformers has none: a loop over the model's own layers, with a cache that grows."""
    import moondream_loop
    import torch
    from tiny_moondream import SMALL, build_moondream

    from deployments.models.registry import open_family

    build_moondream(folder, config=SMALL)
    family = open_family("moondream")
    prompts, language = family.open_prompt_format(folder), family.open_language(folder, "cpu", "float32")

    def answer(messages: Sequence[Message], encoder: TowerEncoder) -> list[int]:
        images = [image for message in messages for image in message.images]
        features = torch.from_numpy(encoder.see(images[0])) if images else None
        return moondream_loop.answer(language, prompts.build(messages), features, MAX_NEW_TOKENS).chosen

    return answer


@pytest.fixture(params=[16, 512])
def chunk(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def opened(subject: Subject) -> Iterator[Opened]:
    """opened(mode="batch", **config keys); each engine must be idle and in order at the end."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        subject.encoder.asked.clear()

        def open_engine(mode: str = "batch", **config: int) -> Watched:
            settings = {"num_slots": 3, "max_context_tokens": 512, **config}
            return stack.enter_context(open_watched(subject.family, subject.folder, subject.encoder, mode, **settings))

        yield open_engine


def keys_of(watched: Watched, messages: Sequence[Message], answer: Sequence[int] = ()) -> list[object]:
    """What must be alike for two tokens to be alike."""
    prompt = watched.engine._builder._prompts.build(messages)
    keys: list[object] = [*prompt.token_ids, *answer[:-1]]
    for span in prompt.images:
        keys[span.start : span.start + span.length] = [(span.image_id, span.start, row) for row in range(span.length)]
    return keys


def shared(watched: Watched, keys: Sequence[object], remembered: Sequence[object]) -> int:
    """Tokens that need not be computed. Whole blocks are remembered, and all where no less would do."""
    least = watched.engine._builder._prompts.build([user(CAT, "")]).num_mutual
    num_whole = len(remembered) // 16 * 16
    remembered = remembered[:num_whole] if num_whole >= least else remembered
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(keys[:-1], remembered, strict=False))
    return sum(1 for _ in alike)


# --------------------------------------------------------------------------------- what is shared


async def test_turns_of_a_conversation(subject: Subject, opened: Opened, chunk: int) -> None:
    watched = opened(prefill_chunk_tokens=chunk)
    messages: list[Message] = []
    remembered: list[object] = []
    for turn, question in enumerate(("What is in this picture?", "Where is the red circle?", "Is there a star?")):
        messages.append(user(CAT, question) if turn == 0 else user(question))
        ids, answer = await subject.ask(watched, *messages)
        assert ids == subject.answer(messages)
        keys = keys_of(watched, messages)
        assert answer.last.usage.reused_tokens == shared(watched, keys, remembered)
        assert answer.last.timings.encode_source == ("kv" if turn else "tower")
        # Answers of models with rules are not what their tokens say, so they are computed again.
        remembered = keys_of(watched, messages, () if subject.family == "moondream" else answer_ids(watched, ids))
        messages.append(Message("assistant", (TextPart(answer.text),)))
    assert subject.encoder.asked == ["1"]


def answer_ids(watched: Watched, ids: Sequence[int]) -> Sequence[int]:
    return ids[:-1] if ids[-1] in watched.engine._builder._prompts.stop_token_ids else ids


async def test_another_session_asks_about_the_same_picture(subject: Subject, opened: Opened, chunk: int) -> None:
    watched = opened(prefill_chunk_tokens=chunk)
    first, second = (user(CAT, "What is in this picture?")), (user(CAT, "How many shapes?"))
    before = await subject.check(watched, first)
    after = await subject.check(watched, second)
    assert before.usage.reused_tokens == 0
    assert after.usage.reused_tokens == shared(watched, keys_of(watched, [second]), keys_of(watched, [first]))
    assert after.usage.reused_tokens > after.usage.image_tokens > 0
    assert (after.timings.encode_source, after.timings.encode_ms) == ("kv", 0)
    assert subject.encoder.asked == ["1"]


async def test_many_at_once_about_a_picture_that_is_known(subject: Subject, opened: Opened, chunk: int) -> None:
    watched = opened(prefill_chunk_tokens=chunk, num_slots=4)
    await subject.check(watched, user(CAT, "What is in this picture?"))
    questions = [user(CAT, f"How many {name} are there?") for name in ("stars", "rings", "boats", "cats", "dogs")]
    asked = [subject.check(watched, question) for question in (*questions, user(DOG, "What?"), user("Hello."))]
    lasts = await asyncio.gather(*asked)
    assert [last.timings.encode_source for last in lasts] == ["kv"] * 5 + ["tower", None]


async def test_the_slow_twin_says_the_same_and_remembers_nothing(subject: Subject, opened: Opened) -> None:
    watched = opened("simple")
    for _ in range(2):
        last = await subject.check(watched, user(CAT, "What is in this picture?"))
        assert (last.usage.reused_tokens, last.timings.encode_source) == (0, "tower")


# --------------------------------------------------------------------------------- what is not


async def test_another_picture_of_equal_size(subject: Subject, opened: Opened, chunk: int) -> None:
    watched = opened(prefill_chunk_tokens=chunk)
    cat, dog = (user(image, "What is in this picture?") for image in (CAT, DOG))
    build = watched.engine._builder._prompts.build
    assert build([cat]).token_ids == build([dog]).token_ids
    assert subject.answer([cat]) != subject.answer([dog])
    await subject.check(watched, cat)
    last = await subject.check(watched, dog)
    before_it = shared(watched, keys_of(watched, [dog]), keys_of(watched, [cat]))
    # Where picture and what stands before it see each other, what stands before it is something else as well.
    assert last.usage.reused_tokens == (0 if subject.family == "moondream" else before_it)
    assert before_it <= build([dog]).images[0].start
    assert last.timings.encode_source == "tower"
    assert subject.encoder.asked == ["1", "2"]


async def test_another_tenant(subject: Subject, opened: Opened) -> None:
    watched = opened()
    question = user(CAT, "What is in this picture?")
    for tenant in ("tenant", "other"):
        last = await subject.check(watched, question, tenant=tenant)
        assert (last.usage.reused_tokens, last.timings.encode_source) == (0, "tower")
    for tenant in ("tenant", "other"):
        last = await subject.check(watched, question, tenant=tenant)
        assert last.usage.reused_tokens >= last.usage.prompt_tokens // 16 * 16
        assert last.timings.encode_source == "kv"
    assert subject.encoder.asked == ["1", "1"]


async def test_after_eviction_the_picture_is_asked_for_again(subject: Subject, opened: Opened, chunk: int) -> None:
    probe = opened(prefix_cache_bytes=10**6).engine
    cat, dog = (user(image, "What is in this picture?") for image in (CAT, DOG))
    shape = probe._worker.runner.prefix._blocks.shape[1:]
    num_blocks = -(-len(probe._builder._prompts.build([cat]).token_ids) // 16)
    watched = opened(prefill_chunk_tokens=chunk, prefix_cache_bytes=num_blocks * int(np.prod(shape)) * 4)
    for message, source in ((cat, "tower"), (cat, "kv"), (dog, "tower"), (dog, "kv"), (cat, "tower"), (cat, "kv")):
        last = await subject.check(watched, message)
        assert last.timings.encode_source == source
    assert subject.encoder.asked == ["1", "2", "1"]
    shown = (await watched.engine.statistics())["prefix_cache"]
    assert (shown["blocks"], shown["used"], shown["pinned"]) == (num_blocks, num_blocks, 0)


async def test_what_is_no_number_is_never_remembered(subject: Subject, opened: Opened, chunk: int) -> None:
    watched = opened(prefill_chunk_tokens=chunk)
    for _ in range(2):
        with pytest.raises(RetinaError, match="not finite"):
            await subject.ask(watched, user(BROKEN, "What is in this picture?"))
    assert subject.encoder.asked == ["3", "3"]
    await subject.check(watched, user(CAT, "What is in this picture?"))


# --------------------------------------------------------------------------------- what was pinned

LETTERS = "the quick brown fox jumps over the lazy dog"


async def remember(engine: Any, turnstile: Turnstile, request: GenerateRequest) -> None:
    turnstile.let_one_through()
    await read(engine.stream(replace(request, sampling=replace(request.sampling, max_new_tokens=1))))
    await turnstile.wait_for_pass()


def num_pinned(engine: Any) -> int:
    return int(engine._worker.runner.prefix.statistics()["pinned"])


@pytest.mark.parametrize("how", ["cancel", "deadline", "close"])
async def test_who_waits_for_a_slot_gives_it_back(open_test_engine: Any, turnstile: Turnstile, how: str) -> None:
    engine = open_test_engine(num_slots=1, prompts=EndlessPrompts())
    await remember(engine, turnstile, ask(LETTERS))
    running = asyncio.create_task(read(engine.stream(ask("xyz", max_new_tokens=3))))
    await turnstile.wait_for_pass()
    timeout_s = 0.1 if how == "deadline" else 60
    waiting = asyncio.create_task(read(engine.stream(ask(LETTERS, timeout_s=timeout_s))))
    await until(lambda: len(engine._worker.sequences()) == 2 or waiting.done())
    if how == "deadline":
        with pytest.raises(DeadlineExceeded, match="stage waiting"):
            await waiting
    else:
        assert num_pinned(engine) == 2
    if how == "cancel":
        waiting.cancel()
        await asyncio.wait([waiting])
    turnstile.open()
    if how == "close":
        await asyncio.to_thread(engine.close)
        with pytest.raises(PartUnavailable):
            await waiting
        await asyncio.wait([running])
        running.exception()
    else:
        await running
    await until(lambda: not engine._worker.sequences())
    assert num_pinned(engine) == 0


@pytest.mark.parametrize("how", ["cancel", "deadline", "close", "end of the thread", "failure", "wrong features"])
async def test_who_waits_for_the_encoder_gives_it_back(open_test_engine: Any, how: str) -> None:
    encoder = LetterEncoder()
    engine = open_test_engine(encoder=encoder, prompts=EndlessPrompts())
    await read(engine.stream(ask(LETTERS, max_new_tokens=1)))
    encoder.gate, cat = asyncio.Event(), picture("cat", 20)
    timeout_s = 0.1 if how == "deadline" else 60
    waiting = asyncio.create_task(read(engine.stream(ask(user(LETTERS, cat), timeout_s=timeout_s))))
    await until(lambda: encoder.num_waiting == 1)
    assert num_pinned(engine) == 2 or waiting.done()
    expected: type[BaseException] = PartUnavailable
    if how == "cancel":
        waiting.cancel()
        expected = asyncio.CancelledError
    elif how == "deadline":
        expected = DeadlineExceeded
    elif how == "close":
        await asyncio.to_thread(engine.close)
        encoder.gate.set()
    elif how == "end of the thread":  # of which nobody tells those who are not handed over yet
        await asyncio.to_thread(engine._worker.close, "a fault")
        encoder.gate.set()
    elif how == "failure":
        encoder.failures["cat"] = PartUnavailable("no tower")
        encoder.gate.set()
    else:
        encoder.answers["cat"] = ImageFeatures(np.zeros((3, 64), np.float32), "float32", "tower", 0.0)
        encoder.gate.set()
    with pytest.raises(expected):
        await waiting
    await until(lambda: num_pinned(engine) == 0)
    assert engine._worker.runner.prefix.problems() == []
