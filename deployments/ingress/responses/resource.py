"""The response object and what it holds, as Open Responses and OpenAI's SDK read it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field

from deployments.ingress.body import Body
from deployments.types import Usage

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
Detail = Literal["auto", "low", "high", "original"]
NoItems = Annotated[list[None], Field(max_length=0)]


# ------------------------------------------------------------------------------------- content parts


class AlternativeLogprob(Body):
    token: str = Field(description="By itself; what is no whole character shows as U+FFFD.")
    logprob: float = Field(description="Natural logarithm, before temperature, filters and penalties.")
    bytes: list[int] = Field(description="Of the token in UTF-8; empty where it is no whole character.")


class TextLogprob(AlternativeLogprob):
    top_logprobs: list[AlternativeLogprob]


class OutputText(Body):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: NoItems = Field(default=[], description="Models here cite nothing.")
    logprobs: list[TextLogprob] = Field([], description="One for each token, if they were asked for.")


class InputTextBody(Body):
    type: Literal["input_text"] = "input_text"
    text: str


class InputImageBody(Body):
    type: Literal["input_image"] = "input_image"
    image_url: None = Field(None, description="The picture itself is not repeated.")
    file_id: str = Field(description="As it was given, or the id of the stored picture for GET /images/{id}.")
    detail: Detail


# ------------------------------------------------------------------------------------- items


class OutputMessage(Body):
    type: Literal["message"] = "message"
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class InputMessageBody(Body):
    type: Literal["message"] = "message"
    id: str
    status: ItemStatus = "completed"
    role: Literal["user", "system", "developer"]
    content: list[Annotated[InputTextBody | InputImageBody, Discriminator("type")]]


ItemBody = Annotated[OutputMessage | InputMessageBody, Discriminator("role")]


class ItemList(Body):
    object: Literal["list"] = "list"
    data: list[ItemBody]
    first_id: str | None = Field(description="Null where the list is empty.")
    last_id: str | None
    has_more: bool


# ------------------------------------------------------------------------------------- settings that are told back


class TextFormat(Body):
    type: Literal["text"] = "text"


class JsonObjectFormat(Body):
    type: Literal["json_object"] = "json_object"


class JsonSchemaFormat(Body):
    type: Literal["json_schema"] = "json_schema"
    name: str
    description: str | None = None
    schema_: dict[str, object] = Field(alias="schema")
    strict: bool | None = None


class TextSettings(Body):
    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Discriminator("type")] = TextFormat()
    verbosity: Literal["medium"] = "medium"


class ReasoningSettings(Body):
    effort: Literal["none"] | None = None
    summary: None = None


class ConversationRef(Body):
    id: str = Field(description="Of the session: /chat goes on with it as session_id.")


# ------------------------------------------------------------------------------------- the response


class IncompleteDetails(Body):
    reason: Literal["max_output_tokens"]


class ResponseFault(Body):
    code: str = Field(
        description="OpenAI's: server_error, invalid_prompt, rate_limit_exceeded, or one about a picture."
    )
    message: str
    param: str | None = None


class InputTokensDetails(Body):
    cached_tokens: int = Field(description="Of input_tokens, those that did not have to be computed again.")
    image_tokens: int
    cache_write_tokens: Literal[0] = Field(0, description="What is remembered for later costs nothing.")


class OutputTokensDetails(Body):
    reasoning_tokens: Literal[0] = 0


class ResponseUsage(Body):
    input_tokens: int = Field(description="Image tokens included.")
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int

    @classmethod
    def from_usage(cls, usage: Usage) -> ResponseUsage:
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.reused_tokens, image_tokens=usage.image_tokens),
            output_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )


class ResponseBody(Body):
    """An answer, or one that is still to come."""

    id: str
    object: Literal["response"] = "response"
    created_at: int = Field(description="Unix time.")
    completed_at: int | None = Field(None, description="Unix time: when it was created and what the model took for it.")
    status: Status
    background: bool
    error: ResponseFault | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputMessage] = Field(default=[])
    usage: ResponseUsage | None = None
    conversation: ConversationRef | None = Field(None, description="Null for a response that is not stored.")
    previous_response_id: str | None
    instructions: str | None
    store: bool
    max_output_tokens: int | None
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    text: TextSettings
    reasoning: ReasoningSettings
    truncation: Literal["auto", "disabled"]
    tools: NoItems = Field(default=[])
    tool_choice: Literal["auto", "none"]
    parallel_tool_calls: bool
    max_tool_calls: int | None
    service_tier: Literal["default"] = "default"
    metadata: dict[str, str]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None


class DeletedResponse(Body):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
