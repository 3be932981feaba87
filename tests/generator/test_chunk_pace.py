"""How many prompt tokens join a step: simulated machines, whose steps must stay short and whose prompts must go on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from deployments.generator.chunk_pace import LEAST_TOKENS, MOST_STEPS_BETWEEN, ChunkPace

DECODE_S = 0.02
Machine = Callable[[int, int], float]  # seconds of a step, by prompt tokens in it and the position of the first


def quiet(pace: ChunkPace, steps: int = 50, decode_s: float = DECODE_S) -> None:
    for _ in range(steps):
        pace.observe(decode_s, 4, 0)


def prefill(pace: ChunkPace, num_tokens: int, machine: Machine) -> Iterator[tuple[int, float]]:
    """Sizes and durations of the steps that a prompt takes beside rows that decode."""
    position = 0
    while position < num_tokens:
        tokens = min(pace.tokens(4), num_tokens - position)
        duration_s = machine(tokens, position)
        pace.observe(duration_s, 4, tokens)
        position += tokens
        yield tokens, duration_s


def even(token_s: float) -> Machine:
    return lambda tokens, position: DECODE_S + tokens * token_s


def growing(token_s: float) -> Machine:
    """Far tokens read all that is before them: at 4,000 they cost three times as much."""
    return lambda tokens, position: DECODE_S + tokens * token_s * (1 + (position + tokens / 2) / 2000)


def test_nobody_waits_where_nobody_decodes() -> None:
    pace = ChunkPace(512)
    assert pace.tokens(0) == 512
    quiet(pace)
    assert list(prefill(pace, 600, even(0.01)))
    assert pace.tokens(0) == 512


def test_the_first_chunk_is_careful() -> None:
    assert ChunkPace(512).tokens(1) == 64
    assert ChunkPace(20).tokens(1) == 20
    pace = ChunkPace(512)
    quiet(pace)
    assert pace.tokens(1) == 64


@pytest.mark.parametrize("token_s", [0.0001, 0.0002, 0.0005])
def test_it_comes_to_what_fits(token_s: float) -> None:
    pace = ChunkPace(512)
    quiet(pace)
    sizes = [tokens for tokens, _ in prefill(pace, 3000, even(token_s))]
    fitting = 0.7 * DECODE_S / token_s  # a step takes 1.7 times as long with so many
    assert sizes[1:-1]
    assert all(size % LEAST_TOKENS == 0 for size in sizes[1:-1]), "shapes repeat"
    assert all(fitting - LEAST_TOKENS - 2 <= size <= fitting + 1 for size in sizes[1:-1])


def test_a_fast_machine_takes_whole_chunks() -> None:
    pace = ChunkPace(128)
    quiet(pace)
    sizes = [tokens for tokens, _ in prefill(pace, 1216, even(1e-6))]
    assert sizes == [64, *[128] * 9]


def test_no_machine_is_too_slow() -> None:
    pace = ChunkPace(512)
    quiet(pace)
    sizes = [tokens for tokens, _ in prefill(pace, 640, even(1.0))]
    assert sizes[0] == 64
    assert set(sizes[1:]) == {0, LEAST_TOKENS}
    taken = [index for index, size in enumerate(sizes) if size]
    assert max(later - earlier for earlier, later in itertools.pairwise(taken)) <= MOST_STEPS_BETWEEN


def test_where_the_least_is_too_much_it_comes_now_and_then() -> None:
    """On the whole, steps are no longer than they may be."""
    pace = ChunkPace(512)
    quiet(pace)
    token_s = 1.4 * DECODE_S / LEAST_TOKENS  # twice as much as fits
    steps = list(prefill(pace, 2000, even(token_s)))[8:]
    mean_s = sum(duration_s for _, duration_s in steps) / len(steps)
    assert 1.5 * DECODE_S < mean_s < 1.8 * DECODE_S


def test_a_chunk_smaller_than_the_least_is_kept() -> None:
    pace = ChunkPace(10)
    quiet(pace)
    assert all(tokens <= 10 for tokens, _ in prefill(pace, 100, even(1.0)))


@pytest.mark.parametrize("token_s", [0.00005, 0.0001, 0.0002, 0.0003])
def test_steps_of_a_long_prompt_take_at_most_twice_as_long(token_s: float) -> None:
    pace = ChunkPace(512)
    quiet(pace)
    steps = list(prefill(pace, 4000, growing(token_s)))
    assert sum(tokens for tokens, _ in steps) == 4000
    assert max(duration_s for _, duration_s in steps) <= 2 * DECODE_S
    # And not for want of trying: what a step may take is used.
    used = [duration_s for tokens, duration_s in steps[2:-1] if tokens < 512]
    assert sum(used) / len(used) > 1.35 * DECODE_S


def test_the_next_long_prompt_begins_as_carefully_as_the_last_one_ended() -> None:
    pace = ChunkPace(512)
    quiet(pace)
    first = list(prefill(pace, 4000, growing(0.0002)))
    second = list(prefill(pace, 4000, growing(0.0002)))
    assert max(duration_s for _, duration_s in second) <= 2 * DECODE_S
    assert second[0][0] == pytest.approx(first[-2][0], abs=LEAST_TOKENS)
    assert len(second) < 1.5 * len(first), "it gets faster again bit by bit"


def test_a_few_tokens_say_nothing_of_many() -> None:
    """Ends of prompts, and short questions whose pictures are remembered: most of such a step is not the tokens'."""
    pace = ChunkPace(512)
    quiet(pace)
    list(prefill(pace, 1024, even(0.0001)))
    before = pace.tokens(4)
    for _ in range(30):
        pace.observe(DECODE_S + 0.002, 4, 3)
    assert pace.tokens(4) == before > 100


def test_one_interrupted_step_changes_little() -> None:
    pace = ChunkPace(512)
    quiet(pace)
    list(prefill(pace, 1000, even(0.0002)))
    before = pace.tokens(4)
    pace.observe(0.5, 4, before)  # twenty times what it should take
    sizes = [tokens for tokens, _ in prefill(pace, 3000, even(0.0002))]
    assert any(sizes[:MOST_STEPS_BETWEEN])
    assert sizes[-2] > 0.9 * before


def test_a_machine_that_became_slow_is_noticed_within_a_few_steps() -> None:
    pace = ChunkPace(512)
    quiet(pace)
    list(prefill(pace, 1000, even(0.0001)))
    slow = list(prefill(pace, 1000, even(0.0005)))
    assert all(duration_s <= 2 * DECODE_S for _, duration_s in slow[6:])


def test_what_is_a_little_slower_counts_at_once() -> None:
    pace = ChunkPace(512)
    quiet(pace)
    list(prefill(pace, 1000, even(0.0001)))
    slower = list(prefill(pace, 1000, even(0.00018)))
    assert slower[0][1] > 2 * DECODE_S
    assert all(duration_s < 1.75 * DECODE_S for _, duration_s in slower[1:])


@pytest.mark.parametrize("decode_s", [0.0, 1e-9])
def test_a_clock_that_stands_still(decode_s: float) -> None:
    pace = ChunkPace(512)
    quiet(pace, decode_s=decode_s)
    pace.observe(decode_s, 4, 64)
    assert LEAST_TOKENS <= pace.tokens(4) <= 512


def test_it_follows_the_rows_that_decode() -> None:
    """More rows make a longer step, and more room beside it."""
    pace = ChunkPace(512)
    quiet(pace)
    list(prefill(pace, 500, even(0.0002)))
    few = pace.tokens(4)
    quiet(pace, decode_s=2 * DECODE_S)
    assert pace.tokens(16) == pytest.approx(2 * few, rel=0.05)
