"""The items of a request's input as pydantic models: messages, their parts, and references to items of before."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from deployments.ingress.body import Body
from deployments.ingress.openai.picture_parts import DETAIL, Detail
from deployments.ingress.openai.refusing import refusing
from deployments.ingress.responses.resource import ItemStatus, NoItems

NO_TOOLS = "function tools, and tools of any other kind, are not supported until they exist here"


def _text_or_list(given: object) -> str | None:
    if isinstance(given, str):
        return "text"
    return "list" if isinstance(given, list) else None


TEXT_OR_LIST = Discriminator(
    _text_or_list, custom_error_type="text_or_list_type", custom_error_message="Input should be a string or a list"
)


# ------------------------------------------------------------------------------------- parts


class InputText(Body):
    type: Literal["input_text"]
    text: str


class InputImage(Body):
    type: Literal["input_image"]
    image_url: str | None = Field(
        None,
        description="A data URL. The bytes decide what it is, not the declared type; other URLs are not fetched.",
    )
    file_id: str | None = Field(None, description="Of POST /v1/files or POST /images, instead of `image_url`.")
    detail: Detail | None = Field(None, description=DETAIL)


class AnswerText(Body):
    """A part of an answer, as it was given or as somebody wishes it had been given."""

    type: Literal["output_text", "input_text"]
    text: str
    annotations: Annotated[NoItems | None, refusing("citations are not supported", [])] = None
    logprobs: list[object] | None = Field(None, description="As they were given; a prompt has no use for them.")


UserParts = list[Annotated[InputText | InputImage, Discriminator("type")]]


# ------------------------------------------------------------------------------------- items


class _MessageFields(Body):
    type: Literal["message"] | None = Field(None, description="May be left out.")
    id: str | None = Field(None, description="Items that are stored get ids of their own.")
    status: ItemStatus | None = Field(None, description="As it was given.")


class UserItem(_MessageFields):
    role: Literal["user"]
    content: Annotated[Annotated[str, Tag("text")] | Annotated[UserParts, Tag("list")], TEXT_OR_LIST]


class SystemItem(_MessageFields):
    """What the model is told beside the conversation. It counts for this response and for those that follow it by
    `previous_response_id`; a session does not keep it.
    """

    role: Literal["system", "developer"]
    content: Annotated[Annotated[str, Tag("text")] | Annotated[list[InputText], Tag("list")], TEXT_OR_LIST]


class AnswerItem(_MessageFields):
    role: Literal["assistant"]
    content: Annotated[Annotated[str, Tag("text")] | Annotated[list[AnswerText], Tag("list")], TEXT_OR_LIST]
    phase: Annotated[None, refusing("answers have no phases here")] = None


class ItemReference(Body):
    """An item of a stored response, of its input or of its output."""

    type: Literal["item_reference"] | None = None
    id: str


def _kind_of(given: object) -> str | None:
    if not isinstance(given, dict):
        return None
    kind = given.get("type")
    if kind == "item_reference" or (kind is None and "role" not in given and "id" in given):
        return "reference"
    if kind not in (None, "message"):
        return None
    role = given.get("role")
    if role in ("system", "developer"):
        return "system"
    return role if role in ("user", "assistant") else None


InputItem = Annotated[
    Annotated[UserItem, Tag("user")]
    | Annotated[SystemItem, Tag("system")]
    | Annotated[AnswerItem, Tag("assistant")]
    | Annotated[ItemReference, Tag("reference")],
    Discriminator(
        _kind_of,
        custom_error_type="unsupported_item",
        custom_error_message="Input should be a message of user, assistant, system or developer, or an item_reference; "
        "items of tools and of reasoning are not supported",
    ),
]
MessageItem = UserItem | SystemItem | AnswerItem
GivenInput = Annotated[Annotated[str, Tag("text")] | Annotated[list[InputItem], Tag("list")], TEXT_OR_LIST]
