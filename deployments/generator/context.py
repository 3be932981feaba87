"""Makes a request fit a model's context: a conversation's oldest exchanges go first, its picture stays; a task stays
whole, and so does a conversation that asks for it. Pure, no torch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING

from deployments.errors import PromptTooLong
from deployments.types import GenerateRequest, ImagePart, ImageRef, Message

if TYPE_CHECKING:
    from deployments.models.family import Prompt, PromptFormat

MAX_RESERVED_SHARE = 4  # at most 1 / this of the context is kept free for the answer


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the model will read, and how long its answer may become."""

    messages: tuple[Message, ...]
    prompt: Prompt
    max_new_tokens: int


def fit_request(request: GenerateRequest, prompts: PromptFormat, context_tokens: int) -> Fitted:
    """What the model will read of `request`. Raises PromptTooLong, and InvalidRequest for what the model cannot do."""
    asked = request.sampling.max_new_tokens
    if request.task is None and not request.keeps_all:
        return fit_context(request.messages, prompts.build, asked, context_tokens)
    prompt = prompts.build(request.messages, request.task)
    return Fitted(request.messages, prompt, fit_answer(prompt, asked, context_tokens, is_whole=True))


def fit_context(
    messages: tuple[Message, ...],
    build: Callable[[Sequence[Message]], Prompt],
    max_new_tokens: int,
    context_tokens: int,
) -> Fitted:
    """The conversation without as many of its oldest exchanges as it takes to leave room for the answer.

    The last question always stays. When it alone leaves less room, its answer is cut to what there is; when it leaves
    none, PromptTooLong is raised.
    """

    @cache
    def attempt(num_dropped: int) -> tuple[tuple[Message, ...], Prompt]:
        kept = drop_exchanges(messages, num_dropped)
        return kept, build(kept)

    def fits(num_dropped: int) -> bool:
        return len(attempt(num_dropped)[1].token_ids) <= context_tokens - reserve

    reserve = min(max_new_tokens, context_tokens // MAX_RESERVED_SHARE)
    # Building tokenizes everything again, so the cut is searched by halves; nearly all conversations fit at once.
    num_dropped = 0 if fits(0) else bisect_left(range(num_droppable(messages)), True, key=fits)
    kept, prompt = attempt(num_dropped)
    return Fitted(kept, prompt, fit_answer(prompt, max_new_tokens, context_tokens))


def fit_answer(prompt: Prompt, max_new_tokens: int, context_tokens: int, *, is_whole: bool = False) -> int:
    """How many tokens the answer may have: what was asked for, cut to the context. Raises PromptTooLong."""
    num_tokens = len(prompt.token_ids)
    if num_tokens + 1 > context_tokens:
        num_images = prompt.num_image_tokens
        shortest = "the prompt" if is_whole or prompt.task is not None else "even without earlier messages the prompt"
        raise PromptTooLong(
            f"{shortest} has {num_tokens} tokens ({num_images} image tokens + {num_tokens - num_images} text tokens); "
            f"with at least 1 for the answer that exceeds this model's context of {context_tokens} tokens",
            "message",
        )
    return min(max_new_tokens, context_tokens - num_tokens)


def num_droppable(messages: Sequence[Message]) -> int:
    """How many exchanges stand before the last question."""
    return max(len(_questions(messages)) - 1, 0)


def drop_exchanges(messages: tuple[Message, ...], count: int) -> tuple[Message, ...]:
    """The conversation without its `count` oldest exchanges; what the system said at the beginning stays.

    A picture among them moves to the oldest question that stays, unless a picture stays anyway: without it the answer
    would be about nothing.
    """
    if count == 0:
        return messages
    system = tuple(takewhile(lambda message: message.role == "system", messages))
    begin = _questions(messages)[count]
    first, *rest = messages[begin:]
    picture = _newest_picture(messages[:begin])
    if picture is not None and _newest_picture(messages[begin:]) is None and _newest_picture(system) is None:
        first = replace(first, content=(ImagePart(picture), *first.content))
    return (*system, first, *rest)


def _questions(messages: Sequence[Message]) -> list[int]:
    """Indices at which exchanges begin."""
    return [index for index, message in enumerate(messages) if message.role == "user"]


def _newest_picture(messages: Iterable[Message]) -> ImageRef | None:
    pictures = [image for message in messages for image in message.images]
    return pictures[-1] if pictures else None
