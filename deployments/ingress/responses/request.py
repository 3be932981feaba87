"""The body of POST /v1/responses: what may be asked, and what is refused because nobody would act on it."""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Discriminator, Field, Tag

from deployments.errors import InvalidRequest
from deployments.ingress.body import Body
from deployments.ingress.openai.refusing import refusing
from deployments.ingress.responses.input_items import NO_TOOLS, GivenInput
from deployments.ingress.responses.resource import (
    ConversationRef,
    JsonObjectFormat,
    JsonSchemaFormat,
    NoItems,
    ReasoningSettings,
    TextFormat,
    TextSettings,
)
from deployments.ingress.sampling_schemas import Stop, as_list
from deployments.ingress.turn_types import SamplingWish
from deployments.types import Grammar

T = TypeVar("T")
LOGPROBS = "message.output_text.logprobs"
DEFAULT_TEMPERATURE = 0.0  # as on every other surface here


def _id_or_object(given: object) -> str | None:
    if isinstance(given, str):
        return "id"
    return "object" if isinstance(given, dict | ConversationRef) else None


GivenConversation = Annotated[
    Annotated[str, Tag("id")] | Annotated[ConversationRef, Tag("object")],
    Discriminator(
        _id_or_object,
        custom_error_type="id_or_object_type",
        custom_error_message="Input should be an id or an object with an id",
    ),
]


class StreamOptions(Body):
    include_obfuscation: Annotated[
        Literal[False] | None, refusing("streams are not padded with obfuscation here", False)
    ] = None


class JsonSchemaAsked(Body):
    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = Field(None, description="For people: models here are held to the schema, not told of it.")
    schema_: dict[str, object] = Field({}, alias="schema", description="JSON Schema; left out, any JSON will do.")
    strict: bool | None = Field(None, description="Plays no part: answers always fit the schema.")


class TextAsked(Body):
    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaAsked, Discriminator("type")] | None = None
    verbosity: Annotated[Literal["medium"] | None, refusing("ask for short or long answers in words", "medium")] = None


class ReasoningAsked(Body):
    effort: Annotated[Literal["none"] | None, refusing("these models do not reason first", "none")] = None
    summary: Annotated[None, refusing("these models do not reason first")] = None
    generate_summary: Annotated[None, refusing("these models do not reason first")] = None


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class CreateResponse(Body):
    """A question, perhaps about pictures: alone, after another response, or in a conversation."""

    model: str | None = Field(None, description="Left out: the conversation's model, or the default.")
    input: GivenInput = Field(description="The user's message, or items of which the last one is the user's message.")
    instructions: str | None = Field(None, description="A system message for this response alone.")
    previous_response_id: str | None = Field(
        None,
        description="Go on after this response. Where its conversation went on since, a new one is begun from there.",
    )
    conversation: GivenConversation | None = Field(
        None,
        description="Go on in this conversation, or begin it: the id of any session, those of /chat included. "
        "Not together with `previous_response_id`.",
    )
    store: bool | None = Field(
        None,
        description="false: neither response nor conversation are kept. Left out: the response is stored, in a new "
        "conversation if none is named.",
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None
    background: bool | None = Field(None, description="Reply at once; poll, stream or cancel the response by its id.")
    resumable: bool | None = Field(
        None,
        description="Not OpenAI's. Keep the stream: whoever breaks off can go on with GET /v1/responses/{id}"
        "?stream=true&starting_after=N or the header Last-Event-ID. A background response is always kept.",
    )
    max_output_tokens: int | None = Field(None, ge=1, description="Left out: the model's default.")
    temperature: float | None = Field(
        None, ge=0, le=2, allow_inf_nan=False, description="Left out: 0, which always takes the likeliest token."
    )
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="So many of the likeliest tokens beside each one of the answer."
    )
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = Field(
        None,
        description="Tell how probable each token of the answer was; `top_logprobs` alone does, too. There is no "
        "reasoning, encrypted or not.",
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=1_000_000, description="Not OpenAI's. 0 keeps all tokens.")
    min_p: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="Not OpenAI's. As `min_p` of POST /chat."
    )
    repetition_penalty: float | None = Field(
        None, gt=0, le=10, allow_inf_nan=False, description="Not OpenAI's. As `repetition_penalty` of POST /chat."
    )
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="Not OpenAI's. Makes answers with a temperature repeatable."
    )
    stop: Annotated[list[Stop] | None, BeforeValidator(as_list)] = Field(
        None, description="Not OpenAI's. One or several; the answer ends before the first of them."
    )
    text: TextAsked | None = None
    reasoning: ReasoningAsked | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None,
        description="`auto`: what is too long for the model goes on without its oldest exchanges. `disabled`, or left "
        "out: it is refused.",
    )
    tools: Annotated[NoItems | None, refusing(NO_TOOLS, [])] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, refusing(NO_TOOLS, "none", "auto")] = None
    parallel_tool_calls: bool | None = Field(None, description="There are no tools: either is as good.")
    max_tool_calls: int | None = Field(None, ge=1, description="There are no tools, so never more than this.")
    service_tier: Annotated[
        Literal["auto", "default"] | None, refusing("there is one service tier, `default`", "auto", "default")
    ] = None
    prompt: Annotated[None, refusing("prompts are not stored here; send instructions and input")] = None
    prompt_cache_retention: Annotated[
        Literal["in_memory"] | None, refusing("beginnings are remembered in memory only", "in_memory")
    ] = None
    prompt_cache_options: Annotated[None, refusing("remembering beginnings has no options here")] = None
    context_management: Annotated[None, refusing("contexts are not compacted; `truncation` cuts them")] = None
    moderation: Annotated[None, refusing("there is no moderation here")] = None
    metadata: Metadata | None = None
    user: str | None = Field(
        None, max_length=512, description="Told back. Without a conversation: as `prompt_cache_key`."
    )
    safety_identifier: str | None = Field(None, max_length=512, description="Told back.")
    prompt_cache_key: str | None = Field(
        None,
        max_length=512,
        description="Told back. Responses that are not stored and have it in common go to one replica of the model, "
        "which remembers what their prompts have in common.",
    )

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def is_kept(self) -> bool:
        """Its events can be read again."""
        return bool(self.background or self.resumable)

    @property
    def conversation_id(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, ConversationRef) else self.conversation

    @property
    def num_logprobs(self) -> int | None:
        if self.top_logprobs or LOGPROBS in (self.include or []):
            return self.top_logprobs or 0
        return None

    def to_sampling(self) -> SamplingWish:
        return SamplingWish(
            temperature=_or(self.temperature, DEFAULT_TEMPERATURE),
            top_p=_or(self.top_p, 1.0),
            top_k=_or(self.top_k, 0),
            min_p=_or(self.min_p, 0.0),
            repetition_penalty=self.repetition_penalty,
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            max_new_tokens=self.max_output_tokens,
            stop=tuple(self.stop or ()),
            seed=self.seed,
            num_logprobs=self.num_logprobs,
            grammar=self._grammar(),
        )

    def to_text_settings(self) -> TextSettings:
        """As it is told back."""
        asked = self.text.format if self.text is not None else None
        if isinstance(asked, JsonSchemaAsked):
            return TextSettings(format=JsonSchemaFormat.model_validate(asked.model_dump(by_alias=True)))
        return TextSettings(format=asked or TextFormat())

    def to_reasoning_settings(self) -> ReasoningSettings:
        effort = self.reasoning.effort if self.reasoning is not None else None
        return ReasoningSettings(effort="none" if effort is not None else None)

    def _grammar(self) -> Grammar | None:
        asked = self.text.format if self.text is not None else None
        if isinstance(asked, JsonSchemaAsked):
            return Grammar("json_schema", _schema_text(asked.schema_))
        return Grammar("json_object") if isinstance(asked, JsonObjectFormat) else None


def _schema_text(schema: dict[str, object]) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except ValueError as error:  # Python reads more than JSON has
        raise InvalidRequest(f"the schema is not JSON: {error}", "text.format.schema") from error


def _or(given: T | None, default: T) -> T:
    return default if given is None else given
