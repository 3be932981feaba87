"""What the engine refuses, naming the field, and how long answers may be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from generator.letters import LetterPrompts, picture, user

from deployments.errors import InvalidRequest, PartUnavailable, PromptTooLong
from deployments.generator.admission import check_features, check_sampling, fit_answer, pictures_of
from deployments.types import ImageFeatures, SamplingParams


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", -0.1, "0 or more"),
        ("temperature", math.nan, "finite"),
        ("temperature", math.inf, "finite"),
        ("top_p", 0.0, "more than 0"),
        ("top_p", 1.01, "at most 1"),
        ("top_p", math.nan, "more than 0"),
        ("top_k", -1, "or more"),
        ("top_k", 1.5, "whole number"),
        ("max_new_tokens", 0, "1 to 512"),
        ("max_new_tokens", 513, "1 to 512"),
        ("max_new_tokens", True, "whole number"),
        ("seed", -1, "0 to 9223372036854775807"),
        ("seed", 2**63, "0 to 9223372036854775807"),
        ("stop", ("a",) * 9, "at most 8"),
        ("stop", ("a", ""), "at least one character"),
    ],
)
def test_what_is_wrong_is_named(field: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        check_sampling(SamplingParams(**{field: value}), max_new_tokens=512)
    assert caught.value.param == field
    assert field in caught.value.message


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(temperature=2.0, top_p=1e-9, top_k=1, seed=0, max_new_tokens=1),
        SamplingParams(temperature=1, top_p=1, seed=2**63 - 1, max_new_tokens=512, stop=("x",) * 8),
    ],
)
def test_the_extremes_are_allowed(sampling: SamplingParams) -> None:
    check_sampling(sampling, max_new_tokens=512)


def test_answers_are_cut_to_the_context() -> None:
    prompt = LetterPrompts().build([user("z" * 9)])  # 10 tokens
    assert [fit_answer(prompt, 5, context) for context in (100, 15, 14, 11)] == [5, 5, 4, 1]
    with pytest.raises(PromptTooLong) as caught:
        fit_answer(prompt, 5, 10)
    assert caught.value.param == "messages"


def test_the_refusal_of_a_long_prompt_has_the_sum() -> None:
    prompt = LetterPrompts().build([user(picture("cat", 20), "zzz")])  # 20 + 2 marks, 3 letters, 1 end
    with pytest.raises(PromptTooLong, match=r"26 tokens \(20 image tokens \+ 6 text tokens\).* context of 26 tokens"):
        fit_answer(prompt, 1, 26)


def test_pictures_are_listed_once() -> None:
    cat, dog = picture("cat", 2), picture("dog", 3)
    assert pictures_of([user(cat, "a", dog), user(cat)]) == {"cat": cat, "dog": dog}


def test_features_must_fill_the_places_exactly() -> None:
    messages = [user(picture("cat", 4)), user(picture("cat", 4))]
    prompt = LetterPrompts().build(messages)
    right, wrong = (ImageFeatures(np.zeros((rows, 2), np.float32), "float32", "tower", 0) for rows in (4, 5))
    check_features(prompt, messages, {"cat": right})
    with pytest.raises(PartUnavailable, match=r"10 rows of features .* 8 image tokens"):
        check_features(prompt, messages, {"cat": wrong})
