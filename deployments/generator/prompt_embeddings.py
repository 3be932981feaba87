"""Embeddings of a stretch of a prompt: its tokens', with the pictures' features laid over their places."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from deployments.errors import PartUnavailable
from deployments.generator.sequence import Sequence
from deployments.models.family import LanguageModel
from deployments.types import ImageFeatures


def embed_prompt(language: LanguageModel, sequence: Sequence, start: int, stop: int) -> torch.Tensor:
    """(1, stop - start, D) embeddings of the prompt's tokens from `start` to `stop`."""
    ids = torch.tensor([sequence.prompt.token_ids[start:stop]], device=language.device)
    embeddings = language.embed(ids)
    if not sequence.prompt.images:
        return embeddings
    if sequence.image_rows is None:
        sequence.image_rows = _image_rows(language, sequence, embeddings.shape[-1])
    places = _image_places(sequence)
    first, last = np.searchsorted(places, (start, stop))
    if first < last:
        embeddings = embeddings.clone()
        index = torch.from_numpy(places[first:last] - start).to(language.device)
        embeddings[0, index] = sequence.image_rows[first:last].to(embeddings.dtype)
    if stop == sequence.num_prompt_tokens:
        sequence.image_rows = None  # the last stretch: the K/V hold it all now
    return embeddings


def _image_places(sequence: Sequence) -> np.ndarray:
    """(image_tokens,) indices into the prompt, ascending."""
    return np.concatenate([np.arange(span.start, span.start + span.length) for span in sequence.prompt.images])


def _image_rows(language: LanguageModel, sequence: Sequence, width: int) -> torch.Tensor:
    """(image_tokens, D) features in the order of their places, on the device."""
    for item in sequence.features.values():
        if item.array.shape[1] != width:
            raise PartUnavailable(
                f"the vision encoder's features are {item.array.shape[1]} wide, the language model's embeddings "
                f"{width}; vision_encoder and generator must run the same checkpoint"
            )
    pictures = {image_id: to_tensor(item).to(language.device) for image_id, item in sequence.features.items()}
    sequence.features.clear()
    return torch.cat(list(_rows_by_span(pictures, sequence)))


def _rows_by_span(pictures: dict[str, torch.Tensor], sequence: Sequence) -> Iterator[torch.Tensor]:
    """Each span's rows. A picture that is shown again begins again at its first row."""
    taken = dict.fromkeys(pictures, 0)
    for span in sequence.prompt.images:
        rows = pictures[span.image_id]
        begin = taken[span.image_id] % len(rows)
        taken[span.image_id] += span.length
        yield rows[begin : begin + span.length]


def to_tensor(features: ImageFeatures) -> torch.Tensor:
    """(image_tokens, D) on the CPU, in the dtype the features have; bfloat16 comes as uint16 bits."""
    # Copied: what comes out of shared memory is read-only, and torch has no read-only tensors.
    if features.dtype == "bfloat16":
        return torch.from_numpy(features.array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(features.array.copy())
