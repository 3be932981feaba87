"""What POST /v1/responses refuses: each with 400, the place in the body, and OpenAI's shape; nothing is stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ingress.bench import Bench, BuildBench, ScriptedGenerator
from ingress.openai.openai_bench import openai_error
from ingress.responses.response_bench import RED, create, image, message, post

from deployments.ingress.tenants import PUBLIC_TENANT

TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}
UNSUPPORTED = [
    ({"tools": [TOOL]}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
    ({"reasoning": {"generate_summary": "auto"}}, "reasoning.generate_summary"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
    ({"prompt_cache_options": {"mode": "explicit"}}, "prompt_cache_options"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"input": [{"role": "assistant", "content": "a", "phase": "commentary"}, message("b")]}, "input[0].phase"),
]
NOTHING_ASKED = (
    "prompt",
    "prompt_cache_options",
    "context_management",
    "moderation",
    "reasoning",
    "tools",
    "tool_choice",
    "service_tier",
    "stop",
    "stream_options",
)
HARMLESS = [
    *({name: None} for name in NOTHING_ASKED),
    {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False},
    {"reasoning": {"effort": "none", "summary": None, "generate_summary": None}},
    {"include": ["reasoning.encrypted_content"], "store": False},
    {"prompt_cache_retention": "in_memory", "service_tier": "default", "text": {"verbosity": "medium"}},
    {"stop": "never said", "top_logprobs": 0},
]
UNKNOWN = [
    ({"max_tokens": 5}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"response_format": {"type": "text"}}, "response_format"),
    ({"text": {"style": "x"}}, "text.style"),
    ({"conversation": {"id": "a", "name": "b"}}, "conversation.name"),
    ({"input": [{"role": "user", "content": "a", "name": "b"}]}, "input[0].name"),
    ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "x": 1}]}]}, "input[0].content[0].x"),
]
INVALID = [
    ({"input": ""}, "input"),
    ({"input": "  \n"}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": {"role": "user", "content": "a"}}, "input"),
    ({"input": [message("a"), {"role": "assistant", "content": "b"}]}, "input[1].content"),
    ({"input": [message("a"), {"role": "system", "content": "b"}]}, "input[1].content"),
    ({"input": [message()]}, "input[0].content"),
    ({"input": [message(""), message("b")]}, "input[0].content"),
    ({"input": ["a"]}, "input[0]"),
    ({"input": [{"role": "tool", "content": "a"}]}, "input[0]"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "o"}]}, "input[0]"),
    ({"input": [{"type": "reasoning", "id": "r", "summary": []}]}, "input[0]"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "output_text", "text": "f"}]}]}, "input[0].content[0].type"),
    ({"input": [message("a", image(RED, detail="huge"))]}, "input[0].content[1].detail"),
    ({"input": [message("a", {"type": "input_image"})]}, "input[0].content[1]"),
    ({"input": [message("a", image(RED, file_id="file-x"))]}, "input[0].content[1]"),
    ({"input": [message("a", image("https://example.com/x.png"))]}, "input[0].content[1].image_url"),
    ({"input": [message("a", image("data:image/png;base64,AAAA"))]}, "input[0].content[1].image_url"),
    ({"input": "\ud800"}, "input"),
    ({"instructions": "\ud800"}, "instructions"),
    ({"metadata": {"\ud800": "a"}}, "metadata"),
    ({"previous_response_id": "\ud800"}, "previous_response_id"),
    ({"conversation": {"id": "\ud800"}}, "conversation"),
    ({"model": "\ud800"}, "model"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 10**9}, "max_output_tokens"),
    ({"max_output_tokens": "5"}, "max_output_tokens"),
    ({"stop": ["a"] * 9}, "stop"),
    ({"seed": -1}, "seed"),
    ({"include": ["message.input_image.image_url"]}, "include[0]"),
    ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {"a": "x" * 513}}, "metadata.a"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}, "text.format.name"),
    ({"stream": "yes"}, "stream"),
    ({"truncation": "middle"}, "truncation"),
    ({"background": 1}, "background"),
    ({"conversation": 5}, "conversation"),
    ({"conversation": "a/b"}, "conversation"),
    ({"max_tool_calls": 0}, "max_tool_calls"),
    ({"conversation": "a", "previous_response_id": "resp_b"}, "previous_response_id"),
    ({"conversation": "a", "store": False}, "store"),
    ({"background": True, "store": False}, "store"),
    ({"resumable": True, "stream": True, "store": False}, "store"),
    ({"resumable": True}, "resumable"),
    ({"stream_options": {}}, "stream_options"),
]


async def refused(bench: Bench, fields: dict[str, Any], param: str) -> dict[str, str]:
    """The error; asserts that nothing is stored."""
    body = {"input": "Hello", **fields}
    error = openai_error(await _post(bench, body), 400)
    assert error["param"] == param, error
    assert (await bench.client.get("/chat/sessions")).json()["count"] == 0
    assert await bench.router.records(PUBLIC_TENANT, "response", 10) == ()
    return error


async def _post(bench: Bench, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    return await bench.client.post("/v1/responses", content=json.dumps(body), headers=headers)


@pytest.mark.parametrize(("fields", "param"), UNSUPPORTED)
async def test_what_nobody_would_act_on(bench: Bench, fields: dict[str, Any], param: str) -> None:
    assert (await refused(bench, fields, param))["code"] == "unsupported_parameter"


@pytest.mark.parametrize("fields", HARMLESS)
async def test_values_that_ask_for_nothing_are_taken(bench: Bench, fields: dict[str, Any]) -> None:
    reply = await _post(bench, {"input": "Hello", **fields})
    assert reply.status_code == 200, reply.text
    assert reply.json()["output"][0]["content"][0] == {
        "type": "output_text",
        "text": 'You asked: "Hello".',
        "annotations": [],
        "logprobs": [],
    }


async def test_a_schema_that_is_nested_too_deep(bench: Bench) -> None:
    schema: dict[str, Any] = {}
    for _ in range(300):
        schema = {"items": schema}
    asked = {"type": "json_schema", "name": "deep", "schema": schema}
    assert "nested too deep" in (await refused(bench, {"text": {"format": asked}}, "text"))["message"]


@pytest.mark.parametrize(("fields", "param"), UNKNOWN)
async def test_what_nobody_knows(bench: Bench, fields: dict[str, Any], param: str) -> None:
    assert (await refused(bench, fields, param))["code"] == "unknown_parameter"


@pytest.mark.parametrize(("fields", "param"), INVALID)
async def test_what_cannot_be(bench: Bench, fields: dict[str, Any], param: str) -> None:
    await refused(bench, fields, param)


@pytest.mark.parametrize(("fields", "param"), [*UNSUPPORTED, *UNKNOWN])
async def test_streams_are_refused_with_a_status(bench: Bench, fields: dict[str, Any], param: str) -> None:
    await refused(bench, {"stream": True, **fields}, param)


async def test_tools_are_refused_in_words_that_help(bench: Bench) -> None:
    error = await refused(bench, {"tools": [TOOL]}, "tools")
    assert "function tools" in error["message"]
    assert "not supported" in error["message"]


async def test_nothing_at_all(bench: Bench) -> None:
    error = openai_error(await _post(bench, {}), 400, "missing_required_parameter", "input")
    assert "input" in error["message"]


async def test_bodies_that_are_not_read(bench: Bench) -> None:
    openai_error(
        await bench.client.post("/v1/responses", content="{", headers={"Content-Type": "application/json"}), 400
    )
    openai_error(await bench.client.post("/v1/responses", data={"input": "Hello"}), 415)
    twice = '{"input":"a","input":"b"}'
    reply = await bench.client.post("/v1/responses", content=twice, headers={"Content-Type": "application/json"})
    assert "twice" in openai_error(reply, 400)["message"]


async def test_an_unknown_model(bench: Bench) -> None:
    for fields in ({}, {"store": False}, {"background": True}):
        error = openai_error(await post(bench, model="absent", **fields), 404, "model_not_found", "model")
        assert "fake, other" in error["message"]


async def test_limits_are_told_with_their_settings(build_bench: BuildBench) -> None:
    bench = build_bench(ingress={"max_input_messages": 2, "max_input_images": 1, "max_message_chars": 10})
    error = await refused(bench, {"input": [message("a")] * 3}, "input")
    assert "ingress.max_input_messages" in error["message"]
    error = await refused(bench, {"input": [message("a", RED, RED)]}, "input[0].content[2].image_url")
    assert "ingress.max_input_images" in error["message"]
    error = await refused(bench, {"input": "a" * 11}, "input")
    assert "ingress.max_message_chars" in error["message"]
    await refused(bench, {"input": "a" * 6, "instructions": "b" * 5}, "input")
    await refused(bench, {"instructions": "b" * 11}, "instructions")
    await refused(bench, {"input": "a" * 11, "store": False}, "input")


async def test_a_refused_request_reads_no_pictures(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator(())
    bench = build_bench(generator, ingress={"max_message_chars": 10})
    bad = image("data:image/png;base64,AAAA")
    openai_error(await post(bench, [message("a" * 11, bad)]), 400, "string_above_max_length", "input")
    openai_error(await post(bench, [message("a", bad)], previous_response_id="resp_x"), 404)
    assert generator.requests == []


async def test_queries_that_are_refused(bench: Bench) -> None:
    path = f"/v1/responses/{(await create(bench))['id']}"
    for query, param in (
        ("include[]=message.output_text.logprobs", "include[]"),
        ("stream=maybe", "stream"),
        ("starting_after=3", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("stream=true&include_obfuscation=true", "include_obfuscation"),
        ("x=1", "x"),
    ):
        assert openai_error(await bench.client.get(f"{path}?{query}"), 400)["param"] == param


async def test_an_answer_longer_than_the_model_gives_is_named_as_it_was_asked_for(bench: Bench) -> None:
    for fields in ({}, {"store": False}, {"background": True}):
        error = openai_error(await post(bench, max_output_tokens=10**6, **fields), 400)
        assert error["param"] == "max_output_tokens"
        assert "max_output_tokens is 1000000" in error["message"]
