"""A real cluster under `serve run`: the routes for one picture, plain and streamed, and clients that leave them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from conftest import ENDLESS
from service import ROOT, Service, events

pytestmark = [pytest.mark.cluster, pytest.mark.torch, pytest.mark.timeout(300)]

PICTURE = (ROOT / "demo" / "images" / "red-circle.png").read_bytes()
ASKED = {
    "/caption": {},
    "/query": {"question": "What do you see in this image?"},
    "/detect": {"object": "circle"},
    "/point": {"object": "circle"},
}


def post(service: Service, path: str, image: bytes | None = PICTURE, **form: str) -> httpx.Response:
    with service.client() as client:
        return client.post(path, data={**ASKED[path], **form}, files={"image": image} if image else None)


def stream(service: Service, path: str, **form: str) -> list[tuple[str, Any]]:
    form = {**ASKED[path], **form, "stream": "true"}
    with service.client() as client, client.stream("POST", path, data=form, files={"image": PICTURE}) as response:
        assert response.status_code == 200
        return list(events(response))


def lasting(reply: dict[str, Any]) -> dict[str, Any]:
    """What two answers to the same request have in common: not how long it took, nor what was still in a cache."""
    changing = ("timings", "request_id", "usage")
    return {key: value for key, value in reply.items() if key not in changing}


@pytest.mark.parametrize("path", ASKED)
def test_streamed_and_plain_replies_are_equal(service: Service, path: str) -> None:
    plain = post(service, path)
    assert plain.status_code == 200, plain.text
    reply = plain.json()
    (start, opened), *pieces, (done, streamed) = stream(service, path)
    assert (start, done) == ("start", "done")
    assert opened == {"model": reply["model_used"], "image_id": reply["image_id"]}
    assert lasting(streamed) == lasting(reply)
    found = [data for _, data in pieces]
    if path in ("/caption", "/query"):
        text = "".join(data["text"] for data in found)
        assert text == reply["caption" if path == "/caption" else "answer"] != ""
    else:
        assert found == reply["objects" if path == "/detect" else "points"]


def test_a_question_gets_the_answer_that_a_chat_gives(service: Service, golden: list[dict[str, Any]]) -> None:
    shown_first = [each for each in golden if each.get("image_turn") == 0]
    assert shown_first

    def ask(conversation: dict[str, Any]) -> str:
        image = (ROOT / "demo" / "images" / conversation["image"]).read_bytes()
        question = conversation["turns"][0][0]
        return str(post(service, "/query", image, question=question, model="smolvlm").json()["answer"])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, shown_first))
    assert answers == [conversation["turns"][0][1] for conversation in shown_first]


@pytest.mark.parametrize("path", ["/detect", "/point"])
def test_places_are_found_by_the_model_that_can_and_refused_by_one_that_cannot(service: Service, path: str) -> None:
    assert post(service, path).json()["model_used"] == "moondream"
    refused = post(service, path, model="smolvlm")
    assert refused.status_code == 400
    assert "choose one of: moondream" in refused.json()["error"]["message"]


def test_what_the_model_refuses_is_a_400_from_another_process(service: Service) -> None:
    refused = post(service, "/caption", model="smolvlm", language="fr")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "language"


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_client_that_leaves_frees_its_slot(service: Service, is_streamed: bool) -> None:
    form = {"model": ENDLESS, "max_new_tokens": "4000", "stream": str(is_streamed).lower()}
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        before = num_cancelled((await client.get("/-/engine")).json()[ENDLESS])
        asking = asyncio.create_task(client.post("/caption", data=form, files={"image": PICTURE}))
        await _until(client, lambda engine: engine["free_slots"] < engine["num_slots"])
        asking.cancel()
        idle = await _until(client, lambda engine: engine["free_slots"] == engine["num_slots"])
        assert num_cancelled(idle) == before + 1


def num_cancelled(engine: dict[str, Any]) -> float:
    """At whatever stage."""
    counts = engine["metrics"].items()
    return sum(count for name, count in counts if name.startswith("generator_cancelled."))


async def _until(client: httpx.AsyncClient, holds: Any) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            engine: dict[str, Any] = (await client.get("/-/engine")).json()[ENDLESS]
            if holds(engine):
                return engine
            await asyncio.sleep(0.05)
