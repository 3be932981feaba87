"""A long conversation is cut from its beginning until an answer has room; question and picture stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from generator.letters import LetterPrompts, ask, ask_task, picture, user
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.errors import PromptTooLong
from deployments.generator.context import Fitted, drop_exchanges, fit_answer, fit_context, fit_request, num_droppable
from deployments.models.family import Prompt
from deployments.types import DetectTask, ImagePart, ImageRef, Message, Task, TextPart

CAT, DOG = picture("cat", 6), picture("dog", 4)
Conversation = tuple[Message, ...]


def says(role: str, text: str) -> Message:
    return Message(role, (TextPart(text),))  # type: ignore[arg-type]


def answer(text: str) -> Message:
    return says("assistant", text)


class CountingPrompts(LetterPrompts):
    def __init__(self) -> None:
        self.num_builds = 0

    def build(self, messages: Sequence[Message], task: Task | None = None) -> Prompt:
        self.num_builds += 1
        return super().build(messages, task)


def fit(messages: Conversation, max_new_tokens: int, context_tokens: int) -> Fitted:
    return fit_context(messages, LetterPrompts().build, max_new_tokens, context_tokens)


# --------------------------------------------------------------------------------- any conversation


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Alternating turns that end with a question, perhaps after a system message, with at most one picture."""
    num_exchanges = draw(st.integers(0, 20))
    texts = draw(st.lists(st.text("xyz", min_size=1, max_size=30), min_size=12, max_size=12))
    turns = [
        says("user" if index % 2 == 0 else "assistant", texts[index % 12] + str(index))
        for index in range(2 * num_exchanges + 1)
    ]
    at = draw(st.none() | st.integers(0, num_exchanges))
    if at is not None:
        turns[2 * at] = user(CAT, turns[2 * at].text)
    return (*([says("system", "be kind")] if draw(st.booleans()) else []), *turns)


def pictures_in(messages: Sequence[Message]) -> list[ImageRef]:
    return [image for message in messages for image in message.images]


@settings(deadline=None, max_examples=300)
@given(conversations(), st.integers(1, 200), st.integers(16, 600))
def test_what_is_left_of_any_conversation(messages: Conversation, max_new_tokens: int, context_tokens: int) -> None:
    prompts, build = CountingPrompts(), LetterPrompts().build
    most = num_droppable(messages)
    question = build(drop_exchanges(messages, most))
    if len(question.token_ids) >= context_tokens:
        with pytest.raises(PromptTooLong):
            fit_context(messages, prompts.build, max_new_tokens, context_tokens)
        return
    fitted = fit_context(messages, prompts.build, max_new_tokens, context_tokens)
    num_dropped = (len(messages) - len(fitted.messages)) // 2
    room = context_tokens - min(max_new_tokens, context_tokens // 4)

    assert fitted.prompt.token_ids == build(fitted.messages).token_ids
    assert len(fitted.prompt.token_ids) <= room or num_dropped == most
    assert num_dropped == 0 or len(build(drop_exchanges(messages, num_dropped - 1)).token_ids) > room, "cut too much"
    assert fitted.max_new_tokens == min(max_new_tokens, context_tokens - len(fitted.prompt.token_ids)) > 0
    assert prompts.num_builds <= 2 + math.ceil(math.log2(most + 1))


@settings(deadline=None)
@given(conversations(), st.data())
def test_what_dropping_leaves(messages: Conversation, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, num_droppable(messages)))
    kept = drop_exchanges(messages, count)
    begin = 1 if messages[0].role == "system" else 0
    assert kept[:begin] == messages[:begin]
    assert [message.role for message in kept[begin:]] == ["user", "assistant"] * (len(kept[begin:]) // 2) + ["user"]
    assert [message.text for message in kept[begin:]] == [message.text for message in messages[begin + 2 * count :]]
    assert pictures_in(kept) == pictures_in(messages)
    if pictures_in(messages[: begin + 2 * count]):
        assert kept[begin].content == (ImagePart(CAT), *messages[begin + 2 * count].content)
    else:
        assert kept[begin:] == messages[begin + 2 * count :]


# --------------------------------------------------------------------------------- single ones


def test_no_more_goes_than_must() -> None:
    talk = (user("a" * 20), answer("b" * 20), user("c" * 20), answer("d" * 20), user("e" * 9))  # 89 + 1 tokens
    assert fit(talk, 10, 100).messages == talk
    assert fit(talk, 11, 100).messages == talk[2:]
    assert fit(talk, 11, 59).messages == talk[4:]


def test_at_most_a_quarter_is_kept_free() -> None:
    talk = (user("a" * 20), answer("b" * 20), user("c" * 34))  # 75 tokens
    assert (fit(talk, 500, 100).messages, fit(talk, 500, 100).max_new_tokens) == (talk, 25)
    assert fit(talk, 500, 98).messages == talk[2:]  # 24 of 98 are kept free


def test_the_last_question_stays_with_a_short_answer() -> None:
    talk = (user(CAT, "a" * 20), answer("b" * 20), user("c" * 80))  # the question with its picture: 6 + 2 + 80 + 1
    fitted = fit(talk, 500, 92)
    assert [message.images for message in fitted.messages] == [(CAT,)]
    assert fitted.max_new_tokens == 3
    with pytest.raises(PromptTooLong):
        fit(talk, 500, 89)


def test_a_picture_stays_dropped_where_another_stays() -> None:
    talk = (user(CAT, "a"), answer("b"), user("c"), answer("d"), user(DOG, "e"))
    assert drop_exchanges(talk, 1) == talk[2:]
    with_system = (Message("system", (ImagePart(DOG),)), user(CAT, "a"), answer("b"), user("c"))
    assert drop_exchanges(with_system, 1) == (with_system[0], with_system[3])


def test_of_several_dropped_pictures_the_newest_moves() -> None:
    talk = (user(CAT, "a"), answer("b"), user(DOG, "c"), answer("d"), user("e"), answer("f"), user("g"))
    assert drop_exchanges(talk, 2) == (user(DOG, "e"), *talk[5:])
    assert drop_exchanges(talk, 1) == talk[2:]


def test_exchanges_begin_with_questions() -> None:
    greeted = (answer("hello"), user("a"), answer("b"), user("c"), user("d"))
    assert num_droppable(greeted) == 2
    assert drop_exchanges(greeted, 1) == greeted[3:]
    assert drop_exchanges(greeted, 2) == greeted[4:]
    assert num_droppable((says("system", "be kind"),)) == 0


# --------------------------------------------------------------------------------- answers


def test_answers_are_cut_to_the_context() -> None:
    prompt = LetterPrompts().build([user("z" * 9)])  # 10 tokens
    assert [fit_answer(prompt, 5, context) for context in (100, 15, 14, 11)] == [5, 5, 4, 1]
    with pytest.raises(PromptTooLong) as caught:
        fit_answer(prompt, 5, 10)
    assert caught.value.param == "message"


def test_the_refusal_of_a_long_prompt_has_the_sum() -> None:
    prompt = LetterPrompts().build([user(picture("cat", 20), "zzz")])  # 20 + 2 marks, 3 letters, 1 end
    with pytest.raises(PromptTooLong, match=r"26 tokens \(20 image tokens \+ 6 text tokens\).* context of 26 tokens"):
        fit_answer(prompt, 1, 26)


# --------------------------------------------------------------------------------- tasks


def test_a_task_is_built_as_such_and_once() -> None:
    prompts = CountingPrompts()
    fitted = fit_request(ask_task(DetectTask("star"), CAT, max_new_tokens=50), prompts, 100)
    whole = LetterPrompts().build([user(CAT)], DetectTask("star"))
    assert (fitted.prompt.token_ids, fitted.prompt.task) == (whole.token_ids, whole.task)
    assert fitted.messages == (user(CAT),)
    assert (fitted.max_new_tokens, prompts.num_builds) == (50, 1)


def test_the_answer_to_a_task_is_cut_to_the_context_and_the_task_is_not() -> None:
    task = DetectTask("x" * 30)
    length = len(LetterPrompts().build([user(CAT)], task).token_ids)
    assert fit_request(ask_task(task, CAT, max_new_tokens=50), LetterPrompts(), length + 7).max_new_tokens == 7
    with pytest.raises(PromptTooLong, match=rf"^the prompt has {length} tokens \(6 image tokens"):
        fit_request(ask_task(task, CAT), LetterPrompts(), length)


def test_a_conversation_is_fitted_as_before() -> None:
    talk = tuple(says("user" if n % 2 == 0 else "assistant", f"number {n}") for n in range(21))
    request = ask(*talk, max_new_tokens=16)
    fitted, same = fit_request(request, LetterPrompts(), 100), fit(talk, 16, 100)
    assert (fitted.messages, fitted.max_new_tokens) == (same.messages, same.max_new_tokens)
    assert len(same.messages) < 21
    with pytest.raises(PromptTooLong, match=r"^even without earlier messages the prompt"):
        fit_request(request, LetterPrompts(), 5)


def test_a_conversation_that_must_stay_whole_is_refused_instead_of_cut() -> None:
    talk = tuple(says("user" if n % 2 == 0 else "assistant", f"number {n}") for n in range(5))
    request = replace(ask(*talk, max_new_tokens=16), keeps_all=True)
    length = len(LetterPrompts().build(talk).token_ids)
    fitted = fit_request(request, LetterPrompts(), length + 7)
    assert (fitted.messages, fitted.max_new_tokens) == (talk, 7)
    with pytest.raises(PromptTooLong, match=rf"^the prompt has {length} tokens"):
        fit_request(request, LetterPrompts(), length)
