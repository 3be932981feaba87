"""Chance that follows from a seed, a count and a token's id alone: the same in any batch, on any device, in any order.

SplitMix64 (https://doi.org/10.1145/2714064.2660195), whose n-th number needs none of those before it. So a token's draw
belongs to the token, and only those who may still win need one; torch's generators must draw for the whole vocabulary,
one row after the other, which on a CPU takes longer than all else that choosing does.
"""

from __future__ import annotations

import secrets

import torch

BITS = 64
ALL_BITS = 2**BITS - 1


def _to_signed(number: int) -> int:
    """The int64 of the same bits: torch has no 64-bit numbers without a sign that it can multiply."""
    return number - 2**BITS if number >> (BITS - 1) else number


GAMMA = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SIGNED_GAMMA, SIGNED_FIRST, SIGNED_SECOND = map(_to_signed, (GAMMA, FIRST, SECOND))
MANTISSA_BITS = 53


class Draws:
    """One answer's source of chance: a key for each of its tokens."""

    def __init__(self, seed: int | None) -> None:
        """None draws a fresh seed."""
        # Mixed once, so that neighbouring seeds do not begin neighbouring states.
        self._state = _mix(secrets.randbits(BITS) if seed is None else seed)

    def skip(self, count: int) -> None:
        """As if so many keys had been taken."""
        self._state = (self._state + GAMMA * count) & ALL_BITS

    def next_key(self) -> int:
        """64 bits as an int64."""
        self._state = (self._state + GAMMA) & ALL_BITS
        return _to_signed(_mix(self._state))


def exponentials(keys: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """(B, K) float32 draws of Exp(1), never 0: one for each of (B, 1) int64 keys and (B, K) or (K,) int64 tokens."""
    bits = _shift(mix_all(token_ids * SIGNED_GAMMA + keys), BITS - MANTISSA_BITS)
    # Shares near 0 become the small draws, which win: there floats are close together. 1 becomes inf and never wins.
    shares = bits.float().add_(0.5).mul_(2.0**-MANTISSA_BITS)
    return shares.neg_().log1p_().neg_()


def mix_all(numbers: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finalizer over int64; changes `numbers`."""
    numbers.bitwise_xor_(_shift(numbers, 30)).mul_(SIGNED_FIRST)
    numbers.bitwise_xor_(_shift(numbers, 27)).mul_(SIGNED_SECOND)
    return numbers.bitwise_xor_(_shift(numbers, 31))


def _shift(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """To the right, zeros from the left."""
    return (numbers >> count).bitwise_and_(2 ** (BITS - count) - 1)


def _mix(number: int) -> int:
    number = (number ^ (number >> 30)) * FIRST & ALL_BITS
    number = (number ^ (number >> 27)) * SECOND & ALL_BITS
    return number ^ (number >> 31)
