"""Follows one picture's features through memory: where a step has other bytes than the one before, it copied them."""

from __future__ import annotations

import pickle  # noqa: TID251 - what was pickled in the line before, to count its bytes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deployments.types import EncodeRequest, ImageFeatures

if TYPE_CHECKING:
    import numpy as np

    from deployments.models.family import Pixels
    from deployments.vision_encoder.encoder import Encoder
    from deployments.vision_encoder.towers import SharedTower

PICKLE_PROTOCOL = 5  # of Ray


@dataclass(frozen=True, slots=True)
class Step:
    features: str  # where they are
    bytes: int
    copies: int  # made since the step before, 0 or 1


async def follow(eye: SharedTower, encoder: Encoder, request: EncodeRequest, pixels: Pixels) -> Sequence[Step]:
    """`pixels` go through the tower here, by `request` through the encoder, which nobody has asked for it."""
    from deployments.vision_encoder.line import join
    from deployments.vision_encoder.towers import to_features

    results = [eye.loaded.tower.encode([piece])[0] for piece in eye.split(pixels)]
    seen = [to_features(result, eye.loaded.dtype) for result in results]
    made = join(seen)
    answer = await encoder.encode(request)
    again = await encoder.encode(request)
    assert (answer.source, again.source) == ("tower", "memory"), (answer.source, again.source)
    return [
        Step("of the tower", sum(result.nbytes for result in results), 0),
        Step("on the CPU", made.array.nbytes, _is_copy(_address(seen[0].array), results[0].data_ptr())),
        Step("of all tiles", made.array.nbytes, _is_copy(_address(made.array), _address(seen[0].array))),
        # A cached one that is the first answer's own memory was not copied into the cache nor out of it.
        Step("in cache and answer", answer.array.nbytes, _is_copy(_address(answer.array), _address(again.array))),
        *_to_generator(answer),
    ]


def _to_generator(answer: ImageFeatures) -> Iterator[Step]:
    """In one process, and by way of a message that keeps large buffers apart, as Ray's do."""
    from deployments.generator.input_embeddings import to_tensor

    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(answer, protocol=PICKLE_PROTOCOL, buffer_callback=buffers.append)
    received = pickle.loads(message, buffers=buffers)
    num_bytes = len(message) + sum(buffer.raw().nbytes for buffer in buffers)
    yield Step("in a message", num_bytes, _is_copy(_address(received.array), _address(answer.array)))
    tensor = to_tensor(received)
    yield Step("of the generator", tensor.nbytes, _is_copy(tensor.data_ptr(), _address(received.array)))


def _is_copy(place: int, before: int) -> int:
    return int(place != before)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
