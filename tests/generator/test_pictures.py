"""Which pictures a conversation needs, and that their features fill the prompt's places."""

from __future__ import annotations

import numpy as np
import pytest
from generator.letters import LetterPrompts, picture, user

from deployments.errors import PartUnavailable
from deployments.generator.pictures import check_features, needed_pictures, pictures_of
from deployments.types import ImageFeatures


def test_pictures_are_listed_once() -> None:
    cat, dog = picture("cat", 2), picture("dog", 3)
    assert pictures_of([user(cat, "a", dog), user(cat)]) == {"cat": cat, "dog": dog}


@pytest.mark.parametrize(
    ("num_reused", "needed"),
    [(0, "cat dog"), (4, "cat dog"), (5, "dog"), (7, "dog"), (14, "dog"), (15, ""), (99, "")],
)
def test_pictures_whose_places_are_all_there_are_not_needed(num_reused: int, needed: str) -> None:
    """Their spans end at 5 and at 15; the last token of the first one's is text."""
    messages = [user(picture("cat", 4), "a", picture("dog", 7))]
    assert LetterPrompts().build(messages).images[-1].start == 11
    shown = needed_pictures(LetterPrompts().build(messages), messages, num_reused)
    assert [image.id for image in shown] == needed.split()


def test_a_picture_that_is_shown_again_behind_is_needed() -> None:
    cat, dog = picture("cat", 4), picture("dog", 6)
    messages = [user(cat, "a", dog), user(cat)]
    prompt = LetterPrompts().build(messages)
    assert needed_pictures(prompt, messages, prompt.images[3].start + 3) == [cat]


def test_features_must_fill_the_places_exactly() -> None:
    messages = [user(picture("cat", 4)), user(picture("cat", 4))]
    prompt = LetterPrompts().build(messages)
    right, wrong = (ImageFeatures(np.zeros((rows, 2), np.float32), "float32", "tower", 0) for rows in (4, 5))
    check_features(prompt, messages, {"cat": right})
    with pytest.raises(PartUnavailable, match=r"10 rows of features .* 8 image tokens"):
        check_features(prompt, messages, {"cat": wrong})


def test_only_what_was_pulled_is_checked() -> None:
    messages = [user(picture("cat", 4), picture("dog", 6))]
    prompt = LetterPrompts().build(messages)
    right, wrong = (ImageFeatures(np.zeros((rows, 2), np.float32), "float32", "tower", 0) for rows in (6, 5))
    check_features(prompt, messages, {})
    check_features(prompt, messages, {"dog": right})
    with pytest.raises(PartUnavailable, match=r"5 rows of features .* 6 image tokens"):
        check_features(prompt, messages, {"dog": wrong})
