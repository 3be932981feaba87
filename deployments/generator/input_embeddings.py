"""What goes into the model: embeddings of a prompt's tokens and of chosen ones, with others laid over some of them."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from deployments.errors import PartUnavailable
from deployments.generator.sequence import Sequence
from deployments.models.family import LanguageModel
from deployments.types import ImageFeatures


def embed_prompt(language: LanguageModel, sequence: Sequence, start: int, stop: int) -> torch.Tensor:
    """(1, stop - start, D) embeddings of the given tokens from `start` to `stop`."""
    prompt = sequence.given
    ids = torch.tensor([prompt.token_ids[start:stop]], device=language.device)
    embeddings = language.embed(ids)
    if prompt.images or prompt.places:
        embeddings = embeddings.clone()  # whoever embeds may hand out a tensor of its own
        _lay_images(embeddings[0], language, sequence, start)
        _lay_coordinates(embeddings[0], language, sequence, start)
    if stop == sequence.num_given_tokens:
        sequence.image_rows = None  # the last stretch: the K/V hold it all now
        sequence.features.clear()  # not all were needed, if the K/V of more than was known were there
    return embeddings


def embed_next(language: LanguageModel, token_ids: torch.Tensor, batch: SequenceOf[Sequence]) -> torch.Tensor:
    """(B, 1, D) of the next input of each sequence, whose token ids are in (B,) `token_ids`."""
    embeddings = language.embed(token_ids[:, None])
    replaced = [(row, item.next_embedding) for row, item in enumerate(batch) if item.next_embedding is not None]
    if replaced:
        embeddings = embeddings.clone()
        for row, embedding in replaced:
            embeddings[row, 0] = embedding
    return embeddings


def _lay_images(embeddings: torch.Tensor, language: LanguageModel, sequence: Sequence, start: int) -> None:
    """Write rows of features into (S, D) `embeddings`, which begin at the prompt's index `start`."""
    places = _image_places(sequence)
    first, last = np.searchsorted(places, (start, start + len(embeddings)))
    if first < last:
        if sequence.image_rows is None:
            sequence.image_rows = _image_rows(language, sequence, embeddings.shape[-1])
        index = torch.from_numpy(places[first:last] - start).to(language.device)
        embeddings[index] = sequence.image_rows[first:last].to(embeddings.dtype)


def _lay_coordinates(embeddings: torch.Tensor, language: LanguageModel, sequence: Sequence, start: int) -> None:
    for index, coordinates in sequence.prompt.places:
        if start <= index < start + len(embeddings):
            embeddings[index - start] = language.embed_place(coordinates).to(embeddings.dtype)


def _image_places(sequence: Sequence) -> np.ndarray:
    """(image_tokens,) indices into the prompt, ascending, of the pictures whose features were pulled."""
    spans = [span for span in sequence.prompt.images if span.image_id in sequence.pulled]
    return np.concatenate([np.arange(0), *(np.arange(span.start, span.start + span.length) for span in spans)])


def _image_rows(language: LanguageModel, sequence: Sequence, width: int) -> torch.Tensor:
    """(image_tokens, D) projected features in the order of their places, on the device."""
    for item in sequence.features.values():
        if item.array.shape[1] != language.feature_width:
            raise PartUnavailable(
                f"the vision encoder's features are {item.array.shape[1]} wide, the language model takes "
                f"{language.feature_width}; vision_encoder and generator must run the same checkpoint"
            )
    pictures = {image_id: _project(language, item, width) for image_id, item in sequence.features.items()}
    sequence.features.clear()
    return torch.cat(list(_rows_by_span(pictures, sequence)))


def _project(language: LanguageModel, features: ImageFeatures, width: int) -> torch.Tensor:
    """(image_tokens, D) of one picture. Each alone: so its rows do not hang on what it is shown with."""
    rows = to_tensor(features).to(language.device, language.dtype)
    projected = language.project(rows)
    assert projected.shape == (len(rows), width), (projected.shape, width)
    return projected


def _rows_by_span(pictures: dict[str, torch.Tensor], sequence: Sequence) -> Iterator[torch.Tensor]:
    """Each span's rows. A picture that is shown again begins again at its first row."""
    taken = dict.fromkeys(pictures, 0)
    for span in sequence.prompt.images:
        if span.image_id not in pictures:  # all of its K/V were there
            continue
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
