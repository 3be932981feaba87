"""GET /v1/models: what can be asked, and how much of it."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import Field

from deployments.config import ModelConfig, RetinaConfig
from deployments.families import FAMILIES
from deployments.ingress.body import Body
from deployments.ingress.completions import choose_conversation_model
from deployments.ingress.openai.error_shape import ERRORS, PREFIX
from deployments.ingress.services import Given
from deployments.types import Skill

router = APIRouter(prefix=f"{PREFIX}/models", tags=["openai"], responses=ERRORS)


class ModalitiesBody(Body):
    input: tuple[Literal["text", "image"], ...] = ("text", "image")
    output: tuple[Literal["text"], ...] = ("text",)


class ModelBody(Body):
    """The keys behind owned_by are Retina's own."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time since when it is served.")
    owned_by: Literal["retina"] = "retina"
    is_default: bool = Field(description="Answers where a request names no model.")
    family: str
    skills: list[Skill]
    modalities: ModalitiesBody = ModalitiesBody()
    max_context_tokens: int = Field(description="Prompt and answer together; a checkpoint's lower limit wins.")
    max_output_tokens: int
    default_output_tokens: int = Field(description="Where a request gives no limit.")
    max_images: int = Field(description="In one conversation.")


class ModelList(Body):
    object: Literal["list"] = "list"
    data: list[ModelBody]


@router.get("")
async def list_models(services: Given) -> ModelList:
    """All models, in the order of the configuration."""
    created = int(services.completions.since_s)
    return ModelList(data=[_to_body(services.config, model, created) for model in services.config.models])


@router.get("/{model:path}")
async def get_model(model: str, services: Given) -> ModelBody:
    name = choose_conversation_model(services.config, model)
    found = next(each for each in services.config.models if each.name == name)
    return _to_body(services.config, found, int(services.completions.since_s))


def _to_body(config: RetinaConfig, model: ModelConfig, created: int) -> ModelBody:
    family, limits = FAMILIES[model.family], config.generator_of(model.name)
    most = config.ingress.max_input_images
    return ModelBody(
        id=model.name,
        created=created,
        is_default=model.name == config.first_model,
        family=model.family,
        skills=list(family.skills),
        max_context_tokens=limits.max_context_tokens,
        max_output_tokens=limits.max_new_tokens,
        default_output_tokens=limits.default_new_tokens,
        max_images=most if family.max_images is None else min(most, family.max_images),
    )
