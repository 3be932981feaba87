"""Says which requests the engine takes, and how long their answers may become. Pure; knows no torch and no asyncio."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from deployments.errors import InvalidRequest, PartUnavailable, PromptTooLong
from deployments.types import ImageFeatures, ImageRef, Message, SamplingParams

if TYPE_CHECKING:
    from deployments.models.family import Prompt

MAX_STOP_STRINGS = 8
MAX_SEED = 2**63 - 1


def check_sampling(sampling: SamplingParams, max_new_tokens: int) -> None:
    """Raises InvalidRequest naming the field, what it was and what is allowed."""
    _require_number("temperature", sampling.temperature, sampling.temperature >= 0, "a finite number, 0 or more")
    _require_number("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "more than 0 and at most 1")
    _require_whole("top_k", sampling.top_k, 0, None, "0 (keep all) or more")
    _require_whole("max_new_tokens", sampling.max_new_tokens, 1, max_new_tokens, f"1 to {max_new_tokens}")
    if sampling.seed is not None:
        _require_whole("seed", sampling.seed, 0, MAX_SEED, f"0 to {MAX_SEED}")
    if len(sampling.stop) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop has {len(sampling.stop)} strings; at most {MAX_STOP_STRINGS} are allowed", "stop")
    if not all(sampling.stop):
        raise InvalidRequest("stop has an empty string; stop strings need at least one character", "stop")


def _require_number(name: str, value: float, is_allowed: bool, allowed: str) -> None:
    if not (math.isfinite(value) and is_allowed):
        raise InvalidRequest(f"{name} is {value}; it must be {allowed}", name)


def _require_whole(name: str, value: int, least: int, most: int | None, allowed: str) -> None:
    # bool is an int to Python; `max_new_tokens: true` is a mistake all the same.
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        raise InvalidRequest(f"{name} is {value}; it must be a whole number, {allowed}", name)


def fit_answer(prompt: Prompt, max_new_tokens: int, context_tokens: int) -> int:
    """How many tokens the answer may have: what was asked for, cut to the context. Raises PromptTooLong."""
    num_tokens = len(prompt.token_ids)
    if num_tokens + 1 > context_tokens:
        num_images = prompt.num_image_tokens
        raise PromptTooLong(
            f"the prompt has {num_tokens} tokens ({num_images} image tokens + {num_tokens - num_images} text tokens); "
            f"with at least 1 for the answer that exceeds this model's context of {context_tokens} tokens",
            "messages",
        )
    return min(max_new_tokens, context_tokens - num_tokens)


def pictures_of(messages: Iterable[Message]) -> Mapping[str, ImageRef]:
    """Each picture of the conversation once, by id."""
    return {image.id: image for message in messages for image in message.images}


def check_features(prompt: Prompt, messages: Iterable[Message], features: Mapping[str, ImageFeatures]) -> None:
    """Every picture must have as many rows of features as the prompt keeps places. Raises PartUnavailable.

    The two halves of a model count image tokens apart from each other; when they disagree, the parts run different
    preprocessing, and an answer would be about a garbled picture.
    """
    shown = Counter(image.id for message in messages for image in message.images)
    places: Counter[str] = Counter()
    for span in prompt.images:
        places[span.image_id] += span.length
    for image_id, count in shown.items():
        rows = len(features[image_id].array) * count
        if rows != places[image_id]:
            raise PartUnavailable(
                f"the vision encoder gave {rows} rows of features for a picture that has {places[image_id]} image "
                "tokens in the prompt; vision_encoder and generator must run the same checkpoint",
                "messages",
            )
