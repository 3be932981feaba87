"""Goes on with an answer whose beginning was streamed before, perhaps by a replica that is no more.

Such a sequence prefills the prompt and the tokens that were answered, and all that its choices, its text and its limits
hang on is told of these tokens first. So what follows is what would have followed there.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from deployments.errors import InvalidRequest
from deployments.models.family import Prompt, ResumableRules
from deployments.types import FinishReason, GenerateRequest

if TYPE_CHECKING:
    from deployments.generator.answer_text import AnswerText
    from deployments.generator.sequence import Sequence


def check_answered(request: GenerateRequest, vocab_size: int, stop_token_ids: AbstractSet[int]) -> None:
    """Raises InvalidRequest for what cannot be the beginning of this request's answer."""
    if request.answered and request.task is not None:
        raise _refusal("a task's answer cannot be gone on with; answered must be empty")
    for index, token_id in enumerate(request.answered):
        if not (isinstance(token_id, int) and 0 <= token_id < vocab_size):
            raise _refusal(f"answered[{index}] is {token_id!r}; this model's tokens are 0 to {vocab_size - 1}")
        if token_id in stop_token_ids:
            raise _refusal(f"answered[{index}] is {token_id}, which ends an answer and is no part of it")


def extend(prompt: Prompt, answered: SequenceOf[int]) -> Prompt:
    """The prompt, and the answer's tokens at the positions that they had when they were chosen."""
    if not answered:
        return prompt
    count, rows = len(answered), len(prompt.positions)
    following = np.arange(prompt.next_position, prompt.next_position + count, dtype=np.int64)
    return replace(
        prompt,
        token_ids=(*prompt.token_ids, *answered),
        positions=np.concatenate([prompt.positions, np.broadcast_to(following, (rows, count))], axis=1),
        next_position=prompt.next_position + count,
    )


def replay(answer: AnswerText, answered: SequenceOf[int], max_new_tokens: int) -> FinishReason | None:
    """Bring `answer` to where it was after these tokens; the text that they settled was shown.

    Returns why the answer ends with them, None if it does not. Raises InvalidRequest if it ended before.
    """
    if len(answered) > max_new_tokens:
        raise _refusal(f"answered has {len(answered)} tokens; this answer can have {max_new_tokens}")
    for index, token_id in enumerate(answered):
        _, is_stopped = answer.push(token_id)
        if is_stopped and index < len(answered) - 1:
            raise _refusal(f"the answer ended by a stop string with answered[{index}]; others follow")
        if is_stopped:
            return "stop"
    if len(answered) < max_new_tokens:
        return None
    _, is_stopped = answer.finish()
    return "stop" if is_stopped else "length"


def catch_up(sequence: Sequence) -> None:
    """Tell the sequence's chance, penalties and rules of the tokens that were answered. In the engine's thread.

    Raises InvalidRequest where rules cannot be told. Its mask was told by whoever opened it: that may take long.
    """
    answered = sequence.answered
    if not answered:
        return
    if sequence.rules is not None:
        if not isinstance(sequence.rules, ResumableRules):
            raise _refusal("this model cannot go on with an answer of this kind; answered must be empty")
        sequence.rules.resume(answered)
    if sequence.rng is not None:
        sequence.rng.skip(len(answered))
    if sequence.repetition is not None:
        sequence.repetition.add_all(answered)
    if sequence.discount is not None:
        sequence.discount.add_all(answered)


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(reason, "answered")
