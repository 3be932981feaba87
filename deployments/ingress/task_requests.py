"""What clients ask of one picture, as pydantic models, and the tasks that it becomes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from deployments.errors import InvalidRequest
from deployments.ingress.body import Body
from deployments.ingress.sampling_schemas import SamplingFields
from deployments.ingress.schemas import STREAM
from deployments.ingress.turn_types import SamplingWish
from deployments.types import (
    CaptionLength,
    CaptionTask,
    DetectTask,
    PointTask,
    QueryTask,
    Task,
)

MAX_SPATIAL_REFS = 100
MAX_OBJECTS = 150
ID_EXAMPLE = "3f6c…"

# pydantic lists the fields of the last base class first.


class PictureFields(Body):
    image: str | None = Field(
        None,
        description="The picture as a data URL (in multipart: the file itself). The bytes decide what it is, not the "
        "declared type; other URLs are not fetched.",
    )
    image_id: str | None = Field(None, description="A picture uploaded with POST /images, instead of `image`.")
    model: str | None = Field(None, description="Left out: the default if it can do this, else the first that can.")
    stream: bool = Field(False, description=STREAM)

    @property
    @abstractmethod
    def texts(self) -> Mapping[str, str | None]:
        """Fields whose length is limited by ingress.max_message_chars."""

    @abstractmethod
    def to_task(self) -> Task:
        """Raises InvalidRequest for fields that exclude each other."""

    def to_sampling(self) -> SamplingWish:
        return SamplingWish()


class CaptionFields(PictureFields):
    length: CaptionLength = Field("normal", description="Of the caption.")
    language: str = Field(
        "en",
        pattern="^[a-z]{2,3}(-([A-Z]{2}|[0-9]{3}))?$",
        description="Of the caption: `en`, `ja`, `pt-BR`. A model that does not write it names those that it does.",
    )
    prompt: str | None = Field(None, description="What to say about the picture, in place of `length` and `language`.")


class CaptionRequest(SamplingFields, CaptionFields):
    """Describe a picture."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image_id": ID_EXAMPLE, "length": "short"}]})

    @property
    def texts(self) -> Mapping[str, str | None]:
        return {"prompt": self.prompt}

    def to_task(self) -> CaptionTask:
        replaced = [name for name in ("length", "language") if name in self.model_fields_set]
        if self.prompt is not None and replaced:
            raise InvalidRequest(f"prompt stands in place of {' and '.join(replaced)}; send one or the other", "prompt")
        return CaptionTask(self.length, self.language, self.prompt)


def _check_place(place: list[float]) -> list[float]:
    if len(place) == 3:
        raise ValueError("a place has 2 numbers, [x, y], or 4, [x_min, y_min, x_max, y_max]")
    if len(place) == 4 and (place[0] > place[2] or place[1] > place[3]):
        raise ValueError("a box is [x_min, y_min, x_max, y_max], the smaller ones first")
    return place


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]  # strict in forms, too: they hold JSON
Place = Annotated[list[Share], Field(min_length=2, max_length=4), AfterValidator(_check_place)]


class QueryFields(PictureFields):
    question: str = Field(description="About the picture.")
    reasoning: bool = Field(False, description="Think first. Not every model can.")
    spatial_refs: list[Place] = Field(
        default=[],
        max_length=MAX_SPATIAL_REFS,
        description="Places that the question is about, points [x, y] and boxes [x_min, y_min, x_max, y_max], in "
        "shares of the picture's width and height. In forms: as JSON. Not every model takes them.",
    )


class QueryRequest(SamplingFields, QueryFields):
    """A question about a picture. Without spatial_refs it may go without one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image_id": ID_EXAMPLE, "question": "What is this?", "spatial_refs": [[0.5, 0.5], [0, 0, 0.4, 0.3]]}
            ]
        }
    )

    @property
    def texts(self) -> Mapping[str, str | None]:
        return {"question": self.question}

    def to_task(self) -> QueryTask:
        return QueryTask(self.question, self.reasoning, tuple(tuple(place) for place in self.spatial_refs))


class ObjectFields(PictureFields):
    object: str = Field(description="What to look for.")
    max_objects: int = Field(50, ge=1, le=MAX_OBJECTS, description="At most so many are given.")

    @property
    def texts(self) -> Mapping[str, str | None]:
        return {"object": self.object}


class DetectRequest(ObjectFields):
    """Boxes around each of the objects of a kind."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image_id": ID_EXAMPLE, "object": "circle"}]})

    def to_task(self) -> DetectTask:
        return DetectTask(self.object, self.max_objects)


class PointRequest(ObjectFields):
    """A point on each of the objects of a kind."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image_id": ID_EXAMPLE, "object": "circle"}]})

    def to_task(self) -> PointTask:
        return PointTask(self.object, self.max_objects)
