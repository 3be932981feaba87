"""Bodies over the limit: refused at once by their declared length, or as soon as too much has come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from ingress.bench import Bench, BuildBench, error_of, picture, serving

MEGABYTE = b"x" * 1_000_000


async def test_a_file_of_30_mb(bench: Bench) -> None:
    async with serving(bench.app) as address, httpx.AsyncClient(base_url=address) as client:
        reply = await client.post("/chat", data={"message": "Hello"}, files={"image": MEGABYTE * 30})
        error = error_of(reply, 413, "body_too_large")
        assert "24000000 bytes (ingress.max_body_bytes)" in str(error["message"])
        assert reply.headers["connection"] == "close"
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("path", ["/chat", "/images"])
async def test_30_mb_in_chunks(bench: Bench, path: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield MEGABYTE

    async with serving(bench.app) as address, httpx.AsyncClient(base_url=address) as client:
        headers = {"content-type": "image/png" if path == "/images" else "application/json"}
        error_of(await client.post(path, content=pieces(), headers=headers), 413, "body_too_large")
        assert (await client.get("/healthz")).status_code == 200


async def test_the_declared_length_is_refused_before_the_body_comes(bench: Bench) -> None:
    async with asyncio.timeout(10), serving(bench.app) as address:
        host, port = address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n"
        writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()
        await writer.wait_closed()


async def test_bodies_up_to_the_limit_are_read(build_bench: BuildBench) -> None:
    body = b'{"message": "Hello"}'
    for limit, status in ((len(body), 200), (len(body) - 1, 413)):
        bench = build_bench(ingress={"max_body_bytes": limit})
        reply = await bench.client.post("/chat", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == status


async def test_pictures_have_a_limit_of_their_own(build_bench: BuildBench) -> None:
    bench = build_bench(images={"max_image_bytes": 50})
    error = error_of(await bench.client.post("/images", files={"image": picture()}), 413, "image_too_large")
    assert "at most 50" in str(error["message"])
