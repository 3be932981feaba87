"""What answers cost: every token charged once, exact decimals, and numbers that JSON writes as people would."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.config import PriceConfig, parse_config
from deployments.prices import PER_TOKENS, cost, cost_of_answer, to_json_number
from deployments.types import Usage

MONEY = st.decimals(0, 1000, places=4, allow_nan=False, allow_infinity=False)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt = draw(st.integers(0, 10_000))
    return Usage(
        prompt, draw(st.integers(0, prompt)), draw(st.integers(0, prompt)), completion_tokens=draw(st.integers(0, 5000))
    )


def prices(
    prompt: str = "0", image: str | None = None, reused: str | None = None, completion: str = "0"
) -> PriceConfig:
    return PriceConfig.model_validate({"prompt": prompt, "image": image, "reused": reused, "completion": completion})


@pytest.mark.parametrize(
    ("usage", "charged", "expected"),
    [
        (Usage(100, 0, 0, 10), prices("2", completion="8"), "0.00028"),
        (Usage(100, 60, 0, 10), prices("2", completion="8"), "0.00028"),  # image tokens as prompt
        (Usage(100, 60, 0, 0), prices("2", image="5"), "0.00038"),  # 40 x 2 + 60 x 5
        (Usage(100, 60, 30, 0), prices("2", image="5"), "0.00038"),  # reused tokens as computed ones
        (Usage(100, 0, 30, 0), prices("2", reused="0.5"), "0.000155"),  # 70 x 2 + 30 x 0.5
        (Usage(100, 60, 30, 0), prices("2", image="5", reused="0.5"), "0.000245"),  # 30 images: 40 x 2 + 30 x 5 + 15
        (Usage(100, 60, 80, 0), prices("2", image="5", reused="0.5"), "0.00008"),  # 60 images, 20 texts: 20 x 2 + 40
        (Usage(100, 60, 30, 0), prices("5", image="2", reused="0.5"), "0.000185"),  # 30 texts: 10 x 5 + 60 x 2 + 15
        (Usage(100, 60, 100, 0), prices("5", image="2", reused="0"), "0"),
        (Usage(3, 0, 0, 0), prices("0.1"), "0.0000003"),
        (Usage(100, 60, 30, 10), prices(), "0"),
    ],
)
def test_the_cost_of_an_answer(usage: Usage, charged: PriceConfig, expected: str) -> None:
    assert cost(usage, charged) == Decimal(expected)


@given(usages(), MONEY, MONEY, MONEY, MONEY)
def test_it_is_the_cheapest_way_to_charge_every_token_once(
    usage: Usage, prompt: Decimal, image: Decimal, reused: Decimal, completion: Decimal
) -> None:
    texts = usage.prompt_tokens - usage.image_tokens
    fewest, most = max(0, usage.reused_tokens - texts), min(usage.reused_tokens, usage.image_tokens)
    possible = [
        (texts - (usage.reused_tokens - images)) * prompt
        + (usage.image_tokens - images) * image
        + usage.reused_tokens * reused
        + usage.completion_tokens * completion
        for images in {fewest, most}  # it is linear between them
    ]
    charged = PriceConfig(prompt=prompt, image=image, reused=reused, completion=completion)
    assert cost(usage, charged) == min(possible) / PER_TOKENS


@given(usages(), MONEY)
def test_one_price_for_all_is_a_price_a_token(usage: Usage, price: Decimal) -> None:
    charged = PriceConfig(prompt=price, image=price, reused=price, completion=price)
    assert cost(usage, charged) == (usage.prompt_tokens + usage.completion_tokens) * price / PER_TOKENS


def test_prices_are_the_models_own() -> None:
    config = parse_config(
        {
            "models": [
                {"name": "paid", "family": "fake", "prices": {"prompt": 0.1, "completion": 0.3}},
                {"name": "free", "family": "fake"},
            ]
        }
    )
    usage = Usage(100, 0, 0, 10)
    assert cost_of_answer(config, "paid", usage) == Decimal("0.000013")  # 0.1 of YAML is a tenth, not 0.1000…0555
    assert cost_of_answer(config, "free", usage) is None


@pytest.mark.parametrize(
    ("amount", "written"),
    [("0.1", "0.1"), ("0.000013", "1.3e-05"), ("0", "0.0"), ("12345.678901", "12345.678901"), ("1E+3", "1000.0")],
)
def test_json_shows_the_digits_of_the_sum(amount: str, written: str) -> None:
    assert json.dumps(to_json_number(Decimal(amount))) == written


@given(st.decimals(0, 10**6, places=9, allow_nan=False, allow_infinity=False))
def test_a_json_number_is_the_sum_again(amount: Decimal) -> None:
    assert Decimal(json.dumps(to_json_number(amount))) == amount


def test_without_prices_there_is_no_number() -> None:
    assert to_json_number(None) is None
