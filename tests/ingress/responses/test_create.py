"""POST /v1/responses in one piece: what is answered, what is told back, and what reaches the model."""

from __future__ import annotations

import json

import pytest
from ingress.bench import Bench, BuildBench, ScriptedGenerator
from ingress.responses.response_bench import RED, WIDE, create, image, message, post, said, session_of

from deployments.types import Alternative, Chunk, Grammar, Message, TextPart, Timings, TokenLogprob, Usage

END = Chunk("!", 1, "stop", Usage(7, 0, 2, 1), Timings(0, 0, 400, 1200, 400))


async def test_a_string_is_the_users_message(bench: Bench) -> None:
    response = await create(bench, "Hello")
    assert said(response) == 'You asked: "Hello".'
    assert response["status"] == "completed"
    assert response["object"] == "response"
    assert response["model"] == "fake"
    assert response["error"] is response["incomplete_details"] is None
    assert response["completed_at"] >= response["created_at"]
    (item,) = response["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [
        {"type": "output_text", "text": 'You asked: "Hello".', "annotations": [], "logprobs": []}
    ]


async def test_ids_are_named_for_what_they_are(bench: Bench) -> None:
    first, second = await create(bench), await create(bench)
    assert first["id"].startswith("resp_")
    assert len(first["id"]) == len("resp_") + 32
    assert first["output"][0]["id"].startswith("msg_")
    assert first["id"] != second["id"]
    assert session_of(first) != session_of(second)


async def test_usage_counts_image_tokens_and_cached_ones(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((Chunk("A", 1), END))
    response = await create(build_bench(generator))
    assert response["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2, "image_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 8,
    }
    assert response["completed_at"] == response["created_at"] + 2  # 400 ms to the first token, 1200 ms from there
    seen = await create(build_bench(), [message("What is this?", RED)])
    assert seen["usage"]["input_tokens_details"]["image_tokens"] == 16


@pytest.mark.parametrize("typed", [{}, {"type": "message"}, {"type": "message", "id": "msg_x", "status": "completed"}])
async def test_messages_with_and_without_what_sdks_leave_out(bench: Bench, typed: dict[str, str]) -> None:
    assert said(await create(bench, [{"role": "user", "content": "Hello", **typed}])) == 'You asked: "Hello".'


async def test_several_turns_reach_the_model_in_their_order(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator)
    asked = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Two", "annotations": [], "logprobs": []}],
        },
        {"role": "system", "content": [{"type": "input_text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Three"}]},
    ]
    for fields in ({}, {"store": False}):
        await create(bench, asked, instructions="Be good.", **fields)
    for request in generator.requests:
        assert [(each.role, each.text) for each in request.messages] == [
            ("system", "Be good.\n\nBe brief.\n\nBe kind."),
            ("user", "One"),
            ("assistant", "Two"),
            ("user", "Three"),
        ]


async def test_pictures_stand_where_they_were_given(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator)
    await create(bench, [message("left", RED, "right", WIDE), message("Which is wider?")])
    first, second = generator.requests[0].messages
    assert [(part.text if isinstance(part, TextPart) else part.image.width) for part in first.content] == [
        "left",
        40,
        "right",
        80,
    ]
    assert second == Message("user", (TextPart("Which is wider?"),), second.timestamp)


async def test_a_picture_alone_is_a_question(bench: Bench) -> None:
    assert "40 x 30" in said(await create(bench, [message(RED)]))


@pytest.mark.parametrize("detail", ["auto", "high", "original", None])
async def test_details_that_show_the_picture_as_it_is(bench: Bench, detail: str | None) -> None:
    assert "40 x 30" in said(await create(bench, [message("Hello", image(RED, detail=detail))]))


async def test_files_and_stored_pictures_by_their_ids(bench: Bench) -> None:
    from ingress.bench import picture

    upload = {"file": ("red.png", picture(size=(40, 30)), "image/png")}
    file = (await bench.client.post("/v1/files", data={"purpose": "vision"}, files=upload)).json()
    stored = (await bench.client.post("/images", files={"image": ("x.png", picture(size=(80, 20)))})).json()
    by_file = await create(bench, [message("Hello", {"type": "input_image", "file_id": file["id"]})])
    by_image = await create(bench, [message("Hello", {"type": "input_image", "file_id": stored["id"]})])
    assert "40 x 30" in said(by_file)
    assert "80 x 20" in said(by_image)
    items = (await bench.client.get(f"/v1/responses/{by_file['id']}/input_items")).json()["data"]
    assert items[0]["content"][1]["file_id"] == file["id"]


async def test_settings_reach_the_model(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator)
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 7,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.3,
        "max_output_tokens": 9,
        "stop": ["."],
        "top_logprobs": 3,
    }
    for store in (True, False):
        response = await create(bench, store=store, **fields)
        sampling = generator.requests[-1].sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
        assert (sampling.seed, sampling.repetition_penalty) == (7, 1.2)
        assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.3, -0.3)
        assert (sampling.max_new_tokens, sampling.stop, sampling.num_logprobs) == (9, (".",), 3)
        for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "max_output_tokens"):
            assert response[name] == fields[name]
        assert response["top_logprobs"] == 3


async def test_what_was_asked_is_told_back(bench: Bench) -> None:
    fields = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "p",
        "parallel_tool_calls": False,
        "max_tool_calls": 3,
        "tool_choice": "none",
        "truncation": "disabled",
        "reasoning": {"effort": "none"},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
    }
    response = await create(bench, **fields, service_tier="auto", tools=[])
    told = {**fields, "reasoning": {"effort": "none", "summary": None}, "service_tier": "default", "tools": []}
    assert {name: response[name] for name in told} == told
    assert (response["store"], response["background"], response["previous_response_id"]) == (True, False, None)


async def test_nothing_given_is_greedy_and_told_back(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((END,))
    response = await create(build_bench(generator))
    assert generator.requests[0].sampling.temperature == response["temperature"] == 0
    assert (response["top_p"], response["tool_choice"], response["parallel_tool_calls"]) == (1, "auto", True)
    assert (response["metadata"], response["text"]["format"]) == ({}, {"type": "text"})
    assert response["max_output_tokens"] is response["instructions"] is response["user"] is None


async def test_nulls_are_what_is_left_out(bench: Bench) -> None:
    names = "instructions previous_response_id conversation store stream stream_options background max_output_tokens "
    names += "temperature top_p top_logprobs include text reasoning truncation tools tool_choice parallel_tool_calls "
    names += "max_tool_calls service_tier metadata user safety_identifier prompt_cache_key seed top_k min_p stop model "
    names += "presence_penalty frequency_penalty repetition_penalty resumable"
    response = await create(bench, **dict.fromkeys(names.split()))
    plain = await create(bench)
    own = ("id", "output", "conversation", "created_at", "completed_at")
    assert {k: v for k, v in response.items() if k not in own} == {k: v for k, v in plain.items() if k not in own}


@pytest.mark.parametrize(
    ("reason", "status", "details"),
    [("stop", "completed", None), ("length", "incomplete", {"reason": "max_output_tokens"})],
)
async def test_an_answer_that_was_cut_off_is_incomplete(
    bench: Bench, reason: str, status: str, details: object
) -> None:
    response = await create(bench, max_output_tokens=2 if reason == "length" else 100)
    assert (response["status"], response["incomplete_details"]) == (status, details)
    assert response["output"][0]["status"] == status
    assert (response["completed_at"] is None) == (status == "incomplete")


async def test_an_empty_answer_is_a_message_all_the_same(build_bench: BuildBench) -> None:
    response = await create(build_bench(ScriptedGenerator((Chunk("", 0, "stop", END.usage, END.timings),))))
    assert response["output"][0]["content"][0]["text"] == ""
    assert response["status"] == "completed"


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"top_logprobs": 2}, 2),
        ({"top_logprobs": 0}, None),
        ({}, None),
    ],
)
async def test_log_probabilities(bench: Bench, fields: dict[str, object], number: int | None) -> None:
    logprobs = (await create(bench, **fields))["output"][0]["content"][0]["logprobs"]
    assert len(logprobs) == (0 if number is None else 3)
    for each in logprobs:
        assert bytes(each["bytes"]).decode() == each["token"]
        assert each["logprob"] < 0
        assert len(each["top_logprobs"]) == number


async def test_log_probabilities_of_what_json_cannot_say(build_bench: BuildBench) -> None:
    half = TokenLogprob(Alternative(1, "\ufffd", -0.5), (Alternative(2, "a", float("-inf")),))
    chunk = Chunk("é", 1, "stop", END.usage, END.timings, logprobs=(half,))
    response = await create(build_bench(ScriptedGenerator((chunk,))), top_logprobs=1)
    (logprob,) = response["output"][0]["content"][0]["logprobs"]
    assert (logprob["token"], logprob["bytes"]) == ("\ufffd", [])
    assert logprob["top_logprobs"] == [{"token": "a", "logprob": -9999.0, "bytes": [97]}]


@pytest.mark.parametrize("store", [True, False])
async def test_formats_become_grammars(build_bench: BuildBench, store: bool) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    asked = {"type": "json_schema", "name": "thing", "schema": schema, "strict": True}
    response = await create(bench, store=store, text={"format": asked})
    assert response["text"]["format"] == {**asked, "description": None}
    assert generator.requests[-1].sampling.grammar == Grammar("json_schema", json.dumps(schema))
    await create(bench, store=store, text={"format": {"type": "json_object"}})
    assert generator.requests[-1].sampling.grammar == Grammar("json_object")
    await create(bench, store=store, text={"format": {"type": "text"}})
    assert generator.requests[-1].sampling.grammar is None


@pytest.mark.parametrize(("asked", "told"), [(None, "disabled"), ("disabled", "disabled"), ("auto", "auto")])
@pytest.mark.parametrize("fields", [{}, {"store": False}, {"background": True, "stream": True}])
async def test_whether_a_long_conversation_may_be_cut(
    build_bench: BuildBench, asked: str | None, told: str, fields: dict[str, object]
) -> None:
    generator = ScriptedGenerator((END,))
    reply = await post(build_bench(generator), truncation=asked, **fields)
    assert f'"truncation":"{told}"' in reply.text
    assert generator.requests[0].keeps_all == (told == "disabled")


async def test_the_model_that_was_asked_for(bench: Bench) -> None:
    assert (await create(bench, model="other"))["model"] == "other"
    assert (await create(bench, model="other", store=False))["model"] == "other"


async def test_requests_with_a_key_in_common_go_to_one_replica(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator)
    for fields in ({"prompt_cache_key": "k"}, {"prompt_cache_key": "k"}, {"prompt_cache_key": "l"}, {"user": "k"}, {}):
        await create(bench, store=False, **fields)
    await create(bench, [message("Hello", RED)], store=False)
    await create(bench, [message("What?", RED)], store=False)
    keys = [request.session_key for request in generator.requests]
    assert keys[0] == keys[1] == keys[3]
    assert keys[5] == keys[6]
    assert len({keys[0], keys[2], keys[4], keys[5]}) == 4
