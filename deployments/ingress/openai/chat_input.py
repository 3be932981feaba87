"""A request to POST /v1/chat/completions in the words of completions.py."""

from __future__ import annotations

import json
from collections.abc import Mapping

from deployments.errors import InvalidRequest
from deployments.ingress.completions import CompletionInput, affinity_of, choose_conversation_model
from deployments.ingress.openai.chat_schemas import (
    ChatCompletionRequest,
    Format,
    JsonObjectFormatBody,
    JsonSchemaFormatBody,
)
from deployments.ingress.openai.conversation import check_conversation, picture_sources, to_conversation
from deployments.ingress.openai.picture_parts import read_pictures
from deployments.ingress.request_id import current_request_id
from deployments.ingress.services import Services
from deployments.ingress.turn_types import SHOWN_DIGITS, SamplingWish
from deployments.types import Grammar

NUM_SEEDS = 2**63


async def to_input(asked: ChatCompletionRequest, services: Services, tenant: str) -> CompletionInput:
    """What can be refused without the pictures is refused before they are decoded and stored.

    Raises UnknownModel, InvalidRequest and its kinds, what reading pictures raises.
    """
    _check_together(asked)
    check_conversation(asked.messages, services.config.ingress)
    model = choose_conversation_model(services.config, asked.model)
    sampling = _to_sampling(asked, services.config.generator_of(model).max_new_tokens)
    images = await read_pictures(picture_sources(asked.messages), services, tenant)
    messages = to_conversation(asked.messages, images)
    return CompletionInput(
        request_id=current_request_id(),
        tenant=tenant,
        messages=messages,
        model=model,
        sampling=sampling,
        num_choices=asked.n or 1,
        affinity=affinity_of(asked.prompt_cache_key or asked.safety_identifier or asked.user, messages),
    )


def _check_together(asked: ChatCompletionRequest) -> None:
    if asked.stream_options is not None and not asked.stream:
        raise InvalidRequest("stream_options is only for stream: true", "stream_options")
    if asked.top_logprobs and not asked.logprobs:
        raise InvalidRequest("top_logprobs is only for logprobs: true", "top_logprobs")
    if asked.max_tokens is not None and asked.max_completion_tokens not in (None, asked.max_tokens):
        raise InvalidRequest("max_tokens and max_completion_tokens differ; send one of them", "max_completion_tokens")


def _to_sampling(asked: ChatCompletionRequest, max_new_tokens: int) -> SamplingWish:
    return SamplingWish(
        temperature=asked.temperature or 0.0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=asked.top_k or 0,
        min_p=asked.min_p or 0.0,
        repetition_penalty=asked.repetition_penalty,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        max_new_tokens=_num_tokens(asked, max_new_tokens),
        stop=tuple(asked.stop or ()),
        seed=None if asked.seed is None else asked.seed % NUM_SEEDS,
        num_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        grammar=_to_grammar(asked.response_format),
    )


def _num_tokens(asked: ChatCompletionRequest, limit: int) -> int | None:
    """Refused under the client's own name for it."""
    name = "max_tokens" if asked.max_tokens is not None else "max_completion_tokens"
    wished = asked.max_tokens or asked.max_completion_tokens
    if wished is not None and wished > limit:
        raise InvalidRequest(f"{name} is {str(wished)[:SHOWN_DIGITS]}; this model gives at most {limit}", name)
    return wished


def _to_grammar(wished: Format | None) -> Grammar | None:
    if isinstance(wished, JsonSchemaFormatBody):
        return schema_grammar(wished.json_schema.schema_, "response_format.json_schema.schema")
    if not isinstance(wished, JsonObjectFormatBody):
        return None
    if wished.value is not None:
        return schema_grammar(wished.value, "response_format.value")
    return Grammar("json_object")


def schema_grammar(schema: Mapping[str, object], place: str) -> Grammar:
    """Raises InvalidRequest."""
    try:
        return Grammar("json_schema", json.dumps(schema, allow_nan=False))
    except ValueError as error:  # Python reads more than JSON has
        raise InvalidRequest(f"the schema is not JSON: {error}", place) from error
