"""How much KV cache a budget allows."""

from __future__ import annotations

import pytest

from deployments.errors import ConfigError
from deployments.generator.kv_budget import KvPlan, plan_kv


def test_without_a_budget_all_is_as_configured() -> None:
    assert plan_kv(16, 2048, 8192, 256_000_000, None) == KvPlan(16, 256_000_000)


def test_slots_come_first_and_beginnings_get_what_is_left() -> None:
    slot_bytes = 2048 * 8192
    assert plan_kv(4, 2048, 8192, 256_000_000, 4 * slot_bytes + 1000) == KvPlan(4, 1000)
    assert plan_kv(4, 2048, 8192, 500, 4 * slot_bytes + 1000) == KvPlan(4, 500)


def test_fewer_slots_where_not_all_fit() -> None:
    slot_bytes = 2048 * 8192
    assert plan_kv(16, 2048, 8192, 256_000_000, 3 * slot_bytes + 7) == KvPlan(3, 7)


def test_a_budget_below_one_slot_is_refused_with_the_sum() -> None:
    with pytest.raises(ConfigError, match=r"2,048 tokens x 8,192 bytes a token = 16,777,216 bytes.*1,220 or less"):
        plan_kv(16, 2048, 8192, 0, 10_000_000)
