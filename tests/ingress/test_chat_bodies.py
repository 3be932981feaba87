"""Bodies that POST /chat cannot read as a question: wrong fields, broken encodings, whatever else may come."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingress.bench import Bench, error_of, picture, post_form

# ------------------------------------------------------------------------------------- fields


async def test_no_body(bench: Bench) -> None:
    error = error_of(await bench.client.post("/chat"), 422, "invalid_request")
    assert error["param"] == "message"


async def test_no_message(bench: Bench) -> None:
    for reply in (await post_form(bench, {"session_id": "s"}), await bench.client.post("/chat", json={})):
        error = error_of(reply, 422, "invalid_request")
        assert error["message"] == "message: Field required"


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


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
async def test_json_numbers_that_are_none(bench: Bench, value: str) -> None:
    body = f'{{"message": "Hello", "temperature": {value}}}'
    reply = await bench.client.post("/chat", content=body, headers={"content-type": "application/json"})
    assert error_of(reply, 422, "invalid_request")["param"] == "temperature"


@pytest.mark.parametrize("fields", [{"temperature": "0.5"}, {"stream": "true"}, {"message": 5}, {"seed": 1.0}])
async def test_json_types_must_be_right(bench: Bench, fields: dict[str, object]) -> None:
    error_of(await bench.client.post("/chat", json={"message": "Hello", **fields}), 422, "invalid_request")


# ------------------------------------------------------------------------------------- encodings


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
