"""What the compliance cases of the Open Responses specification ask for, and what the specification says of streams."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from ingress.bench import Bench, data_url, picture, serving
from ingress.openai.openai_bench import openai_error
from ingress.responses.response_bench import ORDER, message, post, without_repeats

pytestmark = pytest.mark.slow

# Fields that the specification's response object must have.
REQUIRED = {
    *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id"),
    *("instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p"),
    *("presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "user", "usage"),
    *("max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier"),
    "prompt_cache_key",
}
HEART = data_url(picture(size=(32, 32)))


def typed(role: str, content: object) -> dict[str, object]:
    return {"type": "message", "role": role, "content": content}


CASES = {
    "text": [typed("user", "Say hello in exactly 3 words.")],
    "system prompt": [typed("system", "You are a pirate."), typed("user", "Say hello.")],
    "image": [typed("user", message("What do you see in this image?", HEART)["content"])],
    "several turns": [
        typed("user", "My name is Alice."),
        typed("assistant", "Hello Alice! Nice to meet you. How can I help you today?"),
        typed("user", "What is my name?"),
    ],
}


def check_response(response: dict[str, Any]) -> None:
    assert set(response) >= REQUIRED
    assert response["status"] == "completed"
    assert isinstance(response["created_at"], int)
    assert isinstance(response["metadata"], dict)
    assert set(response["reasoning"]) == {"effort", "summary"}
    assert set(response["usage"]) == {
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "input_tokens_details",
        "output_tokens_details",
    }
    (item,) = response["output"]
    assert set(item) == {"type", "id", "status", "role", "content"}
    (part,) = item["content"]
    assert set(part) == {"type", "text", "annotations", "logprobs"}


@pytest.mark.parametrize("name", CASES)
async def test_cases(bench: Bench, name: str) -> None:
    reply = await post(bench, CASES[name], model="fake", stream=False)
    assert reply.headers["content-type"] == "application/json"
    check_response(reply.json())


@pytest.mark.parametrize("name", CASES)
async def test_cases_streamed(bench: Bench, name: str) -> None:
    """Read as the specification's own reader does: line by line, events never split over two reads."""
    events: list[dict[str, Any]] = []
    done = 0
    async with (
        serving(bench.app) as address,
        httpx.AsyncClient(base_url=address) as client,
        client.stream("POST", "/v1/responses", json={"model": "fake", "input": CASES[name], "stream": True}) as reply,
    ):
        assert reply.headers["content-type"].split(";")[0] == "text/event-stream"
        async for piece in reply.aiter_text():
            assert piece.endswith("\n\n")
            for block in piece.removesuffix("\n\n").split("\n\n"):
                data = next(line for line in block.split("\n") if line.startswith("data: ")).removeprefix("data: ")
                if data == "[DONE]":
                    done += 1
                    continue
                assert not done
                events.append(json.loads(data))
                assert f"event: {events[-1]['type']}" in block.split("\n")
    assert done == 1
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert without_repeats([event["type"] for event in events]) == [*ORDER, "response.completed"]
    check_response(events[-1]["response"])
    for event in events[:2]:
        assert set(event["response"]) >= REQUIRED


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_are_refused_until_they_exist(bench: Bench, stream: bool) -> None:
    tool = {
        "type": "function",
        "name": "get_weather",
        "description": "Get the current weather for a location",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    }
    reply = await post(bench, [typed("user", "What's the weather?")], model="fake", tools=[tool], stream=stream)
    openai_error(reply, 400, "unsupported_parameter", "tools")


async def test_a_conversation_is_named_by_the_response_that_belongs_to_it(bench: Bench) -> None:
    response = (await post(bench, "Hello", conversation={"id": "mine"})).json()
    assert response["conversation"] == {"id": "mine"}


async def test_the_document_of_the_api_has_the_routes(bench: Bench) -> None:
    paths = (await bench.client.get("/openapi.json")).json()["paths"]
    assert set(paths["/v1/responses"]) == {"post"}
    assert set(paths["/v1/responses/{response_id}"]) == {"get", "delete"}
    body = paths["/v1/responses"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "#/$defs" not in json.dumps(body)  # which would lead nowhere
    assert {"input", "previous_response_id", "conversation", "background", "resumable"} <= set(body["properties"])
