"""Which model does a task: the one asked for, or the first that can. Pure."""

from __future__ import annotations

from deployments.config import RetinaConfig
from deployments.errors import InvalidRequest, UnknownModel
from deployments.families import FAMILIES
from deployments.ingress.error_replies import shorten
from deployments.types import Skill


def choose_model(config: RetinaConfig, skill: Skill, wished: str | None) -> str:
    """`wished`, if it has the skill; None: the default model if it has, else the first that has.

    Raises UnknownModel, and InvalidRequest naming the models that have the skill.
    """
    able = [model.name for model in config.models if skill in FAMILIES[model.family].skills]
    if wished is None:
        return _first(able, skill, config.first_model)
    names = [model.name for model in config.models]
    if wished not in names:
        raise UnknownModel(f"unknown model {shorten(wished)!r}; choose one of: {', '.join(names)}", "model")
    if wished not in able:
        raise InvalidRequest(f"model {wished!r} has no skill {skill!r}; {_who_has_it(able)}", "model")
    return wished


def _first(able: list[str], skill: Skill, default: str) -> str:
    if not able:
        raise InvalidRequest(f"the skill {skill!r} is missing here: {_who_has_it(able)}", "model")
    return default if default in able else able[0]


def _who_has_it(able: list[str]) -> str:
    return f"choose one of: {', '.join(able)}" if able else "no configured model has it"
