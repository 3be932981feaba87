"""The slots: each has a place of its own, and nothing is left behind. What is read of them, see test_slot_attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from deployments.generator.kv_cache import SlotCache

pytestmark = pytest.mark.torch


@pytest.fixture
def cache() -> SlotCache:
    import torch

    from deployments.generator.kv_cache import SlotCache

    return SlotCache(
        num_layers=2,
        num_slots=3,
        num_kv_heads=2,
        context_tokens=200,
        head_dim=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def fill(cache: SlotCache, slot: int, length: int) -> None:
    """Numbers that tell layer, K or V, slot, head and position, none of them 0."""
    import torch

    shape = cache.slot(slot)[..., :length, :].shape
    cache.slot(slot)[..., :length, :] = torch.arange(1.0, 1 + shape.numel()).view(shape) + slot * 10_000


def test_a_new_cache_is_clear(cache: SlotCache) -> None:
    assert cache.store.shape == (2, 2, 3, 2, 200, 4)
    assert all(cache.is_clear(slot) for slot in range(3))


def test_layers_and_slots_are_views_of_one_tensor(cache: SlotCache) -> None:
    import torch

    for slot in range(3):
        fill(cache, slot, 7)
    for layer, (keys, values) in enumerate(cache.layers):
        assert keys.shape == values.shape == (3, 2, 200, 4)
        for slot in range(3):
            assert torch.equal(keys[slot], cache.slot(slot)[layer, 0])
            assert torch.equal(values[slot], cache.slot(slot)[layer, 1])
    cache.layers[1][1][2, 1, 199, 3] = -5
    assert cache.slot(2)[1, 1, 1, 199, 3] == -5


@pytest.mark.parametrize("place", [(0, 0, 0, 0, 0), (1, 0, 1, 57, 2), (1, 1, 1, 199, 3)])
def test_one_number_is_enough_not_to_be_clear(cache: SlotCache, place: tuple[int, ...]) -> None:
    cache.slot(1)[place] = float("nan")
    assert [cache.is_clear(slot) for slot in range(3)] == [True, False, True]


@pytest.mark.parametrize(("source", "target"), [(2, 0), (0, 2), (1, 0)])
def test_moving_and_clearing(cache: SlotCache, source: int, target: int) -> None:
    import torch

    fill(cache, source, 6)
    before = cache.slot(source).clone()
    cache.move(source=source, target=target, length=6)
    assert [cache.is_clear(slot) for slot in range(3)] == [slot != target for slot in range(3)]
    assert torch.equal(cache.slot(target), before)
    cache.clear(target, 6)
    assert cache.is_clear(target)


def test_neighbours_stay_as_they_are(cache: SlotCache) -> None:
    import torch

    for slot in (0, 1):
        fill(cache, slot, 9)
    first = cache.slot(0).clone()
    cache.move(source=1, target=2, length=9)
    cache.clear(2, 9)
    assert torch.equal(cache.slot(0), first)
    assert cache.is_clear(2)


def test_clearing_takes_what_stands_and_no_more(cache: SlotCache) -> None:
    fill(cache, 1, 9)
    cache.clear(1, 8)
    assert not cache.is_clear(1)
    assert cache.slot(1)[..., 8, :].count_nonzero() == 2 * 2 * 2 * 4
    assert cache.slot(1).count_nonzero() == 2 * 2 * 2 * 4


def test_bytes(cache: SlotCache) -> None:
    assert cache.num_bytes == 2 * 2 * 3 * 2 * 200 * 4 * 4  # layers, K and V, slots, heads, positions, dim, bytes
