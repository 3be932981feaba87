"""Decides what the next step computes; values in, a Plan out. Knows no torch, no asyncio and no clock.

The policy: everybody who decodes decodes in every step; beside that, at most `prefill_chunk_tokens` of prompt are
computed, by priority and oldest request first, so a long prompt delays its neighbours by one chunk and never by its
whole length. Only positions that see each other both ways are never parted; such a beginning may take several chunks at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One request, as far as planning needs it."""

    number: int  # order of arrival
    num_prompt_tokens: int  # what of the answer was streamed before included
    num_prefilled: int  # K/V that are there or need only be laid down
    slot: int | None  # None: waiting for one
    num_mutual: int = 0  # prompt tokens at the beginning that must be computed in one go
    priority: int = 0  # higher ones are begun first

    @property
    def is_decoding(self) -> bool:
        return self.num_prefilled == self.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class Move:
    """The K/V of `number` goes to slot `target`, free once the moves before are done; then `source` is free."""

    number: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Prefill:
    number: int
    slot: int
    start: int  # index of the first prompt token to compute
    length: int


@dataclass(frozen=True, slots=True)
class Plan:
    moves: tuple[Move, ...]  # first
    prefills: tuple[Prefill, ...]
    decodes: tuple[int, ...]  # numbers; the one at index i sits in slot i once the moves are done

    @property
    def num_prefill_tokens(self) -> int:
        return sum(prefill.length for prefill in self.prefills)


def plan_step(rows: Sequence[Row], num_slots: int, prefill_chunk_tokens: int) -> Plan:
    """What the next step does for `rows`, which may stand in any order and outnumber the slots."""
    decoding = [row for row in rows if row.slot is not None and row.is_decoding]
    half_done = [row for row in rows if row.slot is not None and not row.is_decoding]
    moves = _compact(decoding, half_done)
    slots = {row.number: row.slot for row in rows if row.slot is not None}
    slots.update((move.number, move.target) for move in moves)
    prefills = _share_chunk(rows, slots, num_slots, prefill_chunk_tokens)
    decodes = sorted((row.number for row in decoding), key=lambda number: slots[number])
    return Plan(moves, prefills, tuple(decodes))


def _compact(decoding: Sequence[Row], half_done: Sequence[Row]) -> tuple[Move, ...]:
    """Bring the decoding rows into slots 0 to n-1, so that a decode batch is a view of the cache without a gather.

    Half-done prompts follow from slot n on. Were they left where they are, a prompt admitted into a lower slot could
    one day stand where a decoding row must go; like this, nothing is ever in the way, because at most as many rows
    decode as had slots below it when a prompt was last moved or admitted.
    """
    count = len(decoding)
    taken = {row.slot for row in decoding}
    holes = [slot for slot in range(count) if slot not in taken]
    strays = sorted((slot, row.number) for row in decoding if (slot := _slot(row)) >= count)
    followers = sorted((_slot(row), row.number) for row in half_done)
    targets = [*holes, *range(count, count + len(followers))]
    assert all(slot >= count for slot, _ in followers), f"{followers} stand among {count} decoding rows"
    return tuple(
        Move(number, source, target)
        for (source, number), target in zip([*strays, *followers], targets, strict=True)
        if source != target
    )


def _slot(row: Row) -> int:
    assert row.slot is not None
    return row.slot


def _share_chunk(
    rows: Sequence[Row], slots: dict[int, int], num_slots: int, prefill_chunk_tokens: int
) -> tuple[Prefill, ...]:
    """Give the chunk to the half-done prompt first, then to waiting ones while slots are free: by priority, and among
    equals in order of arrival.

    Each takes all it can, so after a step at most one prompt is half done. Who cannot begin with what is left ends the
    round: had a later one gone first, a long beginning could wait for ever.
    """
    if not prefill_chunk_tokens:
        return ()
    free = [slot for slot in range(num_slots) if slot not in slots.values()]
    unfinished = [row for row in rows if not row.is_decoding]
    prefills: list[Prefill] = []
    left = prefill_chunk_tokens
    for row in sorted(unfinished, key=_turn):
        length = _prefill_length(row, left, prefill_chunk_tokens)
        if length == 0 or (row.slot is None and not free):
            break
        slot = free.pop(0) if row.slot is None else slots[row.number]
        prefills.append(Prefill(row.number, slot, row.num_prefilled, length))
        left -= length
    return tuple(prefills)


def _turn(row: Row) -> tuple[bool, int, int]:
    return row.slot is None, -row.priority, row.number


def _prefill_length(row: Row, left: int, prefill_chunk_tokens: int) -> int:
    """How many of its prompt tokens are computed next, when `left` of this step's chunk are not given away yet.

    A beginning that no chunk can hold gets as many whole chunks as it needs, alone in its step.
    """
    unit = row.num_mutual if row.num_prefilled == 0 else 0
    if unit > prefill_chunk_tokens and left == prefill_chunk_tokens:
        left = -(-unit // prefill_chunk_tokens) * prefill_chunk_tokens
    if left < unit:
        return 0
    return min(max(left, 0), row.num_prompt_tokens - row.num_prefilled)


def estimate_retry_s(remaining_tokens: Sequence[int], tokens_per_s: float, max_wait_s: float) -> float:
    """When one of the running requests is likely to have made room, for an error's `retry_after_s`.

    `remaining_tokens` is what each may still generate. At the measured throughput all are done after sum / throughput,
    so one place becomes free about every sum / throughput / number of requests.
    """
    if not remaining_tokens or tokens_per_s <= 0:
        return 1.0
    estimate_s = sum(remaining_tokens) / tokens_per_s / len(remaining_tokens)
    return round(min(max(estimate_s, 1.0), max_wait_s), 1)
