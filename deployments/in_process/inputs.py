"""What people hand to the classes of vlm.py, turned into what the graph takes: pictures, sampling, history."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

# pydantic wants these from typing_extensions before Python 3.12.
from typing_extensions import TypedDict

from deployments.errors import InvalidRequest
from deployments.ingress.turn_types import SamplingWish
from deployments.types import Message, Role, TextPart

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = Image | str | os.PathLike[str] | bytes

STRICT = ConfigDict(extra="forbid", strict=True)


@with_config(STRICT)
class Sampling(TypedDict, total=False):
    temperature: float  # 0, the default, is greedy
    top_p: float
    top_k: int
    max_new_tokens: int | None
    stop: str | list[str] | tuple[str, ...]
    seed: int | None
    min_p: float
    repetition_penalty: float | None  # None, the default, is the checkpoint's own
    presence_penalty: float
    frequency_penalty: float
    logprobs: int | None  # how many of the likeliest tokens to tell beside each one; None, the default: nothing


@with_config(STRICT)
class HistoryItem(TypedDict):
    """What was said before."""

    role: Role
    content: str


def read_picture(image: Picture) -> bytes:
    """The bytes of a picture file; a PIL image becomes PNG, upright, which loses nothing. Raises InvalidRequest."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            reason = getattr(error, "strerror", None) or error
            raise InvalidRequest(f"{image!s}: {reason}", "image") from error
    from PIL import Image as pillow

    if not isinstance(image, pillow.Image):
        raise InvalidRequest(f"image is a {type(image).__name__}; give a PIL image, a path or bytes", "image")
    return _to_png(image)


def _to_png(image: Image) -> bytes:
    from PIL import ImageOps

    file = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        # Modes that PNG has not (CMYK, YCbCr, ...) are converted as they would be for the model anyway.
        is_png_mode = upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
        (upright if is_png_mode else upright.convert("RGB")).save(file, "PNG", compress_level=1)
    except (OSError, ValueError, SystemError) as error:  # no pixels, a mode that cannot be converted, a broken file
        width, height = image.size
        raise InvalidRequest(
            f"the PIL image ({width} x {height}, mode {image.mode}) cannot be read: {error}", "image"
        ) from error
    return file.getvalue()


def to_wish(sampling: Sampling) -> SamplingWish:
    """Raises InvalidRequest naming what is wrong and what there is."""
    unknown = [name for name in sampling if name not in Sampling.__annotations__]
    if unknown:
        allowed = ", ".join(Sampling.__annotations__)
        raise InvalidRequest(f"unknown option {unknown[0]!r}; there is {allowed}", unknown[0])
    checked: dict[str, Any] = dict(_check(Sampling, sampling, None))
    stop, num_logprobs = checked.pop("stop", ()), checked.pop("logprobs", None)
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    return SamplingWish(**checked, stop=stops, num_logprobs=num_logprobs)


def to_messages(history: Sequence[Mapping[str, str]] | None, question: str) -> list[Message]:
    """The conversation that ends with the question. Raises InvalidRequest."""
    items = _check(list[HistoryItem], list(history or ()), "history")
    turns = [Message(item["role"], (TextPart(item["content"]),)) for item in items]
    if not isinstance(question, str) or not question.strip():
        raise InvalidRequest(f"question is {question!r}; it must be a text that is not empty", "question")
    return [*turns, Message("user", (TextPart(question),))]


def _check(kind: Any, given: object, name: str | None) -> Any:
    try:
        return _adapter(kind).validate_python(given, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in ([name] if name else []) + list(first["loc"]))
        raise InvalidRequest(f"{where}: {first['msg']}", name or str(first["loc"][0])) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
