"""/v1/conversations: sessions by the name that OpenAI's clients have for them; metadata is kept beside the session."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import Counter
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field, ValidationError

from deployments.errors import RecordNotFound, RetinaError, SessionNotFound
from deployments.ingress.body import Body
from deployments.ingress.error_replies import shorten
from deployments.ingress.openai.error_shape import ERRORS, PREFIX
from deployments.ingress.openai.json_body import document_json, read_json
from deployments.ingress.openai.refusing import refusing
from deployments.ingress.responses.checks import check_text_of
from deployments.ingress.responses.naming import in_our_words
from deployments.ingress.responses.request import Metadata
from deployments.ingress.responses.resource import ItemBody, ItemList, NoItems
from deployments.ingress.responses.retrieval import ItemsQuery, to_page
from deployments.ingress.responses.stored import GivenPicture, StoredItem
from deployments.ingress.services import Given, Services
from deployments.ingress.tenants import Tenant
from deployments.record_types import Record
from deployments.types import ImagePart, Message

router = APIRouter(prefix=f"{PREFIX}/conversations", tags=["responses"], responses=ERRORS)

NO_ITEMS = "a conversation begins with its first response: send items as the input of that one"


class CreateConversation(Body):
    items: Annotated[NoItems | None, refusing(NO_ITEMS, [])] = None
    metadata: Metadata | None = None


class UpdateConversation(Body):
    metadata: Metadata | None = Field(description="In place of what was there.")


class ConversationBody(Body):
    id: str = Field(description="For `conversation` of POST /v1/responses, and for `session_id` of POST /chat.")
    object: Literal["conversation"] = "conversation"
    created_at: int = Field(description="Unix time; of a session of /chat, that of its oldest message.")
    metadata: dict[str, str]


class DeletedConversation(Body):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: Literal[True] = True


@router.post("", openapi_extra={"requestBody": document_json(CreateConversation)})
async def create_conversation(request: Request, services: Given, tenant: Tenant) -> ConversationBody:
    """A name for a conversation, and what is to be remembered of it. Its session begins with the first response."""
    asked = await read_json(request, CreateConversation)
    check_text_of(asked)
    made = ConversationBody(
        id=f"conv_{secrets.token_hex(16)}", created_at=int(time.time()), metadata=asked.metadata or {}
    )
    await _keep(made, services, tenant)
    return made


@router.get("/{conversation_id}")
async def get_conversation(conversation_id: str, services: Given, tenant: Tenant) -> ConversationBody:
    """Of any session, those of /chat included."""
    return await _find(conversation_id, services, tenant)


@router.post("/{conversation_id}", openapi_extra={"requestBody": document_json(UpdateConversation)})
async def update_conversation(
    conversation_id: str, request: Request, services: Given, tenant: Tenant
) -> ConversationBody:
    asked = await read_json(request, UpdateConversation)
    check_text_of(asked)
    found = await _find(conversation_id, services, tenant)
    changed = found.model_copy(update={"metadata": asked.metadata or {}})
    await _keep(changed, services, tenant)
    return changed


@router.delete("/{conversation_id}")
async def delete_conversation(conversation_id: str, services: Given, tenant: Tenant) -> DeletedConversation:
    """Forget the session, too. Responses that belong to it stay until they are deleted themselves."""
    absent = 0
    try:
        await services.records.delete_record(tenant, "conversation", conversation_id)
    except RecordNotFound:
        absent += 1
    try:
        with in_our_words():
            await services.archive.delete_session(tenant, conversation_id)
    except SessionNotFound:
        absent += 1
    if absent == 2:
        raise _not_found(conversation_id)
    return DeletedConversation(id=conversation_id)


@router.get("/{conversation_id}/items")
async def list_conversation_items(
    conversation_id: str, query: Annotated[ItemsQuery, Query()], services: Given, tenant: Tenant
) -> ItemList:
    """The messages that the session keeps."""
    await _find(conversation_id, services, tenant)
    messages = await _history(conversation_id, services, tenant) or ()
    items = _to_items(conversation_id, messages)
    return to_page(items if query.order == "asc" else items[::-1], query.limit, query.after)


# ------------------------------------------------------------------------------------- keeping and finding


async def _keep(conversation: ConversationBody, services: Services, tenant: str) -> None:
    body = conversation.model_dump_json()
    record = Record("conversation", conversation.id, conversation.created_at, body)
    await services.records.put_record(tenant, record)


async def _find(conversation_id: str, services: Services, tenant: str) -> ConversationBody:
    """Raises RecordNotFound."""
    try:
        record = await services.records.record(tenant, "conversation", conversation_id)
    except RecordNotFound:
        return await _of_session(conversation_id, services, tenant)
    try:
        return ConversationBody.model_validate_json(record.body)
    except ValidationError as error:
        raise RetinaError("the record of this conversation is damaged; delete it", "conversation_id") from error


async def _of_session(conversation_id: str, services: Services, tenant: str) -> ConversationBody:
    messages = await _history(conversation_id, services, tenant)
    if messages is None:
        raise _not_found(conversation_id)
    oldest_s = datetime.fromisoformat(messages[0].timestamp).timestamp()
    return ConversationBody(id=conversation_id, created_at=int(oldest_s), metadata={})


async def _history(conversation_id: str, services: Services, tenant: str) -> tuple[Message, ...] | None:
    """None before the first response. Raises InvalidRequest for what cannot be an id."""
    try:
        with in_our_words():
            return await services.archive.history(tenant, conversation_id)
    except SessionNotFound:
        return None


def _not_found(conversation_id: str) -> RecordNotFound:
    return RecordNotFound(f"there is no conversation {shorten(conversation_id)!r}", "conversation_id")


def _to_items(conversation_id: str, messages: tuple[Message, ...]) -> list[ItemBody]:
    """Oldest first. Ids stay the same while the oldest messages go."""
    numbers: Counter[str] = Counter()  # of messages with one timestamp, counted from the newest
    items: list[ItemBody] = []
    for message in reversed(messages):
        numbers[message.timestamp] += 1
        name = f"{conversation_id}\0{message.timestamp}\0{numbers[message.timestamp]}"
        items.append(_to_item(f"msg_{hashlib.sha256(name.encode()).hexdigest()[:32]}", message))
    return items[::-1]


def _to_item(item_id: str, message: Message) -> ItemBody:
    content = tuple(
        GivenPicture(part.image, part.image.id) if isinstance(part, ImagePart) else part for part in message.content
    )
    return StoredItem(item_id, message.role, content).to_body()
