"""What the K/V of a prompt's tokens depend on, as keys under which they may be found again. Pure; knows no torch."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deployments.generator.prefix_tree import Content

if TYPE_CHECKING:
    from deployments.models.family import Prompt

TEXT, PICTURE, PLACE = range(3)  # first entry of a content


def contents_of(prompt: Prompt, towers: Mapping[str, str]) -> list[Content]:
    """One for each token. Image tokens all have the placeholder's id, so theirs say which row of which picture it is,
    as seen by which of `towers`, by picture id."""
    contents: list[Content] = [(TEXT, token_id) for token_id in prompt.token_ids]
    shown: Counter[str] = Counter()
    for span in prompt.images:
        first = shown[span.image_id]
        for offset in range(span.length):
            contents[span.start + offset] = (PICTURE, span.image_id, first + offset, towers.get(span.image_id, ""))
        shown[span.image_id] += span.length
    for index, coordinates in prompt.places:
        contents[index] = (PLACE, *map(repr, coordinates))
    return contents


def realm_of(prompt: Prompt, tenant: str, contents: Sequence[Content]) -> str:
    """Prompts share only within a realm: a tenant's, and where the beginning sees itself, that beginning's."""
    mutual = contents[: prompt.num_mutual]
    return hashlib.sha256(json.dumps([tenant, mutual]).encode()).hexdigest()


def answer_contents(token_ids: Sequence[int]) -> list[Content]:
    return [(TEXT, token_id) for token_id in token_ids]
