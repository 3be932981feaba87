"""The slots: what is written where, what is handed back, and that nothing is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

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


def states(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    import torch

    return torch.randn(batch, 2, length, 4, generator=torch.Generator().manual_seed(seed))


def test_prefill_in_two_chunks(cache: SlotCache) -> None:
    import torch

    keys, values = states(1, 7), states(1, 7, seed=1)
    mask = cache.prefill_window(slot=1, start=0, length=5)
    assert torch.equal(mask[0, 0], torch.ones(5, 5).tril().bool())
    cache.update(keys[:, :, :5], values[:, :, :5], 0)
    mask = cache.prefill_window(slot=1, start=5, length=2)
    assert torch.equal(mask[0, 0], torch.ones(7, 7).tril().bool()[5:])
    got_keys, got_values = cache.update(keys[:, :, 5:], values[:, :, 5:], 0)
    assert torch.equal(got_keys, keys)
    assert torch.equal(got_values, values)
    assert [cache.is_clear(slot) for slot in range(3)] == [True, False, True]


@pytest.mark.parametrize(("start", "length", "num_mutual"), [(0, 5, 0), (0, 5, 1), (0, 5, 3), (0, 5, 5), (3, 4, 3)])
def test_the_first_positions_may_see_each_other(cache: SlotCache, start: int, length: int, num_mutual: int) -> None:
    mask = cache.prefill_window(1, start, length, num_mutual)
    assert mask.shape == (1, 1, length, start + length)
    for query in range(start, start + length):
        for key in range(start + length):
            sees = key <= query or (key < num_mutual and query < num_mutual)
            assert bool(mask[0, 0, query - start, key]) == sees, (query, key)


@pytest.mark.parametrize(("start", "length"), [(0, 4), (2, 9)])
def test_mutual_positions_come_in_one_pass(cache: SlotCache, start: int, length: int) -> None:
    with pytest.raises(AssertionError):
        cache.prefill_window(1, start, length, num_mutual=5)


def test_decode_writes_each_row_at_its_own_position(cache: SlotCache) -> None:
    import torch

    new = states(2, 1)
    mask = cache.decode_window(torch.tensor([3, 70]), longest=70)
    got, _ = cache.update(new, new, 1)
    assert got.shape == (2, 2, 128, 4), "the longest row, rounded up"
    assert torch.equal(got[0, :, 3], new[0, :, 0])
    assert torch.equal(got[1, :, 70], new[1, :, 0])
    assert got.count_nonzero() == new.count_nonzero()
    assert mask.shape == (2, 1, 1, 128)
    assert mask.sum(dim=-1).flatten().tolist() == [4, 71]
    assert got.data_ptr() == cache.slot_layers[1].keys.data_ptr(), "a view, not a gather"


@pytest.mark.parametrize(
    ("longest", "length"), [(0, 64), (63, 64), (64, 128), (127, 128), (128, 192), (192, 200), (199, 200)]
)
def test_the_window_is_the_longest_row_rounded_up_within_the_context(
    cache: SlotCache, longest: int, length: int
) -> None:
    import torch

    assert cache.decode_window(torch.tensor([longest]), longest).shape[-1] == length


def test_moving_and_clearing(cache: SlotCache) -> None:
    import torch

    keys = states(1, 6)
    cache.prefill_window(slot=2, start=0, length=6)
    for layer in range(2):
        cache.update(keys, keys, layer)
    cache.move(source=2, target=0, length=6)
    assert [cache.is_clear(slot) for slot in range(3)] == [False, True, True]
    assert torch.equal(cache.slot_layers[1].values[0, :, :6], keys[0])
    cache.clear(0, 6)
    assert cache.is_clear(0)


def test_bytes(cache: SlotCache) -> None:
    assert cache.num_bytes == 2 * 2 * 3 * 2 * 200 * 4 * 4  # layers, K and V, slots, heads, positions, dim, bytes
