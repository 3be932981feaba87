"""How an answer ends: stop tokens, stop strings, length; and what its chunks say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from generator.letters import FIRST_CHARACTER, LetterPrompts, picture
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.generator.sequence import AnswerText, Marks, Sequence, StopScanner, slowest_source
from deployments.models.family import ImageSpan, Prompt
from deployments.types import Chunk, FeatureSource, ImageFeatures, SamplingParams

STOP_TOKEN = 3


def sequence(max_new_tokens: int = 10, stop: tuple[str, ...] = (), decode: Any = None) -> Sequence:
    prompt = Prompt((1, 2, 2, 4), np.arange(4)[None], 4, (ImageSpan(picture("cat", 2).id, 1, 2),))
    decode = decode or LetterPrompts().decode
    return Sequence(
        number=0,
        request_id="r",
        prompt=prompt,
        features={},
        encode_source="memory",
        sampling=SamplingParams(stop=stop),
        max_new_tokens=max_new_tokens,
        answer=AnswerText(decode, stop),
        stream=None,  # type: ignore[arg-type]  # only the worker uses it
        marks=Marks(arrived=1.0, encode_s=0.5, prefill_began=2.0),
    )


def letters(*token_ids: int) -> str:
    return "".join(chr(FIRST_CHARACTER + token_id) for token_id in token_ids)


def accept_all(answer: Sequence, *token_ids: int) -> list[Chunk | None]:
    return [answer.accept(token_id, frozenset({STOP_TOKEN}), now=3.0 + n) for n, token_id in enumerate(token_ids)]


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it() -> None:
    first, second, last = accept_all(sequence(), 65, 66, STOP_TOKEN)
    assert (first, second) == (Chunk(letters(65), 1), Chunk(letters(66), 1))
    assert last is not None
    assert (last.text, last.num_tokens, last.finish_reason) == ("", 0, "stop")
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.image_tokens, last.usage.completion_tokens) == (4, 2, 2)


def test_an_answer_can_be_empty() -> None:
    [only] = accept_all(sequence(), STOP_TOKEN)
    assert only is not None
    assert (only.text, only.finish_reason) == ("", "stop")


def test_the_last_token_by_length_comes_with_the_last_chunk() -> None:
    answer = sequence(max_new_tokens=2)
    _, last = accept_all(answer, 65, 66)
    assert last is not None
    assert (last.text, last.num_tokens, last.finish_reason) == (letters(66), 1, "length")
    assert answer.is_finished


def test_times_are_told_apart() -> None:
    *_, last = accept_all(sequence(), 65, 66, STOP_TOKEN)  # at 3, 4 and 5 s
    assert last is not None
    assert last.timings is not None
    timings = last.timings
    assert (timings.queue_ms, timings.encode_ms, timings.prefill_ms, timings.decode_ms) == (500, 500, 1000, 2000)
    assert (timings.first_token_ms, timings.encode_source) == (2000, "memory")


def test_a_stop_string_over_several_tokens() -> None:
    chunks = accept_all(sequence(stop=(letters(66, 67, 68),)), 65, 66, 67, 68)
    assert chunks[:3] == [Chunk(letters(65), 1), None, None]
    assert chunks[3] is not None
    assert (chunks[3].text, chunks[3].num_tokens, chunks[3].finish_reason) == ("", 3, "stop")


def test_held_text_is_shown_when_it_turns_out_harmless() -> None:
    chunks = accept_all(sequence(stop=(letters(66, 67),)), 66, 65)
    assert chunks == [None, Chunk(letters(66, 65), 2)]


@pytest.mark.parametrize("ending", [STOP_TOKEN, 67])
def test_held_text_is_shown_at_the_end(ending: int) -> None:
    chunks = accept_all(sequence(max_new_tokens=2, stop=(letters(66, 90), letters(67, 90))), 66, ending)
    shown = "".join(chunk.text for chunk in chunks if chunk)
    assert shown == (letters(66) if ending == STOP_TOKEN else letters(66, 67))


def test_half_a_character_at_the_end_may_complete_a_stop_string() -> None:
    def decode(token_ids: Any) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")

    *_, last = accept_all(sequence(max_new_tokens=2, stop=("\ufffd",), decode=decode), ord("a"), 0xF0)
    assert last is not None
    assert (last.text, last.finish_reason) == ("", "stop")


@pytest.mark.parametrize("stop", [(), ("zz",)])
def test_white_space_before_the_answer_is_left_out_and_its_tokens_counted(stop: tuple[str, ...]) -> None:
    def decode(token_ids: Any) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")

    chunks = accept_all(sequence(max_new_tokens=6, stop=stop, decode=decode), *b" \n a b")
    shown = [chunk for chunk in chunks if chunk is not None]
    assert [(chunk.text, chunk.num_tokens) for chunk in shown] == [("a", 4), (" ", 1), ("b", 1)]
    [*_, last] = accept_all(sequence(max_new_tokens=2, stop=stop, decode=decode), *b"  ")
    assert last is not None
    assert (last.text, last.num_tokens, last.finish_reason) == ("", 2, "length")


@pytest.mark.parametrize(
    ("stop", "shown", "reason"),
    [((" ",), "a", "stop"), (("\n",), "a b", "length"), ((" a",), "a b", "length"), (("b",), "a ", "stop")],
)
def test_stop_strings_do_not_see_the_white_space_before_the_answer(
    stop: tuple[str, ...], shown: str, reason: str
) -> None:
    def decode(token_ids: Any) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")

    answer = sequence(max_new_tokens=6, stop=stop, decode=decode)
    chunks: list[Chunk] = []
    for token_id in b" \n a b":
        chunks += [chunk for chunk in accept_all(answer, token_id) if chunk]
        if answer.is_finished:
            break
    assert "".join(chunk.text for chunk in chunks) == shown
    assert chunks[-1].finish_reason == reason


@settings(deadline=None)
@given(st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.data())
def test_the_scanner_equals_cutting_the_whole(text: str, stop: list[str], data: st.DataObject) -> None:
    scanner = StopScanner(stop)
    shown, arrived = "", 0
    while arrived < len(text):
        size = data.draw(st.integers(1, 3))
        piece, is_stopped = scanner.push(text[arrived : arrived + size])
        arrived += size
        shown += piece
        found = _first_stop(text[:arrived], stop)
        assert is_stopped == (found is not None)
        if found is not None:
            assert shown == text[:found]
            return
        held = text[len(shown) : arrived]
        assert text.startswith(shown)
        assert held == "" or any(word.startswith(held) for word in stop), "held back without need"
        longer = (text[start:arrived] for start in range(len(shown)))
        assert not any(word.startswith(rest) for rest in longer for word in stop), "shown too early"
    assert shown + scanner.flush() == text


def _first_stop(text: str, stop: list[str]) -> int | None:
    return min((text.find(word) for word in stop if word in text), default=None)


@pytest.mark.parametrize(
    ("sources", "slowest"),
    [([], None), (["memory"], "memory"), (["memory", "disk"], "disk"), (["tower", "disk"], "tower")],
)
def test_the_slowest_source_is_named(sources: list[FeatureSource], slowest: FeatureSource | None) -> None:
    array = np.zeros((1, 1), np.float32)
    assert slowest_source([ImageFeatures(array, "float32", source, 0) for source in sources]) == slowest
