"""Says which requests the engine takes. Pure; knows no torch and no asyncio."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from deployments.config import GeneratorConfig
from deployments.errors import InvalidRequest
from deployments.generator.task_limits import check_task
from deployments.types import GenerateRequest, SamplingParams

if TYPE_CHECKING:
    from deployments.models.family import PromptFormat

MAX_SEED = 2**63 - 1
MAX_REPETITION_PENALTY = 10.0
MAX_PENALTY = 2.0  # of presence and frequency, either way
MAX_LOGPROBS = 20


def check_request(request: GenerateRequest, limits: GeneratorConfig) -> None:
    """Raises InvalidRequest naming the field, what it was and what is allowed."""
    check_sampling(request.sampling, limits)
    if request.task is not None:
        check_task(request, request.task)


def check_sampling(sampling: SamplingParams, limits: GeneratorConfig) -> None:
    """Raises InvalidRequest naming the field, what it was and what is allowed."""
    _require_number("temperature", sampling.temperature, sampling.temperature >= 0, "a finite number, 0 or more")
    _require_number("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "more than 0 and at most 1")
    _require_whole("top_k", sampling.top_k, 0, None, "0 (keep all) or more")
    _require_number("min_p", sampling.min_p, 0 <= sampling.min_p <= 1, "0 (keep all) to 1")
    most = limits.max_new_tokens
    _require_whole("max_new_tokens", sampling.max_new_tokens, 1, most, f"1 to {most}")
    if sampling.seed is not None:
        _require_whole("seed", sampling.seed, 0, MAX_SEED, f"0 to {MAX_SEED}")
    _check_stop(sampling.stop, limits)
    _check_penalties(sampling)
    if sampling.num_logprobs is not None:
        _require_whole("logprobs", sampling.num_logprobs, 0, MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}")


def with_defaults(sampling: SamplingParams, prompts: PromptFormat) -> SamplingParams:
    """With what the checkpoint says where the request says nothing."""
    if sampling.repetition_penalty is not None:
        return sampling
    return replace(sampling, repetition_penalty=prompts.repetition_penalty)


def _check_penalties(sampling: SamplingParams) -> None:
    both = {"presence_penalty": sampling.presence_penalty, "frequency_penalty": sampling.frequency_penalty}
    for name, penalty in both.items():
        _require_number(name, penalty, abs(penalty) <= MAX_PENALTY, f"{-MAX_PENALTY:g} to {MAX_PENALTY:g}")
    if sampling.repetition_penalty is not None:
        penalty, allowed = sampling.repetition_penalty, f"more than 0 and at most {MAX_REPETITION_PENALTY:g}"
        _require_number("repetition_penalty", penalty, 0 < penalty <= MAX_REPETITION_PENALTY, allowed)


def _check_stop(stop: tuple[str, ...], limits: GeneratorConfig) -> None:
    if len(stop) > limits.max_stop_strings:
        raise InvalidRequest(f"stop has {len(stop)} strings; at most {limits.max_stop_strings} are allowed", "stop")
    if not all(stop):
        raise InvalidRequest("stop has an empty string; stop strings need at least one character", "stop")
    longest = max(map(len, stop), default=0)
    if longest > limits.max_stop_chars:
        raise InvalidRequest(
            f"stop has a string of {longest} characters; at most {limits.max_stop_chars} are allowed", "stop"
        )


def _require_number(name: str, value: float, is_allowed: bool, allowed: str) -> None:
    if not (math.isfinite(value) and is_allowed):
        raise InvalidRequest(f"{name} is {value}; it must be {allowed}", name)


def _require_whole(name: str, value: int, least: int, most: int | None, allowed: str) -> None:
    # bool is an int to Python; `max_new_tokens: true` is a mistake all the same.
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        raise InvalidRequest(f"{name} is {value}; it must be a whole number, {allowed}", name)
