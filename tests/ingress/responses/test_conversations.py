"""/v1/conversations: sessions under another name."""

from __future__ import annotations

import openai
import pytest
from ingress.bench import Bench
from ingress.openai.openai_bench import openai_error, sdk
from ingress.responses.response_bench import RED, chat, create, message, said, session_of
from openai.types.conversations import ConversationItem
from pydantic import TypeAdapter

from deployments.ingress.tenants import PUBLIC_TENANT, tenant_of_request
from deployments.record_types import Record

_item: TypeAdapter[ConversationItem] = TypeAdapter(ConversationItem)


async def test_a_conversation_from_its_beginning_to_its_end(bench: Bench) -> None:
    async with sdk(bench) as client:
        made = await client.conversations.create(metadata={"topic": "shapes"})
        assert made.id.startswith("conv_")
        assert await client.conversations.retrieve(made.id) == made
        first = await client.responses.create(model="fake", input="One", conversation=made.id)
        second = await client.responses.create(model="fake", input="Two", conversation=made.id)
        assert second.output_text == 'You asked: "Two". I remember 2 messages before this one.'
        texts = [item.content[0].text async for item in client.conversations.items.list(made.id, order="asc")]  # type: ignore[union-attr]
        assert texts == ["One", first.output_text, "Two", second.output_text]
        changed = await client.conversations.update(made.id, metadata={"topic": "colours"})
        assert (changed.metadata, changed.created_at) == ({"topic": "colours"}, made.created_at)
        assert await client.conversations.retrieve(made.id) == changed
        assert (await client.conversations.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.conversations.retrieve(made.id)
        assert await bench.history(made.id) == []
        assert (await client.responses.retrieve(first.id)).output_text == first.output_text


async def test_one_without_a_response_yet(bench: Bench) -> None:
    made = (await bench.client.post("/v1/conversations", json={})).json()
    assert made["metadata"] == {}
    page = (await bench.client.get(f"/v1/conversations/{made['id']}/items")).json()
    assert (page["data"], page["has_more"]) == ([], False)
    assert "remember" not in (await chat(bench, "One", made["id"]))["response"]
    assert len((await bench.client.get(f"/v1/conversations/{made['id']}/items")).json()["data"]) == 2


async def test_sessions_of_chat_are_conversations(bench: Bench) -> None:
    session_id = (await chat(bench, "One"))["session_id"]
    found = (await bench.client.get(f"/v1/conversations/{session_id}")).json()
    assert (found["id"], found["object"], found["metadata"]) == (session_id, "conversation", {})
    changed = await bench.client.post(f"/v1/conversations/{session_id}", json={"metadata": {"a": "b"}})
    assert changed.json() == {**found, "metadata": {"a": "b"}}
    assert (await bench.client.delete(f"/v1/conversations/{session_id}")).json() == {
        "id": session_id,
        "object": "conversation.deleted",
        "deleted": True,
    }
    assert await bench.history(session_id) == []


async def test_items_are_what_the_session_keeps(bench: Bench) -> None:
    response = await create(bench, [message("One"), {"role": "assistant", "content": "Two"}, message("Look", RED)])
    path = f"/v1/conversations/{session_of(response)}/items"
    items = (await bench.client.get(path, params={"order": "asc"})).json()["data"]
    for each in items:
        _item.validate_python(each)
    shown = [(each["role"], [part["type"] for part in each["content"]]) for each in items]
    assert shown == [
        ("user", ["input_text"]),
        ("assistant", ["output_text"]),
        ("user", ["input_text", "input_image"]),
        ("assistant", ["output_text"]),
    ]
    ids = [each["id"] for each in items]
    assert len(set(ids)) == 4
    page = (await bench.client.get(path, params={"limit": 2, "after": ids[3]})).json()
    assert [each["id"] for each in page["data"]] == [ids[2], ids[1]]
    assert page["has_more"]
    openai_error(await bench.client.get(path, params={"after": "msg_x"}), 404, "not_found", "after")


async def test_ids_of_items_stay_while_the_oldest_go(bench: Bench) -> None:
    response = await create(bench, "0")
    path = f"/v1/conversations/{session_of(response)}/items?order=asc&limit=100"
    known: dict[str, str] = {}
    for number in range(1, 13):
        await create(bench, str(number), conversation=session_of(response))
        for each in (await bench.client.get(path)).json()["data"]:
            text = each["content"][0]["text"]
            assert known.setdefault(each["id"], text) == text
    assert len(known) == 26


async def test_what_is_not_there(bench: Bench) -> None:
    for method, path in (("GET", "x"), ("DELETE", "x"), ("GET", "x/items")):
        reply = await bench.client.request(method, f"/v1/conversations/{path}")
        openai_error(reply, 404, "not_found", "conversation_id")
    reply = await bench.client.post("/v1/conversations/x", json={"metadata": {}})
    openai_error(reply, 404, "not_found", "conversation_id")
    openai_error(await bench.client.get("/v1/conversations/a b"), 400, "invalid_value", "conversation")


async def test_those_of_other_tenants_look_absent(bench: Bench) -> None:
    made = (await bench.client.post("/v1/conversations", json={"metadata": {"a": "b"}})).json()
    assert "remember" not in said(await create(bench, "One", conversation=made["id"]))
    bench.app.dependency_overrides[tenant_of_request] = lambda: "somebody else"
    openai_error(await bench.client.get(f"/v1/conversations/{made['id']}"), 404)
    openai_error(await bench.client.delete(f"/v1/conversations/{made['id']}"), 404)
    bench.app.dependency_overrides.clear()
    assert (await bench.client.get(f"/v1/conversations/{made['id']}")).json() == made


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"items": [message("One")]}, "items"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"name": "x"}, "name"),
    ],
)
async def test_refusals(bench: Bench, body: dict[str, object], param: str) -> None:
    assert openai_error(await bench.client.post("/v1/conversations", json=body), 400)["param"] == param


async def test_a_damaged_record_is_our_error_and_can_be_deleted(bench: Bench) -> None:
    await bench.router.put_record(PUBLIC_TENANT, Record("conversation", "conv_x", 0, "{}"))
    openai_error(await bench.client.get("/v1/conversations/conv_x"), 500, "internal_error", "conversation_id")
    assert (await bench.client.delete("/v1/conversations/conv_x")).status_code == 200
    openai_error(await bench.client.delete("/v1/conversations/conv_x"), 404, "not_found", "conversation_id")
