"""POST /chat in one piece: three encodings, and the shape and content of the reply."""

from __future__ import annotations

import pytest
from ingress.bench import Bench, BuildBench, data_url, picture, post_form

from deployments.fakes import FakeGenerator, FakeVisionEncoder
from deployments.images.stores.memory import MemoryImageStore

REPLY_KEYS = {
    "message",
    "response",
    "has_image",
    "model_used",
    "session_id",
    "conversation_length",
    "usage",
    "cost",
    "timings",
    "finish_reason",
}


async def test_the_reply_has_exactly_these_keys(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(vision_encoder=FakeVisionEncoder()))
    reply = await post_form(bench, {"message": "What is it?"}, picture(size=(40, 30)))
    assert reply.status_code == 200
    body = reply.json()
    assert set(body) == REPLY_KEYS
    assert set(body["usage"]) == {"prompt_tokens", "image_tokens", "reused_tokens", "completion_tokens"}
    assert set(body["timings"]) == {
        "queue_ms",
        "encode_ms",
        "prefill_ms",
        "decode_ms",
        "first_token_ms",
        "encode_source",
    }
    assert body["message"] == "What is it?"
    assert body["response"] == 'You asked: "What is it?". The picture has 40 x 30 pixels.'
    assert body["has_image"] is True
    assert body["model_used"] == "fake"
    assert body["conversation_length"] == 2
    assert body["finish_reason"] == "stop"
    assert body["timings"]["encode_source"] == "tower"


async def test_a_conversation_as_in_the_readme(bench: Bench) -> None:
    first = (await post_form(bench, {"message": "Hello, my name is Ada"})).json()
    assert first["session_id"]
    mine = {"session_id": "your-session-id"}
    assert not (await post_form(bench, {"message": "What is my name?", **mine})).json()["has_image"]
    shown = await post_form(bench, {"message": "What do you see?", **mine}, picture())
    assert shown.json()["has_image"]
    again = (await post_form(bench, {"message": "Can you describe the image again?", **mine})).json()
    assert again["has_image"]
    assert "40 x 30" in again["response"]
    assert again["conversation_length"] == 6


@pytest.mark.parametrize("message", ["日本語で 100% \U0001f600 & + = ;", "two\nlines", " spaces around "])
async def test_all_encodings_carry_the_same_text(bench: Bench, message: str) -> None:
    plain = f"message={message}".replace("%", "%25").replace("&", "%26").replace("+", "%2B").encode()
    as_curl_d = {"content-type": "application/x-www-form-urlencoded"}
    replies = [
        await bench.ask(message),
        await post_form(bench, {"message": message}),
        await bench.client.post("/chat", data={"message": message}),
        await bench.client.post("/chat", content=plain, headers=as_curl_d),
    ]
    assert [reply.json()["message"] for reply in replies] == [message] * 4
    assert len({reply.json()["response"] for reply in replies}) == 1


async def test_json_takes_data_urls_and_ids_of_pictures(bench: Bench) -> None:
    shown = await bench.ask(image=data_url(picture(size=(50, 20))))
    assert "50 x 20" in shown.json()["response"]
    uploaded = await bench.client.post("/images", files={"image": picture(size=(7, 9))})
    referred = await bench.ask(image_id=uploaded.json()["id"])
    assert "7 x 9" in referred.json()["response"]
    referred = await post_form(bench, {"message": "Hello", "image_id": uploaded.json()["id"]})
    assert "7 x 9" in referred.json()["response"]


async def test_an_image_id_is_looked_up_without_reading_the_picture(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = (await bench.client.post("/images", files={"image": picture()})).json()["id"]
    monkeypatch.delattr(MemoryImageStore, "get")
    assert "40 x 30" in (await bench.ask(image_id=image_id)).json()["response"]


@pytest.mark.parametrize("as_form", [True, False])
async def test_sampling_reaches_the_generator(bench: Bench, as_form: bool) -> None:
    fields = {"message": "one two three", "max_new_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 1}
    reply = await (post_form(bench, fields) if as_form else bench.client.post("/chat", json=fields))
    assert reply.json()["response"] == 'You asked: "one'
    assert reply.json()["finish_reason"] == "length"


async def test_stop_may_be_repeated(bench: Bench) -> None:
    parts = [("message", (None, "one two three")), ("stop", (None, "three")), ("stop", (None, "two"))]
    assert (await bench.client.post("/chat", files=parts)).json()["response"] == 'You asked: "one '
    assert (await bench.ask("one two three", stop="three")).json()["response"] == 'You asked: "one two '
    assert (await bench.ask("one two three", stop=["three", "two"])).json()["response"] == 'You asked: "one '


async def test_a_session_may_move_to_another_model(bench: Bench) -> None:
    await bench.ask(session_id="s", image=data_url(picture()))
    moved = (await bench.ask(session_id="s", model="other")).json()
    assert (moved["model_used"], moved["has_image"]) == ("other", True)
    assert (await bench.ask(session_id="s")).json()["model_used"] == "other"


@pytest.mark.parametrize(
    ("format", "mode"), [("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "I;16"), ("GIF", "P"), ("WEBP", "RGB"), ("BMP", "RGB")]
)
async def test_kinds_of_pictures(bench: Bench, format: str, mode: str) -> None:
    reply = await post_form(bench, {"message": "Hello"}, picture(format, (40, 30), mode))
    assert "40 x 30" in reply.json()["response"]
