"""Attention over the slots against a softmax of each sequence by itself, in float64 and without any cleverness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from deployments.generator.slot_attention import CALL_POSITIONS, Piece, SlotAttention, split_runs

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

CONTEXT, HEAD_DIM, NUM_SLOTS, NUM_LAYERS = 700, 16, 7, 2
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


@dataclass
class Pass:
    """Slots with something in them, and one flat pass over them."""

    cache: Any
    written: Sequence[int]  # by decoding row
    pieces: Sequence[Piece]
    query: Any  # (N, heads, head_dim)
    key: Any  # (N, kv_heads, head_dim)
    value: Any

    def attend(self, layer: int = 1, scale: float | None = None) -> Any:
        return SlotAttention(self.cache, self.written, self.pieces)(layer, self.query, self.key, self.value, scale)

    def places(self) -> list[tuple[int, int, int]]:
        """Slot, position and last visible position of each token."""
        rows = [(slot, position, position) for slot, position in enumerate(self.written)]
        for piece in self.pieces:
            rows += [
                (piece.slot, position, max(position, piece.num_mutual - 1))
                for position in range(piece.start, piece.stop)
            ]
        return rows


def open_pass(
    written: Sequence[int], pieces: Sequence[Piece], dtype: Any = torch.float32, heads: int = 4, kv_heads: int = 2
) -> Pass:
    from deployments.generator.kv_cache import SlotCache

    cache = SlotCache(
        num_layers=NUM_LAYERS,
        num_slots=NUM_SLOTS,
        num_kv_heads=kv_heads,
        context_tokens=CONTEXT,
        head_dim=HEAD_DIM,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    chance = torch.Generator().manual_seed(len(written) + 10 * len(pieces))
    before = [*enumerate(written), *((piece.slot, piece.start) for piece in pieces)]
    for slot, length in before:
        shape = cache.slot(slot)[..., :length, :].shape
        cache.slot(slot)[..., :length, :] = torch.randn(shape, generator=chance).to(dtype)
    count = len(written) + sum(piece.length for piece in pieces)
    query, key, value = (
        torch.randn(count, number, HEAD_DIM, generator=chance).to(dtype) for number in (heads, kv_heads, kv_heads)
    )
    return Pass(cache, written, pieces, query, key, value)


def plainly(work: Pass, layer: int = 1, scale: float | None = None) -> Any:
    """(N, heads * head_dim) float64."""
    keys, values = (tensor.clone().double() for tensor in work.cache.layers[layer])
    for index, (slot, position, _) in enumerate(work.places()):
        keys[slot, :, position], values[slot, :, position] = work.key[index].double(), work.value[index].double()
    group = work.query.shape[1] // work.key.shape[1]
    keys, values = (tensor.repeat_interleave(group, dim=1) for tensor in (keys, values))  # one for each query head
    rows = []
    for query, (slot, _, last) in zip(work.query.double(), work.places(), strict=True):
        scores = torch.einsum("hld,hd->hl", keys[slot, :, : last + 1], query)
        weights = (scores * (scale or 1 / math.sqrt(HEAD_DIM))).softmax(dim=-1)
        rows.append(torch.einsum("hl,hld->hd", weights, values[slot, :, : last + 1]))
    return torch.stack(rows).view(len(work.query), -1)


def check(work: Pass, scale: float | None = None) -> None:
    expected = plainly(work, scale=scale)
    mixed = work.attend(scale=scale)
    assert mixed.dtype == work.query.dtype
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=TOLERANCE[work.query.dtype])


DECODES = [[5], [0], [0, 3, 17], [63, 64, 65, 2], [699, 0, 1, 2]]
PIECES: list[list[Piece]] = [
    [Piece(4, 0, 1)],
    [Piece(4, 0, 20)],
    [Piece(5, 37, 16)],
    [Piece(6, 650, 50), Piece(4, 0, 7)],
    [Piece(4, 0, 30, num_mutual=30)],
    [Piece(4, 0, 30, num_mutual=12), Piece(6, 30, 9, num_mutual=30), Piece(5, 2, 1, num_mutual=1)],
]
HEADS = [(4, 2), (4, 4), (6, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("pieces", [[], *PIECES])
@pytest.mark.parametrize("written", [[], *DECODES])
def test_rows_and_pieces(written: list[int], pieces: list[Piece], heads: int, kv_heads: int, dtype: Any) -> None:
    if written or pieces:
        check(open_pass(written, pieces, dtype, heads, kv_heads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_scale(scale: float, dtype: Any) -> None:
    work = open_pass([3, 40], [Piece(4, 5, 11)], dtype)
    check(work, scale)
    assert (work.attend(scale=scale) - work.attend()).abs().max() > 0.01, "the scale matters"


def test_keys_and_values_are_kept_where_they_belong() -> None:
    work = open_pass([3, 9], [Piece(4, 5, 11), Piece(2, 0, 3)])
    before = work.cache.store.clone()
    work.attend(layer=1)
    assert torch.equal(work.cache.store[0], before[0]), "the other layer is left alone"
    keys, values = before[1].transpose(0, 1).clone().transpose(0, 1)
    for index, (slot, position, _) in enumerate(work.places()):
        keys[slot, :, position], values[slot, :, position] = work.key[index], work.value[index]
    assert torch.equal(work.cache.store[1, 0], keys)
    assert torch.equal(work.cache.store[1, 1], values)


def test_one_object_serves_all_layers() -> None:
    work = open_pass([3, 9], [Piece(4, 5, 11)])
    attend = SlotAttention(work.cache, work.written, work.pieces)
    for layer in range(NUM_LAYERS):
        expected = plainly(work, layer)
        mixed = attend(layer, work.query, work.key, work.value)
        torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=2e-5)


def test_what_is_written_again_is_written_over() -> None:
    """A pass that failed behind some layer is run anew."""
    work = open_pass([3, 9], [Piece(4, 5, 11)])
    first = work.attend()
    assert torch.equal(work.attend(), first)


# --------------------------------------------------------------------------------- poison


@pytest.fixture
def exact_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths as they are: what a length is filled up with is zeros in life, and poison here."""
    monkeypatch.setattr("deployments.generator.slot_attention.LENGTH_STEP", 1)


@pytest.mark.parametrize(("written", "length"), [(0, 32), (31, 32), (32, 64), (CONTEXT - 1, CONTEXT)])
def test_lengths_are_filled_up_within_the_context(written: int, length: int) -> None:
    attention = SlotAttention(open_pass([written], []).cache, [written], [])
    assert [run.length for run in attention._runs] == [length]


def test_tokens_that_are_nobodys_get_zeros() -> None:
    work = open_pass([5], [Piece(4, 0, 9)])
    expected = work.attend()
    padded = SlotAttention(work.cache, work.written, work.pieces, num_padding=6)
    more = [torch.cat([tensor, torch.randn(6, *tensor.shape[1:])]) for tensor in (work.query, work.key, work.value)]
    mixed = padded(1, *more)
    assert torch.equal(mixed[:10], expected)
    assert mixed.shape == (16, expected.shape[1])
    assert not mixed[10:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_in_other_slots_and_behind_what_is_read_stays_there(dtype: Any, exact_lengths: None) -> None:
    written, pieces = [20, 20, 20], [Piece(4, 5, 11), Piece(6, 0, 9, num_mutual=4)]
    clean = open_pass(written, pieces, dtype).attend()
    poisoned = open_pass(written, pieces, dtype)
    for slot in (3, 5):
        poisoned.cache.slot(slot)[:] = torch.nan
    for slot, length in [(0, 21), (1, 21), (2, 21), (4, 16), (6, 9)]:
        poisoned.cache.slot(slot)[..., length:, :] = torch.nan
    assert torch.equal(poisoned.attend(), clean)


def test_rows_that_attend_together_do_not_see_behind_their_own_end() -> None:
    """The shorter ones read positions that are not theirs: clear in a cache in use, never counted all the same."""
    written = [400, 3, 200]
    assert split_runs(written) == [(0, 3)]
    clean, poisoned = (open_pass(written, []) for _ in range(2))
    poisoned.cache.slot(1)[..., 4:, :] = 1e4
    poisoned.cache.slot(2)[..., 201:, :] = -1e4
    assert torch.equal(poisoned.attend(), clean.attend())


def test_a_sequence_of_nan_harms_no_other() -> None:
    """Its own numbers, in its own row, its own slot and its own piece."""
    written, pieces = [20, 30, 25], [Piece(4, 0, 6), Piece(5, 0, 6)]
    clean, poisoned = (open_pass(written, pieces) for _ in range(2))
    poisoned.cache.slot(1)[..., :30, :] = torch.nan
    for tensor in (poisoned.query, poisoned.key, poisoned.value):
        tensor[1] = torch.nan
        tensor[3:9] = torch.nan  # the piece in slot 4
    mixed, expected = poisoned.attend(), clean.attend()
    sound = [0, 2, *range(9, 15)]
    assert torch.equal(mixed[sound], expected[sound])
    assert mixed[[1, *range(3, 9)]].isnan().all()


# --------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(
    ("written", "runs"),
    [
        ([], []),
        ([600], [(0, 1)]),
        ([0, 0, 0], [(0, 3)]),
        ([600, 600, 600, 600], [(0, 4)]),
        ([10, 20, 30, 40, 50], [(0, 5)]),
        ([10, 10, 10, 10, 4000], [(0, 4), (4, 5)]),
        ([4000, 10, 10, 10, 10], [(0, 1), (1, 5)]),
        ([10, 10, 4000, 10, 10], [(0, 2), (2, 3), (3, 5)]),
        ([10, 10 + CALL_POSITIONS], [(0, 2)]),  # a call costs as much as reading so many in vain
        ([10, 11 + CALL_POSITIONS], [(0, 1), (1, 2)]),
    ],
)
def test_a_long_row_reads_alone(written: list[int], runs: list[tuple[int, int]]) -> None:
    assert split_runs(written) == runs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_split_runs(heads: int, kv_heads: int, dtype: Any) -> None:
    written = [699, 3, 2, 690, 680, 8]
    assert len(split_runs(written)) == 4
    check(open_pass(written, [Piece(6, 3, 9)], dtype, heads, kv_heads))


def test_a_long_neighbour_is_not_read(exact_lengths: None) -> None:
    """Rows of another run may hold what they want."""
    written = [699, 3, 2]
    assert split_runs(written) == [(0, 1), (1, 3)]
    clean, poisoned = (open_pass(written, []) for _ in range(2))
    poisoned.cache.slot(1)[..., 4:, :] = torch.nan
    poisoned.cache.slot(2)[..., 4:, :] = torch.nan
    assert torch.equal(poisoned.attend()[:1], clean.attend()[:1])
    assert poisoned.attend()[1].isfinite().all(), "four positions are read, which is all that the longest has"


@pytest.mark.parametrize("piece", [Piece(4, 3, 5, num_mutual=5), Piece(4, 0, 4, num_mutual=5)])
def test_a_beginning_that_sees_itself_comes_in_one_piece(piece: Piece) -> None:
    with pytest.raises(AssertionError):
        SlotAttention(open_pass([], [Piece(4, 0, 9)]).cache, [], [piece])
