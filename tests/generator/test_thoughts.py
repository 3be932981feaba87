"""Thoughts: phrase by phrase, each decoded by itself, and what they speak of by offsets into all of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.generator.thoughts import Thoughts
from deployments.types import Grounding, Point

HERE, THERE = Point(0.25, 0.5), Point(0.75, 0.0)
PHRASE = 1  # the token that begins a phrase in these tests; it has no text


def decode(token_ids: Sequence[int]) -> str:
    return bytes(token_id for token_id in token_ids if token_id != PHRASE).decode("utf-8", errors="replace")


def think(thoughts: Thoughts, text: bytes) -> str:
    return "".join(thoughts.push(byte, begins_phrase=byte == PHRASE) for byte in text)


def test_without_phrases_it_is_plain_text() -> None:
    thoughts = Thoughts(decode)
    assert think(thoughts, "aß🙂".encode()) + thoughts.end() == "aß🙂"
    assert thoughts.groundings == ()


def test_each_phrase_is_decoded_by_itself() -> None:
    thoughts = Thoughts(decode)
    half, other_half = "ß".encode()[:1], "ß".encode()[1:]
    assert (
        think(thoughts, b"a" + half + bytes([PHRASE]) + other_half + b"b")
        == "a\N{REPLACEMENT CHARACTER}" + "\N{REPLACEMENT CHARACTER}b"
    )


def test_a_run_of_byte_tokens_ends_with_its_phrase() -> None:
    thoughts = Thoughts(decode, byte_token_ids=frozenset(range(0x80, 0x100)))
    assert think(thoughts, "aß".encode()) == "a"
    assert thoughts.push(PHRASE, begins_phrase=True) == "ß"
    assert think(thoughts, "ßb".encode()) == "ßb"


def test_half_a_character_ends_with_its_phrase() -> None:
    thoughts = Thoughts(decode)
    assert think(thoughts, b"a\xf0\x9f") == "a"
    assert thoughts.push(PHRASE, begins_phrase=True) == "\N{REPLACEMENT CHARACTER}"
    assert think(thoughts, b"b") == "b"


def test_groundings_are_offsets_into_all_thoughts() -> None:
    thoughts = Thoughts(decode)
    text = think(thoughts, b"one ") + think(thoughts, b"\x01two")
    thoughts.ground(HERE)
    thoughts.ground(THERE)
    text += think(thoughts, b"!") + think(thoughts, b"\x01 three ") + think(thoughts, b"\x01")
    thoughts.ground(THERE)
    text += think(thoughts, "fünf".encode()) + thoughts.end()
    assert text == "one two! three fünf"
    assert thoughts.groundings == (Grounding(4, 8, (HERE, THERE)), Grounding(15, 19, (THERE,)))
    assert [text[about.start : about.end] for about in thoughts.groundings] == ["two!", "fünf"]


def test_a_point_before_any_word_grounds_an_empty_phrase() -> None:
    thoughts = Thoughts(decode)
    thoughts.ground(HERE)
    assert thoughts.end() == ""
    assert thoughts.groundings == (Grounding(0, 0, (HERE,)),)


def test_ending_twice_changes_nothing() -> None:
    thoughts = Thoughts(decode)
    think(thoughts, b"a\xf0")
    thoughts.ground(HERE)
    assert thoughts.end() == "\N{REPLACEMENT CHARACTER}"
    before = thoughts.groundings
    assert thoughts.end() == ""
    assert thoughts.groundings == before == (Grounding(0, 2, (HERE,)),)


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=12), st.integers(0, 2)), max_size=6))
def test_any_phrases_equal_decoding_each_as_a_whole(phrases: list[tuple[bytes, int]]) -> None:
    thoughts, text = Thoughts(decode), ""
    expected, groundings, start = [], [], 0
    for number, (content, num_points) in enumerate(phrases):
        token_ids = ([PHRASE] if number else []) + [byte for byte in content if byte != PHRASE]
        text += think(thoughts, bytes(token_ids))
        points = (HERE, THERE)[:num_points]
        for point in points:
            thoughts.ground(point)
        expected.append(decode(token_ids))
        if points:
            groundings.append(Grounding(start, start + len(expected[-1]), points))
        start += len(expected[-1])
    assert text + thoughts.end() == "".join(expected)
    assert list(thoughts.groundings) == groundings


@pytest.mark.parametrize("begins", [True, False])
def test_the_first_token_may_begin_a_phrase(begins: bool) -> None:
    thoughts = Thoughts(decode)
    assert thoughts.push(ord("a"), begins_phrase=begins) == "a"
