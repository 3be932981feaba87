"""What POST /v1/chat/completions answers, in one piece."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deployments.ingress.body import Body
from deployments.ingress.sampling_schemas import LEAST_LOGPROB
from deployments.types import Alternative, FinishReason, TokenLogprob, Usage

REPLACEMENT = "\ufffd"


class TopLogprobBody(Body):
    token: str
    logprob: float = Field(description="Natural logarithm, before temperature, filters and penalties.")
    bytes: list[int] | None = Field(description="Of the token in UTF-8; null where it is no whole character.")

    @classmethod
    def from_alternative(cls, given: Alternative) -> TopLogprobBody:
        data = None if REPLACEMENT in given.text else list(given.text.encode())
        return cls(token=given.text, logprob=max(given.logprob, LEAST_LOGPROB), bytes=data)


class ChatLogprobBody(TopLogprobBody):
    top_logprobs: list[TopLogprobBody]

    @classmethod
    def from_token(cls, token: TokenLogprob) -> ChatLogprobBody:
        chosen = TopLogprobBody.from_alternative(token.chosen)
        return cls(**dict(chosen), top_logprobs=[TopLogprobBody.from_alternative(each) for each in token.top])


class ChoiceLogprobsBody(Body):
    content: list[ChatLogprobBody]
    refusal: None = None

    @classmethod
    def from_tokens(cls, tokens: tuple[TokenLogprob, ...] | None) -> ChoiceLogprobsBody | None:
        return None if tokens is None else cls(content=[ChatLogprobBody.from_token(token) for token in tokens])


class AnswerBody(Body):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChoiceBody(Body):
    index: int
    message: AnswerBody
    logprobs: ChoiceLogprobsBody | None
    finish_reason: FinishReason = Field(description="`length`: max_completion_tokens or the context was full.")


class PromptDetailsBody(Body):
    cached_tokens: int = Field(description="Of prompt_tokens, those that did not have to be computed again.")
    image_tokens: int
    text_tokens: int
    audio_tokens: Literal[0] = 0


class CompletionDetailsBody(Body):
    reasoning_tokens: Literal[0] = 0
    audio_tokens: Literal[0] = 0
    accepted_prediction_tokens: Literal[0] = 0
    rejected_prediction_tokens: Literal[0] = 0


class ChatUsageBody(Body):
    prompt_tokens: int = Field(description="Image tokens included; once for all choices.")
    completion_tokens: int = Field(description="Of all choices.")
    total_tokens: int
    prompt_tokens_details: PromptDetailsBody
    completion_tokens_details: CompletionDetailsBody = CompletionDetailsBody()

    @classmethod
    def from_usages(cls, usages: list[Usage]) -> ChatUsageBody:
        """Of the choices of one request. They share the prompt: what the first of them computed, others remembered."""
        prompt = usages[0]
        completion_tokens = sum(usage.completion_tokens for usage in usages)
        details = PromptDetailsBody(
            cached_tokens=min(usage.reused_tokens for usage in usages),
            image_tokens=prompt.image_tokens,
            text_tokens=prompt.prompt_tokens - prompt.image_tokens,
        )
        return cls(
            prompt_tokens=prompt.prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt.prompt_tokens + completion_tokens,
            prompt_tokens_details=details,
        )


class ChatCompletion(Body):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="Unix time.")
    model: str
    system_fingerprint: str = Field(description="Changes with the model's configuration and with Retina's version.")
    service_tier: Literal["default"] = "default"
    choices: list[ChoiceBody]
    usage: ChatUsageBody
