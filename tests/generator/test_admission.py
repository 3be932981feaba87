"""What the engine refuses, naming the field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from deployments.config import GeneratorConfig
from deployments.errors import InvalidRequest
from deployments.generator.admission import check_sampling
from deployments.types import SamplingParams

LIMITS = GeneratorConfig(max_new_tokens=512, max_stop_strings=8, max_stop_chars=20)


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
        ("stop", ("a", "b" * 21), "21 characters; at most 20"),
    ],
)
def test_what_is_wrong_is_named(field: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        check_sampling(SamplingParams(**{field: value}), LIMITS)
    assert caught.value.param == field
    assert field in caught.value.message


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(temperature=2.0, top_p=1e-9, top_k=1, seed=0, max_new_tokens=1),
        SamplingParams(temperature=1, top_p=1, seed=2**63 - 1, max_new_tokens=512, stop=("x" * 20,) * 8),
    ],
)
def test_the_extremes_are_allowed(sampling: SamplingParams) -> None:
    check_sampling(sampling, LIMITS)


def test_the_limits_are_those_of_the_configuration() -> None:
    limits = GeneratorConfig(max_stop_strings=0, max_new_tokens=7, default_new_tokens=7)
    check_sampling(SamplingParams(max_new_tokens=7), limits)
    with pytest.raises(InvalidRequest, match="1 to 7"):
        check_sampling(SamplingParams(max_new_tokens=8), limits)
    with pytest.raises(InvalidRequest, match="stop has 1 strings; at most 0 are allowed"):
        check_sampling(SamplingParams(max_new_tokens=7, stop=("a",)), limits)
