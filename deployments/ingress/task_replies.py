"""What the routes for one picture answer, as pydantic models: plain replies, and the events of a streamed one."""

from __future__ import annotations

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from deployments.ingress.body import Body
from deployments.ingress.sampling_schemas import Logprobs, to_bodies
from deployments.ingress.schemas import Cost, TimingsBody, UsageBody
from deployments.ingress.task_types import TaskInput, TaskReply
from deployments.prices import to_json_number
from deployments.types import Box, FinishReason, Grounding, Point, QueryTask

MADE_EXAMPLE: JsonDict = {
    "model_used": "moondream",
    "request_id": "req-0c5e…",
    "image_id": "3f6c…",
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 735, "image_tokens": 729, "reused_tokens": 0, "completion_tokens": 14},
    "cost": 0.00015,
    "timings": {
        "queue_ms": 0.4,
        "encode_ms": 67.9,
        "prefill_ms": 41.2,
        "decode_ms": 71.9,
        "first_token_ms": 109.5,
        "encode_source": "tower",
    },
}


# ------------------------------------------------------------------------------------- what is found


class BoxBody(Body):
    """Shares of the picture's width and height from its top left corner; rounding may put them a little outside."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    @classmethod
    def from_box(cls, box: Box | Point) -> BoxBody:
        return cls.model_validate(box, from_attributes=True)


class PointBody(Body):
    """Shares of the picture's width and height from its top left corner."""

    x: float
    y: float

    @classmethod
    def from_point(cls, point: Box | Point) -> PointBody:
        return cls.model_validate(point, from_attributes=True)


class GroundingBody(Body):
    """What a stretch of the thoughts speaks of: `text[start_idx:end_idx]`, in Unicode code points."""

    start_idx: int
    end_idx: int
    points: list[tuple[float, float]]

    @classmethod
    def from_grounding(cls, grounding: Grounding) -> GroundingBody:
        points = [(point.x, point.y) for point in grounding.points]
        return cls(start_idx=grounding.start, end_idx=grounding.end, points=points)


class ReasoningBody(Body):
    text: str = Field(description="The texts of all `thought` events, joined.")
    grounding: list[GroundingBody]


# ------------------------------------------------------------------------------------- plain replies
# pydantic lists the fields of the last base class first.


class MadeFields(Body):
    """How an answer was made."""

    model_used: str
    request_id: str
    image_id: str | None = Field(description="Of the picture, for `image_id` of the next request; null without one.")
    finish_reason: FinishReason = Field(description="`length`: max_new_tokens or the context was full.")
    usage: UsageBody
    cost: Cost
    timings: TimingsBody


def _made(asked: TaskInput, reply: TaskReply) -> MadeFields:
    return MadeFields(
        model_used=reply.model_used,
        request_id=reply.request_id,
        image_id=asked.image.id if asked.image is not None else None,
        finish_reason=reply.finish_reason,
        usage=UsageBody.from_usage(reply.usage),
        cost=to_json_number(reply.cost),
        timings=TimingsBody.from_timings(reply.timings),
    )


class CaptionAnswer(Body):
    caption: str = Field(description="The texts of all `chunk` events, joined.")
    logprobs: Logprobs = None


class CaptionReply(MadeFields, CaptionAnswer):
    model_config = ConfigDict(json_schema_extra={"examples": [{"caption": "A red circle.", **MADE_EXAMPLE}]})

    @classmethod
    def from_task(cls, asked: TaskInput, reply: TaskReply) -> CaptionReply:
        return cls(caption=reply.text, logprobs=to_bodies(reply.logprobs), **dict(_made(asked, reply)))


class QueryAnswer(Body):
    answer: str = Field(description="The texts of all `chunk` events, joined.")
    reasoning: ReasoningBody | None = Field(
        None, description="Only when it was asked for.", exclude_if=lambda reasoning: reasoning is None
    )
    logprobs: Logprobs = None


class QueryReply(MadeFields, QueryAnswer):
    model_config = ConfigDict(json_schema_extra={"examples": [{"answer": "A circle.", **MADE_EXAMPLE}]})

    @classmethod
    def from_task(cls, asked: TaskInput, reply: TaskReply) -> QueryReply:
        reasoning, logprobs = _reasoning(asked, reply), to_bodies(reply.logprobs)
        return cls(answer=reply.text, reasoning=reasoning, logprobs=logprobs, **dict(_made(asked, reply)))


def _reasoning(asked: TaskInput, reply: TaskReply) -> ReasoningBody | None:
    if not (isinstance(asked.task, QueryTask) and asked.task.reasoning):
        return None
    grounding = [GroundingBody.from_grounding(each) for each in reply.grounding]
    return ReasoningBody(text=reply.thought, grounding=grounding)


class DetectAnswer(Body):
    objects: list[BoxBody] = Field(description="All `object` events, in their order.")


class DetectReply(MadeFields, DetectAnswer):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"objects": [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.4, "y_max": 0.5}], **MADE_EXAMPLE}]
        }
    )

    @classmethod
    def from_task(cls, asked: TaskInput, reply: TaskReply) -> DetectReply:
        return cls(objects=[BoxBody.from_box(box) for box in reply.found], **dict(_made(asked, reply)))


class PointAnswer(Body):
    points: list[PointBody] = Field(description="All `point` events, in their order.")


class PointReply(MadeFields, PointAnswer):
    model_config = ConfigDict(json_schema_extra={"examples": [{"points": [{"x": 0.25, "y": 0.35}], **MADE_EXAMPLE}]})

    @classmethod
    def from_task(cls, asked: TaskInput, reply: TaskReply) -> PointReply:
        return cls(points=[PointBody.from_point(point) for point in reply.found], **dict(_made(asked, reply)))


# ------------------------------------------------------------------------------------- events


class TaskStartEvent(Body):
    model: str
    image_id: str | None
