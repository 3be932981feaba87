"""How many prompt tokens may join a step, so that those who decode hardly notice. Pure: durations in, a number out."""

from __future__ import annotations

STRETCH = 1.7  # a step with prompt tokens may take this many times as long as one without; the promise is 2
FIRST_TOKENS = 64  # while nothing has been measured
LEAST_TOKENS = 16  # fewer cost nearly as much: each stretch reads all that its prompt has before it
MOST_STEPS_BETWEEN = 4  # a prompt must go on however slow the machine is
SMOOTHING = 0.2  # weight of the newest step


class ChunkPace:
    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._decode_s = 0.0  # of a step without prompt tokens, smoothed; 0: none was seen
        self._token_s = 0.0  # that a prompt token adds to a step, smoothed; 0: not known
        self._saved_tokens = 0.0  # that would have fitted into steps which took none

    def tokens(self, num_decoding: int) -> int:
        """Prompt tokens for the next step, in which so many rows decode; call it once for each step.

        Nobody waits for a step without such rows. Where not even LEAST_TOKENS fit, they come in every few steps only.
        """
        if not num_decoding:
            return self.max_tokens
        if not self._decode_s or not self._token_s:
            return min(FIRST_TOKENS, self.max_tokens)
        fitting = self._decode_s * (STRETCH - 1) / self._token_s
        if fitting >= LEAST_TOKENS:
            return min(int(fitting) // LEAST_TOKENS * LEAST_TOKENS, self.max_tokens)  # in whole ones: shapes repeat
        self._saved_tokens += max(fitting, LEAST_TOKENS / MOST_STEPS_BETWEEN)
        if self._saved_tokens < LEAST_TOKENS:
            return 0
        self._saved_tokens -= LEAST_TOKENS
        return min(LEAST_TOKENS, self.max_tokens)

    def observe(self, duration_s: float, num_decoding: int, num_prompt_tokens: int) -> None:
        if not num_prompt_tokens:
            self._decode_s = _smooth(self._decode_s, duration_s)
        elif num_decoding and self._decode_s and num_prompt_tokens >= LEAST_TOKENS:  # few say nothing of many
            added_s = max(duration_s - self._decode_s, 0.05 * duration_s) / num_prompt_tokens
            # Tokens far into a long prompt cost more than those before: slower counts at once, faster bit by bit.
            self._token_s = added_s if self._is_near(added_s) else _smooth(self._token_s, added_s)

    def _is_near(self, added_s: float) -> bool:
        """Not an outlier: a step that the machine interrupted says nothing of tokens."""
        return self._token_s < added_s < 2 * self._token_s


def _smooth(before: float, now: float) -> float:
    return now if not before else before + SMOOTHING * (now - before)
