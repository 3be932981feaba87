"""/v1/files: uploading, listing, reading and deleting, and what is refused."""

from __future__ import annotations

import time
from dataclasses import replace

import httpx
import pytest
from ingress.bench import Bench, picture
from ingress.openai.openai_bench import image, openai_error, user

from deployments.ingress.openai.file_records import find_file
from deployments.ingress.tenants import PUBLIC_TENANT

DATA = picture()


async def upload(bench: Bench, data: bytes = DATA, name: str = "photo.png", **fields: str) -> httpx.Response:
    return await bench.client.post("/v1/files", files={"file": (name, data)}, data={"purpose": "vision"} | fields)


async def id_of(bench: Bench, *args: object, **fields: str) -> str:
    reply = await upload(bench, *args, **fields)  # type: ignore[arg-type]
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


async def listed(bench: Bench, **params: object) -> dict[str, object]:
    reply = await bench.client.get("/v1/files", params=params)  # type: ignore[arg-type]
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_a_file(bench: Bench) -> None:
    file = (await upload(bench)).json()
    shown = dict(file)
    assert shown.pop("id").startswith("file-")
    assert shown.pop("created_at") > 1_600_000_000
    image_id = shown.pop("image_id")
    assert shown == {
        "object": "file",
        "bytes": len(DATA),
        "expires_at": None,
        "filename": "photo.png",
        "purpose": "vision",
        "status": "processed",
        "status_details": None,
    }
    assert (await bench.client.get(f"/v1/files/{file['id']}")).json() == file
    content = await bench.client.get(f"/v1/files/{file['id']}/content")
    assert (content.content, content.headers["content-type"]) == (DATA, "image/png")
    assert content.headers["x-content-type-options"] == "nosniff"
    assert (await bench.client.get(f"/images/{image_id}")).content == DATA


async def test_equal_bytes_are_two_files_and_the_last_one_takes_them_along(bench: Bench) -> None:
    first, second = (await upload(bench)).json(), (await upload(bench, purpose="user_data")).json()
    assert first["id"] != second["id"]
    assert first["image_id"] == second["image_id"]
    gone = await bench.client.delete(f"/v1/files/{first['id']}")
    assert gone.json() == {"id": first["id"], "object": "file", "deleted": True}
    assert (await bench.client.get(f"/v1/files/{second['id']}/content")).content == DATA
    for method in ("get", "delete"):
        openai_error(await getattr(bench.client, method)(f"/v1/files/{first['id']}"), 404)
    openai_error(await bench.client.get(f"/v1/files/{first['id']}/content"), 404)
    await bench.client.delete(f"/v1/files/{second['id']}")
    assert (await bench.client.get(f"/images/{first['image_id']}")).status_code == 404


async def test_deleting_a_file_whose_picture_is_gone(bench: Bench) -> None:
    file = (await upload(bench)).json()
    await bench.client.delete(f"/images/{file['image_id']}")
    openai_error(await bench.client.get(f"/v1/files/{file['id']}/content"), 404, "image_not_found", "file_id")
    assert (await bench.client.delete(f"/v1/files/{file['id']}")).status_code == 200
    assert (await listed(bench))["data"] == []


async def test_lists_come_in_pages(bench: Bench) -> None:
    ids = [await id_of(bench, purpose="vision" if number % 2 else "user_data") for number in range(5)]
    assert await listed(bench, limit=2) | {"data": None} == {
        "object": "list",
        "data": None,
        "first_id": ids[4],
        "last_id": ids[3],
        "has_more": True,
    }

    async def walk(**params: object) -> list[str]:
        found: list[str] = []
        while True:
            page = await listed(bench, **params, **({"after": found[-1]} if found else {}))
            found += [file["id"] for file in page["data"]]  # type: ignore[attr-defined]
            if not page["has_more"]:
                return found

    for limit in (1, 2, 5, 10_000):
        assert await walk(limit=limit) == ids[::-1]
        assert await walk(limit=limit, order="asc") == ids
        assert await walk(limit=limit, purpose="vision") == [ids[3], ids[1]]
        assert await walk(limit=limit, purpose="user_data", order="asc") == ids[::2]
    assert await walk(purpose="batch") == []


async def test_an_empty_list(bench: Bench) -> None:
    assert await listed(bench) == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    ("params", "param"),
    [({"limit": 0}, "limit"), ({"limit": 10_001}, "limit"), ({"order": "up"}, "order"), ({"page": 2}, "page")],
)
async def test_lists_that_cannot_be(bench: Bench, params: dict[str, object], param: str) -> None:
    error = openai_error(await bench.client.get("/v1/files", params=params), 400)  # type: ignore[arg-type]
    assert error["param"] == param


async def test_a_list_behind_what_is_not_there(bench: Bench) -> None:
    openai_error(await bench.client.get("/v1/files", params={"after": "file-x"}), 404, "not_found", "after")


async def test_expiry(bench: Bench) -> None:
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = (await upload(bench, **fields)).json()
    assert file["expires_at"] - file["created_at"] == 3600
    assert (await bench.client.get(f"/v1/files/{file['id']}")).json() == file


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "batch"}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "x", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "9" * 5000}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "٣٦٠٠"}, "expires_after[seconds]"),
        ({"model": "x"}, "model"),
    ],
)
async def test_fields_that_are_refused(bench: Bench, fields: dict[str, str], param: str) -> None:
    openai_error(await upload(bench, **fields), 400, "invalid_value", param)
    assert (await listed(bench))["data"] == []


async def test_what_is_no_file_and_no_picture(bench: Bench) -> None:
    openai_error(await bench.client.post("/v1/files", data={"purpose": "vision"}), 415)
    form = {"purpose": (None, "vision")}
    openai_error(await bench.client.post("/v1/files", files=form), 400, "invalid_value", "file")
    openai_error(await bench.client.post("/v1/files", files={"file": DATA}), 400, "invalid_value", "purpose")
    twice = [("purpose", (None, "vision")), ("purpose", (None, "vision")), ("file", ("a", DATA))]
    openai_error(await bench.client.post("/v1/files", files=twice), 400, "invalid_value", "purpose")
    openai_error(await upload(bench, b"%PDF-1.7"), 400, "unsupported_image", "file")
    openai_error(await upload(bench, b""), 400, "invalid_image", "file")
    openai_error(await upload(bench, name="x" * 256), 400, "invalid_value", "file")
    error = openai_error(await bench.client.get("/v1/files/file-x"), 404, "not_found", "file_id")
    assert "there is no file 'file-x'" in error["message"]


async def test_what_expired_is_gone(bench: Bench) -> None:
    file = await find_file(bench.services, PUBLIC_TENANT, await id_of(bench))
    expired = replace(file, expires_s=time.time() - 1)
    await bench.services.records.put_record(PUBLIC_TENANT, expired.to_record())
    openai_error(await bench.client.get(f"/v1/files/{file.id}"), 404)
    assert (await listed(bench))["data"] == []
    reply = await bench.client.post("/v1/chat/completions", json={"messages": [user(image(file.id))]})
    openai_error(reply, 404, "not_found", "messages[0].content[0].image_url.url")
