"""What is laid down again is what was remembered, to the bit; and no more memory is used than was given."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from deployments.generator.prefix_tree import BLOCK_TOKENS, NO_MATCH, Content

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

LAYERS, KV_HEADS, CONTEXT, HEAD_DIM, NUM_SLOTS = 2, 3, 120, 4, 3
VALUES_PER_TOKEN = LAYERS * 2 * KV_HEADS * HEAD_DIM
OpenCache = Callable[..., Any]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def slots(dtype: Any) -> Any:
    from deployments.generator.kv_cache import SlotCache

    return SlotCache(
        num_layers=LAYERS,
        num_slots=NUM_SLOTS,
        num_kv_heads=KV_HEADS,
        context_tokens=CONTEXT,
        head_dim=HEAD_DIM,
        dtype=dtype,
        device=torch.device("cpu"),
    )


@pytest.fixture
def open_cache(slots: Any) -> OpenCache:
    """open_cache(num_blocks, more_bytes=0)"""
    from deployments.generator.prefix_cache import PrefixCache

    def open_cache(num_blocks: int, more_bytes: int = 0) -> PrefixCache:
        return PrefixCache(slots, num_blocks * block_bytes(slots) + more_bytes)

    return open_cache


def block_bytes(slots: Any) -> int:
    return int(VALUES_PER_TOKEN * BLOCK_TOKENS * slots.store.element_size())


def contents(text: str) -> list[Content]:
    return [(0, ord(letter)) for letter in text]


def fill(slots: Any, slot: int, length: int, seed: int = 0) -> Any:
    """(layers, 2, kv_heads, length, head_dim) of any numbers, which the slot has then."""
    chance = torch.Generator().manual_seed(seed)
    states = torch.randn((LAYERS, 2, KV_HEADS, length, HEAD_DIM), generator=chance).to(slots.store.dtype)
    slots.slot(slot)[..., :length, :] = states
    return states


def lay_down(cache: Any, slots: Any, tokens: Sequence[Content], slot: int, least: int = 0) -> int:
    """Tokens that were found; they are in the slot then, and nothing else is."""
    slots.clear(slot, CONTEXT)
    match = cache.match("realm", tokens, least=least)
    cache.restore(match, slot)
    cache.unpin(match)
    assert not slots.slot(slot)[..., match.num_tokens :, :].any()
    return int(match.num_tokens)


@pytest.mark.parametrize("length", [16, 17, 31, 32, 48, 90, 112])
def test_what_was_remembered_comes_back_to_the_bit(slots: Any, open_cache: OpenCache, length: int) -> None:
    cache, text = open_cache(10), "abcdefghij" * 12
    states = fill(slots, 0, length)
    cache.remember("realm", contents(text[:length]), 0)
    for target in (1, 2):
        num_tokens = lay_down(cache, slots, contents(text), target)
        assert num_tokens == length // BLOCK_TOKENS * BLOCK_TOKENS
        assert torch.equal(slots.slot(target)[..., :num_tokens, :], states[..., :num_tokens, :])
    assert cache.problems() == []


@pytest.mark.parametrize("num_shared", [1, 15, 16, 17, 33, 47, 48])
def test_a_block_that_is_shared_in_part(slots: Any, open_cache: OpenCache, num_shared: int) -> None:
    cache, text = open_cache(10), "abcdefghij" * 12
    states = fill(slots, 0, 48)
    cache.remember("realm", contents(text[:48]), 0)
    assert lay_down(cache, slots, contents(text[:num_shared] + "!" * 20), 1) == num_shared
    assert torch.equal(slots.slot(1)[..., :num_shared, :], states[..., :num_shared, :])


@pytest.mark.parametrize(("length", "least"), [(7, 7), (17, 17), (31, 20), (119, 115), (120, 120)])
def test_a_block_that_is_not_whole(slots: Any, open_cache: OpenCache, length: int, least: int) -> None:
    cache, text = open_cache(10), "abcdefghij" * 12
    states = fill(slots, 0, length)
    cache.remember("realm", contents(text[:length]), 0, least)
    assert lay_down(cache, slots, contents(text[:length] + "!"), 1, least=least) == length
    assert torch.equal(slots.slot(1)[..., :length, :], states)
    assert lay_down(cache, slots, contents(text[: least - 1] + "!!"), 1, least=least) == 0


def test_the_last_token_is_always_computed(slots: Any, open_cache: OpenCache) -> None:
    cache = open_cache(10)
    fill(slots, 0, 48)
    cache.remember("realm", contents("x" * 48), 0)
    assert [lay_down(cache, slots, contents("x" * length), 1) for length in (48, 33, 32, 2, 1)] == [47, 32, 31, 1, 0]


def test_two_ends_behind_one_beginning(slots: Any, open_cache: OpenCache) -> None:
    """The second one adds its end alone; the beginning stays as the first one computed it."""
    cache = open_cache(10)
    first, second = fill(slots, 0, 48, seed=1), fill(slots, 1, 64, seed=2)
    cache.remember("realm", contents("a" * 32 + "b" * 16), 0)
    cache.remember("realm", contents("a" * 32 + "c" * 32), 1)
    assert cache.statistics()["used"] == 5
    assert lay_down(cache, slots, contents("a" * 32 + "c" * 33), 2) == 64
    assert torch.equal(slots.slot(2)[..., :32, :], first[..., :32, :])
    assert torch.equal(slots.slot(2)[..., 32:64, :], second[..., 32:, :])
    assert lay_down(cache, slots, contents("a" * 32 + "b" * 17), 2) == 48
    assert torch.equal(slots.slot(2)[..., :48, :], first)


def test_a_slot_is_its_sequences_alone(slots: Any, open_cache: OpenCache) -> None:
    cache = open_cache(10)
    states = fill(slots, 0, 32)
    cache.remember("realm", contents("a" * 32), 0)
    assert lay_down(cache, slots, contents("a" * 33), 1) == 32
    slots.slot(1)[:] = 7
    slots.clear(0, 32)
    assert lay_down(cache, slots, contents("a" * 33), 2) == 32
    assert torch.equal(slots.slot(2)[..., :32, :], states)


def test_nothing_found_leaves_the_slot_alone(slots: Any, open_cache: OpenCache) -> None:
    cache = open_cache(2)
    cache.restore(NO_MATCH, 0)
    assert slots.is_clear(0)
    cache.unpin(NO_MATCH)
    assert cache.problems() == []


def test_too_little_is_nothing(slots: Any, open_cache: OpenCache) -> None:
    cache = open_cache(4)
    fill(slots, 0, 32)
    cache.remember("realm", contents("a" * 32), 0)
    assert lay_down(cache, slots, contents("a" * 32 + "b"), 1, least=32) == 32
    assert lay_down(cache, slots, contents("a" * 31 + "b"), 1, least=32) == 0
    assert cache.match("other", contents("a" * 32), least=0) is NO_MATCH


def test_pinned_blocks_stay_as_they_are(slots: Any, open_cache: OpenCache) -> None:
    cache = open_cache(2)
    states = fill(slots, 0, 32, seed=1)
    cache.remember("realm", contents("a" * 32), 0)
    match = cache.match("realm", contents("a" * 33), least=0)
    fill(slots, 1, 32, seed=2)
    cache.remember("realm", contents("b" * 32), 1)
    assert cache.statistics()["pinned"] == 2
    cache.restore(match, 2)
    assert torch.equal(slots.slot(2)[..., :32, :], states)
    cache.unpin(match)
    cache.remember("realm", contents("b" * 32), 1)
    assert lay_down(cache, slots, contents("a" * 33), 2) == 0
    assert cache.statistics()["evicted"] == 2


# --------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("num_blocks", [0, 1, 5])
@pytest.mark.parametrize("more_bytes", [0, 1, 383])
def test_never_more_than_the_budget(slots: Any, open_cache: OpenCache, num_blocks: int, more_bytes: int) -> None:
    cache = open_cache(num_blocks, more_bytes)
    assert cache.num_bytes == num_blocks * block_bytes(slots)
    fill(slots, 0, 112)
    cache.remember("realm", contents("abcdefg" * 16), 0)
    assert cache.statistics() == {
        "blocks": num_blocks,
        "used": num_blocks,
        "pinned": 0,
        "evicted": 0,
        "block_tokens": BLOCK_TOKENS,
        "bytes": cache.num_bytes,
    }
    assert lay_down(cache, slots, contents("abcdefg" * 16), 1) == num_blocks * BLOCK_TOKENS


def test_the_version_tells_that_something_new_is_there(slots: Any, open_cache: OpenCache) -> None:
    cache = open_cache(2)
    fill(slots, 0, 32)
    versions = [cache.version]
    for text in ("a" * 15, "a" * 16, "a" * 31, "a" * 32):
        cache.remember("realm", contents(text), 0)
        versions.append(cache.version)
    assert versions == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("num_blocks", [1, 3, 8, 40])
def test_any_course_of_events(slots: Any, open_cache: OpenCache, num_blocks: int) -> None:
    """K/V that follow from the tokens before them, as in a model: whatever comes back must follow from them too."""
    cache, chance = open_cache(num_blocks), random.Random(num_blocks)
    pinned: list[tuple[Any, str]] = []
    for _ in range(400):
        text = "".join(chance.choice(["a" * 16, "b" * 16, "a" * 9 + "b" * 7]) for _ in range(6))
        text = text[: chance.randint(1, 96)]
        follow(slots, 0, text)
        if chance.random() < 0.5:
            cache.remember("realm", contents(text), 0)
        else:
            pinned.append((cache.match("realm", contents(text), least=0), text))
        if len(pinned) > 2 or (pinned and chance.random() < 0.3):
            match, text = pinned.pop(chance.randrange(len(pinned)))
            slots.clear(1, CONTEXT)
            cache.restore(match, 1)
            follow(slots, 2, text[: match.num_tokens])
            assert torch.equal(slots.slot(1), slots.slot(2))
            cache.unpin(match)
    for match, _ in pinned:
        cache.unpin(match)
    assert cache.problems() == []
    assert cache.statistics()["evicted"] > 0 or num_blocks == 40


def follow(slots: Any, slot: int, text: str) -> None:
    """Let the slot hold what follows from the text, at every position from all that is before it."""
    slots.clear(slot, CONTEXT)
    seeds = [hash(tuple(map(ord, text[: index + 1]))) % 251 for index in range(len(text))]
    slots.slot(slot)[..., : len(text), :] = torch.tensor(seeds, dtype=slots.store.dtype)[:, None]


def test_others_ask_while_the_engine_remembers(slots: Any, open_cache: OpenCache) -> None:
    """Matches come from event loops, blocks from the engine's thread."""
    cache, texts = open_cache(6), ["a" * 48, "a" * 32 + "b" * 16, "c" * 48, "a" * 16 + "d" * 32]
    stop, errors = threading.Event(), []

    def ask() -> None:
        chance = random.Random(1)
        while not stop.is_set():
            try:
                match = cache.match("realm", contents(chance.choice(texts)), least=0)
                assert match.num_tokens <= 47
                cache.statistics()
                cache.unpin(match)
            except Exception as error:
                errors.append(error)
                return

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    for number in range(300):
        text = texts[number % len(texts)]
        follow(slots, 0, text)
        cache.remember("realm", contents(text), 0)
        match = cache.match("realm", contents(text), least=0)
        slots.clear(1, CONTEXT)
        cache.restore(match, 1)
        follow(slots, 2, text[: match.num_tokens])
        assert torch.equal(slots.slot(1), slots.slot(2))
        cache.unpin(match)
    stop.set()
    for asker in askers:
        asker.join()
    assert errors == []
    assert cache.problems() == []
