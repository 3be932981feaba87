"""The registry of model families: a line for each, with where its code is and what it can do. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deployments.types import Skill

CHAT: tuple[Skill, ...] = ("caption", "query")  # by way of a question about the picture
GROUNDED: tuple[Skill, ...] = ("caption", "query", "detect", "point")


@dataclass(frozen=True, slots=True)
class FamilyEntry:
    module: str  # holds FAMILY; imported on first use, it pulls in torch. "": built in, without checkpoints
    model_types: tuple[str, ...]  # of config.json
    skills: tuple[Skill, ...] = CHAT
    options: tuple[str, ...] = ()  # keys of a model's configuration that not every family has
    max_images: int | None = None  # in one conversation; None: as many as its context holds


FAMILIES: Mapping[str, FamilyEntry] = {
    "smolvlm": FamilyEntry("deployments.models.smolvlm", ("idefics3", "smolvlm"), options=("max_image_tokens",)),
    "qwen2_vl": FamilyEntry("deployments.models.qwen2_vl", ("qwen2_vl", "qwen2_5_vl"), options=("max_image_tokens",)),
    "moondream": FamilyEntry(
        "deployments.models.moondream",
        ("moondream1",),
        GROUNDED,
        options=("tokenizer", "tokenizer_revision"),
        max_images=1,
    ),
    "llava": FamilyEntry("deployments.models.llava", ("llava",)),
    "fake": FamilyEntry("", (), GROUNDED),
}
