"""Draws are SplitMix64's, exponential, and a token's own."""

from __future__ import annotations

import math

import pytest

pytestmark = pytest.mark.torch

# The first outputs of the reference implementation (https://prng.di.unimi.it/splitmix64.c) for this state.
STATE = 1234567
OUTPUTS = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_numbers_are_those_of_the_reference() -> None:
    import torch

    from deployments.generator.draws import SIGNED_GAMMA, mix_all

    mixed = mix_all(STATE + torch.arange(1, 6) * SIGNED_GAMMA)
    assert [number % 2**64 for number in mixed.tolist()] == OUTPUTS


def test_keys_and_tokens_mix_alike() -> None:
    """Python's whole numbers and torch's, which wrap and have a sign."""
    import torch

    from deployments.generator.draws import ALL_BITS, GAMMA, Draws, mix_all

    for seed in (0, 1, 2**63 - 1):
        draws = Draws(seed)
        for _ in range(5):
            state = draws._state + GAMMA & ALL_BITS
            signed = torch.tensor([state - 2**64 if state >= 2**63 else state])
            assert draws.next_key() == mix_all(signed).item()


def test_seeds() -> None:
    from deployments.generator.draws import Draws

    def keys(seed: int | None) -> list[int]:
        draws = Draws(seed)
        return [draws.next_key() for _ in range(3)]

    assert keys(7) == keys(7)
    assert not set(keys(7)) & set(keys(8))
    assert keys(2**63 - 1) == keys(2**63 - 1)
    assert keys(None) != keys(None)
    assert all(-(2**63) <= key < 2**63 for seed in range(100) for key in keys(seed))


def test_a_draw_is_its_tokens_own() -> None:
    import torch

    from deployments.generator.draws import exponentials

    keys = torch.tensor([[5], [-7], [2**62]])
    every = exponentials(keys, torch.arange(1000))
    some = torch.tensor([[999, 3, 0], [1, 1, 500], [7, 8, 9]])
    assert torch.equal(exponentials(keys, some), every.gather(-1, some))
    assert torch.equal(exponentials(keys[1:2], torch.arange(1000)), every[1:2])


@pytest.mark.parametrize("by", ["token", "step", "seed"])
def test_draws_are_exponential(by: str) -> None:
    """Mean, spread, and the shares below some bounds, along each of the three ways in which they are counted."""
    import torch

    from deployments.generator.draws import Draws, exponentials

    count = 40_000
    if by == "token":
        drawn = exponentials(torch.tensor([[Draws(3).next_key()]]), torch.arange(count))
    else:
        one = Draws(3)
        keys = [one.next_key() if by == "step" else Draws(number).next_key() for number in range(count)]
        drawn = exponentials(torch.tensor(keys)[:, None], torch.tensor([17]))
    drawn = drawn.flatten().double()
    assert drawn.min() > 0
    assert abs(drawn.mean() - 1) < 4 / math.sqrt(count)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(8 / count)
    for bound in (1e-3, 0.1, 0.7, 2.0, 5.0):
        share = 1 - math.exp(-bound)
        spread = math.sqrt(share * (1 - share) / count)
        assert abs((drawn < bound).double().mean() - share) < 4 * spread


def test_no_draw_is_zero_or_nan() -> None:
    """Neither at the least nor at the greatest of all bits."""
    import torch

    import deployments.generator.draws as draws

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "mix_all", lambda numbers: torch.tensor([[0, -1]]))
        least, greatest = draws.exponentials(torch.zeros(1, 1).long(), torch.arange(2)).flatten().tolist()
    assert 0 < least < 1e-15
    assert greatest > 30
