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
    to_title,
    with_answer,
)
from deployments.types import ImagePart, ImageRef, Message, Part, TextPart, Usage

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
        prompts.append(to_prompt(kept, (turn.question,), max_messages))
        kept = with_answer(prompts[-1], turn.answer)
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
    prompt = to_prompt(kept, (Spoken(10, False).question,), max_messages=4)
    assert [message.text for message in prompt] == ["question 9", "answer 9", "question 10"]
    assert prompt[0].images == (picture(0),)


def test_a_new_picture_takes_the_old_one_away_and_leaves_its_text() -> None:
    _, kept = speak([Spoken(0, True), Spoken(1, True)], max_messages=20)
    assert kept[0].content == (TextPart("question 0"),)
    assert kept[2].content == (ImagePart(picture(1)), TextPart("question 1"))


# ------------------------------------------------------------------------------- several messages at once


def said(role: str, text: str, *numbers: int) -> Message:
    """With the pictures of these numbers before the text."""
    parts: tuple[Part, ...] = (*(ImagePart(picture(number)) for number in numbers), TextPart(text))
    return Message(role, parts)  # type: ignore[arg-type]


earlier = st.tuples(st.sampled_from(["user", "assistant"]), st.integers(0, 2))
inputs = st.tuples(st.lists(earlier, max_size=8), st.integers(0, 2))


def number_pictures(turns: list[tuple[list[tuple[str, int]], int]]) -> list[tuple[Message, ...]]:
    """Each picture is new, each text says which turn and message it is of."""
    numbers = iter(range(10_000))
    return [
        tuple(
            said(role, f"{turn}.{index}", *(next(numbers) for _ in range(count)))
            for index, (role, count) in enumerate([*before, ("user", last)])
        )
        for turn, (before, last) in enumerate(turns)
    ]


@settings(max_examples=300, deadline=None)
@given(turns=st.lists(inputs, min_size=1, max_size=6).map(number_pictures), max_messages=limits)
def test_any_sequence_of_inputs(turns: list[tuple[Message, ...]], max_messages: int) -> None:
    kept: tuple[Message, ...] = ()
    for asked in turns:
        prompt = to_prompt(kept, asked, max_messages)
        every = (*kept, *asked)
        texts = [message.text for message in every]
        assert [message.text for message in prompt] == texts[len(texts) - len(prompt) :], "the newest, none left out"
        assert prompt[-1].text == asked[-1].text
        assert len(prompt) < max_messages
        if len(prompt) < len(every):
            assert prompt[0].role == "user", "what is cut begins with a question"
            # As many as may be: with one question more it would be too long.
            users = [index for index in range(len(every) - len(prompt)) if every[index].role == "user"]
            assert not users or len(every) - users[-1] >= max_messages
        shown = [image for message in prompt for image in message.images]
        brought = [image for message in asked for image in message.images]
        if brought:
            still_there = [image for message in asked[-len(prompt) :] for image in message.images]
            assert shown == (still_there or brought[-1:]), "all that this turn still shows, or its newest"
        else:
            assert shown == [image for message in kept for image in message.images]
        kept = with_answer(prompt, build_answer("answer", NOON_S))
        assert [message.text for message in kept] == [*(message.text for message in prompt), "answer"]
        assert [message.role for message in kept] == [*(message.role for message in prompt), "assistant"]
        assert [image for message in kept for image in message.images] == shown[-1:]
        assert all(message.content for message in kept)


def test_what_starts_with_an_answer_keeps_it_until_it_is_cut() -> None:
    asked = (said("assistant", "how can I help?"), said("user", "a"), said("user", "b"))
    assert to_prompt((), asked, 4) == asked
    assert to_prompt((), (said("user", "0"), *asked), 4) == asked[1:]


def test_a_picture_stays_where_it_stood_among_the_words() -> None:
    parts = (TextPart("a"), ImagePart(picture(1)), TextPart("b"), ImagePart(picture(2)), TextPart("c"))
    [kept, _] = with_answer((Message("user", parts),), build_answer("answer", NOON_S))
    assert kept.content == (TextPart("a"), TextPart("b"), ImagePart(picture(2)), TextPart("c"))


@pytest.mark.parametrize(
    ("messages", "title"),
    [
        ([said("user", "what is it?")], "what is it?"),
        ([said("assistant", "hello"), said("user", " one\n\ttwo  three ")], "one two three"),
        ([said("user", "", 1)], ""),
        ([said("user", "", 1), said("user", "what is it?")], "what is it?"),
        ([said("user", "x" * 200)], "x" * 80),
        ([said("user", "x" * 79 + " " + "y" * 9)], "x" * 79),
    ],
)
def test_titles(messages: list[Message], title: str) -> None:
    assert to_title(tuple(messages)) == title


# ------------------------------------------------------------------------------- timestamps


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
