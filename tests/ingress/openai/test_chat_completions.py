"""POST /v1/chat/completions: what goes to the generator, and the reply's shape."""

from __future__ import annotations

import json

import pytest
from ingress.bench import Bench, BuildBench, ScriptedGenerator
from ingress.openai.openai_bench import RED, chunks_of, complete, openai_error, text_of, user

from deployments.types import Alternative, Chunk, GenerateRequest, Grammar, Timings, TokenLogprob, Usage

USAGE, TIMINGS = Usage(30, 16, 20, 2), Timings(0, 0, 0, 0, 0)
SCHEMA = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}


def scripted(*chunks: Chunk) -> ScriptedGenerator:
    return ScriptedGenerator((*chunks, Chunk("", 0, "stop", USAGE, TIMINGS)))


async def request_of(build_bench: BuildBench, **fields: object) -> GenerateRequest:
    generator = scripted(Chunk("Hi", 1))
    text_of(await complete(build_bench(generator), **fields))
    return generator.requests[0]


# ------------------------------------------------------------------------------------- replies


async def test_the_shape_of_a_reply(build_bench: BuildBench) -> None:
    reply = (await complete(build_bench(scripted(Chunk("A ", 1), Chunk("red", 1))))).json()
    assert reply.pop("id").startswith("chatcmpl-")
    assert reply.pop("created") > 1_600_000_000
    assert reply.pop("system_fingerprint").startswith("fp_")
    assert reply == {
        "object": "chat.completion",
        "model": "fake",
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A red", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 2,
            "total_tokens": 32,
            "prompt_tokens_details": {"cached_tokens": 20, "image_tokens": 16, "text_tokens": 14, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
    }


async def test_ids_differ_and_fingerprints_follow_the_model(build_bench: BuildBench) -> None:
    bench = build_bench()
    first, again, other = [(await complete(bench, model=name)).json() for name in ("fake", "fake", "other")]
    assert len({first["id"], again["id"], other["id"]}) == 3
    assert first["system_fingerprint"] == again["system_fingerprint"]
    changed = build_bench(models=[{"name": "fake", "family": "fake", "generator": {"max_new_tokens": 300}}])
    assert (await complete(changed)).json()["system_fingerprint"] != first["system_fingerprint"]


async def test_the_same_question_gets_the_same_answer_and_usage_as_in_chat(bench: Bench) -> None:
    plain = (await bench.ask("What is it?", image=RED)).json()
    reply = await bench.client.post("/v1/chat/completions", json={"messages": [user("What is it?", RED)]})
    assert text_of(reply) == plain["response"]
    usage, same = reply.json()["usage"], plain["usage"]
    assert usage["prompt_tokens"] == same["prompt_tokens"]
    assert usage["completion_tokens"] == same["completion_tokens"]
    assert usage["prompt_tokens_details"]["image_tokens"] == same["image_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == same["reused_tokens"]
    assert (await bench.client.get("/chat/sessions")).json()["count"] == 1  # the one of /chat


async def test_several_choices_count_the_prompt_once(bench: Bench) -> None:
    one, three = (await complete(bench)).json(), (await complete(bench, n=3)).json()
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in three["choices"]} == {one["choices"][0]["message"]["content"]}
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] == 3 * one["usage"]["completion_tokens"]
    assert three["usage"]["total_tokens"] == three["usage"]["prompt_tokens"] + three["usage"]["completion_tokens"]


async def test_logprobs(build_bench: BuildBench) -> None:
    token = TokenLogprob(
        Alternative(1, "é", -0.5), (Alternative(1, "é", -0.5), Alternative(2, "\ufffd", -float("inf")))
    )
    chunks = (Chunk("é", 1, logprobs=(token,)), Chunk("", 1, logprobs=(token,)))
    bench = build_bench(scripted(*chunks))
    first = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    expected = {**first, "top_logprobs": [first, {"token": "\ufffd", "logprob": -9999.0, "bytes": None}]}
    whole = (await complete(bench, logprobs=True, top_logprobs=2)).json()
    assert whole["choices"][0]["logprobs"] == {"content": [expected, expected], "refusal": None}
    streamed = chunks_of((await complete(bench, logprobs=True, top_logprobs=2, stream=True)).text)
    shown = [choice["logprobs"] for chunk in streamed for choice in chunk["choices"]]  # type: ignore[attr-defined]
    assert [each["content"] for each in shown if each] == [[expected], [expected]]


async def test_logprobs_without_alternatives(build_bench: BuildBench) -> None:
    request = await request_of(build_bench, logprobs=True)
    assert request.sampling.num_logprobs == 0
    assert (await request_of(build_bench, logprobs=False)).sampling.num_logprobs is None


# ------------------------------------------------------------------------------------- parameters


async def test_defaults_are_those_of_chat(build_bench: BuildBench) -> None:
    generator = scripted(Chunk("Hi", 1))
    bench = build_bench(generator)
    await bench.ask("Hello")
    await complete(bench)
    await complete(bench, **dict.fromkeys(("temperature", "top_p", "seed", "stop", "n", "max_tokens", "stream")))
    chat, *others = (request.sampling for request in generator.requests)
    assert others == [chat, chat]
    assert chat.temperature == 0


@pytest.mark.parametrize(
    ("field", "value", "name", "expected"),
    [
        ("temperature", 1, "temperature", 1.0),
        ("top_p", 0.5, "top_p", 0.5),
        ("top_k", 5, "top_k", 5),
        ("min_p", 0.25, "min_p", 0.25),
        ("repetition_penalty", 1.5, "repetition_penalty", 1.5),
        ("presence_penalty", -2, "presence_penalty", -2.0),
        ("frequency_penalty", 2, "frequency_penalty", 2.0),
        ("seed", 11, "seed", 11),
        ("seed", -1, "seed", 2**63 - 1),
        ("stop", "x", "stop", ("x",)),
        ("stop", ["x", "y"], "stop", ("x", "y")),
        ("stop", [], "stop", ()),
        ("max_tokens", 5, "max_new_tokens", 5),
        ("max_completion_tokens", 6, "max_new_tokens", 6),
        ("response_format", {"type": "text"}, "grammar", None),
        ("response_format", {"type": "json_object"}, "grammar", Grammar("json_object")),
    ],
)
async def test_what_the_generator_is_asked(
    build_bench: BuildBench, field: str, value: object, name: str, expected: object
) -> None:
    request = await request_of(build_bench, **{field: value})
    assert getattr(request.sampling, name) == expected


async def test_both_names_of_the_limit_may_agree(build_bench: BuildBench) -> None:
    request = await request_of(build_bench, max_tokens=5, max_completion_tokens=5)
    assert request.sampling.max_new_tokens == 5


@pytest.mark.parametrize("strict", [True, False, None])
async def test_a_schema_goes_to_the_generator_as_it_is(build_bench: BuildBench, strict: bool | None) -> None:
    named = {"name": "answer_1", "description": "An answer.", "strict": strict, "schema": SCHEMA}
    request = await request_of(build_bench, response_format={"type": "json_schema", "json_schema": named})
    assert request.sampling.grammar is not None
    assert request.sampling.grammar.kind == "json_schema"
    assert json.loads(request.sampling.grammar.schema) == SCHEMA


async def test_answers_in_json(bench: Bench) -> None:
    named = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    assert set(json.loads(text_of(await complete(bench, response_format=named)))) == {"colour"}
    assert isinstance(json.loads(text_of(await complete(bench, response_format={"type": "json_object"}))), dict)


async def test_length(bench: Bench) -> None:
    choice = (await complete(bench, max_tokens=1)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("You", "length")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"user": "a"}, {"user": "a"}, True),
        ({"user": "a"}, {"user": "b"}, False),
        ({"prompt_cache_key": "a", "user": "b"}, {"prompt_cache_key": "a", "user": "c"}, True),
        ({"safety_identifier": "a"}, {"user": "a"}, True),
        ({}, {}, True),
        ({"user": ""}, {}, True),
        ({"question": "x"}, {"question": "y"}, False),
        ({"question": [{"type": "image_url", "image_url": {"url": RED}}]}, user("Something else", RED), True),
    ],
)
async def test_affinity(build_bench: BuildBench, one: dict[str, object], other: dict[str, object], same: bool) -> None:
    generator = scripted(Chunk("Hi", 1))
    bench = build_bench(generator)
    for asked in (one, other):
        question = asked.get("content", asked.get("question", "Hello"))
        keys = {key: value for key, value in asked.items() if key not in ("question", "content", "role")}
        text_of(await complete(bench, question, **keys))
    first, second = (request.session_key for request in generator.requests)
    assert first
    assert (first == second) == same


async def test_without_a_model_the_default_answers(build_bench: BuildBench) -> None:
    bench = build_bench(default_model="other")
    assert (await complete(bench)).json()["model"] == "other"
    error = openai_error(await complete(bench, model="gpt-4o"), 404, "model_not_found", "model")
    assert "choose one of: fake, other" in error["message"]
