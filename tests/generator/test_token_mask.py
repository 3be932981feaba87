"""Masks of tokens: what one request's grammar forbids is not chosen for it, and its neighbours notice nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from generator.letters import LetterPrompts, ask, mixed_requests, read, to_ids, until

from deployments.errors import InvalidRequest, RetinaError
from deployments.types import GenerateRequest

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.torch
DIGITS = frozenset(ord(digit) for digit in "0123456789")
STOP = min(LetterPrompts.stop_token_ids)


class Digits:
    """Some digits, then a stop token. `ways` to break are tried after the third digit."""

    def __init__(self, length: int = 6, way: str = "") -> None:
        self._left, self._way = length, way
        self._num_seen = 0
        self.accepted: list[int] = []

    def fill(self, words: torch.Tensor) -> None:
        if self._num_seen == 3 and self._way == "fill":
            raise ZeroDivisionError("a fault of its own")
        if self._num_seen == 3 and self._way == "dead end":
            return
        for token_id in DIGITS if self._left else [STOP]:
            words[0, token_id // 32] |= 1 << token_id % 32

    def revise(self, token_id: int) -> int:
        if self._num_seen == 3 and self._way == "revise":
            raise ZeroDivisionError("a fault of its own")
        return token_id

    def accept(self, token_id: int) -> None:
        self._num_seen += 1
        if self._num_seen == 4 and self._way == "accept":
            raise ZeroDivisionError("a fault of its own")
        if self._num_seen == 4 and self._way == "refuse":
            raise InvalidRequest("no digit may come a fourth time", "grammar")
        self._left -= 1
        self.accepted.append(token_id)


OpenMasked = Callable[..., Any]


@pytest.fixture
def open_masked(open_test_engine: Any) -> OpenMasked:
    """An engine with masks for the requests of these ids."""

    def open_engine(masks: dict[str, Any], **config: Any) -> Any:
        return open_test_engine(open_mask=lambda request, max_new_tokens: masks.get(request.request_id), **config)

    return open_engine


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 292, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_bits_are_read_as_they_are_packed(vocab_size: int, seed: int) -> None:
    import torch

    from deployments.generator.token_mask import read_mask, restrict

    chance = torch.Generator().manual_seed(seed)
    allowed = torch.rand(3, vocab_size, generator=chance) < 0.3
    allowed[:, seed % vocab_size] = True

    class Packed:
        def __init__(self, row: torch.Tensor) -> None:
            self._row = row

        def fill(self, words: torch.Tensor) -> None:
            assert (words.dtype, words.shape) == (torch.int32, (1, -(-vocab_size // 32)))
            assert words.is_contiguous()
            bits = torch.zeros(words.numel() * 32, dtype=torch.bool)
            bits[vocab_size:] = True  # what libraries write there is anybody's guess
            bits[:vocab_size] = self._row
            packed = sum(bits.view(-1, 32)[:, place].long() << place for place in range(32))
            assert isinstance(packed, torch.Tensor)
            words[0] = packed.int()

        def revise(self, token_id: int) -> int:
            return token_id

        def accept(self, token_id: int) -> None: ...

    logits = torch.randn(5, vocab_size, generator=chance)
    expected = logits.clone()
    words = {}
    for row, row_allowed in zip((0, 2, 3), allowed, strict=True):
        read_words = read_mask(Packed(row_allowed), vocab_size)
        assert read_words is not None
        words[row] = read_words
        expected[row, ~row_allowed] = -torch.inf
    restrict(logits, words)
    assert torch.equal(logits, expected)
    assert read_mask(Packed(torch.zeros(vocab_size, dtype=torch.bool)), vocab_size) is None


def neighbours() -> list[GenerateRequest]:
    return [*mixed_requests()[:4], ask("hello", temperature=1.2, seed=7, max_new_tokens=20, min_p=0.01)]


@pytest.mark.parametrize("mode", ["batch", "simple"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 2, "top_p": 0.9, "presence_penalty": 1.0}])
async def test_a_mask_holds_for_its_own_answer(open_masked: OpenMasked, mode: str, sampling: Any) -> None:
    mask = Digits()
    engine = open_masked({"digits": mask, "again": Digits()}, mode=mode, num_slots=7)
    free = await asyncio.gather(*(read(engine.stream(request)) for request in neighbours()))
    request = ask("count", request_id="digits", max_new_tokens=30, num_logprobs=1, **sampling)
    masked, *others = await asyncio.gather(*(read(engine.stream(each)) for each in [request, *neighbours()]))
    ids = to_ids(masked.text)
    assert len(ids) == 6
    assert set(ids) <= DIGITS
    assert masked.last.finish_reason == "stop"
    assert mask.accepted == [*ids, STOP], "the mask hears of the token that stops as well"
    assert [answer.text for answer in others] == [answer.text for answer in free]
    alone = await read(engine.stream(ask("count", request_id="again", max_new_tokens=30, num_logprobs=1, **sampling)))
    assert alone.text == masked.text
    top = [each.top[0].token_id for chunk in masked.chunks for each in chunk.logprobs]
    assert not set(top) <= DIGITS, "log probabilities are the model's own"


async def test_a_stop_token_must_be_allowed(open_masked: OpenMasked) -> None:
    """The model would stop, the mask does not let it."""
    engine = open_masked({"digits": Digits(length=10**6)})
    answer = await read(engine.stream(ask("count", request_id="digits", max_new_tokens=40)))
    assert (len(answer.text), answer.last.finish_reason) == (40, "length")


@pytest.mark.parametrize("mode", ["batch", "simple"])
@pytest.mark.parametrize(
    ("way", "error", "words"),
    [
        ("fill", RetinaError, "its log says why"),
        ("accept", RetinaError, "its log says why"),
        ("revise", RetinaError, "its log says why"),
        ("refuse", InvalidRequest, "a fourth time"),
        ("dead end", InvalidRequest, "the grammar allows nothing after 3 tokens"),
    ],
)
async def test_a_mask_that_breaks_ends_its_own_request(
    open_masked: OpenMasked, mode: str, way: str, error: type[Exception], words: str
) -> None:
    engine = open_masked({"digits": Digits(way=way)}, mode=mode, num_slots=6)
    free = await asyncio.gather(*(read(engine.stream(request)) for request in neighbours()))
    broken = asyncio.create_task(read(engine.stream(ask("count", request_id="digits", max_new_tokens=30))))
    others = await asyncio.gather(*(read(engine.stream(request)) for request in neighbours()))
    with pytest.raises(error, match=words) as caught:
        await broken
    assert type(caught.value) is error
    assert [answer.text for answer in others] == [answer.text for answer in free]


async def test_nobody_holds_a_mask_longer_than_its_request(open_masked: OpenMasked) -> None:
    engine = open_masked({"digits": Digits(length=10**6)})
    stream = engine.stream(ask("count", request_id="digits", max_new_tokens=300))
    await anext(stream)
    [ticket] = engine._live
    assert ticket.sequence.mask is not None
    await stream.aclose()
    await until(lambda: ticket.sequence.mask is None)
