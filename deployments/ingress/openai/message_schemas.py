"""Messages of POST /v1/chat/completions as clients send them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from deployments.ingress.body import Body
from deployments.ingress.openai.picture_parts import DETAIL, Detail
from deployments.ingress.openai.refusing import refusing

NO_NAMES = "names of participants are not shown to the models here; write them into the content"
NO_TOOLS = "function tools are not supported"
NO_AUDIO = "audio is not supported; models here read text and pictures"

NoItems = Annotated[list[None], Field(max_length=0)]
Name = Annotated[None, refusing(NO_NAMES)]


def text_or_parts(content: object) -> str | None:
    """Which of the two it is meant to be, so that errors speak of that one alone."""
    if isinstance(content, str):
        return "text"
    return "parts" if isinstance(content, list) else None


class TextBody(Body):
    type: Literal["text"]
    text: str


class RefusalBody(Body):
    type: Literal["refusal"]
    refusal: str


class ImageUrlBody(Body):
    url: str = Field(
        description="A data URL, data:image/...;base64,..., or the id of a file from POST /v1/files or of a picture "
        "from POST /images. Addresses of the web are not fetched."
    )
    detail: Detail | None = Field(None, description=DETAIL)


class ImageUrlPartBody(Body):
    type: Literal["image_url"]
    image_url: ImageUrlBody


class FileIdBody(Body):
    file_id: str = Field(description="Of a picture from POST /v1/files.")
    file_data: Annotated[None, refusing("send a picture's data as image_url, other files are not read")] = None
    filename: Annotated[None, refusing("names of files play no part")] = None


class FilePartBody(Body):
    type: Literal["file"]
    file: FileIdBody


UserPart = Annotated[TextBody | ImageUrlPartBody | FilePartBody, Discriminator("type")]
AssistantPart = Annotated[TextBody | RefusalBody, Discriminator("type")]
TextParts = Annotated[list[TextBody], Field(min_length=1), Tag("parts")]
UserParts = Annotated[list[UserPart], Field(min_length=1), Tag("parts")]
AssistantParts = Annotated[list[AssistantPart], Field(min_length=1), Tag("parts")]
Text = Annotated[str, Tag("text")]
ByKind = Discriminator(
    text_or_parts,
    custom_error_type="content_type",
    custom_error_message="Input should be a string or a list of content parts",
)


class SystemMessageBody(Body):
    role: Literal["system", "developer"] = Field(description="`developer` is the newer word for `system`.")
    content: Annotated[Text | TextParts, ByKind]
    name: Name = None


class UserMessageBody(Body):
    role: Literal["user"]
    content: Annotated[Text | UserParts, ByKind] = Field(
        description="Pictures behind all words of a message go before them, as in POST /chat: the same question gets "
        "the same answer wherever a client puts its picture. Between words they stay where they are."
    )
    name: Name = None


class AssistantMessageBody(Body):
    """An earlier answer, as it was given: with all that the official SDKs send back of it."""

    role: Literal["assistant"]
    content: Annotated[Text | AssistantParts, ByKind] | None = None
    refusal: str | None = None
    name: Name = None
    annotations: Annotated[NoItems | None, refusing("annotations are not supported", [])] = None
    audio: Annotated[None, refusing(NO_AUDIO)] = None
    tool_calls: Annotated[NoItems | None, refusing(NO_TOOLS, [])] = None
    function_call: Annotated[None, refusing(NO_TOOLS)] = None
    provider_specific_fields: dict[str, None] | None = Field(
        None, description="LiteLLM's, which sends it back with every answer; nothing may stand in it."
    )


MessageBody = Annotated[SystemMessageBody | UserMessageBody | AssistantMessageBody, Discriminator("role")]
