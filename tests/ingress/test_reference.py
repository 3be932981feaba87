"""GET /docs: the page of routes, without anything from elsewhere."""

from __future__ import annotations

import re

from ingress.bench import Bench


async def test_the_page_and_its_files_come_from_here(bench: Bench) -> None:
    page = await bench.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    names = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
    assert names == ["docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/start.js"]
    for name in names:
        reply = await bench.client.get(f"/{name}")
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/css" if name.endswith("css") else "text/javascript")
        assert "'unsafe-inline'" not in reply.headers["content-security-policy"].split("style-src")[0]


async def test_other_names_are_not_found(bench: Bench) -> None:
    for name in ("redoc.standalone.js", "..%2fcore.py", "x"):
        assert (await bench.client.get(f"/docs/{name}")).status_code == 404


async def test_the_document_that_it_shows(bench: Bench) -> None:
    document = (await bench.client.get("/openapi.json")).json()
    assert document["info"]["title"] == "Retina"
    assert "/docs" not in document["paths"]
