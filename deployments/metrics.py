"""Counters and summaries that a part keeps of itself; `snapshot()` is what `/-/…` shows.

Every name stands in METRICS; another name is refused, so the table is the documentation.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping

METRICS: Mapping[str, str] = {
    "ingress_requests": "requests, by outcome (an HTTP status or cancelled)",
    "ingress_cancelled": "turns whose client went away, by stage (open, first_token, stream)",
    "ingress_streams": "kept streams, by what became of them (kept, resumed, taken_over, stopped, abandoned, failed)",
    "ingress_sockets": "WebSockets, by how they ended (left, idle, slow, too_large, failed) or refused",
    "ingress_tasks": "tasks, by skill and outcome (stop, length, cancelled, deadline, refused, failed): caption.stop",
    "ingress_tasks_cancelled": "tasks whose client went away, by stage (first_token, stream)",
    "ingress_completions": "completions, by outcome (stop, length, cancelled, deadline, refused, failed)",
    "ingress_completions_cancelled": "completions whose client went away, by stage (first_token, stream)",
    "session_router_turns": "turns, by outcome (opened, committed, aborted, busy, lease_lost, expired)",
    "vision_encoder_requests": "encode requests, by source (tower, memory, disk, shared) or error",
    "vision_encoder_tower_images": "pictures that went through a tower",
    "vision_encoder_tower_batches": "tower calls",
    "vision_encoder_tower_patches": "patches that went through a tower",
    "vision_encoder_cache_corrupt": "cache entries dropped because their checksum was wrong",
    "generator_requests": "requests, by outcome (stop, length, cancelled, deadline, rejected, failed)",
    "generator_cancelled": "cancelled requests, by stage (waiting, encode, prefill, decode)",
    "generator_prompt_tokens": "prompt tokens computed",
    "generator_reused_tokens": "prompt tokens whose K and V were remembered",
    "generator_completion_tokens": "tokens generated",
    "generator_steps": "decode steps",
}


class Metrics:
    """Thread-safe counters; one instance per part and process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: defaultdict[str, float] = defaultdict(float)

    def count(self, name: str, amount: float = 1, label: str = "") -> None:
        """Add `amount` to a counter, or to its part named `label`. Raises KeyError for a name outside METRICS."""
        if name not in METRICS:
            raise KeyError(f"no metric {name!r}; the table METRICS in deployments/metrics.py lists them")
        with self._lock:
            self._counts[f"{name}.{label}" if label else name] += amount

    def snapshot(self) -> dict[str, float]:
        with self._lock:
            return dict(sorted(self._counts.items()))
