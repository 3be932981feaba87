"""How many slots, and how much memory of beginnings beside them, a KV budget allows. Pure; knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.errors import ConfigError


@dataclass(frozen=True, slots=True)
class KvPlan:
    num_slots: int
    prefix_bytes: int  # of remembered beginnings


def plan_kv(
    num_slots: int, context_tokens: int, token_bytes: int, prefix_bytes: int, budget_bytes: int | None
) -> KvPlan:
    """As many of `num_slots` as fit, then of `prefix_bytes` what is left. `token_bytes`: K and V of all layers.

    Raises ConfigError, with the sum, when not even one slot fits.
    """
    if budget_bytes is None:
        return KvPlan(num_slots, prefix_bytes)
    slot_bytes = context_tokens * token_bytes
    fitting = min(num_slots, budget_bytes // slot_bytes)
    if fitting < 1:
        raise ConfigError(
            f"the KV budget of {budget_bytes:,} bytes holds no slot: {context_tokens:,} tokens x {token_bytes:,} bytes "
            f"a token = {slot_bytes:,} bytes. Raise generator.kv_cache_bytes (or kv_cache_share), or lower "
            f"generator.max_context_tokens to {budget_bytes // token_bytes:,} or less",
            "generator.kv_cache_bytes",
        )
    return KvPlan(fitting, min(prefix_bytes, budget_bytes - fitting * slot_bytes))
