"""The words that all parts share: values that travel between them, and the Protocols through which they see each other.

Standard library only. Values are frozen; they cross processes by pickle, so fields are plain data.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    from deployments.record_types import Record

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
Skill = Literal["caption", "query", "detect", "point"]
CaptionLength = Literal["short", "normal", "long"]
FeatureSource = Literal["tower", "memory", "disk"]
EncodeSource = FeatureSource | Literal["kv"]  # "kv": no features were needed, K and V of the picture were still there
FeatureDtype = Literal["float32", "float16", "bfloat16"]
Json = Mapping[str, object]


# --------------------------------------------------------------------------------- conversation


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A stored picture. After the ingress nobody handles its bytes except image stores and towers."""

    id: str  # HMAC-SHA-256 of the encoded bytes under the tenant's secret, 64 hex digits
    width: int  # px, after EXIF rotation
    height: int  # px, after EXIF rotation
    num_bytes: int  # of the encoded file
    media_type: str  # "image/png", "image/jpeg", ...


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    image: ImageRef


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: tuple[Part, ...]
    timestamp: str = ""  # ISO 8601, UTC, milliseconds, "2025-01-01T12:00:00.000Z"; "" where nobody stores it

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImageRef, ...]:
        return tuple(part.image for part in self.content if isinstance(part, ImagePart))


# --------------------------------------------------------------------------------- tasks: one picture, no session


@dataclass(frozen=True, slots=True)
class CaptionTask:
    length: CaptionLength = "normal"
    language: str = "en"  # ISO 639-1
    prompt: str | None = None  # in place of the words that length and language stand for


@dataclass(frozen=True, slots=True)
class QueryTask:
    question: str
    reasoning: bool = False  # think first; the thoughts come as `Chunk.thought`
    spatial_refs: tuple[tuple[float, ...], ...] = ()  # points (x, y) and boxes (x_min, y_min, x_max, y_max) asked about


@dataclass(frozen=True, slots=True)
class DetectTask:
    object: str
    max_objects: int = 50


@dataclass(frozen=True, slots=True)
class PointTask:
    object: str
    max_objects: int = 50


Task = CaptionTask | QueryTask | DetectTask | PointTask
SKILL_OF: Mapping[type[Task], Skill] = {
    CaptionTask: "caption",
    QueryTask: "query",
    DetectTask: "detect",
    PointTask: "point",
}


@dataclass(frozen=True, slots=True)
class Box:
    """Shares of the picture's width and height from its top left corner; rounding may put them a little outside."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True, slots=True)
class Point:
    """Shares of the picture's width and height from its top left corner."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Grounding:
    """What a stretch of the thoughts speaks of: `thought[start:end]`, all thoughts joined."""

    start: int
    end: int
    points: tuple[Point, ...]


# --------------------------------------------------------------------------------- vision_encoder


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    tenant: str
    model: str  # configured model name; the encoder knows which tower serves it
    image: ImageRef
    timeout_s: float


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What a tower saw in one picture."""

    array: np.ndarray  # (image_tokens, D); bfloat16 travels as uint16 bits, numpy has no bfloat16
    dtype: FeatureDtype
    source: FeatureSource  # "tower": computed for this request (or one it shared), else the cache level that had it
    encode_ms: float  # spent inside vision_encoder for this request, waiting included
    tower: str = ""  # fingerprint of the tower and of the preprocessing that made them


class VisionEncoder(Protocol):
    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        """Features of one picture for one model. Raises ImageNotFound, InvalidImage, DeadlineExceeded."""
        ...

    async def statistics(self) -> Json: ...


# --------------------------------------------------------------------------------- generator


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must be, token by token."""

    kind: Literal["json_object", "json_schema"]
    schema: str = ""  # of json_schema: JSON Schema as JSON text


@dataclass(frozen=True, slots=True)
class SamplingParams:
    temperature: float = 0.0  # 0 is greedy; top_p, top_k, min_p and seed then play no part
    top_p: float = 1.0  # (0, 1]
    top_k: int = 0  # 0 keeps all
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()  # the answer ends before the first of these
    seed: int | None = None  # None draws a fresh one
    repetition_penalty: float | None = None  # of prompt and answer; None: the checkpoint's own, 1 is none
    min_p: float = 0.0  # [0, 1]: tokens less probable than this share of the most probable one are ruled out
    presence_penalty: float = 0.0  # [-2, 2], taken once off the logit of each token that the answer holds
    frequency_penalty: float = 0.0  # [-2, 2], taken off as often as the answer holds the token
    num_logprobs: int | None = None  # 0 to 20 alternatives reported beside each token; None: no log probabilities
    grammar: Grammar | None = None  # None: the model may say anything


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    request_id: str
    tenant: str
    messages: tuple[Message, ...]  # the whole prompt, oldest first, ends with the user's question
    sampling: SamplingParams
    timeout_s: float  # from arrival at the generator to the last token
    session_key: str = ""  # opaque affinity key: requests with equal keys go to one replica while it has room
    task: Task | None = None  # then `messages` is one user message with at most a picture; None: a conversation
    priority: int = 0  # higher ones are begun first; equal ones in order of arrival
    answered: tuple[int, ...] = ()  # token ids of this answer that were streamed before: it goes on after them
    keeps_all: bool = False  # too long a conversation is refused, instead of going on without its oldest exchanges


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int  # image tokens included
    image_tokens: int
    reused_tokens: int  # of prompt_tokens, those that were not computed again
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of one answer, measured by the generator."""

    queue_ms: float  # arrival to the start of prefill, encode_ms left out
    encode_ms: float  # wait for image features; 0 without picture
    prefill_ms: float
    decode_ms: float  # first token to last token
    first_token_ms: float  # arrival to first token
    encode_source: EncodeSource | None = None  # None without picture


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have been chosen."""

    token_id: int
    text: str  # by itself; what is no whole character shows as U+FFFD
    logprob: float  # natural logarithm, of the model's own distribution: before temperature, filters and penalties


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The token that was chosen, and the most probable ones in its place."""

    chosen: Alternative
    top: tuple[Alternative, ...] = ()  # most probable first; `num_logprobs` of them


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last one, and only it, has finish_reason and grounding."""

    text: str
    num_tokens: int
    finish_reason: FinishReason | None = None
    usage: Usage | None = None  # of the first and the last chunk: up to here
    timings: Timings | None = None  # of the first and the last chunk: up to here
    thought: str = ""  # text that comes before the answer and is no part of it
    found: tuple[Box | Point, ...] = ()  # of a DetectTask, of a PointTask
    grounding: tuple[Grounding, ...] = ()  # of all thoughts
    logprobs: tuple[TokenLogprob, ...] = ()  # of this chunk's tokens in order, if they were asked for
    token_ids: tuple[int, ...] = ()  # of this chunk's tokens in order, what ended the answer left out


class Generator(Protocol):
    def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Chunks of one answer. Closing the iterator cancels the request and frees its slot within one step.

        Raises Overloaded, PromptTooLong, DeadlineExceeded, and what the vision encoder raises.
        """
        ...

    async def statistics(self) -> Json: ...


# --------------------------------------------------------------------------------- session_router


@dataclass(frozen=True, slots=True)
class TurnRequest:
    request_id: str
    tenant: str
    session_id: str | None  # None: the router makes one
    text: str = ""  # the question
    image: ImageRef | None = None  # replaces the session's picture
    model: str | None = None  # None: the session's model, or the default
    lease: str | None = None  # minted by a caller who must be able to give it back without the reply; None: the router
    input: tuple[Message, ...] = ()  # in place of text and image: what this turn adds, the user's question last
    instructions: str = ""  # a system message for this turn alone; it is not kept
    follows: str | None = None  # lease of the turn that must be the session's last one; None: whichever it is


@dataclass(frozen=True, slots=True)
class Turn:
    """An open turn: a lease on its session that expires by itself."""

    tenant: str
    session_id: str
    lease: str  # proves to close_turn that this turn still holds the session
    model: str
    messages: tuple[Message, ...]  # the prompt: instructions, kept history, then what this turn adds
    session_key: str  # affinity, hashed from tenant and session
    num_new: int = 1  # of messages, those at the end that this turn adds

    @property
    def has_image(self) -> bool:
        return any(message.images for message in self.messages)


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    turn: Turn
    answer: str | None  # None: the turn failed or was cancelled, the session stays as it was
    usage: Usage | None = None
    records: tuple[Record, ...] = ()  # stored together with the answer, or not at all


class SessionRouter(Protocol):
    async def open_turn(self, request: TurnRequest) -> Turn:
        """Take the session's lease, waiting a bounded time for another turn.

        Raises SessionBusy, UnknownModel, NotLastTurn.
        """
        ...

    async def close_turn(self, outcome: TurnOutcome) -> int:
        """Store the exchange (or nothing) and give the lease back; returns the number of messages kept.

        Raises LeaseLost when the turn outlived its lease; nothing is stored then.
        """
        ...


@dataclass(frozen=True, slots=True)
class SessionSummary:
    session_id: str
    length: int  # messages kept
    has_image: bool
    model: str
    updated: str  # ISO 8601, UTC, milliseconds
    title: str = ""  # beginning of the session's first question


class SessionArchive(Protocol):
    """What people may see and delete of their sessions."""

    async def history(self, tenant: str, session_id: str) -> tuple[Message, ...]:
        """Kept messages, oldest first. Raises SessionNotFound."""
        ...

    async def sessions(self, tenant: str, limit: int) -> tuple[SessionSummary, ...]:
        """At most `limit` sessions of the tenant, last used first."""
        ...

    async def delete_session(self, tenant: str, session_id: str) -> None:
        """Forget the session, an open turn included. Raises SessionNotFound."""
        ...


# --------------------------------------------------------------------------------- image store


@dataclass(frozen=True, slots=True)
class StoredImage:
    ref: ImageRef
    data: bytes = field(repr=False)  # the encoded file as it arrived


class ImageStore(Protocol):
    """Pictures by tenant and id. Ids of other tenants look like ids that do not exist.

    All methods raise PartUnavailable when the store itself fails.
    """

    async def put(self, tenant: str, image: StoredImage) -> None: ...

    async def get(self, tenant: str, image_id: str) -> StoredImage:
        """Raises ImageNotFound."""
        ...

    async def find(self, tenant: str, image_id: str) -> ImageRef:
        """Cheap: does not read the picture. Raises ImageNotFound."""
        ...

    async def delete(self, tenant: str, image_id: str) -> None:
        """Raises ImageNotFound."""
        ...
