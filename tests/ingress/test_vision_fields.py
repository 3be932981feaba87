"""Fields that the routes for one picture refuse, and bodies that they cannot read."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingress.bench import Bench, error_of, picture, post_form
from ingress.vision_bench import ASKED, IMAGE_URL, refusals

ALLOWED = {
    "/caption": "image, image_id, model, stream, length, language, prompt, temperature",
    "/query": "image, image_id, model, stream, question, reasoning, spatial_refs, temperature",
    "/detect": "image, image_id, model, stream, object, max_objects",
    "/point": "image, image_id, model, stream, object, max_objects",
}

# ------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("name", ["lenght", "message", "session_id", "max_tokens", "n" * 1000, ""])
async def test_unknown_fields(bench: Bench, path: str, name: str) -> None:
    for error in await refusals(bench, path, {name: "x"}, 400, "invalid_request"):
        assert f"unknown field {name[:80]}" in str(error["message"])
        assert f"allowed are {ALLOWED[path]}" in str(error["message"])


@pytest.mark.parametrize("path", ["/detect", "/point"])
@pytest.mark.parametrize("name", ["temperature", "max_new_tokens", "stop", "reasoning", "length"])
async def test_places_have_no_sampling(bench: Bench, path: str, name: str) -> None:
    for error in await refusals(bench, path, {name: "1"}, 400, "invalid_request"):
        assert error["param"] == name


@pytest.mark.parametrize("path", ["/query", "/detect", "/point"])
async def test_what_is_required(bench: Bench, path: str) -> None:
    (name,) = ASKED[path]
    for reply in (
        await post_form(bench, {"stream": "true"}, picture(), path),
        await bench.client.post(path, json={"image": IMAGE_URL}),
        await bench.client.post(path, data={"model": "fake"}),
        await bench.client.post(path),
    ):
        assert error_of(reply, 422, "invalid_request")["message"] == f"{name}: Field required"


@pytest.mark.parametrize(("path", "name"), [("/caption", "prompt"), ("/query", "question"), ("/detect", "object")])
async def test_texts_without_words_and_too_long(bench: Bench, path: str, name: str) -> None:
    for empty in ("", " \n\t"):
        for error in await refusals(bench, path, {name: empty}, 400, "invalid_request"):
            assert (error["param"], error["message"]) == (name, f"{name} is empty")
    for error in await refusals(bench, path, {name: "a" * 64_001}, 413, "message_too_long"):
        assert error["param"] == name
        assert "64001 characters; at most 64000 are allowed (ingress.max_message_chars)" in str(error["message"])
    assert (await post_form(bench, {**ASKED[path], name: "a" * 64_000}, picture(), path)).status_code == 200


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/caption", "length", "medium"),
        ("/caption", "length", ""),
        *(("/caption", "language", code) for code in ("", "e", "English", "EN", "en-us", "en_US", "en-", "e1", "en\n")),
        ("/caption", "temperature", 2.1),
        ("/caption", "max_new_tokens", 0),
        ("/query", "top_p", 0),
        ("/query", "stop", ""),
        ("/query", "reasoning", "perhaps"),
        ("/query", "seed", -1),
        ("/detect", "max_objects", 0),
        ("/detect", "max_objects", 151),
        ("/point", "max_objects", "many"),
        ("/point", "max_objects", 1.5),
    ],
)
async def test_values_out_of_range(bench: Bench, path: str, field: str, value: object) -> None:
    for error in await refusals(bench, path, {field: value}, 422, "invalid_request"):
        assert str(error["param"]).startswith(field)
        assert field in str(error["message"])


@pytest.mark.parametrize("value", ["perhaps", ""])
@pytest.mark.parametrize("path", ASKED)
async def test_stream_is_yes_or_no(bench: Bench, path: str, value: str) -> None:
    reply = await post_form(bench, {**ASKED[path], "stream": value}, picture(), path)
    assert error_of(reply, 422, "invalid_request")["param"] == "stream"


@pytest.mark.parametrize("language", ["en", "ja", "yue", "pt-BR", "es-419"])
async def test_shapes_of_languages(bench: Bench, language: str) -> None:
    assert (await post_form(bench, {"language": language}, picture(), "/caption")).status_code == 200


async def test_a_prompt_stands_in_place_of_length_and_language(bench: Bench) -> None:
    for extra in ({"length": "normal"}, {"language": "ja"}, {"length": "short", "language": "en"}):
        fields = {"prompt": "Describe this", **extra}
        for error in await refusals(bench, "/caption", fields, 400, "invalid_request"):
            assert f"in place of {' and '.join(sorted(extra, reverse=True))}" in str(error["message"])


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([[0.5]], "at least 2"),
        ([[0.5, 0.5, 0.5]], "2 numbers, [x, y], or 4"),
        ([[0, 0, 1, 1, 1]], "at most 4"),
        ([[0.5, 1.01]], "less than or equal to 1"),
        ([[-0.01, 0.5]], "greater than or equal to 0"),
        ([[0.6, 0, 0.5, 1]], "the smaller ones first"),
        ([[0, 0.6, 1, 0.5]], "the smaller ones first"),
        ([["0.5", "0.5"]], "valid number"),
        ([[True, 0]], "valid number"),
        ([None], "valid list"),
        ([0.5, 0.5], "valid list"),
        ({"x": 1}, "valid list"),
        (3, "valid list"),
        ([[0, 0]] * 101, "at most 100"),
    ],
)
async def test_bad_places(bench: Bench, places: object, said: str) -> None:
    for error in await refusals(bench, "/query", {"spatial_refs": places}, 422, "invalid_request"):
        assert str(error["param"]).startswith("spatial_refs")
        assert said in str(error["message"])


@pytest.mark.parametrize("text", ["", "[[0.5, 0.5]", "0.5,0.5", "[" * 100_000, "[[" + "9" * 5000 + ", 0]]"])
async def test_places_in_forms_that_are_no_json(bench: Bench, text: str) -> None:
    for reply in (
        await post_form(bench, {"question": "x", "spatial_refs": text}, picture(), "/query"),
        await bench.client.post("/query", data={"question": "x", "spatial_refs": text}),
    ):
        error = error_of(reply, 400, "invalid_request")
        assert error["param"] == "spatial_refs"
        assert "spatial_refs is not JSON" in str(error["message"])


async def test_places_in_forms_that_are_no_numbers(bench: Bench) -> None:
    reply = await post_form(bench, {"question": "x", "spatial_refs": "[[NaN, Infinity]]"}, picture(), "/query")
    assert error_of(reply, 422, "invalid_request")["param"] == "spatial_refs.0.0"


async def test_places_in_json_are_no_text(bench: Bench) -> None:
    reply = await bench.client.post("/query", json={"question": "x", "spatial_refs": "[[0.5, 0.5]]"})
    assert error_of(reply, 422, "invalid_request")["param"] == "spatial_refs"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/caption", {"temperature": "0.5"}),
        ("/query", {"reasoning": "true"}),
        ("/query", {"question": 5}),
        ("/detect", {"max_objects": "5"}),
        ("/detect", {"max_objects": True}),
        ("/point", {"object": None}),
    ],
)
async def test_json_types_must_be_right(bench: Bench, path: str, fields: dict[str, object]) -> None:
    reply = await bench.client.post(path, json={**ASKED[path], "image": IMAGE_URL, **fields})
    error_of(reply, 422, "invalid_request")


@pytest.mark.parametrize(("path", "name"), [("/caption", "prompt"), ("/query", "question"), ("/point", "object")])
async def test_half_a_surrogate_pair(bench: Bench, path: str, name: str) -> None:
    body = f'{{"{name}": "\\ud800", "image": "{IMAGE_URL}"}}'.encode()
    reply = await bench.client.post(path, content=body, headers={"content-type": "application/json"})
    error = error_of(reply, 400, "invalid_request")
    assert (error["param"], error["message"]) == (name, f"{name} holds half of a surrogate pair, which is no character")


@pytest.mark.parametrize("path", ASKED)
async def test_bodies_that_cannot_be_read(bench: Bench, path: str) -> None:
    for body in (b"", b"{", b"[]", b"null", b"\xff", b'{"model": "a", "model": "b"}'):
        reply = await bench.client.post(path, content=body, headers={"content-type": "application/json"})
        error_of(reply, 400, "invalid_request")
    reply = await bench.client.post(path, content=b"x", headers={"content-type": "image/png"})
    error_of(reply, 415, "unsupported_content_type")
    twice = [("model", (None, "a")), ("model", (None, "b"))]
    assert "twice" in str(error_of(await bench.client.post(path, files=twice), 400, "invalid_request")["message"])
    big = await bench.client.post(path, content=b"x" * 24_000_001, headers={"content-type": "application/json"})
    error_of(big, 413, "body_too_large")


# ------------------------------------------------------------------------------------- whatever comes

NAMES = [
    "image",
    "image_id",
    "model",
    "stream",
    "length",
    "language",
    "prompt",
    "question",
    "reasoning",
    "spatial_refs",
    "object",
    "max_objects",
    "stop",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(list(ASKED)), fields=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
async def test_no_json_breaks_it(bench: Bench, path: str, fields: dict[str, object]) -> None:
    reply = await bench.client.post(
        path, content=json.dumps({**ASKED[path], **fields}), headers={"content-type": "application/json"}
    )
    assert reply.status_code < 500, reply.text


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(list(ASKED)), fields=st.dictionaries(st.sampled_from(NAMES), st.text(), max_size=3))
async def test_no_form_breaks_it(bench: Bench, path: str, fields: dict[str, str]) -> None:
    reply = await bench.client.post(path, data={**ASKED[path], **fields})
    assert reply.status_code < 500, reply.text
