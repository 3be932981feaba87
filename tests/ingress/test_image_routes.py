"""Upload, download and deletion of pictures."""

from __future__ import annotations

import re
from typing import NoReturn

import pytest
from ingress.bench import Bench, BuildBench, error_of, picture

from deployments.errors import PartUnavailable
from deployments.images.stores.memory import MemoryImageStore

PNG = picture(size=(40, 30))


async def test_upload_and_download(bench: Bench) -> None:
    uploaded = await bench.client.post("/images", files={"image": ("../evil.html", PNG, "text/html")})
    assert uploaded.status_code == 201
    body = uploaded.json()
    assert re.fullmatch("[0-9a-f]{64}", body["id"])
    expected = {"width": 40, "height": 30, "num_bytes": len(PNG), "media_type": "image/png"}
    assert body == {"id": body["id"], **expected}
    got = await bench.client.get(f"/images/{body['id']}")
    assert got.content == PNG
    assert got.headers["content-type"] == "image/png"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-disposition"] == f'inline; filename="{body["id"][:12]}.png"'


@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', '"other", "{}"', "*"])
async def test_who_has_the_picture_is_not_sent_it_again(bench: Bench, form: str) -> None:
    image_id = (await bench.client.post("/images", files={"image": PNG})).json()["id"]
    first = await bench.client.get(f"/images/{image_id}", headers={"If-None-Match": '"other"'})
    assert (first.status_code, first.content, first.headers["etag"]) == (200, PNG, f'"{image_id}"')
    again = await bench.client.get(f"/images/{image_id}", headers={"If-None-Match": form.format(image_id)})
    assert (again.status_code, again.content) == (304, b"")
    for header in ("etag", "cache-control"):
        assert again.headers[header] == first.headers[header]
    await bench.client.delete(f"/images/{image_id}")
    gone = await bench.client.get(f"/images/{image_id}", headers={"If-None-Match": form.format(image_id)})
    error_of(gone, 404, "image_not_found")


async def test_a_store_that_fails_is_unavailable(build_bench: BuildBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = build_bench()
    image_id = (await bench.client.post("/images", files={"image": PNG})).json()["id"]

    async def fail(*_: object) -> NoReturn:
        raise PartUnavailable("the image store failed: no space left", None, 2)

    for method in ("put", "get", "find", "delete"):
        monkeypatch.setattr(MemoryImageStore, method, fail)
    for reply in (
        await bench.client.post("/images", files={"image": PNG}),
        await bench.client.get(f"/images/{image_id}"),
        await bench.client.delete(f"/images/{image_id}"),
        await bench.client.post("/chat", data={"message": "Hello"}, files={"image": PNG}),
        await bench.ask(image_id=image_id),
    ):
        error_of(reply, 503, "part_unavailable")
        assert reply.headers["retry-after"] == "2"


async def test_raw_bodies_get_the_same_id(bench: Bench) -> None:
    in_form = await bench.client.post("/images", files={"image": PNG})
    # The declared type only says that it is a picture; the bytes say which.
    raw = await bench.client.post("/images", content=PNG, headers={"content-type": "image/jpeg"})
    assert raw.status_code == 201
    assert raw.json() == in_form.json()


async def test_deletion(bench: Bench) -> None:
    image_id = (await bench.client.post("/images", files={"image": PNG})).json()["id"]
    assert (await bench.client.delete(f"/images/{image_id}")).json() == {"id": image_id, "deleted": True}
    error_of(await bench.client.get(f"/images/{image_id}"), 404, "image_not_found")
    error_of(await bench.client.delete(f"/images/{image_id}"), 404, "image_not_found")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("image_id", ["0" * 64, "0" * 63, "A" * 64, "a/b", "..%2Fsecret", "%00", "x" * 10_000])
async def test_unknown_and_malformed_ids_look_the_same(bench: Bench, method: str, image_id: str) -> None:
    error_of(await bench.client.request(method, f"/images/{image_id}"), 404, "image_not_found")


async def test_bad_uploads(bench: Bench) -> None:
    post = bench.client.post
    error_of(await post("/images", files={"image": b""}), 400, "invalid_image")
    error_of(await post("/images", files={"image": b"text"}), 415, "unsupported_image")
    error_of(await post("/images", content=b"", headers={"content-type": "image/png"}), 400, "invalid_image")
    error_of(await post("/images", data={"image": "text"}), 415, "unsupported_content_type")
    error_of(await post("/images", json={"image": "text"}), 415, "unsupported_content_type")
    as_text = await post("/images", files={"image": (None, "text")})
    assert "must be a file" in str(error_of(as_text, 400, "invalid_request")["message"])
    for files in ({"picture": PNG}, {"image": PNG, "note": (None, "x")}):
        assert error_of(await post("/images", files=files), 400, "invalid_request")["param"] == "image"
    twice = await post("/images", files=[("image", PNG), ("image", PNG)])
    assert "exactly one field" in str(error_of(twice, 400, "invalid_request")["message"])
