"""The features of a conversation's pictures: pulled all at once, and checked against the prompt. Knows no torch."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from deployments.errors import PartUnavailable
from deployments.types import EncodeRequest, ImageFeatures, ImageRef, Message, VisionEncoder

if TYPE_CHECKING:
    from deployments.models.family import Prompt


def pictures_of(messages: Iterable[Message]) -> Mapping[str, ImageRef]:
    """Each picture of the conversation once, by id."""
    return {image.id: image for message in messages for image in message.images}


def needed_pictures(prompt: Prompt, messages: Iterable[Message], num_reused: int) -> list[ImageRef]:
    """Those that have places behind the first `num_reused` tokens, whose K/V are there."""
    needed = {span.image_id for span in prompt.images if span.start + span.length > num_reused}
    return [image for image_id, image in pictures_of(messages).items() if image_id in needed]


async def pull_features(encoder: VisionEncoder, requests: Iterable[EncodeRequest]) -> dict[str, ImageFeatures]:
    """Features by picture id; the first error ends the other pulls, and so does a cancel."""
    pulls = {request.image.id: asyncio.create_task(_pull(encoder, request)) for request in requests}
    try:
        return dict(zip(pulls, await asyncio.gather(*pulls.values()), strict=True))
    finally:
        for pull in pulls.values():
            pull.cancel()


async def _pull(encoder: VisionEncoder, request: EncodeRequest) -> ImageFeatures:
    return await encoder.encode(request)


def check_features(prompt: Prompt, messages: Iterable[Message], features: Mapping[str, ImageFeatures]) -> None:
    """Every pulled picture must have as many rows of features as the prompt keeps places. Raises PartUnavailable.

    The two halves of a model count image tokens apart from each other; when they disagree, the parts run different
    preprocessing, and an answer would be about a garbled picture.
    """
    shown = Counter(image.id for message in messages for image in message.images)
    places: Counter[str] = Counter()
    for span in prompt.images:
        places[span.image_id] += span.length
    for image_id in features:
        count = shown[image_id]
        rows = len(features[image_id].array) * count
        if rows != places[image_id]:
            raise PartUnavailable(
                f"the vision encoder gave {rows} rows of features for a picture that has {places[image_id]} image "
                "tokens in the prompt; vision_encoder and generator must run the same checkpoint"
            )
