"""What POST /v1/chat/completions takes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field
from pydantic.config import JsonDict

from deployments.ingress.body import Body
from deployments.ingress.openai.message_schemas import NO_AUDIO, NO_TOOLS, MessageBody, NoItems
from deployments.ingress.openai.refusing import refusing
from deployments.ingress.sampling_schemas import Stop, as_list

MAX_KEY_CHARS = 512
RED_SQUARE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP8z4AdMDEMKQkAzUEBD7t4"
    "NqoAAAAASUVORK5CYII="
)
EXAMPLE: JsonDict = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is in this picture?"},
                {"type": "image_url", "image_url": {"url": RED_SQUARE}},
            ],
        }
    ],
    "max_completion_tokens": 50,
}
LEAST_SEED, MOST_SEED = -(2**63), 2**63 - 1


Key = Annotated[str, Field(max_length=MAX_KEY_CHARS)]  # "" is none: some clients always send it
Number = Annotated[float, Field(allow_inf_nan=False)]
NoEntries = Annotated[dict[str, None], Field(max_length=0)]
TokenLimit = Annotated[int, Field(ge=1)]


class StreamOptionsBody(Body):
    include_usage: bool | None = Field(
        None, description="Before [DONE] one more chunk comes, without choices and with `usage`."
    )
    include_obfuscation: Annotated[
        Literal[False] | None, refusing("streams are not padded with obfuscation here", False)
    ] = None


class TextFormatBody(Body):
    type: Literal["text"]


class JsonObjectFormatBody(Body):
    type: Literal["json_object"]
    value: dict[str, Any] | None = Field(
        None, description="JSON Schema: what huggingface_hub's client makes of `json_schema`."
    )


class JsonSchemaBody(Body):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = Field(None, description="For people: models here are held to the schema, not told of it.")
    schema_: dict[str, Any] = Field({}, alias="schema", description="JSON Schema; left out, any JSON will do.")
    strict: bool | None = Field(None, description="Plays no part: answers always fit the schema.")


class JsonSchemaFormatBody(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchemaBody


Format = Annotated[TextFormatBody | JsonObjectFormatBody | JsonSchemaFormatBody, Discriminator("type")]


class ChatFields(Body):
    messages: list[MessageBody] = Field(min_length=1, description="The conversation, the user's question last.")
    model: str | None = Field(None, description="One of GET /v1/models; left out, the default.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptionsBody | None = Field(None, description="Only with `stream`.")
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="So many answers, up to ingress.max_choices.")
    max_tokens: TokenLimit | None = Field(None, description="The older name of max_completion_tokens.")
    max_completion_tokens: TokenLimit | None = Field(
        None, description="Up to the model's max_output_tokens; left out, its default."
    )
    stop: Annotated[list[Stop] | None, BeforeValidator(as_list)] = Field(
        None, description="One or several; the answer ends before the first of them."
    )
    response_format: Format | None = Field(
        None, description="`json_object` and `json_schema`: answers are JSON by construction, token by token."
    )
    logprobs: bool | None = Field(None, description="Tell how probable each token was.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(None, description="Only with `logprobs`.")
    prompt_cache_key: Key | None = Field(
        None, description="Requests with the same key go to the same replica, which remembers their beginnings."
    )
    safety_identifier: Key | None = Field(None, description="As `user`.")
    user: Key | None = Field(None, description="As prompt_cache_key, where there is none.")


class ChatSamplingFields(Body):
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = Field(
        None, description="Left out: 0, unlike OpenAI's 1. 0 always takes the likeliest token."
    )
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(None, description="0 keeps all tokens.")
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = Field(
        None, description="Leaves out tokens less probable than this share of the likeliest one."
    )
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = Field(
        None, description="1 is none; left out, the checkpoint's own."
    )
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=LEAST_SEED, le=MOST_SEED)] | None = Field(
        None, description="Makes answers with a temperature repeatable; each of `n` gets its own that follows from it."
    )


class RefusedFields(Body):
    """Fields of OpenAI's that have no counterpart here."""

    tools: Annotated[NoItems | None, refusing(NO_TOOLS, [])] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, refusing(NO_TOOLS, "none", "auto")] = None
    parallel_tool_calls: bool | None = Field(None, description="There are no tool calls, parallel or not.")
    functions: Annotated[NoItems | None, refusing(NO_TOOLS, [])] = None
    function_call: Annotated[Literal["none", "auto"] | None, refusing(NO_TOOLS, "none", "auto")] = None
    logit_bias: Annotated[NoEntries | None, refusing("logit_bias is not supported", {})] = None
    modalities: Annotated[list[Literal["text"]] | None, refusing(NO_AUDIO, ["text"])] = None
    audio: Annotated[None, refusing(NO_AUDIO)] = None
    prediction: Annotated[None, refusing("predicted outputs are not supported")] = None
    reasoning_effort: Annotated[Literal["none"] | None, refusing("these models do not reason first", "none")] = None
    verbosity: Annotated[Literal["medium"] | None, refusing("ask for short or long answers in words", "medium")] = None
    metadata: Annotated[NoEntries | None, refusing("completions are not stored, and so is nothing about them", {})] = (
        None
    )
    store: Annotated[
        Literal[False] | None,
        refusing("completions are not stored; POST /v1/responses and POST /chat keep conversations", False),
    ] = None
    service_tier: Annotated[
        Literal["auto", "default"] | None, refusing("there is one service tier, `default`", "auto", "default")
    ] = None
    prompt_cache_retention: Annotated[
        Literal["in_memory"] | None, refusing("beginnings are remembered in memory only", "in_memory")
    ] = None
    prompt_cache_options: Annotated[None, refusing("remembering beginnings has no options here")] = None
    moderation: Annotated[None, refusing("there is no moderation here")] = None
    web_search_options: Annotated[None, refusing("there is no web search here")] = None


# pydantic lists the fields of the last base class first.
class ChatCompletionRequest(RefusedFields, ChatSamplingFields, ChatFields):
    """A conversation that goes on; the client holds it, nothing of it is stored but its pictures."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})
