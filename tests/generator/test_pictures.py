"""Which pictures a conversation needs, and that their features fill the prompt's places."""

from __future__ import annotations

import numpy as np
import pytest
from generator.letters import LetterPrompts, picture, user

from deployments.errors import PartUnavailable
from deployments.generator.pictures import check_features, pictures_of
from deployments.types import ImageFeatures


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
