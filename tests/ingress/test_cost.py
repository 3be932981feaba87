"""The cost of answers in all replies that have one."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from ingress.bench import BuildBench, parse_events, picture

PRICES = {"prompt": 0.1, "image": 0.5, "completion": 0.3}
MODELS = [
    {"name": "fake", "family": "fake", "prices": PRICES},
    {"name": "other", "family": "fake"},
]


def expected(usage: dict[str, int]) -> float:
    texts = usage["prompt_tokens"] - usage["image_tokens"]
    return (texts * 1 + usage["image_tokens"] * 5 + usage["completion_tokens"] * 3) / 10_000_000


async def test_chat_says_what_the_answer_costs(build_bench: BuildBench) -> None:
    bench = build_bench(models=MODELS)
    form = {"message": "What is it?"}
    body = (await bench.client.post("/chat", data=form, files={"image": picture()})).json()
    assert body["usage"]["image_tokens"] > 0
    assert body["cost"] == expected(body["usage"]) > 0


async def test_the_end_of_a_stream_says_it_too(build_bench: BuildBench) -> None:
    bench = build_bench(models=MODELS)
    reply = await bench.ask("What is it?", stream=True)
    *_, (name, done) = parse_events(reply.text)
    assert name == "done"
    assert done["cost"] == expected(done["usage"]) > 0  # type: ignore[arg-type]
    written = re.findall(r'"cost":([^,]+),', reply.text)
    assert [Decimal(number) for number in written] == [Decimal("0.0000018")]  # 3 at 0.1 and 5 at 0.3 for a million


async def test_a_model_without_prices_has_answers_without_cost(build_bench: BuildBench) -> None:
    bench = build_bench(models=MODELS)
    assert (await bench.ask(model="other")).json()["cost"] is None


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/caption", {}), ("/query", {"question": "Hm?"}), ("/detect", {"object": "dog"}), ("/point", {"object": "dog"})],
)
async def test_a_task_says_what_it_costs(build_bench: BuildBench, path: str, fields: dict[str, str]) -> None:
    bench = build_bench(models=MODELS)
    for model in ("fake", "other"):
        body = (await bench.client.post(path, data={**fields, "model": model}, files={"image": picture()})).json()
        assert body["cost"] == (expected(body["usage"]) if model == "fake" else None)
