"""What the engine's recent steps did, and how fast: for statistics and for saying when to come back."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import asdict, dataclass

PLANS_KEPT = 20
RATE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class StepRecord:
    number: int
    prefill_tokens: int
    decode_batch: int  # rows
    new_tokens: int
    failures: int
    duration_ms: float


class StepLog:
    """Thread-safe: the engine's thread writes, others read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_steps = 0
        self._records: deque[StepRecord] = deque(maxlen=PLANS_KEPT)
        self._recent: deque[tuple[float, float, int]] = deque()  # began s, ended s, new tokens

    def record(
        self, began: float, ended: float, *, prefill_tokens: int, decode_batch: int, new_tokens: int, failures: int
    ) -> None:
        duration_ms = round((ended - began) * 1000, 3)
        with self._lock:
            self._num_steps += 1
            self._records.append(
                StepRecord(self._num_steps, prefill_tokens, decode_batch, new_tokens, failures, duration_ms)
            )
            self._recent.append((began, ended, new_tokens))
            self._forget(ended)

    def tokens_per_s(self, now: float) -> float:
        """Over the last seconds, from the first step in them until now; 0 when there was none."""
        with self._lock:
            self._forget(now)
            if not self._recent:
                return 0.0
            tokens = sum(new_tokens for _, _, new_tokens in self._recent)
            return tokens / max(now - self._recent[0][0], 1e-3)

    def last_plans(self) -> list[dict[str, float]]:
        with self._lock:
            return [asdict(record) for record in self._records]

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][1] < now - RATE_SECONDS:
            self._recent.popleft()
