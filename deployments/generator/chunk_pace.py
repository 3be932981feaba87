"""How many prompt tokens may join a step, so that those who decode hardly notice. Pure: durations in, a number out."""

from __future__ import annotations

STRETCH = 1.7  # a step with prompt tokens may take this many times as long as one without; the promise is 2
LEAST_TOKENS = 16  # a prompt must go on however slow the machine is
SMOOTHING = 0.2  # weight of the newest step


class ChunkPace:
    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._decode_s = 0.0  # of a step without prompt tokens, smoothed; 0: none was seen
        self._token_s = 0.0  # that a prompt token adds to a step, smoothed; 0: not known

    def tokens(self, num_decoding: int) -> int:
        """Prompt tokens for a step in which so many rows decode. Nobody waits for a step without such rows."""
        if not num_decoding:
            return self.max_tokens
        if not self._decode_s or not self._token_s:
            return min(4 * LEAST_TOKENS, self.max_tokens)
        fitting = int(self._decode_s * (STRETCH - 1) / self._token_s)
        return min(max(fitting, LEAST_TOKENS), self.max_tokens)

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
