"""What the tests of the routes for one picture ask, in each encoding, plain and streamed."""

from __future__ import annotations

import json

import httpx
from ingress.bench import Bench, data_url, error_of, picture, post_form

ASKED: dict[str, dict[str, object]] = {  # the least that each route takes beside a picture
    "/caption": {},
    "/query": {"question": "What is it?"},
    "/detect": {"object": "circle"},
    "/point": {"object": "circle"},
}
MIXED = [{"name": "other", "family": "smolvlm", "checkpoint": "x"}, {"name": "fake", "family": "fake"}]  # of models
IMAGE_URL = data_url(picture())


def as_texts(fields: dict[str, object]) -> dict[str, object]:
    """The fields as forms have them."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


async def post_all(bench: Bench, path: str, fields: dict[str, object]) -> list[httpx.Response]:
    """The same request about the same picture in each encoding, the picture sent and named."""
    image_id = await upload(bench)
    return [
        await post_form(bench, as_texts(fields), picture(), path),
        await post_form(bench, {**as_texts(fields), "image_id": image_id}, None, path),
        await bench.client.post(path, json={**fields, "image": IMAGE_URL}),
        await bench.client.post(path, json={**fields, "image_id": image_id}),
        await bench.client.post(path, data={**as_texts(fields), "image_id": image_id}),
    ]


async def refusals(
    bench: Bench, path: str, fields: dict[str, object], status: int, code: str
) -> list[dict[str, object]]:
    """The errors for the same request in each encoding, plain and streamed; the URL-encoded one has no picture."""
    fields = {**ASKED[path], **fields}
    replies = []
    for stream in (False, True):
        texts = as_texts({**fields, "stream": stream})
        replies += [
            await post_form(bench, texts, picture(), path),
            await bench.client.post(path, json={**fields, "stream": stream, "image": IMAGE_URL}),
            await bench.client.post(path, data=texts),
        ]
    return [error_of(reply, status, code) for reply in replies]


async def upload(bench: Bench) -> str:
    return str((await bench.client.post("/images", files={"image": picture()})).json()["id"])
