"""How an answer ends: stop tokens, stop strings, length; and what its chunks say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from generator.letters import FIRST_CHARACTER, LetterPrompts, picture, user
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.generator.answer_text import AnswerText, StopScanner
from deployments.generator.logprobs import TokenScores
from deployments.generator.sequence import Marks, Sequence, slowest_source
from deployments.generator.thoughts import Thoughts
from deployments.models.family import ImageSpan, Prompt, Ruling
from deployments.types import (
    Alternative,
    Box,
    Chunk,
    EncodeSource,
    FeatureSource,
    Grounding,
    ImageFeatures,
    Point,
    SamplingParams,
    TokenLogprob,
)

STOP_TOKEN = 3


def sequence(
    max_new_tokens: int = 10, stop: tuple[str, ...] = (), decode: Any = None, max_positions: int = 100
) -> Sequence:
    prompt = Prompt((1, 2, 2, 4), np.arange(4)[None], 4, (ImageSpan(picture("cat", 2).id, 1, 2),))
    decode = decode or LetterPrompts().decode
    return Sequence(
        number=0,
        request_id="r",
        prompt=prompt,
        features={},
        pulled=frozenset(),
        encode_source="memory",
        sampling=SamplingParams(stop=stop),
        max_new_tokens=max_new_tokens,
        max_positions=max_positions,
        answer=AnswerText(decode, stop),
        thoughts=Thoughts(decode),
        stream=None,  # type: ignore[arg-type]  # only the worker uses it
        marks=Marks(arrived=1.0, encode_s=0.5, prefill_began=2.0),
    )


def to_utf8(token_ids: Any) -> str:
    return bytes(token_ids).decode("utf-8", errors="replace")


def letters(*token_ids: int) -> str:
    return "".join(chr(FIRST_CHARACTER + token_id) for token_id in token_ids)


def accept_all(answer: Sequence, *token_ids: int) -> list[Chunk | None]:
    return [answer.accept(token_id, frozenset({STOP_TOKEN}), now=3.0 + n) for n, token_id in enumerate(token_ids)]


def content(chunk: Chunk | None) -> Chunk | None:
    """Without what a chunk has because it is the first."""
    return chunk and replace(chunk, usage=None, timings=None)


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it() -> None:
    first, second, last = accept_all(sequence(), 65, 66, STOP_TOKEN)
    assert content(first) == Chunk(letters(65), 1, token_ids=(65,))
    assert second == Chunk(letters(66), 1, token_ids=(66,))
    assert last is not None
    assert (last.text, last.num_tokens, last.token_ids, last.finish_reason) == ("", 0, (), "stop")
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


def test_the_first_chunk_says_what_was_used_up_to_there() -> None:
    """And no other until the last: also where the first comes late, because text was held back."""
    answer = sequence(stop=(letters(66, 90),))
    nothing, first, second, last = accept_all(answer, 66, 67, 68, STOP_TOKEN)  # at 3, 4, 5 and 6 s
    assert nothing is None
    assert first is not None
    assert first.finish_reason is None
    assert first.usage is not None
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (4, 2)
    assert first.timings is not None
    assert (first.timings.first_token_ms, first.timings.decode_ms) == (2000, 1000)
    assert second is not None
    assert (second.usage, second.timings) == (None, None)
    assert last is not None
    assert last.usage == replace(first.usage, completion_tokens=3)
    assert last.timings == replace(first.timings, decode_ms=3000)


def test_a_stop_string_over_several_tokens() -> None:
    chunks = accept_all(sequence(stop=(letters(66, 67, 68),)), 65, 66, 67, 68)
    assert [content(chunk) for chunk in chunks[:3]] == [Chunk(letters(65), 1, token_ids=(65,)), None, None]
    assert chunks[3] is not None
    assert (chunks[3].text, chunks[3].num_tokens, chunks[3].finish_reason) == ("", 3, "stop")
    assert chunks[3].token_ids == (66, 67, 68)


def test_held_text_is_shown_when_it_turns_out_harmless() -> None:
    chunks = accept_all(sequence(stop=(letters(66, 67),)), 66, 65)
    assert [content(chunk) for chunk in chunks] == [None, Chunk(letters(66, 65), 2, token_ids=(66, 65))]


@pytest.mark.parametrize("ending", [STOP_TOKEN, 67])
def test_held_text_is_shown_at_the_end(ending: int) -> None:
    chunks = accept_all(sequence(max_new_tokens=2, stop=(letters(66, 90), letters(67, 90))), 66, ending)
    shown = "".join(chunk.text for chunk in chunks if chunk)
    assert shown == (letters(66) if ending == STOP_TOKEN else letters(66, 67))


def test_half_a_character_at_the_end_may_complete_a_stop_string() -> None:
    *_, last = accept_all(sequence(max_new_tokens=2, stop=("\ufffd",), decode=to_utf8), ord("a"), 0xF0)
    assert last is not None
    assert (last.text, last.finish_reason) == ("", "stop")


@pytest.mark.parametrize("stop", [(), ("zz",)])
def test_white_space_before_the_answer_is_left_out_and_its_tokens_counted(stop: tuple[str, ...]) -> None:
    chunks = accept_all(sequence(max_new_tokens=6, stop=stop, decode=to_utf8), *b" \n a b")
    shown = [chunk for chunk in chunks if chunk is not None]
    assert [(chunk.text, chunk.num_tokens) for chunk in shown] == [("a", 4), (" ", 1), ("b", 1)]
    [*_, last] = accept_all(sequence(max_new_tokens=2, stop=stop, decode=to_utf8), *b"  ")
    assert last is not None
    assert (last.text, last.num_tokens, last.finish_reason) == ("", 2, "length")


@pytest.mark.parametrize(
    ("stop", "shown", "reason"),
    [((" ",), "a", "stop"), (("\n",), "a b", "length"), ((" a",), "a b", "length"), (("b",), "a ", "stop")],
)
def test_stop_strings_do_not_see_the_white_space_before_the_answer(
    stop: tuple[str, ...], shown: str, reason: str
) -> None:
    answer = sequence(max_new_tokens=6, stop=stop, decode=to_utf8)
    chunks: list[Chunk] = []
    for token_id in b" \n a b":
        chunks += [chunk for chunk in accept_all(answer, token_id) if chunk]
        if answer.is_finished:
            break
    assert "".join(chunk.text for chunk in chunks) == shown
    assert chunks[-1].finish_reason == reason


# --------------------------------------------------------------------------------- with rules


def obey_all(answer: Sequence, *steps: tuple[int, Ruling]) -> list[Chunk | None]:
    return [answer.accept(token_id, frozenset({STOP_TOKEN}), 3.0 + n, each) for n, (token_id, each) in enumerate(steps)]


def test_stop_tokens_are_the_rules_business() -> None:
    answer = sequence()
    first, last = obey_all(answer, (STOP_TOKEN, Ruling(token_id=STOP_TOKEN)), (65, Ruling(is_last=True)))
    assert content(first) == Chunk(letters(STOP_TOKEN), 1, token_ids=(STOP_TOKEN,))
    assert last is not None
    assert (last.text, last.num_tokens, last.finish_reason) == ("", 0, "stop")
    assert last.usage is not None
    assert last.usage.completion_tokens == 1


def test_the_model_gets_what_the_rules_say() -> None:
    answer = sequence()
    obey_all(answer, (65, Ruling(token_id=66)))
    assert (answer.token_ids, answer.next_token_id, answer.next_embedding) == ([65], 66, None)
    embedding: Any = object()
    obey_all(answer, (65, Ruling(embedding=embedding)))
    assert (answer.token_ids, answer.next_embedding) == ([65, 65], embedding)
    obey_all(answer, (67, Ruling(token_id=67)))
    assert (answer.next_token_id, answer.next_embedding) == (67, None)
    assert (answer.next_index, answer.next_position, answer.num_positions) == (6, 6, 7)
    with pytest.raises(AssertionError, match="what goes into the model next"):
        obey_all(answer, (67, Ruling()))


def test_only_the_answers_own_tokens_count_against_its_length() -> None:
    thought, silent = Ruling(token_id=1, kind="thought"), Ruling(token_id=1, kind="silent")
    steps = [(70, thought)] * 3 + [(71, silent)] * 3 + [(65, Ruling(token_id=65))] * 2
    chunks = obey_all(sequence(max_new_tokens=2), *steps)
    assert [chunk and chunk.finish_reason for chunk in chunks] == [None] * 7 + ["length"]
    assert [chunk and chunk.num_tokens for chunk in chunks] == [1, 1, 1, None, None, None, 4, 1]
    assert [chunk and chunk.thought for chunk in chunks] == [letters(70)] * 3 + [None] * 3 + ["", ""]
    assert chunks[-1] is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_no_position_left_is_the_end() -> None:
    answer = sequence(max_positions=7)
    chunks = obey_all(answer, *[(71, Ruling(token_id=1, kind="silent"))] * 3)
    assert [chunk and chunk.finish_reason for chunk in chunks] == [None, None, "length"]
    assert answer.is_finished


def test_found_things_come_at_once_also_with_the_last_step() -> None:
    point, box = Point(0.5, 0.5), Box(0, 0, 1, 1)
    steps = [
        (71, Ruling(token_id=1, kind="silent", found=point)),
        (71, Ruling(token_id=1, kind="silent")),
        (71, Ruling(is_last=True, found=box)),
    ]
    first, second, last = obey_all(sequence(), *steps)
    assert (content(first), second) == (Chunk("", 1, found=(point,), token_ids=(71,)), None)
    assert last is not None
    assert (last.found, last.num_tokens, last.token_ids, last.finish_reason) == ((box,), 1, (71,), "stop")


def test_thoughts_end_before_the_answer_begins() -> None:
    """Held-back bytes of a thought come with the answer's first chunk; groundings with the last."""
    point = Point(0.5, 0.25)
    steps = [
        (ord("h"), Ruling(token_id=1, kind="thought")),
        (0xF0, Ruling(token_id=1, kind="thought", begins_phrase=True, grounding=point)),
        (ord(" "), Ruling(token_id=1, kind="silent")),
        (ord(" "), Ruling(token_id=1)),
        (ord("a"), Ruling(token_id=1)),
        (0, Ruling(is_last=True)),
    ]
    chunks = obey_all(sequence(decode=to_utf8), *steps)
    rest = "\N{REPLACEMENT CHARACTER}"
    assert [content(chunk) for chunk in chunks[:-1]] == [
        Chunk("", 1, thought="h", token_ids=(ord("h"),)),
        None,
        None,
        Chunk("", 3, thought=rest, token_ids=(0xF0, ord(" "), ord(" "))),
        Chunk("a", 1, token_ids=(ord("a"),)),
    ]
    assert chunks[-1] is not None
    assert chunks[-1].grounding == (Grounding(1, 2, (point,)),)


def test_an_answer_that_ends_among_its_thoughts_keeps_them() -> None:
    point = Point(0.5, 0.25)
    thought = Ruling(token_id=1, kind="thought", grounding=point)
    _, last = obey_all(sequence(decode=to_utf8), (0xF0, thought), (0, Ruling(is_last=True)))
    assert last is not None
    assert (last.thought, last.text) == ("\N{REPLACEMENT CHARACTER}", "")
    assert last.grounding == (Grounding(0, 1, (point,)),)


def test_letting_go_of_the_device() -> None:
    answer = sequence()
    held: Any = object()
    names = ["image_rows", "next_embedding", "mask", "rng", "repetition", "discount", "rules", "scores"]
    for name in names:
        setattr(answer, name, held)
    answer.let_go()
    assert [getattr(answer, name) for name in names] == [None] * len(names)


def test_log_probabilities_go_with_their_tokens() -> None:
    """Also where the text is held back; those of a token that ends the answer go nowhere."""
    answer = sequence(stop=(letters(6, 7),))
    chunks = []
    for token_id in (5, 6, 8, STOP_TOKEN):
        answer.scores = TokenScores(-0.5, ((token_id, -0.5), (1, -2.0)))
        chunks.append(answer.accept(token_id, frozenset({STOP_TOKEN}), 3.0))

    def logprob(token_id: int) -> TokenLogprob:
        chosen = Alternative(token_id, letters(token_id), -0.5)
        return TokenLogprob(chosen, (chosen, Alternative(1, letters(1), -2.0)))

    assert [content(chunk) for chunk in chunks[:3]] == [
        Chunk(letters(5), 1, logprobs=(logprob(5),), token_ids=(5,)),
        None,
        Chunk(letters(6, 8), 2, logprobs=(logprob(6), logprob(8)), token_ids=(6, 8)),
    ]
    assert chunks[3] is not None
    assert (chunks[3].text, chunks[3].logprobs) == ("", ())


# --------------------------------------------------------------------------------- stop strings alone


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
    [([], "kv"), (["memory"], "memory"), (["memory", "disk"], "disk"), (["tower", "disk"], "tower")],
)
def test_the_slowest_source_is_named(sources: list[FeatureSource], slowest: EncodeSource) -> None:
    """Where no features were needed, the pictures were in the cache of K and V."""
    prompt, array = LetterPrompts().build([user(picture("cat", 2))]), np.zeros((1, 1), np.float32)
    assert slowest_source(prompt, [ImageFeatures(array, "float32", source, 0) for source in sources]) == slowest


def test_without_a_picture_there_is_no_source() -> None:
    assert slowest_source(LetterPrompts().build([user("hi")]), []) is None
