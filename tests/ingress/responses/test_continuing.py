"""Going on: after a response, in a conversation, from /chat and back; and what is begun anew where that cannot be."""

from __future__ import annotations

import asyncio

import pytest
from ingress.bench import Bench, BuildBench, ScriptedGenerator, data_url, picture, post_form
from ingress.openai.openai_bench import openai_error
from ingress.responses.response_bench import (
    RED,
    WIDE,
    chat,
    create,
    message,
    post,
    said,
    session_of,
    stream,
    text_of,
)

from deployments.types import Chunk, GenerateRequest, Timings, Usage

END = Chunk("Yes.", 1, "stop", Usage(1, 0, 0, 1), Timings(0, 0, 0, 0, 0))
WAYS = pytest.mark.parametrize("fields", [{}, {"stream": True}, {"background": True, "stream": True}])


async def answer(bench: Bench, question: object, **fields: object) -> tuple[str, dict[str, object]]:
    """What is said and the whole response, however it is asked for."""
    if not fields.pop("stream", False):
        response = await create(bench, question, **fields)
        return said(response), response
    events = await stream(bench, question, **fields)
    return text_of(events), events[-1]["response"]


def seen(request: GenerateRequest) -> list[str]:
    return [f"{each.role}: {each.text}" for each in request.messages]


# ------------------------------------------------------------------------------------- after a response


@WAYS
async def test_a_chain_remembers(bench: Bench, fields: dict[str, object]) -> None:
    first = await create(bench, "One")
    text, second = await answer(bench, "Two", previous_response_id=first["id"], **fields)
    assert text == 'You asked: "Two". I remember 2 messages before this one.'
    assert second["previous_response_id"] == first["id"]
    assert second["conversation"] == first["conversation"]
    text, _ = await answer(bench, "Three", previous_response_id=second["id"], **fields)
    assert "I remember 4 messages" in text
    assert len(await bench.history(session_of(first))) == 6


@WAYS
async def test_going_on_from_an_older_response_is_a_conversation_of_its_own(
    build_bench: BuildBench, fields: dict[str, object]
) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator)
    first = await create(bench, "One")
    second = await create(bench, "Two", previous_response_id=first["id"])
    _, fork = await answer(bench, "Other", previous_response_id=first["id"], **fields)
    assert seen(generator.requests[-1]) == ["user: One", "assistant: Yes.", "user: Other"]
    assert fork["conversation"] != first["conversation"]
    assert len(await bench.history(session_of(fork))) == 4
    assert len(await bench.history(session_of(second))) == 4  # untouched
    await create(bench, "More", previous_response_id=fork["id"])
    assert len(await bench.history(session_of(fork))) == 6


async def test_a_fork_of_a_long_chain_has_what_the_session_would_have(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator, session_router={"max_messages": 6})
    response = await create(bench, "0")
    for number in range(1, 5):
        response = await create(bench, str(number), previous_response_id=response["id"])
    await create(bench, "on", previous_response_id=response["id"])
    in_session = seen(generator.requests[-1])
    await create(bench, "on", previous_response_id=response["id"])
    assert seen(generator.requests[-1]) == in_session
    assert in_session == ["user: 3", "assistant: Yes.", "user: 4", "assistant: Yes.", "user: on"]


async def test_a_fork_brings_no_more_than_a_turn_may(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator, ingress={"max_message_chars": 20})
    first = await create(bench, [message("a" * 15, RED)])
    second = await create(bench, "b" * 10, previous_response_id=first["id"])
    await create(bench, "c" * 5, previous_response_id=second["id"])
    await create(bench, "d" * 5, previous_response_id=second["id"])
    assert seen(generator.requests[-1]) == ["user: " + "b" * 10, "assistant: Yes.", "user: ddddd"]
    assert [len(each.images) for each in generator.requests[-1].messages] == [1, 0, 0]


async def test_a_deleted_conversation_can_be_gone_on_from_all_the_same(bench: Bench) -> None:
    first = await create(bench, "One")
    await bench.client.delete(f"/chat/history/{session_of(first)}")
    second = await create(bench, "Two", previous_response_id=first["id"])
    assert "I remember 2 messages" in said(second)
    assert second["conversation"] != first["conversation"]


async def test_only_one_of_two_that_go_on_at_once_stays_in_the_conversation(bench: Bench) -> None:
    first = await create(bench, "One")
    both = await asyncio.gather(*(create(bench, name, previous_response_id=first["id"]) for name in "ab"))
    assert all("I remember 2 messages" in said(each) for each in both)
    assert [each["conversation"] == first["conversation"] for each in both].count(True) == 1


async def test_instructions_are_for_one_response_and_system_items_for_all_that_follow(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator)
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "One"}]
    first = await create(bench, asked, instructions="Be brief.")
    second = await create(bench, "Two", previous_response_id=first["id"])
    third = await create(bench, "Three", previous_response_id=second["id"], instructions="Be loud.")
    await create(bench, "Fork", previous_response_id=first["id"])
    await create(bench, "Alone", previous_response_id=third["id"], store=False)
    assert [seen(request)[0] for request in generator.requests] == [
        "system: Be brief.\n\nBe kind.",
        "system: Be kind.",
        "system: Be loud.\n\nBe kind.",
        "system: Be kind.",
        "system: Be kind.",
    ]
    assert all(
        len([each for each in seen(request) if each.startswith("system")]) == 1 for request in generator.requests
    )


async def test_the_model_goes_along_unless_another_is_asked_for(bench: Bench) -> None:
    first = await create(bench, "One", model="other")
    assert (await create(bench, "Two", previous_response_id=first["id"]))["model"] == "other"
    assert (await create(bench, "Fork", previous_response_id=first["id"]))["model"] == "other"
    assert (await create(bench, "Three", previous_response_id=first["id"], store=False))["model"] == "other"
    assert (await create(bench, "Four", previous_response_id=first["id"], model="fake"))["model"] == "fake"


async def test_a_response_that_is_under_way_or_absent_cannot_be_gone_on_from(bench: Bench) -> None:
    openai_error(await post(bench, "Two", previous_response_id="resp_absent"), 404, "not_found", "previous_response_id")


# ------------------------------------------------------------------------------------- pictures


async def test_the_newest_picture_is_remembered(bench: Bench) -> None:
    first = await create(bench, [message("Look", RED)])
    second = await create(bench, "What was it?", previous_response_id=first["id"])
    assert "40 x 30" in said(second)
    third = await create(bench, [message("And this?", WIDE)], previous_response_id=second["id"])
    assert "80 x 20" in said(third)
    fork = await create(bench, "What was it?", previous_response_id=second["id"])
    assert "40 x 30" in said(fork)


@pytest.mark.parametrize("fields", [{}, {"store": False}])
async def test_new_pictures_replace_the_old_one_wherever_the_turn_goes(
    build_bench: BuildBench, fields: dict[str, object]
) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator)
    first = await create(bench, [message("Look", RED)])
    for _ in range(2):  # the second one forks
        await create(bench, [message("And these?", WIDE, RED)], previous_response_id=first["id"], **fields)
        shown = [[image.width for image in each.images] for each in generator.requests[-1].messages]
        assert shown == [[], [], [80, 40]]


async def test_of_several_pictures_the_last_one_is_kept(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator)
    first = await create(bench, [message("Look", RED, WIDE)])
    for _ in range(2):  # in the session, then forked
        await create(bench, "Which?", previous_response_id=first["id"])
        assert [image.width for each in generator.requests[-1].messages for image in each.images] == [80]


@pytest.mark.parametrize("way", ["session", "fork", "unstored", "reference"])
async def test_a_picture_that_was_deleted_is_not_answered_from_memory(bench: Bench, way: str) -> None:
    stored = (await bench.client.post("/images", files={"image": ("x.png", picture())})).json()
    first = await create(bench, [message("Look", {"type": "input_image", "file_id": stored["id"]})])
    items = (await bench.client.get(f"/v1/responses/{first['id']}/input_items")).json()["data"]
    if way == "fork":
        await create(bench, "Two", previous_response_id=first["id"])
    await bench.client.delete(f"/images/{stored['id']}")
    after = {"previous_response_id": first["id"]}
    if way == "reference":
        reply = await post(bench, [{"id": items[0]["id"]}, message("What?")])
        openai_error(reply, 404, "image_not_found", "input[0]")
    else:
        reply = await post(bench, "What?", store=way != "unstored", **after)
        openai_error(reply, 404, "image_not_found", "previous_response_id")
    assert "80 x 20" in said(await create(bench, [message("And this?", WIDE)], **after))  # in its place


# ------------------------------------------------------------------------------------- conversations, /chat


async def test_a_conversation_of_chat_goes_on_here_and_back(bench: Bench) -> None:
    begun = await chat(bench, "One")
    session_id = begun["session_id"]
    text, second = await answer(bench, "Two", conversation=session_id)
    assert text == 'You asked: "Two". I remember 2 messages before this one.'
    assert second["conversation"] == {"id": session_id}
    assert "I remember 4 messages" in (await chat(bench, "Three", session_id))["response"]
    assert "I remember 6 messages" in said(await create(bench, "Four", conversation={"id": session_id}))
    assert [each["content"][0]["text"] for each in await bench.history(session_id)][::2] == [
        "One",
        "Two",
        "Three",
        "Four",
    ]


async def test_a_response_goes_on_in_chat(bench: Bench) -> None:
    first = await create(bench, [message("Look", RED)])
    reply = await chat(bench, "What was it?", session_of(first))
    assert reply["has_image"]
    assert "40 x 30" in reply["response"]


async def test_a_picture_of_chat_is_seen_here(bench: Bench) -> None:
    begun = await post_form(bench, {"message": "Look"}, picture(size=(80, 20)))
    assert "80 x 20" in said(await create(bench, "What was it?", conversation=begun.json()["session_id"]))
    assert data_url(picture(size=(80, 20))) == WIDE


async def test_after_chat_went_on_the_response_is_forked(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator)
    begun = await chat(bench, "Zero")
    first = await create(bench, "One", conversation=begun["session_id"])
    await chat(bench, "Two", begun["session_id"])
    fork = await create(bench, "Other", previous_response_id=first["id"])
    assert fork["conversation"]["id"] != begun["session_id"]
    assert seen(generator.requests[-1]) == [
        "user: Zero",
        "assistant: Yes.",
        "user: One",
        "assistant: Yes.",
        "user: Other",
    ]


async def test_a_conversation_with_a_chosen_name_is_begun(bench: Bench) -> None:
    response = await create(bench, "One", conversation="mine")
    assert session_of(response) == "mine"
    assert "I remember 2 messages" in (await chat(bench, "Two", "mine"))["response"]


async def test_several_messages_at_once_are_kept(bench: Bench) -> None:
    asked = [message("One"), {"role": "assistant", "content": "Two"}, message("Three")]
    response = await create(bench, asked)
    assert "I remember 2 messages" in said(response)
    assert [each["role"] for each in await bench.history(session_of(response))] == [
        "user",
        "assistant",
        "user",
        "assistant",
    ]


# ------------------------------------------------------------------------------------- nothing stored


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
async def test_what_is_not_stored_leaves_nothing(bench: Bench, fields: dict[str, object]) -> None:
    _, response = await answer(bench, "One", store=False, **fields)
    assert (response["store"], response["conversation"]) == (False, None)
    openai_error(await bench.client.get(f"/v1/responses/{response['id']}"), 404)
    openai_error(await post(bench, "Two", previous_response_id=response["id"]), 404)
    assert (await bench.client.get("/chat/sessions")).json()["count"] == 0


async def test_a_stored_response_can_be_gone_on_from_without_storing(bench: Bench) -> None:
    first = await create(bench, "One")
    again = [await create(bench, "Two", previous_response_id=first["id"], store=False) for _ in range(2)]
    assert [said(each) for each in again] == ['You asked: "Two". I remember 2 messages before this one.'] * 2
    assert len(await bench.history(session_of(first))) == 2
