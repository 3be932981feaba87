"""Stored responses: got, listed item by item, referred to, deleted, gone after their time, and absent for others."""

from __future__ import annotations

import json

import pytest
from ingress.bench import Bench, BuildBench, ScriptedGenerator, picture
from ingress.openai.openai_bench import openai_error
from ingress.responses.response_bench import RED, create, fetch, image, message, post, said, session_of
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from deployments.ingress.tenants import PUBLIC_TENANT, tenant_of_request
from deployments.record_types import Record
from deployments.types import Chunk, Timings, Usage

_item: TypeAdapter[ResponseItem] = TypeAdapter(ResponseItem)
END = Chunk("Yes.", 1, "stop", Usage(1, 0, 0, 1), Timings(0, 0, 0, 0, 0))


async def items(bench: Bench, response_id: str, **query: object) -> dict[str, object]:
    """The page; asserts that OpenAI's SDK reads its items."""
    reply = await bench.client.get(f"/v1/responses/{response_id}/input_items", params=query)  # type: ignore[arg-type]
    assert reply.status_code == 200, reply.text
    for each in reply.json()["data"]:
        _item.validate_python(each)
    return dict(reply.json())


async def test_what_was_answered_is_what_is_got(bench: Bench) -> None:
    response = await create(bench, [message("Look", RED)], instructions="Be brief.", top_logprobs=1)
    assert await fetch(bench, response["id"]) == response


async def test_an_absent_one(bench: Bench) -> None:
    for path in ("resp_absent", "resp_" + "0" * 32, "x" * 3000, "%ff"):
        for reply in (
            await bench.client.get(f"/v1/responses/{path}"),
            await bench.client.get(f"/v1/responses/{path}?stream=true"),
            await bench.client.delete(f"/v1/responses/{path}"),
            await bench.client.get(f"/v1/responses/{path}/input_items"),
        ):
            openai_error(reply, 404, "not_found", "response_id")


async def test_deleted_it_is_gone_and_its_conversation_is_not(bench: Bench) -> None:
    response = await create(bench)
    reply = await bench.client.delete(f"/v1/responses/{response['id']}")
    assert reply.json() == {"id": response["id"], "object": "response", "deleted": True}
    openai_error(await bench.client.get(f"/v1/responses/{response['id']}"), 404)
    openai_error(await post(bench, "Two", previous_response_id=response["id"]), 404)
    assert len(await bench.history(session_of(response))) == 2


async def test_it_is_gone_after_its_time(build_bench: BuildBench) -> None:
    bench = build_bench(session_router={"response_retain_s": 1e-6})
    response = await create(bench)
    openai_error(await bench.client.get(f"/v1/responses/{response['id']}"), 404, "not_found", "response_id")
    kept = build_bench(session_router={"response_retain_s": 1000})
    response = await create(kept)
    (record,) = await kept.router.records(PUBLIC_TENANT, "response", 10)
    assert record.expires_s == pytest.approx(response["created_at"] + 1000, abs=2)


async def test_those_of_other_tenants_look_absent(bench: Bench) -> None:
    response = await create(bench)
    background = await create(bench, background=True)
    bench.app.dependency_overrides[tenant_of_request] = lambda: "somebody else"
    for response_id in (response["id"], background["id"]):
        for method, path in (("GET", ""), ("GET", "?stream=true"), ("DELETE", ""), ("POST", "/cancel")):
            reply = await bench.client.request(method, f"/v1/responses/{response_id}{path}")
            openai_error(reply, 404, "not_found", "response_id")
        openai_error(await post(bench, "Two", previous_response_id=response_id), 404)
    reference = [{"type": "item_reference", "id": response["output"][0]["id"]}, message("Two")]
    openai_error(await post(bench, reference), 404, "not_found", "input[0].id")
    other = await create(bench, "Two", conversation=session_of(response))
    assert "remember" not in said(other)  # a conversation of the same name, and another one
    bench.app.dependency_overrides.clear()
    assert await fetch(bench, response["id"]) == response


async def test_a_damaged_record_is_our_error_and_can_be_deleted(bench: Bench) -> None:
    await bench.router.put_record(PUBLIC_TENANT, Record("response", "resp_x", 0, '{"format":1}'))
    openai_error(await bench.client.get("/v1/responses/resp_x"), 500, "internal_error", "response_id")
    assert (await bench.client.delete("/v1/responses/resp_x")).status_code == 200
    openai_error(await bench.client.get("/v1/responses/resp_x"), 404)


# ------------------------------------------------------------------------------------- input items


async def test_input_items_are_what_was_asked(bench: Bench) -> None:
    asked = [
        {"role": "developer", "content": "Be brief."},
        message("One", image(RED, detail="high")),
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ]
    response = await create(bench, asked)
    page = await items(bench, response["id"], order="asc")
    shown = [(each["role"], [part["type"] for part in each["content"]]) for each in page["data"]]  # type: ignore[attr-defined,index]
    assert shown == [
        ("developer", ["input_text"]),
        ("user", ["input_text", "input_image"]),
        ("assistant", ["output_text"]),
        ("user", ["input_text"]),
    ]
    picture_part = page["data"][1]["content"][1]  # type: ignore[index]
    assert picture_part["detail"] == "high"
    assert (await bench.client.get(f"/images/{picture_part['file_id']}")).content == picture(size=(40, 30))


async def test_pages_of_input_items(bench: Bench) -> None:
    asked = [part for number in range(3) for part in (message(f"q{number}"), {"role": "assistant", "content": "a"})]
    response = await create(bench, [*asked, message("last")])
    whole = (await items(bench, response["id"]))["data"]
    assert isinstance(whole, list)
    assert whole[0]["content"][0]["text"] == "last"  # the last one first
    assert (await items(bench, response["id"], order="asc"))["data"] == whole[::-1]
    after, seen = None, []
    while True:
        page = await items(bench, response["id"], limit=3, **({"after": after} if after else {}))
        seen += page["data"]  # type: ignore[operator]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])  # type: ignore[index]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == whole
    assert await items(bench, response["id"], after=after) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


async def test_pages_that_cannot_be(bench: Bench) -> None:
    path = f"/v1/responses/{(await create(bench))['id']}/input_items"
    openai_error(await bench.client.get(f"{path}?after=msg_absent"), 404, "not_found", "after")
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "include[]=message.input_image.image_url", "x=1"):
        openai_error(await bench.client.get(f"{path}?{query}"), 400)


# ------------------------------------------------------------------------------------- item references


@pytest.mark.parametrize("kind", [{"type": "item_reference"}, {"type": None}, {}])
async def test_items_of_before_by_their_ids(build_bench: BuildBench, kind: dict[str, object]) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator)
    first = await create(bench, [{"role": "system", "content": "Be kind."}, message("Look", RED)])
    page = await items(bench, first["id"], order="asc")
    ids = [each["id"] for each in page["data"]] + [first["output"][0]["id"]]  # type: ignore[attr-defined,index]
    await create(bench, [*({**kind, "id": each} for each in ids), message("And now?")])
    assert [(each.role, each.text, len(each.images)) for each in generator.requests[-1].messages] == [
        ("system", "Be kind.", 0),
        ("user", "Look", 1),
        ("assistant", "Yes.", 0),
        ("user", "And now?", 0),
    ]


@pytest.mark.parametrize("absent", ["msg_x", "msg_" + "0" * 32, "msg_" + "0" * 32 + "_0", "", "resp_x"])
async def test_items_that_are_not_there(bench: Bench, absent: str) -> None:
    reply = await post(bench, [{"type": "item_reference", "id": absent}, message("Hello")])
    openai_error(reply, 404, "not_found", "input[0].id")


async def test_items_that_their_response_has_not_got(bench: Bench) -> None:
    response = await create(bench)
    reply = await post(bench, [{"id": response["output"][0]["id"] + "_7"}, message("Hello")])
    openai_error(reply, 404, "not_found", "input[0].id")


async def test_what_was_answered_can_be_sent_back_as_it_is(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator((END,))
    bench = build_bench(generator)
    first = await create(bench, "One", top_logprobs=1)
    await create(bench, [message("One"), *first["output"], message("Two")], store=False)
    assert [each.text for each in generator.requests[-1].messages] == ["One", "Yes.", "Two"]


async def test_records_are_json_that_other_programs_can_read(bench: Bench) -> None:
    response = await create(bench, [message("Look", RED)])
    (record,) = await bench.router.records(PUBLIC_TENANT, "response", 10)
    assert (record.id, record.created_s) == (response["id"], response["created_at"])
    assert json.loads(record.body)["response"] == response
