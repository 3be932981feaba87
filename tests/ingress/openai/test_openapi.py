"""What the OpenAPI document says of the routes under /v1."""

from __future__ import annotations

from ingress.bench import Bench
from ingress.openai.openai_bench import text_of

PATH = "/v1/chat/completions"


async def test_errors_are_openais_under_v1_and_ours_elsewhere(bench: Bench) -> None:
    document = (await bench.client.get("/openapi.json")).json()
    for path, item in document["paths"].items():
        for route in item.values():
            schema = route["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"]
            assert schema.endswith("/OpenAIErrorReply" if path.startswith("/v1") else "/ErrorReply"), path


async def test_the_body_is_whole_and_says_what_is_refused(bench: Bench) -> None:
    document = (await bench.client.get("/openapi.json")).json()
    route, shapes = document["paths"][PATH]["post"], document["components"]["schemas"]
    body = route["requestBody"]["content"]["application/json"]["schema"]
    assert body["additionalProperties"] is False
    assert body["required"] == ["messages"]
    kinds = [shapes[kind["$ref"].rpartition("/")[2]] for kind in body["properties"]["messages"]["items"]["oneOf"]]
    roles = [set(kind["properties"]["role"].get("enum", [kind["properties"]["role"].get("const")])) for kind in kinds]
    assert all(kind["additionalProperties"] is False for kind in kinds)
    assert roles == [{"system", "developer"}, {"user"}, {"assistant"}]
    assert set(route["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert route["responses"]["200"]["content"]["text/event-stream"]["example"].endswith("data: [DONE]\n\n")


async def test_the_example_is_taken(bench: Bench) -> None:
    route = (await bench.client.get("/openapi.json")).json()["paths"][PATH]["post"]
    (example,) = route["requestBody"]["content"]["application/json"]["schema"]["examples"]
    assert "8 x 8 pixels" in text_of(await bench.client.post(PATH, json=example))
