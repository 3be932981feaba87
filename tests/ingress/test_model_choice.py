"""Which model does a task, asked for or not."""

from __future__ import annotations

import pytest

from deployments.config import RetinaConfig, parse_config
from deployments.errors import InvalidRequest, UnknownModel
from deployments.ingress.model_choice import choose_model
from deployments.types import Skill


def config(*families: str, default: str | None = None) -> RetinaConfig:
    """Models named by their families and places: smolvlm0, moondream1."""
    checkpoints = {"fake": ""}
    models = [
        {"name": f"{family}{n}", "family": family, "checkpoint": checkpoints.get(family, "folder")}
        for n, family in enumerate(families)
    ]
    return parse_config({"models": models, "default_model": default})


@pytest.mark.parametrize(
    ("families", "default", "skill", "chosen"),
    [
        (("smolvlm", "moondream"), None, "caption", "smolvlm0"),
        (("smolvlm", "moondream"), None, "detect", "moondream1"),
        (("smolvlm", "moondream"), "moondream1", "caption", "moondream1"),
        (("smolvlm", "moondream", "moondream"), "moondream2", "point", "moondream2"),
        (("smolvlm", "moondream", "moondream"), "smolvlm0", "point", "moondream1"),
        (("fake",), None, "query", "fake0"),
    ],
)
def test_without_a_wish_the_default_if_it_can_else_the_first_that_can(
    families: tuple[str, ...], default: str | None, skill: Skill, chosen: str
) -> None:
    assert choose_model(config(*families, default=default), skill, None) == chosen


def test_the_wish_is_kept() -> None:
    choice = config("smolvlm", "moondream", "moondream")
    assert choose_model(choice, "detect", "moondream2") == "moondream2"
    assert choose_model(choice, "caption", "smolvlm0") == "smolvlm0"


def test_an_unknown_model() -> None:
    with pytest.raises(UnknownModel, match=r"unknown model 'gpt'; choose one of: smolvlm0, moondream1$") as raised:
        choose_model(config("smolvlm", "moondream"), "detect", "gpt")
    assert raised.value.param == "model"


def test_a_long_name_is_not_repeated_in_full() -> None:
    with pytest.raises(UnknownModel) as raised:
        choose_model(config("smolvlm"), "caption", "x" * 10_000)
    assert len(raised.value.message) < 200


def test_a_model_that_lacks_the_skill_names_those_that_have_it() -> None:
    choice = config("smolvlm", "moondream", "llava", "fake")
    with pytest.raises(InvalidRequest, match=r"'llava2' has no skill 'point'; choose one of: moondream1, fake3$") as e:
        choose_model(choice, "point", "llava2")
    assert (e.value.param, e.value.code) == ("model", "invalid_request")


@pytest.mark.parametrize("wished", [None, "smolvlm0"])
def test_a_skill_that_nobody_has(wished: str | None) -> None:
    with pytest.raises(InvalidRequest, match=r"'detect'.*no configured model has it$"):
        choose_model(config("smolvlm", "qwen2_vl"), "detect", wished)
