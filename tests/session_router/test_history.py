"""Kept history and its one picture, over any sequence of turns; conversations to bytes and back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.session_router.history import (
    Conversation,
    UnreadableConversation,
    build_answer,
    build_question,
    from_bytes,
    to_bytes,
    to_prompt,
    to_timestamp,
    with_exchange,
)
from deployments.types import ImagePart, ImageRef, Message, TextPart, Usage

NOON_S = 1_735_732_800.0


def picture(number: int) -> ImageRef:
    return ImageRef(f"{number:064x}", 4, 3, 100, "image/png")


@dataclass(frozen=True)
class Spoken:
    """A turn's number is its text; `has_picture` brings the picture of that number."""

    number: int
    has_picture: bool

    @property
    def question(self) -> Message:
        image = picture(self.number) if self.has_picture else None
        return build_question(f"question {self.number}", image, NOON_S + self.number)

    @property
    def answer(self) -> Message:
        return build_answer(f"answer {self.number}", NOON_S + self.number)


def speak(turns: list[Spoken], max_messages: int) -> tuple[list[tuple[Message, ...]], tuple[Message, ...]]:
    """The prompt of every turn, and what is kept at the end."""
    kept: tuple[Message, ...] = ()
    prompts = []
    for turn in turns:
        prompts.append(to_prompt(kept, turn.question, max_messages))
        kept = with_exchange(kept, turn.question, turn.answer, max_messages)
    return prompts, kept


conversations = st.lists(st.booleans(), min_size=1, max_size=30).map(
    lambda flags: [Spoken(number, flag) for number, flag in enumerate(flags)]
)
limits = st.integers(1, 6).map(lambda exchanges: 2 * exchanges)


@settings(max_examples=200, deadline=None)
@given(turns=conversations, max_messages=limits)
def test_any_sequence_of_turns(turns: list[Spoken], max_messages: int) -> None:
    prompts, kept = speak(turns, max_messages)
    newest = turns[-max_messages // 2 :]
    expected_texts = [text for turn in newest for text in (turn.question.text, turn.answer.text)]
    assert [message.text for message in kept] == expected_texts
    assert [message.role for message in kept] == ["user", "assistant"] * len(newest)
    assert kept[:-1] == prompts[-1], "what is kept is what the model read, and its answer"

    shown = [turn.number for turn in turns if turn.has_picture]
    seen = [image for message in kept for image in message.images]
    assert seen == ([picture(shown[-1])] if shown else [])
    bearer = next((message for message in kept if message.images), None)
    if bearer is not None:
        oldest_or_own = max(shown[-1], newest[0].number)
        assert bearer.text == f"question {oldest_or_own}"
        assert isinstance(bearer.content[0], ImagePart), "the picture stands before the text"


def test_prompts_leave_room_for_the_answer() -> None:
    prompts, _ = speak([Spoken(number, False) for number in range(15)], max_messages=20)
    assert [len(prompt) for prompt in prompts] == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 19, 19, 19, 19, 19]
    assert prompts[-1][0].text == "question 5"


def test_a_lowered_limit_trims_what_was_kept_under_the_old_one() -> None:
    _, kept = speak([Spoken(0, True)] + [Spoken(number, False) for number in range(1, 10)], max_messages=20)
    prompt = to_prompt(kept, Spoken(10, False).question, max_messages=4)
    assert [message.text for message in prompt] == ["question 9", "answer 9", "question 10"]
    assert prompt[0].images == (picture(0),)


def test_a_new_picture_takes_the_old_one_away_and_leaves_its_text() -> None:
    _, kept = speak([Spoken(0, True), Spoken(1, True)], max_messages=20)
    assert kept[0].content == (TextPart("question 0"),)
    assert kept[2].content == (ImagePart(picture(1)), TextPart("question 1"))


@pytest.mark.parametrize(
    ("unix_s", "expected"),
    [
        (NOON_S, "2025-01-01T12:00:00.000Z"),
        (NOON_S + 0.0426, "2025-01-01T12:00:00.042Z"),
        (0, "1970-01-01T00:00:00.000Z"),
    ],
)
def test_timestamps(unix_s: float, expected: str) -> None:
    assert to_timestamp(unix_s) == expected


# ------------------------------------------------------------------------------- bytes

TOLD = Conversation(
    messages=(build_question("what is it?", picture(1), NOON_S), build_answer("a red ball", NOON_S + 1)),
    model="alpha",
    updated="2025-01-01T12:00:01.000Z",
    usage=Usage(9, 8, 7, 6),
    closed_by="lease",
)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(), max_size=4), has_picture=st.booleans())
def test_bytes_and_back(texts: list[str], has_picture: bool) -> None:
    image = picture(1) if has_picture else None
    told = replace(TOLD, messages=tuple(build_question(text, image, NOON_S) for text in texts))
    assert from_bytes(to_bytes(told)) == told


def test_an_answer_that_is_not_unicode_stays_readable() -> None:
    told = replace(TOLD, messages=(build_answer("half \ud83d pair", NOON_S),))
    assert from_bytes(to_bytes(told)).messages[0].text == "half ? pair"


def test_every_damaged_byte_is_noticed() -> None:
    data = to_bytes(TOLD)
    for position in range(len(data)):
        damaged = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        with pytest.raises(UnreadableConversation):
            from_bytes(damaged)
    for length in (0, 5, 16, len(data) - 1):
        with pytest.raises(UnreadableConversation):
            from_bytes(data[:length])


def test_an_unknown_format_is_named() -> None:
    told = replace(TOLD, format=2)
    with pytest.raises(UnreadableConversation, match="format: Input should be 1"):
        from_bytes(to_bytes(told))
