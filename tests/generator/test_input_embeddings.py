"""What goes into the model: pictures are projected once each, coordinates and chosen embeddings lie in their places."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from generator.letters import (
    WIDTH,
    LetterEncoder,
    LetterPrompts,
    WatchedLanguage,
    ask,
    features_of,
    mixed_requests,
    picture,
    read,
    to_ids,
    user,
)

from deployments.errors import PartUnavailable
from deployments.models.family import Prompt
from deployments.types import GenerateRequest, ImageFeatures, ImageRef, Task

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.torch
NARROW = 12  # of the features before they are projected


@dataclass
class Projecting:
    """A language that widens features itself, as late fusion does, and puts coordinates into the prompt."""

    inner: Any
    projected: list[tuple[int, ...]] = field(default_factory=list)
    places: list[tuple[float, ...]] = field(default_factory=list)
    feature_width = NARROW

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        self.projected.append(tuple(features.shape))
        assert features.dtype == self.inner.dtype
        return features.repeat(1, WIDTH // NARROW + 1)[:, :WIDTH].cos()

    def embed_place(self, coordinates: Sequence[float]) -> torch.Tensor:
        import torch

        self.places.append(tuple(coordinates))
        return torch.from_numpy(place_row(coordinates))


def place_row(coordinates: Sequence[float]) -> np.ndarray:
    return np.resize(np.array(coordinates, np.float32) * 3 - 1, WIDTH)


def narrow(image: ImageRef) -> np.ndarray:
    return features_of(image)[:, :NARROW]


def widened(image: ImageRef) -> np.ndarray:
    return np.cos(np.tile(narrow(image), (1, WIDTH // NARROW + 1))[:, :WIDTH])


class NarrowEncoder(LetterEncoder):
    async def encode(self, request: Any) -> ImageFeatures:
        await super().encode(request)
        return ImageFeatures(narrow(request.image), "float32", "tower", 1.0)


class WideEncoder(LetterEncoder):
    async def encode(self, request: Any) -> ImageFeatures:
        await super().encode(request)
        return ImageFeatures(widened(request.image), "float32", "tower", 1.0)


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_projected_here_or_there_is_the_same_answer(
    open_test_engine: Any, language: WatchedLanguage, mode: str
) -> None:
    requests = mixed_requests()
    there = open_test_engine(encoder=WideEncoder(), mode=mode)
    expected = [(await read(there.stream(request))).text for request in requests]
    language.inner = projecting = Projecting(language.inner)
    # What is remembered is not projected again, so nothing is.
    here = open_test_engine(encoder=NarrowEncoder(), mode=mode, prefill_chunk_tokens=16, prefix_cache_bytes=0)
    answers = await asyncio.gather(*(read(here.stream(request)) for request in requests))
    assert [answer.text for answer in answers] == expected
    shown = [{image.id: image.width for m in request.messages for image in m.images} for request in requests]
    once_each = sorted(width for images in shown for width in images.values())
    assert sorted(projecting.projected) == [(width, NARROW) for width in once_each], (
        "each picture alone, once a request"
    )


async def test_features_must_have_the_width_that_is_projected(open_test_engine: Any, language: WatchedLanguage) -> None:
    language.inner = Projecting(language.inner)
    engine = open_test_engine()
    with pytest.raises(PartUnavailable, match=r"64 wide, the language model takes 12; .* same checkpoint"):
        await read(engine.stream(ask(user(picture("cat", 4)))))


class PlacedPrompts(LetterPrompts):
    """Coordinates at the second and at the third but last token, and where both of them lie side by side."""

    places_at = ((1, (0.25,)), (-3, (0.5, 0.125)), (-2, (0.75,)))

    def build(self, messages: Any, task: Task | None = None) -> Prompt:
        prompt = super().build(messages, task)
        length = len(prompt.token_ids)
        places = tuple((index % length, coordinates) for index, coordinates in self.places_at)
        return replace(prompt, places=places)


@pytest.mark.parametrize(("mode", "chunk"), [("batch", 16), ("batch", 17), ("batch", 64), ("simple", 64)])
@pytest.mark.parametrize("number", [3, 7])  # a long text; a picture
async def test_coordinates_lie_over_their_places(
    open_test_engine: Any, language: WatchedLanguage, llama: Any, number: int, mode: str, chunk: int
) -> None:
    language.inner = projecting = Projecting(language.inner)
    engine = open_test_engine(
        encoder=NarrowEncoder(), prompts=PlacedPrompts(), mode=mode, prefill_chunk_tokens=chunk, num_slots=2
    )
    request = mixed_requests()[number]
    answer = await read(engine.stream(request))
    assert projecting.places == [coordinates for _, coordinates in PlacedPrompts.places_at]
    assert to_ids(answer.text) == _generate(llama, request)
    plain = open_test_engine(encoder=NarrowEncoder(), mode=mode)
    assert (await read(plain.stream(request))).text != answer.text


def _generate(llama: Any, request: GenerateRequest) -> list[int]:
    """transformers' answer to the very embeddings that should go in."""
    import torch

    prompts = PlacedPrompts()
    prompt = prompts.build(request.messages)
    with torch.inference_mode():
        embeddings = llama.get_input_embeddings()(torch.tensor([prompt.token_ids])).clone()
        begin = 0
        for span in prompt.images:
            rows = widened(request.messages[0].images[0])[begin : begin + span.length]
            embeddings[0, span.start : span.start + span.length] = torch.from_numpy(rows)
            begin += span.length
        for index, coordinates in prompt.places:
            embeddings[0, index] = torch.from_numpy(place_row(coordinates))
        ids: list[int] = llama.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            max_new_tokens=request.sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(prompts.stop_token_ids),
            pad_token_id=0,
        )[0].tolist()
    return ids[:-1] if ids[-1] in prompts.stop_token_ids else ids
