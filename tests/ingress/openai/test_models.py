"""GET /v1/models: what can be asked, and how much of it."""

from __future__ import annotations

from ingress.bench import Bench, BuildBench
from ingress.openai.openai_bench import openai_error


async def test_the_list(build_bench: BuildBench) -> None:
    models = [
        {"name": "fake", "family": "fake", "generator": {"max_new_tokens": 300, "max_context_tokens": 1000}},
        {"name": "moondream", "family": "moondream", "checkpoint": "x"},
    ]
    bench = build_bench(models=models, default_model="moondream", ingress={"max_input_images": 5})
    listed = (await bench.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    first, second = listed["data"]
    assert first.pop("created") == second.pop("created") > 1_600_000_000
    assert first == {
        "id": "fake",
        "object": "model",
        "owned_by": "retina",
        "is_default": False,
        "family": "fake",
        "skills": ["caption", "query", "detect", "point"],
        "modalities": {"input": ["text", "image"], "output": ["text"]},
        "max_context_tokens": 1000,
        "max_output_tokens": 300,
        "default_output_tokens": 256,
        "max_images": 5,
    }
    assert (second["id"], second["is_default"], second["max_images"]) == ("moondream", True, 1)
    one = (await bench.client.get("/v1/models/moondream")).json()
    assert one.pop("created") > 1_600_000_000
    assert one == second


async def test_a_model_that_is_not_there(bench: Bench) -> None:
    for name in ("gpt-4o", "vikhyatk/moondream2"):
        error = openai_error(await bench.client.get(f"/v1/models/{name}"), 404, "model_not_found", "model")
        assert "fake, other" in error["message"]
