"""How answers are chosen, as clients ask for it, and how probable the chosen tokens were."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import BeforeValidator, Field

from deployments.ingress.body import Body
from deployments.ingress.turn_types import SamplingWish
from deployments.types import Alternative, TokenLogprob

LEAST_LOGPROB = -9999.0  # JSON has no infinity


def as_list(given: object) -> object:
    return [given] if isinstance(given, str) else given


Stop = Annotated[str, Field(min_length=1)]


class SamplingFields(Body):
    temperature: float = Field(0.0, ge=0, le=2, allow_inf_nan=False, description="0 always takes the likeliest token.")
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, le=1_000_000, description="0 keeps all tokens.")
    min_p: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Leaves out tokens less probable than this share of the likeliest one. After top_k and top_p.",
    )
    repetition_penalty: float | None = Field(
        None,
        gt=0,
        le=10,
        allow_inf_nan=False,
        description="Of tokens in prompt and answer; 1 is none. Left out: the checkpoint's own.",
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, allow_inf_nan=False, description="Taken off the logit of each token that the answer holds."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, allow_inf_nan=False, description="Taken off as often as the answer holds the token."
    )
    max_new_tokens: int | None = Field(None, ge=1, description="Left out: the model's default.")
    stop: Annotated[list[Stop], BeforeValidator(as_list)] = Field(
        default=[],
        description="The answer ends before the first of these. The model's settings say how many and how long they "
        "may be. In forms: repeat it.",
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="Makes answers with a temperature repeatable.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Tell how probable each token of the answer was, and so many of the likeliest in its place.",
    )

    def to_sampling(self) -> SamplingWish:
        return SamplingWish(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            max_new_tokens=self.max_new_tokens,
            stop=tuple(self.stop),
            seed=self.seed,
            num_logprobs=self.logprobs,
        )


class AlternativeBody(Body):
    token_id: int
    text: str = Field(description="By itself; what is no whole character shows as U+FFFD, special tokens as nothing.")
    logprob: float = Field(
        description="Natural logarithm, before temperature, filters and penalties; -9999 if it could not come at all."
    )

    @classmethod
    def from_alternative(cls, given: Alternative) -> AlternativeBody:
        return cls(token_id=given.token_id, text=given.text, logprob=max(given.logprob, LEAST_LOGPROB))


class TokenLogprobBody(AlternativeBody):
    top: list[AlternativeBody] = Field(description="The likeliest tokens in its place, most probable first.")

    @classmethod
    def from_token(cls, token: TokenLogprob) -> TokenLogprobBody:
        chosen = AlternativeBody.from_alternative(token.chosen)
        return cls(**dict(chosen), top=[AlternativeBody.from_alternative(each) for each in token.top])


Logprobs = Annotated[
    list[TokenLogprobBody] | None,
    Field(
        description="One for each token, also where its text was cut off; only when it was asked for.",
        exclude_if=lambda logprobs: logprobs is None,
    ),
]


def to_bodies(logprobs: Iterable[TokenLogprob] | None) -> list[TokenLogprobBody] | None:
    return None if logprobs is None else [TokenLogprobBody.from_token(token) for token in logprobs]
