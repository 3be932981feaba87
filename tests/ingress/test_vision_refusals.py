"""Requests that the routes for one picture refuse for their picture, their model, or what the generator says."""

from __future__ import annotations

import pytest
from ingress.bench import Bench, BuildBench, error_of, picture, post_form
from ingress.vision_bench import ASKED, IMAGE_URL, MIXED, as_texts, refusals, upload

from deployments.errors import ImageNotFound, InvalidRequest, Overloaded
from deployments.fakes import FakeGenerator
from deployments.images.stores.memory import MemoryImageStore
from deployments.types import StoredImage

# ------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("path", ["/caption", "/detect", "/point", "/query"])
async def test_a_missing_picture(bench: Bench, path: str) -> None:
    fields = {**ASKED[path], **({"spatial_refs": [[0.5, 0.5]]} if path == "/query" else {})}
    for stream in (False, True):
        for reply in (
            await post_form(bench, as_texts({**fields, "stream": stream}), None, path),
            await bench.client.post(path, json={**fields, "stream": stream}),
            await bench.client.post(path, data=as_texts({**fields, "stream": stream})),
        ):
            error = error_of(reply, 400, "invalid_request")
            assert error["param"] == "image"
            assert "send image or image_id" in str(error["message"])


@pytest.mark.parametrize("path", ASKED)
async def test_two_pictures(bench: Bench, path: str) -> None:
    for reply in (
        await post_form(bench, {**ASKED[path], "image_id": "0" * 64}, picture(), path),
        await bench.client.post(path, json={**ASKED[path], "image_id": "0" * 64, "image": IMAGE_URL}),
    ):
        assert error_of(reply, 400, "invalid_request")["param"] == "image_id"


@pytest.mark.parametrize("path", ASKED)
async def test_pictures_in_the_wrong_place(bench: Bench, path: str) -> None:
    as_text = await post_form(bench, {**ASKED[path], "image": "photo.jpg"}, None, path)
    assert "must be a file" in str(error_of(as_text, 400, "invalid_request")["message"])
    urlencoded = await bench.client.post(path, data={**ASKED[path], "image": IMAGE_URL})
    assert "multipart/form-data" in str(error_of(urlencoded, 400, "invalid_request")["message"])
    as_file = await bench.client.post(path, files={"image": picture(), "model": b"fake"})
    assert error_of(as_file, 400, "invalid_request")["param"] == "model"
    elsewhere = await bench.client.post(path, json={**ASKED[path], "image": "http://example.com/a.png"})
    assert error_of(elsewhere, 400, "invalid_image")["param"] == "image"


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "invalid_image"),
        (b"just some text", 415, "unsupported_image"),
        (picture("JPEG", (200, 200))[:-300], 400, "invalid_image"),
        (picture(size=(20_000, 1)), 413, "image_too_large"),
    ],
)
async def test_bad_pictures(bench: Bench, path: str, data: bytes, status: int, code: str) -> None:
    for stream in (False, True):
        reply = await post_form(bench, {**ASKED[path], "stream": stream}, data, path)
        assert error_of(reply, status, code)["param"] == "image"


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("image_id", ["0" * 64, "../secret", ""])
async def test_unknown_pictures(bench: Bench, path: str, image_id: str) -> None:
    for stream in (False, True):
        reply = await bench.client.post(path, json={**ASKED[path], "image_id": image_id, "stream": stream})
        error_of(reply, 404, "image_not_found")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/caption", {"prompt": " "}),
        ("/caption", {"prompt": "x", "length": "long"}),
        ("/detect", {"object": "x" * 64_001}),
        ("/point", {"model": "none"}),
        ("/point", {"model": "other"}),
    ],
)
async def test_a_picture_for_a_request_that_is_refused_is_not_stored(
    build_bench: BuildBench, monkeypatch: pytest.MonkeyPatch, path: str, fields: dict[str, object]
) -> None:
    stored: list[object] = []

    async def put(self: MemoryImageStore, tenant: str, image: StoredImage) -> None:
        stored.append(image)

    monkeypatch.setattr(MemoryImageStore, "put", put)
    bench = build_bench(models=MIXED)
    assert (await post_form(bench, {**ASKED[path], **fields}, picture(), path)).status_code >= 400
    assert stored == []
    assert (await post_form(bench, ASKED[path], picture(), path)).status_code == 200
    assert len(stored) == 1


# ------------------------------------------------------------------------------------- models and parts


@pytest.mark.parametrize("path", ASKED)
async def test_an_unknown_model(bench: Bench, path: str) -> None:
    chat = error_of(await bench.ask(model="gpt-7"), 400, "unknown_model")
    for error in await refusals(bench, path, {"model": "gpt-7"}, 400, "unknown_model"):
        assert (error["message"], error["param"]) == (chat["message"], chat["param"])


@pytest.mark.parametrize("path", ["/detect", "/point"])
async def test_a_model_that_lacks_the_skill(build_bench: BuildBench, path: str) -> None:
    bench = build_bench(models=MIXED)
    for error in await refusals(bench, path, {"model": "other"}, 400, "invalid_request"):
        assert error["param"] == "model"
        assert error["message"] == f"model 'other' has no skill '{path[1:]}'; choose one of: fake"


@pytest.mark.parametrize("model", [{}, {"model": "other"}])
@pytest.mark.parametrize("path", ["/detect", "/point"])
async def test_a_skill_that_no_model_has(build_bench: BuildBench, path: str, model: dict[str, object]) -> None:
    bench = build_bench(models=MIXED[:1])
    for error in await refusals(bench, path, model, 400, "invalid_request"):
        assert "no configured model has it" in str(error["message"])


@pytest.mark.parametrize("path", ["/caption", "/query"])
async def test_more_than_the_model_gives(bench: Bench, path: str) -> None:
    for fields, said in (({"max_new_tokens": 100_000}, "at most 4096"), ({"stop": "x" * 257}, "at most 256")):
        image_id = await upload(bench)
        for stream in (False, True):
            reply = await bench.client.post(
                path, json={**ASKED[path], **fields, "image_id": image_id, "stream": stream}
            )
            assert said in str(error_of(reply, 400, "invalid_request")["message"])


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (InvalidRequest("language is 'xx'; this model writes captions in en, ja", "language"), 400, "invalid_request"),
        (ImageNotFound("no picture 'abc'", "image"), 404, "image_not_found"),
        (Overloaded("full", None, 1.2), 503, "overloaded"),
        (ValueError("secret detail"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("path", ASKED)
async def test_what_the_generator_says(
    build_bench: BuildBench, path: str, failure: Exception, status: int, code: str
) -> None:
    bench = build_bench(FakeGenerator(failure=failure))
    for stream in (False, True):
        reply = await post_form(bench, {**ASKED[path], "stream": stream}, picture(), path)
        error = error_of(reply, status, code)
        assert "secret detail" not in str(error)
        if isinstance(failure, InvalidRequest):
            assert (error["message"], error["param"]) == (failure.message, failure.param)
    assert reply.headers.get("retry-after") == ("2" if status == 503 else None)
