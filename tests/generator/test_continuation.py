"""What an answer that is gone on with is told of its beginning: the same as if it had chosen it here."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from generator.letters import FIRST_CHARACTER, LetterPrompts, ask, ask_task, picture

from deployments.errors import InvalidRequest
from deployments.generator.answer_text import AnswerText
from deployments.generator.continuation import catch_up, check_answered, extend, replay
from deployments.models.family import ImageSpan, Prompt
from deployments.types import CaptionTask

VOCAB_SIZE, STOP_TOKEN = 100, 3


def letters(*token_ids: int) -> str:
    return "".join(chr(FIRST_CHARACTER + token_id) for token_id in token_ids)


def text(*stop: str, decode: Any = None) -> AnswerText:
    return AnswerText(decode or LetterPrompts().decode, stop)


def to_utf8(token_ids: Any) -> str:
    return bytes(token_ids).decode("utf-8", errors="replace")


# --------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("answered", [(), (0,), (99, 0, 99), tuple(range(4, 100))])
def test_tokens_of_the_vocabulary_may_have_been_answered(answered: tuple[int, ...]) -> None:
    check_answered(replace(ask("hi"), answered=answered), VOCAB_SIZE, frozenset({STOP_TOKEN}))


@pytest.mark.parametrize(
    ("answered", "reason"),
    [
        ((1, 100), r"answered\[1\] is 100; this model's tokens are 0 to 99"),
        ((-1,), r"answered\[0\] is -1; this model's tokens are 0 to 99"),
        (("a",), r"answered\[0\] is 'a'; this model's tokens are 0 to 99"),
        ((1, 2, STOP_TOKEN), r"answered\[2\] is 3, which ends an answer and is no part of it"),
    ],
)
def test_what_cannot_be_a_beginning_is_refused(answered: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as raised:
        check_answered(replace(ask("hi"), answered=answered), VOCAB_SIZE, frozenset({STOP_TOKEN}))
    assert raised.value.param == "answered"


def test_tasks_are_not_gone_on_with() -> None:
    task = ask_task(CaptionTask(), picture("cat", 2))
    check_answered(task, VOCAB_SIZE, frozenset())
    with pytest.raises(InvalidRequest, match="a task's answer"):
        check_answered(replace(task, answered=(1,)), VOCAB_SIZE, frozenset())


def test_rules_that_cannot_be_told_are_refused() -> None:
    sequence: Any = SimpleNamespace(answered=(1,), rules=object())
    with pytest.raises(InvalidRequest, match="cannot go on with an answer of this kind"):
        catch_up(sequence)


# --------------------------------------------------------------------------------- what is prefilled


@pytest.mark.parametrize("rows", [1, 3])
def test_the_answers_tokens_stand_where_they_were_chosen(rows: int) -> None:
    """Positions of a picture's tokens may run ahead of, or behind, the number of tokens."""
    positions = np.arange(rows * 4).reshape(rows, 4)
    prompt = Prompt((1, 2, 2, 4), positions, 30, (ImageSpan("cat", 1, 2),), num_mutual=3)
    given = extend(prompt, (7, 8, 9))
    assert given.token_ids == (1, 2, 2, 4, 7, 8, 9)
    assert np.array_equal(given.positions[:, :4], positions)
    assert given.positions[:, 4:].tolist() == [[30, 31, 32]] * rows
    assert given.positions.dtype == np.int64
    assert (given.next_position, given.images, given.num_mutual) == (33, prompt.images, 3)
    assert extend(prompt, ()) is prompt


# --------------------------------------------------------------------------------- what was shown


def test_text_that_was_held_back_is_still_held_back() -> None:
    answer = text(letters(66, 67, 90))
    assert replay(answer, (65, 66, 67), 10) is None
    assert answer.push(68) == (letters(66, 67, 68), False)


def test_half_a_character_waits_for_its_other_half() -> None:
    first, *others = "ä".encode()
    answer = text(decode=to_utf8)
    assert replay(answer, (ord("a"), first), 10) is None
    assert answer.push(others[0]) == ("ä", False)


def test_white_space_before_the_answer_is_not_after_its_beginning() -> None:
    answer = text(decode=to_utf8)
    assert replay(answer, tuple(b" a"), 10) is None
    assert answer.push(ord(" ")) == (" ", False)


@pytest.mark.parametrize(
    ("answered", "stop", "limit", "reason"),
    [
        ((65, 66), (letters(65, 66),), 10, "stop"),
        ((65, 66), (letters(65, 66),), 2, "stop"),
        ((65, 66), (letters(66, 67),), 2, "length"),
        ((65, 66), (letters(66, 67),), 3, None),
        ((65, 66), (), 2, "length"),
        ((), (), 1, None),
    ],
)
def test_what_was_answered_may_be_all(
    answered: tuple[int, ...], stop: tuple[str, ...], limit: int, reason: str | None
) -> None:
    assert replay(text(*stop), answered, limit) == reason


def test_a_stop_string_may_show_only_at_the_end() -> None:
    assert replay(text("\ufffd", decode=to_utf8), (ord("a"), 0xF0), 2) == "stop"


@pytest.mark.parametrize(
    ("answered", "limit", "refusal"),
    [
        ((65, 66, 67), 2, "answered has 3 tokens; this answer can have 2"),
        ((65, 66, 67), 10, r"ended by a stop string with answered\[1\]"),
    ],
)
def test_nothing_comes_after_the_end(answered: tuple[int, ...], limit: int, refusal: str) -> None:
    with pytest.raises(InvalidRequest, match=refusal):
        replay(text(letters(66)), answered, limit)
