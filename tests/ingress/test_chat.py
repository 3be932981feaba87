"""POST /chat in one piece: three encodings, the shape of the reply, and everything that is refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingress.bench import Bench, BuildBench, error_of, picture

from deployments.errors import ImageNotFound, Overloaded, RetinaError
from deployments.fakes import FakeGenerator, FakeVisionEncoder
from deployments.images.stores.memory import MemoryImageStore
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.ingress.turns import TurnInput
from deployments.types import StoredImage

REPLY_KEYS = {
    "message",
    "response",
    "has_image",
    "model_used",
    "session_id",
    "conversation_length",
    "usage",
    "timings",
    "finish_reason",
}


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


async def post_form(bench: Bench, fields: dict[str, object], image: bytes | None = None) -> httpx.Response:
    """multipart/form-data, which httpx makes of `files` only."""
    parts = [(name, (None, str(value))) for name, value in fields.items()]
    if image is not None:
        parts.append(("image", ("photo.bin", image)))  # type: ignore[arg-type]
    return await bench.client.post("/chat", files=parts)


# ------------------------------------------------------------------------------------- what works


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


# ------------------------------------------------------------------------------------- what is refused


async def test_no_body(bench: Bench) -> None:
    error = error_of(await bench.client.post("/chat"), 422, "invalid_request")
    assert error["param"] == "message"


async def test_no_message(bench: Bench) -> None:
    for reply in (await post_form(bench, {"session_id": "s"}), await bench.client.post("/chat", json={})):
        error = error_of(reply, 422, "invalid_request")
        assert error["message"] == "message: Field required"


@pytest.mark.parametrize("message", ["", "  \n\t"])
async def test_an_empty_message(bench: Bench, message: str) -> None:
    for reply in (await post_form(bench, {"message": message}), await bench.ask(message)):
        assert error_of(reply, 400, "invalid_request")["param"] == "message"


async def test_a_message_of_1_mb(bench: Bench) -> None:
    message = "a" * 1_000_000
    for reply in (
        await post_form(bench, {"message": message}),
        await bench.ask(message),
        await bench.client.post("/chat", data={"message": message}),
    ):
        error = error_of(reply, 413, "message_too_long")
        assert "1000000 characters; at most 16000" in str(error["message"])


@pytest.mark.parametrize("name", ["mesage", "max_tokens", "n" * 1000, "Image", ""])
async def test_unknown_fields(bench: Bench, name: str) -> None:
    for reply in (
        await post_form(bench, {"message": "Hello", name: "x"}),
        await bench.ask(**{name: "x"}),
        await bench.client.post("/chat", data={"message": "Hello", name: "x"}),
    ):
        error = error_of(reply, 400, "invalid_request")
        assert f"unknown field {name[:80]}" in str(error["message"])
        assert "allowed are message, image, image_id, session_id" in str(error["message"])


async def test_fields_given_twice(bench: Bench) -> None:
    twice = [("message", (None, "a")), ("message", (None, "b"))]
    form = {"content-type": "application/x-www-form-urlencoded"}
    as_json = {"content-type": "application/json"}
    for reply in (
        await bench.client.post("/chat", files=twice),
        await bench.client.post("/chat", files=[("image", picture()), ("image", picture()), *twice[:1]]),
        await bench.client.post("/chat", content=b"message=a&message=b", headers=form),
        await bench.client.post("/chat", content=b'{"message": "a", "message": "b"}', headers=as_json),
    ):
        assert "is given twice" in str(error_of(reply, 400, "invalid_request")["message"])


async def test_an_image_as_text_and_a_message_as_file(bench: Bench) -> None:
    as_text = await post_form(bench, {"message": "Hello", "image": "photo.jpg"})
    assert "must be a file" in str(error_of(as_text, 400, "invalid_request")["message"])
    as_file = await bench.client.post("/chat", files={"message": ("message.txt", b"Hello")})
    assert error_of(as_file, 400, "invalid_request")["message"] == "message must be text, not a file"
    in_urlencoded = await bench.client.post("/chat", data={"message": "Hello", "image": "photo.jpg"})
    assert "multipart" in str(error_of(in_urlencoded, 400, "invalid_request")["message"])


async def test_two_pictures_in_one_question(bench: Bench) -> None:
    reply = await post_form(bench, {"message": "Hello", "image_id": "0" * 64}, picture())
    assert error_of(reply, 400, "invalid_request")["param"] == "image_id"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "invalid_image"),
        (b"just some text", 415, "unsupported_image"),
        (picture("JPEG", (200, 200))[:-300], 400, "invalid_image"),
        (picture("TIFF"), 415, "unsupported_image"),
        (picture(size=(20_000, 1)), 413, "image_too_large"),
    ],
)
async def test_bad_pictures_harm_nobody_else(bench: Bench, data: bytes, status: int, code: str) -> None:
    for reply in (await post_form(bench, {"message": "Hello"}, data), await bench.ask(image=data_url(data))):
        assert error_of(reply, status, code)["param"] == "image"
    assert (await bench.client.get("/chat/sessions")).json()["count"] == 0
    assert (await bench.ask()).status_code == 200


@pytest.mark.parametrize("url", ["http://example.com/a.png", "data:text/html;base64,AAAA", "data:image/png;base64,?"])
async def test_bad_data_urls(bench: Bench, url: str) -> None:
    assert error_of(await bench.ask(image=url), 400, "invalid_image")["param"] == "image"


@pytest.mark.parametrize("image_id", ["0" * 64, "../secret", "", "0" * 10_000])
async def test_unknown_pictures(bench: Bench, image_id: str) -> None:
    error_of(await bench.ask(image_id=image_id), 404, "image_not_found")


async def test_an_unknown_model(bench: Bench) -> None:
    error = error_of(await bench.ask(model="gpt-7"), 400, "unknown_model")
    assert error["param"] == "model"
    assert "fake, other" in str(error["message"])


@pytest.mark.parametrize("session_id", ["a/b", "a\nb", "a\x00b", "x" * 10_000, "", "..", "é"])
async def test_bad_session_ids(bench: Bench, session_id: str) -> None:
    for reply in (
        await bench.ask(session_id=session_id),
        await post_form(bench, {"message": "Hello", "session_id": session_id}),
    ):
        assert error_of(reply, 400, "invalid_request")["param"] == "session_id"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "warm"),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("top_k", 1.5),
        ("max_new_tokens", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("stream", "perhaps"),
        ("stop", ""),
    ],
)
async def test_values_out_of_range(bench: Bench, field: str, value: object) -> None:
    for reply in (await bench.ask(**{field: value}), await post_form(bench, {"message": "Hello", field: value})):
        error = error_of(reply, 422, "invalid_request")
        assert str(error["param"]).startswith(field)
        assert field in str(error["message"])


@pytest.mark.parametrize(("stop", "allowed"), [(["x"] * 9, "at most 8"), (["ok", "x" * 257], "at most 256")])
@pytest.mark.parametrize("stream", [False, True])
async def test_too_many_and_too_long_stops(bench: Bench, stop: list[str], allowed: str, stream: bool) -> None:
    error = error_of(await bench.ask(stop=stop, stream=stream), 400, "invalid_request")
    assert error["param"] == "stop"
    assert allowed in str(error["message"])


async def test_stops_are_limited_by_the_model_that_answers(build_bench: BuildBench) -> None:
    models = [
        {"name": "fake", "family": "fake", "generator": {"max_stop_strings": 1, "max_stop_chars": 3}},
        {"name": "other", "family": "fake"},
    ]
    bench = build_bench(models=models)
    await bench.ask(session_id="s", model="other", stop=["x" * 256] * 8)
    assert (await bench.ask(session_id="s", stop=["four", "five"])).status_code == 200
    for stop in (["a", "b"], ["four"]):
        error_of(await bench.ask(session_id="s", model="fake", stop=stop), 400, "invalid_request")
    assert (await bench.ask(session_id="s", model="fake", stop=["abc"])).json()["conversation_length"] == 6


@pytest.mark.parametrize("message", ["", " \n", "x" * 16_001, "ok", "x" * 16_000])
async def test_what_is_refused_before_the_router_is_what_the_router_refuses(bench: Bench, message: str) -> None:
    reply = await bench.ask(message)
    (turn,) = await asyncio.gather(bench.turns.reply(TurnInput("r", PUBLIC_TENANT, message)), return_exceptions=True)
    if isinstance(turn, RetinaError):
        assert error_of(reply, turn.status, turn.code)["param"] == turn.param
    else:
        assert reply.status_code == 200


async def test_a_picture_for_an_empty_message_is_not_stored(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[object] = []

    async def put(self: MemoryImageStore, tenant: str, image: StoredImage) -> None:
        stored.append(image)

    monkeypatch.setattr(MemoryImageStore, "put", put)
    error_of(await post_form(bench, {"message": " "}, picture()), 400, "invalid_request")
    assert stored == []
    await post_form(bench, {"message": "Hello"}, picture())
    assert len(stored) == 1


async def test_an_image_id_is_looked_up_without_reading_the_picture(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = (await bench.client.post("/images", files={"image": picture()})).json()["id"]
    monkeypatch.delattr(MemoryImageStore, "get")
    assert "40 x 30" in (await bench.ask(image_id=image_id)).json()["response"]


async def test_the_picture_of_the_session_is_gone(build_bench: BuildBench) -> None:
    lost = ImageNotFound("no picture 'abc'", "image")
    bench = build_bench(FakeGenerator(failure=lost))
    reply = await bench.ask(session_id="s")
    error = error_of(reply, 404, "image_not_found")
    assert error["message"] == ("the session's picture is no longer stored; send another one or begin a new session")
    assert error["param"] == "image"
    brought = await bench.ask(session_id="s", image=data_url(picture()))
    assert error_of(brought, 404, "image_not_found")["message"] == "no picture 'abc'"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
async def test_json_numbers_that_are_none(bench: Bench, value: str) -> None:
    body = f'{{"message": "Hello", "temperature": {value}}}'
    reply = await bench.client.post("/chat", content=body, headers={"content-type": "application/json"})
    assert error_of(reply, 422, "invalid_request")["param"] == "temperature"


@pytest.mark.parametrize("fields", [{"temperature": "0.5"}, {"stream": "true"}, {"message": 5}, {"seed": 1.0}])
async def test_json_types_must_be_right(bench: Bench, fields: dict[str, object]) -> None:
    error_of(await bench.client.post("/chat", json={"message": "Hello", **fields}), 422, "invalid_request")


async def test_more_tokens_than_the_model_gives(bench: Bench) -> None:
    error = error_of(await bench.ask(max_new_tokens=100_000), 400, "invalid_request")
    assert error["param"] == "max_new_tokens"
    assert "at most 512" in str(error["message"])


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b"null", b"\xff", b"[" * 100_000, b'{"message": ' + b"9" * 5000 + b"}"]
)
async def test_bodies_that_are_no_json_object(bench: Bench, body: bytes) -> None:
    reply = await bench.client.post("/chat", content=body, headers={"content-type": "application/json"})
    error_of(reply, 400, "invalid_request")


async def test_half_a_surrogate_pair(bench: Bench) -> None:
    for body in (
        b'{"message": "\\ud800"}',
        b'{"message": "x", "session_id": "\\ud800"}',
        b'{"message": "x", "\\ud800": 1}',
    ):
        reply = await bench.client.post("/chat", content=body, headers={"content-type": "application/json"})
        assert reply.status_code in (400, 422), reply.text


@pytest.mark.parametrize("kind", ["text/plain", "image/png", "x" * 5000])
async def test_other_content_types(bench: Bench, kind: str) -> None:
    reply = await bench.client.post("/chat", content=b"Hello", headers={"content-type": kind})
    assert "multipart/form-data" in str(error_of(reply, 415, "unsupported_content_type")["message"])


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
async def test_broken_multipart(bench: Bench, kind: str) -> None:
    reply = await bench.client.post("/chat", content=b"Hello", headers={"content-type": kind})
    error_of(reply, 400, "invalid_request")


async def test_forms_that_are_not_utf_8_or_too_long(bench: Bench) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    for body in (b"message=\xff", b"message=%ff", b"&".join(b"stop=x" for _ in range(101))):
        error_of(await bench.client.post("/chat", content=body, headers=form), 400, "invalid_request")


async def test_errors_of_the_generator_keep_status_and_retry_after(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=Overloaded("128 requests wait already", None, 1.2)))
    reply = await bench.ask()
    error_of(reply, 503, "overloaded")
    assert reply.headers["retry-after"] == "2"


async def test_a_busy_session(build_bench: BuildBench) -> None:
    bench = build_bench(session_router={"lease_wait_s": 0})
    async with contextlib.aclosing(bench.turns.stream(TurnInput("r", PUBLIC_TENANT, "Hello", "s"))) as events:
        await anext(events)
        error_of(await bench.ask(session_id="s"), 409, "session_busy")


# ------------------------------------------------------------------------------------- whatever comes

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=40),
    st.lists(st.text(max_size=5), max_size=10),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)
NAMES = st.one_of(
    st.sampled_from(["message", "image", "image_id", "session_id", "model", "stop", "seed", "top_p"]),
    st.text(max_size=10),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(NAMES, VALUES, max_size=5))
async def test_no_json_breaks_it(bench: Bench, fields: dict[str, object]) -> None:
    reply = await bench.client.post("/chat", content=json.dumps(fields), headers={"content-type": "application/json"})
    assert reply.status_code == 200 or error_of(reply, reply.status_code, reply.json()["error"]["code"])
    assert reply.status_code < 500


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=200),
    kind=st.sampled_from(["multipart/form-data; boundary=b", "application/json", "application/x-www-form-urlencoded"]),
)
async def test_no_bytes_break_it(bench: Bench, body: bytes, kind: str) -> None:
    if kind.startswith("multipart"):
        body = b'--b\r\nContent-Disposition: form-data; name="message"\r\n\r\n' + body + b"\r\n--b--\r\n"
    reply = await bench.client.post("/chat", content=body, headers={"content-type": kind})
    assert reply.status_code < 500
