"""A response as a request opens it: all settings are told back, whether they were given or not. Pure."""

from __future__ import annotations

from deployments.ingress.responses.request import CreateResponse
from deployments.ingress.responses.resource import ConversationRef, ResponseBody


def open_response(
    asked: CreateResponse, response_id: str, created_s: float, model: str, conversation_id: str | None
) -> ResponseBody:
    sampling = asked.to_sampling()
    return ResponseBody(
        id=response_id,
        created_at=int(created_s),
        status="in_progress",
        background=bool(asked.background),
        model=model,
        conversation=ConversationRef(id=conversation_id) if conversation_id is not None else None,
        previous_response_id=asked.previous_response_id,
        instructions=asked.instructions,
        store=asked.is_stored,
        max_output_tokens=asked.max_output_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        top_logprobs=asked.top_logprobs or 0,
        text=asked.to_text_settings(),
        reasoning=asked.to_reasoning_settings(),
        truncation=asked.truncation or "disabled",
        tool_choice="none" if asked.tool_choice == "none" else "auto",
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        max_tool_calls=asked.max_tool_calls,
        metadata=asked.metadata or {},
        user=asked.user,
        safety_identifier=asked.safety_identifier,
        prompt_cache_key=asked.prompt_cache_key,
    )
