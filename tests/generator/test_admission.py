"""What the engine refuses, naming the field."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from generator.letters import LetterPrompts, ask, ask_task, picture, user

from deployments.config import GeneratorConfig
from deployments.errors import InvalidRequest
from deployments.generator.admission import check_request, check_sampling, with_defaults
from deployments.types import CaptionTask, DetectTask, Message, PointTask, QueryTask, SamplingParams, Task

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
        ("repetition_penalty", 0.0, "more than 0 and at most 10"),
        ("repetition_penalty", -1.0, "more than 0"),
        ("repetition_penalty", 10.1, "at most 10"),
        ("repetition_penalty", math.nan, "more than 0"),
        ("repetition_penalty", math.inf, "at most 10"),
        ("min_p", -0.1, "0 \\(keep all\\) to 1"),
        ("min_p", 1.1, "to 1"),
        ("min_p", math.nan, "to 1"),
        ("presence_penalty", 2.1, "-2 to 2"),
        ("presence_penalty", -math.inf, "-2 to 2"),
        ("frequency_penalty", -2.1, "-2 to 2"),
        ("frequency_penalty", math.nan, "-2 to 2"),
        ("num_logprobs", -1, "0 to 20"),
        ("num_logprobs", 21, "0 to 20"),
        ("num_logprobs", True, "whole number"),
        ("stop", ("a",) * 9, "at most 8"),
        ("stop", ("a", ""), "at least one character"),
        ("stop", ("a", "b" * 21), "21 characters; at most 20"),
    ],
)
def test_what_is_wrong_is_named(field: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        check_sampling(SamplingParams(**{field: value}), LIMITS)
    name = field.removeprefix("num_") if field == "num_logprobs" else field  # as clients say it
    assert caught.value.param == name
    assert name in caught.value.message


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(temperature=2.0, top_p=1e-9, top_k=1, seed=0, max_new_tokens=1),
        SamplingParams(temperature=1, top_p=1, seed=2**63 - 1, max_new_tokens=512, stop=("x" * 20,) * 8),
        SamplingParams(repetition_penalty=1e-6),
        SamplingParams(repetition_penalty=10),
        SamplingParams(min_p=1, presence_penalty=-2, frequency_penalty=-2, num_logprobs=0),
        SamplingParams(temperature=1, min_p=1e-9, presence_penalty=2, frequency_penalty=2.0, num_logprobs=20),
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


CAT, DOG = picture("cat", 3), picture("dog", 4)


@pytest.mark.parametrize("images", [(), (CAT,)])
def test_a_task_comes_with_one_picture_at_most(images: Any) -> None:
    check_request(ask_task(CaptionTask(), *images), LIMITS)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ((), "not with 0 messages"),
        ((user(CAT), user(CAT)), "not with 2 messages"),
        ((Message("assistant", ()),), "one user message"),
        ((user(CAT, DOG),), "one picture; the message has 2"),
        ((user(CAT, "what is this?"),), "text of its own"),
    ],
)
def test_a_task_with_anything_else_is_refused(messages: tuple[Message, ...], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        check_request(replace(ask_task(CaptionTask()), messages=messages), LIMITS)
    assert caught.value.param == "messages"
    check_request(replace(ask("x"), messages=messages), LIMITS)  # conversations are the prompt format's business


def test_sampling_is_checked_with_and_without_task() -> None:
    for request in (ask("x", top_p=2.0), ask_task(CaptionTask(), top_p=2.0)):
        with pytest.raises(InvalidRequest, match="top_p"):
            check_request(request, LIMITS)


def test_the_checkpoint_speaks_where_the_request_is_silent() -> None:
    class Penalizing(LetterPrompts):
        repetition_penalty = 1.05

    asked = SamplingParams(temperature=0.5)
    assert with_defaults(asked, Penalizing()) == replace(asked, repetition_penalty=1.05)
    asked = SamplingParams(repetition_penalty=1.0)
    assert with_defaults(asked, Penalizing()) == asked


@pytest.mark.parametrize(
    ("task", "sampling", "param"),
    [
        (CaptionTask(prompt=" "), {}, "prompt"),
        (QueryTask(""), {}, "question"),
        (QueryTask("what?", spatial_refs=((0.5,),)), {}, "spatial_refs"),
        (QueryTask("what?", spatial_refs=((0.5, 1.5),)), {}, "spatial_refs"),
        (QueryTask("what?", spatial_refs=((0.5, math.nan),)), {}, "spatial_refs"),
        (DetectTask("\n"), {}, "object"),
        (DetectTask("cat", max_objects=0), {}, "max_objects"),
        (PointTask("cat", max_objects=2.5), {}, "max_objects"),  # type: ignore[arg-type]
        (PointTask("cat", max_objects=True), {}, "max_objects"),
        (DetectTask("cat"), {"temperature": 0.5}, "temperature"),
        (PointTask("cat"), {"repetition_penalty": 1.2}, "repetition_penalty"),
        (DetectTask("cat"), {"stop": ("x",)}, "stop"),
        (DetectTask("cat"), {"presence_penalty": 0.1}, "presence_penalty"),
        (PointTask("cat"), {"frequency_penalty": -0.1}, "frequency_penalty"),
        (PointTask("cat"), {"min_p": 0.1}, "min_p"),
        (DetectTask("cat"), {"num_logprobs": 0}, "logprobs"),
    ],
)
def test_a_task_that_cannot_be_meant_is_refused(task: Task, sampling: dict[str, Any], param: str) -> None:
    request = ask_task(task)
    with pytest.raises(InvalidRequest) as caught:
        check_request(replace(request, sampling=replace(request.sampling, **sampling)), LIMITS)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "task",
    [CaptionTask(prompt="Say it"), QueryTask("?", spatial_refs=((0, 1), (0.1, 0.2, 1, 1))), DetectTask("cat", 1)],
)
def test_a_task_that_can_be_meant_is_taken(task: Task) -> None:
    check_request(ask_task(task), LIMITS)
