"""What people hand to the classes of vlm.py, turned into what the graph takes: pictures, sampling, history."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from deployments.errors import InvalidRequest
from deployments.ingress.turn_types import SamplingWish
from deployments.types import Message, Role, TextPart

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = Image | str | os.PathLike[str] | bytes


class Sampling(TypedDict, total=False):
    temperature: float  # 0, the default, is greedy
    top_p: float
    top_k: int
    max_new_tokens: int
    stop: tuple[str, ...]
    seed: int


def read_picture(image: Picture) -> bytes:
    """The bytes of a picture file; a PIL image becomes PNG, which loses nothing. Raises InvalidRequest."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise InvalidRequest(f"{image}: {error.strerror}", "image") from error
    from PIL import Image as pillow

    if not isinstance(image, pillow.Image):
        raise InvalidRequest(f"image is a {type(image).__name__}; give a PIL image, a path or bytes", "image")
    file = io.BytesIO()
    # Modes that PNG has not (CMYK, YCbCr, ...) are converted as they would be for the model anyway.
    picture = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def to_wish(sampling: Sampling) -> SamplingWish:
    """Raises InvalidRequest naming what is unknown and what there is."""
    unknown = [name for name in sampling if name not in Sampling.__annotations__]
    if unknown:
        raise InvalidRequest(
            f"unknown option {unknown[0]!r}; there is {', '.join(Sampling.__annotations__)}", unknown[0]
        )
    return SamplingWish(**sampling)


def to_message(turn: Mapping[str, str]) -> Message:
    """Raises InvalidRequest."""
    roles: tuple[Role, ...] = ("system", "user", "assistant")
    role = next((role for role in roles if role == turn.get("role")), None)
    if role is None or set(turn) != {"role", "content"} or not isinstance(turn["content"], str):
        raise InvalidRequest(
            f'an item of history must be {{"role": one of {", ".join(roles)}, "content": text}}, not {dict(turn)}',
            "history",
        )
    return Message(role, (TextPart(turn["content"]),))
