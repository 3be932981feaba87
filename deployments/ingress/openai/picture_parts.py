"""The pictures of a request under /v1: data URLs, uploaded files and stored pictures become ImageRefs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from deployments.errors import ImageNotFound, InvalidRequest, RetinaError
from deployments.ingress.error_replies import shorten
from deployments.ingress.form_body import decode_long_data_url
from deployments.ingress.openai.file_records import FILE_PREFIX, find_file
from deployments.ingress.pictures import IMAGE_ID
from deployments.ingress.services import Services
from deployments.types import ImagePart, ImageRef, Part

Detail = Literal["auto", "low", "high", "original"]
DETAIL = (
    "`low`: the picture is scaled down to fit into 512 x 512 pixels before a model sees it. `auto`, `high` and "
    "`original` are the same here: the picture as it is, as finely as the model's own settings let it look."
)
LOW_DETAIL_PX = 512
WHAT_IS_READ = "send a data URL (data:image/...;base64,...), or the id of a file from POST /v1/files"


@dataclass(frozen=True, slots=True)
class PictureSource:
    """One picture as a request gives it: by `url` or by `file_id`."""

    param: str  # its place in the body
    url: str | None = None
    file_id: str | None = None
    detail: Detail = "auto"


async def read_pictures(sources: Sequence[PictureSource], services: Services, tenant: str) -> tuple[ImageRef, ...]:
    """In order; all are stored when this returns. One after the other: a request takes one place at the picture check.

    Raises InvalidRequest for too many, what checking and storing raises, ImageNotFound, RecordNotFound; with the
    picture's place as `param`.
    """
    limit = services.config.ingress.max_input_images
    if len(sources) > limit:
        raise InvalidRequest(
            f"there are {len(sources)} pictures; at most {limit} are allowed (ingress.max_input_images)",
            sources[limit].param,
        )
    return tuple([await _read(source, services, tenant) for source in sources])


def pictures_first(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Pictures behind all words go before them: as models were trained, and as all surfaces do, so that the same
    question gets the same answer; and K and V of a picture can be used again for the next question about it.
    """
    behind = len(list(takewhile(lambda part: isinstance(part, ImagePart), reversed(parts))))
    return (*parts[len(parts) - behind :], *parts[: len(parts) - behind])


async def _read(source: PictureSource, services: Services, tenant: str) -> ImageRef:
    try:
        return await _take(source, services, tenant)
    except RetinaError as error:
        raise type(error)(error.message, source.param, error.retry_after_s) from error


async def _take(source: PictureSource, services: Services, tenant: str) -> ImageRef:
    name = source.file_id if source.file_id is not None else source.url
    if name is None:
        raise InvalidRequest(f"a picture is missing; {WHAT_IS_READ}", source.param)
    max_side_px = LOW_DETAIL_PX if source.detail == "low" else None
    if source.file_id is None and not _is_id(name):
        _require_data_url(name, source.param)
        data = await decode_long_data_url(name, source.param)
        return await services.pictures.add(tenant, data, max_side_px)
    ref = await _find(name, services, tenant)
    if max_side_px is None or max(ref.width, ref.height) <= max_side_px:
        return ref
    stored = await services.pictures.get(tenant, ref.id)
    return await services.pictures.add(tenant, stored.data, max_side_px)


async def _find(name: str, services: Services, tenant: str) -> ImageRef:
    if IMAGE_ID.fullmatch(name):
        return await services.pictures.find(tenant, name)
    file = await find_file(services, tenant, name)
    try:
        return await services.pictures.find(tenant, file.image_id)
    except ImageNotFound as error:
        raise ImageNotFound(f"the picture of file {shorten(name)!r} is no longer stored; upload it again") from error


def _is_id(name: str) -> bool:
    return name.startswith(FILE_PREFIX) or IMAGE_ID.fullmatch(name) is not None


def _require_data_url(url: str, param: str) -> None:
    """Said in full: most people who come from a hosted service send addresses of the web first."""
    if url[:8].lower().startswith(("http:", "https:")):
        raise InvalidRequest(f"pictures are not fetched from the web here; {WHAT_IS_READ}", param)
    if not url[:5].lower().startswith("data:"):
        raise InvalidRequest(f"{shorten(url)!r} is no picture; {WHAT_IS_READ}", param)
