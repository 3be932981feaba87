"""From the input of a request to items that can be stored: references are looked up, pictures checked and stored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deployments.errors import ImageNotFound, InvalidRequest, RecordNotFound
from deployments.ingress.error_replies import shorten
from deployments.ingress.openai.picture_parts import PictureSource, read_pictures
from deployments.ingress.responses.input_items import InputImage, ItemReference, MessageItem
from deployments.ingress.responses.request import CreateResponse
from deployments.ingress.responses.stored import GivenPicture, StoredItem, StoredResponse
from deployments.ingress.services import Services
from deployments.types import ImageRef, TextPart

ITEM_ID = re.compile(r"msg_([0-9a-f]{32})(_[0-9]+)?")


@dataclass(frozen=True, slots=True)
class FoundItem:
    """A message at its place in the body; of its pictures, those of stored items are known already."""

    place: str
    role: Literal["user", "assistant", "system", "developer"]
    content: tuple[TextPart | PictureSource | GivenPicture, ...]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    def to_stored(self, item_id: str, images: Iterator[ImageRef]) -> StoredItem:
        """`images` are those of the sources, in order."""
        parts = tuple(
            _with_image(part, next(images)) if isinstance(part, PictureSource) else part for part in self.content
        )
        return StoredItem(item_id, self.role, parts)


async def find_items(asked: CreateResponse, services: Services, tenant: str) -> tuple[FoundItem, ...]:
    """In order. Raises InvalidRequest for too many or for what cannot be answered, RecordNotFound for references."""
    if isinstance(asked.input, str):
        found = [FoundItem("input", "user", (TextPart(asked.input),))]
    else:
        _check_number(len(asked.input), services.config.ingress.max_input_messages)
        found = [await _find(item, f"input[{index}]", services, tenant) for index, item in enumerate(asked.input)]
    _check_found(found)
    return tuple(found)


async def take_pictures(
    found: tuple[FoundItem, ...], response_id: str, services: Services, tenant: str
) -> tuple[StoredItem, ...]:
    """With ids of their own; all pictures are stored when this returns. Raises what reading pictures raises."""
    for item in found:
        for part in item.content:
            if isinstance(part, GivenPicture):
                await require_picture(part.image, item.place, services, tenant)
    sources = [part for item in found for part in item.content if isinstance(part, PictureSource)]
    images = iter(await read_pictures(sources, services, tenant))
    stem = response_id.replace("resp_", "msg_", 1)
    return tuple(item.to_stored(f"{stem}_{index}", images) for index, item in enumerate(found))


async def require_picture(image: ImageRef, place: str, services: Services, tenant: str) -> None:
    """Of what was said before: a generator may remember a picture that was deleted. Raises ImageNotFound."""
    try:
        await services.pictures.find(tenant, image.id)
    except ImageNotFound as error:
        raise ImageNotFound("a picture that this goes on from is no longer stored", place) from error


# ------------------------------------------------------------------------------------- finding


async def _find(item: MessageItem | ItemReference, place: str, services: Services, tenant: str) -> FoundItem:
    if isinstance(item, ItemReference):
        stored = await _look_up(item.id, place, services, tenant)
        return FoundItem(place, stored.role, stored.content)
    if isinstance(item.content, str):
        return FoundItem(f"{place}.content", item.role, (TextPart(item.content),))
    parts = tuple(
        _to_source(part, f"{place}.content[{index}]") if isinstance(part, InputImage) else TextPart(part.text)
        for index, part in enumerate(item.content)
    )
    return FoundItem(f"{place}.content", item.role, parts)


async def _look_up(item_id: str, place: str, services: Services, tenant: str) -> StoredItem:
    """The ids of items hold those of their responses."""
    absent = RecordNotFound(f"there is no item {shorten(item_id)!r} in a stored response", f"{place}.id")
    known = ITEM_ID.fullmatch(item_id)
    if known is None:
        raise absent
    try:
        record = await services.records.record(tenant, "response", f"resp_{known[1]}")
    except RecordNotFound as error:
        raise absent from error
    item = StoredResponse.from_record(record).find_item(item_id)
    if item is None:
        raise absent
    return item


def _to_source(part: InputImage, place: str) -> PictureSource:
    if (part.image_url is None) == (part.file_id is None):
        raise InvalidRequest("a picture has either an image_url or a file_id", place)
    name = "image_url" if part.file_id is None else "file_id"
    return PictureSource(f"{place}.{name}", url=part.image_url, file_id=part.file_id, detail=part.detail or "auto")


def _with_image(source: PictureSource, image: ImageRef) -> GivenPicture:
    return GivenPicture(image, source.file_id or image.id, source.detail)


# ------------------------------------------------------------------------------------- checks


def _check_number(number: int, limit: int) -> None:
    if number > limit:
        raise InvalidRequest(
            f"input has {number} items; at most {limit} are allowed (ingress.max_input_messages)", "input"
        )


def _check_found(found: list[FoundItem]) -> None:
    if not found or found[-1].role != "user":
        place = found[-1].place if found else "input"
        raise InvalidRequest("the last item of input must be the user's message: the model answers it", place)
    for item in found:
        _check_content(item)


def _check_content(item: FoundItem) -> None:
    if item.role == "user" and not item.text.strip() and all(isinstance(part, TextPart) for part in item.content):
        raise InvalidRequest("the message is empty; it needs a picture or words", item.place)
    try:
        item.text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("the text holds half of a surrogate pair, which is no character", item.place) from error
