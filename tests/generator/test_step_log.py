"""The log keeps the newest plans and measures tokens per second over the last seconds."""

from __future__ import annotations

import pytest

from deployments.generator.step_log import PLANS_KEPT, StepLog


def record(log: StepLog, began: float, new_tokens: int = 4) -> None:
    log.record(began, began + 0.5, prefill_tokens=1, decode_batch=2, new_tokens=new_tokens, failures=0)


def test_only_the_newest_plans_are_kept() -> None:
    log = StepLog()
    for step in range(PLANS_KEPT + 5):
        record(log, step)
    plans = log.last_plans()
    assert [plan["number"] for plan in plans] == list(range(6, PLANS_KEPT + 6))
    assert plans[0] == {
        "number": 6,
        "prefill_tokens": 1,
        "decode_batch": 2,
        "new_tokens": 4,
        "failures": 0,
        "duration_ms": 500.0,
    }


def test_the_rate_is_of_the_last_seconds() -> None:
    log = StepLog()
    assert log.tokens_per_s(0.0) == 0
    for step in range(4):
        record(log, 100 + step)
    assert log.tokens_per_s(104.0) == pytest.approx(16 / 4)
    record(log, 109.0, new_tokens=10)
    assert log.tokens_per_s(111.2) == pytest.approx((4 * 3 + 10) / 10.2)  # the first step has passed out of sight
    assert log.tokens_per_s(200.0) == 0
