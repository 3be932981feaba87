"""What POST /v1/chat/completions refuses: every field and value without an effect, by its place in the body."""

from __future__ import annotations

import json

import pytest
from ingress.bench import Bench, BuildBench
from ingress.openai.openai_bench import RED, complete, image, openai_error, text_of, user

from deployments.ingress.openai.chat_schemas import RefusedFields

JSON = {"content-type": "application/json"}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {}}}
UNSUPPORTED = [
    ("tools", [FUNCTION], "function tools are not supported"),
    ("tool_choice", "required", "function tools are not supported"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}, "function tools are not supported"),
    ("functions", [{"name": "f"}], "function tools are not supported"),
    ("function_call", {"name": "f"}, "function tools are not supported"),
    ("logit_bias", {"50256": -100}, "logit_bias is not supported"),
    ("modalities", ["text", "audio"], "audio is not supported"),
    ("audio", {"voice": "alloy", "format": "wav"}, "audio is not supported"),
    ("prediction", {"type": "content", "content": "x"}, "predicted outputs are not supported"),
    ("reasoning_effort", "high", "do not reason"),
    ("verbosity", "low", "in words"),
    ("metadata", {"a": "b"}, "not stored"),
    ("store", True, "POST /v1/responses"),
    ("service_tier", "flex", "service tier"),
    ("prompt_cache_retention", "24h", "in memory"),
    ("prompt_cache_options", {"mode": "explicit"}, "no options"),
    ("moderation", {"model": "x"}, "no moderation"),
    ("web_search_options", {}, "no web search"),
]
HARMLESS = [
    ("tools", []),
    ("tool_choice", "none"),
    ("tool_choice", "auto"),
    ("parallel_tool_calls", True),
    ("parallel_tool_calls", False),
    ("functions", []),
    ("function_call", "none"),
    ("logit_bias", {}),
    ("modalities", ["text"]),
    ("reasoning_effort", "none"),
    ("verbosity", "medium"),
    ("metadata", {}),
    ("user", ""),
    ("top_logprobs", 0),
    ("store", False),
    ("service_tier", "auto"),
    ("service_tier", "default"),
    ("prompt_cache_retention", "in_memory"),
    *((name, None) for name in RefusedFields.model_fields),
]
INVALID = [
    ("temperature", 2.1, "invalid_value"),
    ("temperature", -0.1, "invalid_value"),
    ("temperature", "1", "invalid_type"),
    ("temperature", True, "invalid_type"),
    ("temperature", 10**400, "invalid_type"),
    ("top_p", 0, "invalid_value"),
    ("top_p", 1.1, "invalid_value"),
    ("top_k", -1, "invalid_value"),
    ("min_p", 1.1, "invalid_value"),
    ("presence_penalty", 2.1, "invalid_value"),
    ("frequency_penalty", -2.1, "invalid_value"),
    ("repetition_penalty", 0, "invalid_value"),
    ("seed", 2**63, "invalid_value"),
    ("seed", 1.5, "invalid_type"),
    ("n", 0, "invalid_value"),
    ("n", 9, "invalid_value"),
    ("n", True, "invalid_type"),
    ("max_tokens", 0, "invalid_value"),
    ("max_tokens", 4097, "invalid_value"),
    ("max_tokens", 10**400, "invalid_value"),
    ("max_completion_tokens", 100_000, "invalid_value"),
    ("stop", 5, "invalid_type"),
    ("stop", ["x"] * 9, "invalid_value"),
    ("stop", ["x" * 257], "invalid_value"),
    ("stream", "yes", "invalid_type"),
    ("stream_options", {"include_usage": True}, "invalid_value"),
    ("logprobs", 1, "invalid_type"),
    ("top_logprobs", 21, "invalid_value"),
    ("top_logprobs", 1, "invalid_value"),
    ("user", "x" * 513, "string_above_max_length"),
    ("prompt_cache_key", "x" * 513, "string_above_max_length"),
    ("model", 5, "invalid_type"),
]


@pytest.mark.parametrize(("field", "value", "words"), UNSUPPORTED)
async def test_what_is_not_supported(bench: Bench, field: str, value: object, words: str) -> None:
    error = openai_error(await complete(bench, **{field: value}), 400, "unsupported_parameter", field)
    assert words in error["message"]
    assert error["message"].startswith(f"{field}: ")


def test_every_refused_field_is_in_the_table() -> None:
    assert {field for field, _, _ in UNSUPPORTED} | {"parallel_tool_calls"} == set(RefusedFields.model_fields)


@pytest.mark.parametrize(("field", "value"), HARMLESS)
async def test_values_that_ask_for_nothing_are_taken(bench: Bench, field: str, value: object) -> None:
    assert text_of(await complete(bench, **{field: value})) == 'You asked: "Hello".'


@pytest.mark.parametrize(
    ("field", "value", "code"), INVALID, ids=[f"{field}-{str(value)[:9]}" for field, value, _ in INVALID]
)
async def test_values_that_cannot_be(bench: Bench, field: str, value: object, code: str) -> None:
    openai_error(await complete(bench, **{field: value}), 400, code, field)


@pytest.mark.parametrize("field", ["best_of", "ignore_eos", "chat_template_kwargs", "max_new_tokens", "x" * 5000])
async def test_unknown_fields(bench: Bench, field: str) -> None:
    error = openai_error(await complete(bench, **{field: 1}), 400)
    assert error["code"] == "unknown_parameter"
    assert field.startswith(error["param"])


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        ({"type": "json"}, "invalid_value", "response_format.type"),
        ({}, "invalid_value", "response_format.type"),
        ({"type": "json_schema"}, "missing_required_parameter", "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": {}}},
            "missing_required_parameter",
            "response_format.json_schema.name",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
            "invalid_value",
            "response_format.json_schema.name",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": "{}"}},
            "invalid_type",
            "response_format.json_schema.schema",
        ),
        ({"type": "text", "schema": {}}, "unknown_parameter", "response_format.schema"),
    ],
)
async def test_formats(bench: Bench, value: object, code: str, param: str) -> None:
    openai_error(await complete(bench, response_format=value), 400, code, param)


async def test_a_schema_that_python_reads_and_json_has_not(bench: Bench) -> None:
    body = json.dumps(
        {
            "messages": [user("Hello")],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": float("nan")}}},
        }
    )
    reply = await bench.client.post("/v1/chat/completions", content=body, headers=JSON)
    openai_error(reply, 400, "invalid_value", "response_format.json_schema.schema")


async def test_limits_that_differ(bench: Bench) -> None:
    reply = await complete(bench, max_tokens=5, max_completion_tokens=6)
    openai_error(reply, 400, "invalid_value", "max_completion_tokens")


async def test_usage_only_for_streams_and_no_obfuscation(bench: Bench) -> None:
    openai_error(await complete(bench, stream_options={}), 400, "invalid_value", "stream_options")
    reply = await complete(bench, stream=True, stream_options={"include_obfuscation": True})
    openai_error(reply, 400, "unsupported_parameter", "stream_options.include_obfuscation")
    assert (await complete(bench, stream=True, stream_options={"include_obfuscation": False})).status_code == 200


# ------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("messages", "code", "param"),
    [
        ([], "array_below_min_length", "messages"),
        ("Hello", "invalid_type", "messages"),
        ([{"content": "x"}], "invalid_value", "messages[0].role"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "invalid_value", "messages[0].role"),
        ([{"role": "user"}], "missing_required_parameter", "messages[0].content"),
        ([{"role": "user", "content": None}], "invalid_type", "messages[0].content"),
        ([{"role": "user", "content": ""}], "invalid_value", "messages[0].content"),
        ([{"role": "user", "content": " \n"}], "invalid_value", "messages[0].content"),
        ([user("")], "invalid_value", "messages[0].content"),
        ([{"role": "user", "content": []}], "array_below_min_length", "messages[0].content"),
        ([user("x"), {"role": "user", "content": 5}], "invalid_type", "messages[1].content"),
        ([{"role": "user", "content": "x", "name": "Ada"}], "unsupported_parameter", "messages[0].name"),
        ([{"role": "user", "content": "x", "cache": 1}], "unknown_parameter", "messages[0].cache"),
        ([{"role": "system", "content": "x"}], "invalid_value", "messages[0].role"),
        ([user("x"), {"role": "assistant", "content": "y"}], "invalid_value", "messages[1].role"),
        ([{"role": "system", "content": [image(RED)]}], "invalid_value", "messages[0].content[0].type"),
        ([user({"type": "input_audio", "input_audio": {}})], "invalid_value", "messages[0].content[0].type"),
        ([user("x", {"type": "image_url"})], "missing_required_parameter", "messages[0].content[1].image_url"),
        ([user({"type": "image_url", "image_url": RED})], "invalid_type", "messages[0].content[0].image_url"),
        ([user(image(RED, detail="ultra"))], "invalid_value", "messages[0].content[0].image_url.detail"),
        ([user({"type": "text", "text": "x", "cache": 1})], "unknown_parameter", "messages[0].content[0].cache"),
        ([user({"type": "text", "text": 5})], "invalid_type", "messages[0].content[0].text"),
        ([user({**image(RED), "cache": 1})], "unknown_parameter", "messages[0].content[0].cache"),
        ([{"role": "system", "content": [{"type": "text", "text": 5}]}], "invalid_type", "messages[0].content[0].text"),
        ([user(image(RED, size=5))], "unknown_parameter", "messages[0].content[0].image_url.size"),
        ([user({"type": "file", "file": {}})], "missing_required_parameter", "messages[0].content[0].file.file_id"),
        (
            [user({"type": "file", "file": {"file_id": "file-1", "file_data": RED}})],
            "unsupported_parameter",
            "messages[0].content[0].file.file_data",
        ),
        (
            [user("x"), {"role": "assistant", "tool_calls": [FUNCTION]}, user("y")],
            "unsupported_parameter",
            "messages[1].tool_calls",
        ),
        (
            [user("x"), {"role": "assistant", "provider_specific_fields": {"thinking": "y"}}, user("y")],
            "invalid_value",
            "messages[1].provider_specific_fields.thinking",
        ),
        ([user("x" * 64_001)], "string_above_max_length", "messages[0].content[0]"),
        ([{"role": "system", "content": "x" * 64_001}, user("x")], "string_above_max_length", "messages[0].content"),
        ([{"role": "user", "content": "\ud800"}], "invalid_value", "messages[0].content"),
    ],
)
async def test_conversations(bench: Bench, messages: object, code: str, param: str) -> None:
    body = json.dumps({"messages": messages})  # not by httpx, which writes no half characters
    reply = await bench.client.post("/v1/chat/completions", content=body, headers=JSON)
    openai_error(reply, 400, code, param)


async def test_a_long_conversation(build_bench: BuildBench) -> None:
    bench = build_bench(ingress={"max_input_messages": 3})
    for number, status in ((3, 200), (4, 400)):
        reply = await bench.client.post("/v1/chat/completions", json={"messages": [user("x")] * number})
        assert reply.status_code == status
    assert "ingress.max_input_messages" in openai_error(reply, 400, "invalid_value", "messages")["message"]


async def test_all_that_is_wrong_is_said_and_little_of_it(bench: Bench) -> None:
    wrong = {"temperature": 5, "top_p": 5, "n": "x" * 10_000, "tool_choice": "y" * 10_000}
    message = openai_error(await complete(bench, **wrong), 400)["message"]
    assert all(f"{name}: " in message for name in wrong)
    many = {f"field_{number}": 1 for number in range(1000)}
    assert openai_error(await complete(bench, **many), 400)["message"].count("field_") == 5


@pytest.mark.parametrize("fields", [None, {}, {"refusal": None}])
async def test_an_answer_that_litellm_sends_back(bench: Bench, fields: object) -> None:
    answer = {"role": "assistant", "content": "Hi", "function_call": None, "provider_specific_fields": fields}
    reply = await bench.client.post("/v1/chat/completions", json={"messages": [user("x"), answer, user("Hello")]})
    assert "Hello" in text_of(reply)
