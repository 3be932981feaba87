"""History, list and deletion of sessions."""

from __future__ import annotations

import re

import pytest
from ingress.bench import Bench, BuildBench, error_of, picture


async def test_the_history_of_a_session(bench: Bench) -> None:
    form = {"message": "What is it?", "session_id": "your-session-id"}
    await bench.client.post("/chat", data=form, files={"image": picture()})
    reply = await bench.client.get("/chat/history/your-session-id")
    body = reply.json()
    assert set(body) == {"session_id", "history", "length", "image_id"}
    assert (body["session_id"], body["length"]) == ("your-session-id", 2)
    question, answer = body["history"]
    assert set(question) == {"role", "content", "timestamp"}
    assert question["role"] == "user"
    assert {"type": "image"} in question["content"]
    assert {"type": "text", "text": "What is it?"} in question["content"]
    assert len(question["content"]) == 2
    assert (answer["role"], answer["content"][0]["type"]) == ("assistant", "text")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", question["timestamp"])


async def test_the_picture_of_a_session(bench: Bench) -> None:
    async def image_id() -> str | None:
        return (await bench.client.get("/chat/history/s")).json()["image_id"]

    async def ask(image: bytes | None = None) -> None:
        files = {"image": image} if image is not None else None
        reply = await bench.client.post("/chat", data={"message": "Hm?", "session_id": "s"}, files=files)
        assert reply.status_code == 200, reply.text

    await ask()
    assert await image_id() is None
    first, second = picture(), picture(size=(20, 20))
    await ask(first)
    await ask()
    assert (await bench.client.get(f"/images/{await image_id()}")).content == first
    await ask(second)
    assert (await bench.client.get(f"/images/{await image_id()}")).content == second
    for _ in range(12):
        await ask()
    assert (await bench.client.get(f"/images/{await image_id()}")).content == second  # its message is long gone


async def test_at_most_twenty_messages(bench: Bench) -> None:
    for number in range(12):
        reply = await bench.ask(f"number {number}", session_id="s")
    assert reply.json()["conversation_length"] == 20
    history = await bench.history("s")
    assert len(history) == 20
    assert history[0]["content"] == [{"type": "text", "text": "number 2"}]


async def test_deletion(bench: Bench) -> None:
    await bench.ask(session_id="s")
    reply = await bench.client.delete("/chat/history/s")
    assert reply.json() == {"session_id": "s", "deleted": True}
    error_of(await bench.client.get("/chat/history/s"), 404, "session_not_found")
    error_of(await bench.client.delete("/chat/history/s"), 404, "session_not_found")


async def test_the_list(bench: Bench) -> None:
    assert (await bench.client.get("/chat/sessions")).json() == {"sessions": [], "count": 0, "has_more": False}
    await bench.ask(session_id="a")
    await bench.client.post("/chat", data={"message": "x", "session_id": "b"}, files={"image": picture()})
    body = (await bench.client.get("/chat/sessions")).json()
    assert (body["count"], body["has_more"]) == (2, False)
    by_id = {session["session_id"]: session for session in body["sessions"]}
    updated = by_id["b"].pop("updated")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", updated)
    assert by_id["b"] == {"session_id": "b", "length": 2, "has_image": True, "model": "fake", "title": "x"}
    assert by_id["a"]["has_image"] is False


async def test_the_list_is_limited(build_bench: BuildBench) -> None:
    bench = build_bench(ingress={"max_listed_sessions": 3})
    for session_id in ("a", "b", "c"):
        await bench.ask(session_id=session_id)

    async def listed(query: str) -> tuple[list[str], int, bool]:
        body = (await bench.client.get(f"/chat/sessions{query}")).json()
        return [session["session_id"] for session in body["sessions"]], body["count"], body["has_more"]

    assert await listed("?limit=2") == (["c", "b"], 2, True)
    assert await listed("") == await listed("?limit=3") == (["c", "b", "a"], 3, False)
    await bench.ask(session_id="d")
    assert await listed("") == (["d", "c", "b"], 3, True)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=x", "limit=", "limit=1001", "limt=1", "limit=1&page=2"]
)
async def test_limits_that_are_refused(bench: Bench, query: str) -> None:
    error = error_of(await bench.client.get(f"/chat/sessions?{query}"), 422, "invalid_request")
    assert error["param"] in ("limit", "limt", "page")
    if query == "limit=1001":
        assert error["message"] == "limit: 1001 is more than 1000 (ingress.max_listed_sessions)"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", ["a/b", "a%2Fb", "%00", "%0A", "a%20b", "x" * 10_000, "%C3%A9", "%ff", ""])
async def test_ids_that_cannot_be(bench: Bench, method: str, path: str) -> None:
    error = error_of(await bench.client.request(method, f"/chat/history/{path}"), 400, "invalid_request")
    assert error["param"] == "session_id"
