"""POST /v1/chat/completions: a conversation that the client holds, as OpenAI's clients speak."""

from __future__ import annotations

import time
import uuid

from fastapi import APIRouter, Request
from starlette.responses import Response

from deployments.errors import RetinaError
from deployments.ingress.completions import CompletionFinished, CompletionInput, choose_conversation_model
from deployments.ingress.connection import run_while_connected
from deployments.ingress.openai.chat_input import to_input
from deployments.ingress.openai.chat_schemas import ChatCompletionRequest
from deployments.ingress.openai.chat_stream import ChunkWriter, write_chunks
from deployments.ingress.openai.completion_schemas import (
    AnswerBody,
    ChatCompletion,
    ChatUsageBody,
    ChoiceBody,
    ChoiceLogprobsBody,
)
from deployments.ingress.openai.error_shape import ERRORS, PREFIX
from deployments.ingress.openai.fingerprints import fingerprint_of
from deployments.ingress.openai.json_body import document_json, read_json
from deployments.ingress.services import Given, Services
from deployments.ingress.sse import EventStream, open_events
from deployments.ingress.tenants import Tenant

router = APIRouter(prefix=PREFIX, tags=["openai"], responses=ERRORS)

# What generators say of a conversation, which they call by other names.
PARAMS = {"message": "messages", "role": "messages", "image": "messages", "max_new_tokens": "max_completion_tokens"}
EXAMPLE_EVENTS = (
    'data: {"id":"chatcmpl-…","object":"chat.completion.chunk",…,"choices":[{"index":0,'
    '"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}]}\n\n'
    'data: {…,"choices":[{"index":0,"delta":{"content":"A red"},"logprobs":null,"finish_reason":null}]}\n\n'
    'data: {…,"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    "data: [DONE]\n\n"
)


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {"example": EXAMPLE_EVENTS}}}},
    openapi_extra={"requestBody": document_json(ChatCompletionRequest)},
)
async def create_chat_completion(request: Request, services: Given, tenant: Tenant) -> ChatCompletion | Response:
    """Answer a conversation that the client holds. With `stream` the reply is server-sent events: chunks, with
    `stream_options.include_usage` one more with the usage and without choices, and one `[DONE]`; or `{"error": …}` as
    the last event.

    Without `temperature` answers are greedy: the same question gets the same answer as in POST /chat. Fields that are
    unknown, and values that could change nothing, are refused. A client that leaves cancels all choices.
    """
    asked = await read_json(request, ChatCompletionRequest)
    return await run_while_connected(request.receive, _answer(asked, services, tenant))


async def _answer(asked: ChatCompletionRequest, services: Services, tenant: str) -> ChatCompletion | Response:
    given = await to_input(asked, services, tenant)
    writer = _open_writer(asked, given, services)
    if asked.stream:
        lines = write_chunks(services.completions.stream(given), writer, _to_client)
        opening = await open_events(lines)
        return EventStream(opening, lines, bytes, services.config.ingress.turn_timeout_s)
    try:
        _, choices = await services.completions.reply(given)
    except RetinaError as error:
        raise _to_client(error) from error
    return _to_body(writer, choices)


def _open_writer(asked: ChatCompletionRequest, given: CompletionInput, services: Services) -> ChunkWriter:
    model = choose_conversation_model(services.config, given.model)
    return ChunkWriter(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        system_fingerprint=fingerprint_of(services.config, model),
        num_choices=given.num_choices,
        includes_usage=bool(asked.stream_options and asked.stream_options.include_usage),
    )


def _to_client(error: RetinaError) -> RetinaError:
    if error.param not in PARAMS:
        return error
    return type(error)(error.message, PARAMS[error.param], error.retry_after_s)


def _to_body(writer: ChunkWriter, choices: tuple[CompletionFinished, ...]) -> ChatCompletion:
    return ChatCompletion(
        id=writer.id,
        created=writer.created,
        model=writer.model,
        system_fingerprint=writer.system_fingerprint,
        choices=[
            ChoiceBody(
                index=choice.index,
                message=AnswerBody(content=choice.text),
                logprobs=ChoiceLogprobsBody.from_tokens(choice.logprobs),
                finish_reason=choice.finish_reason,
            )
            for choice in choices
        ],
        usage=ChatUsageBody.from_usages([choice.usage for choice in choices]),
    )
