"""GET /: the chat page, three files without anything from elsewhere."""

from __future__ import annotations

import importlib.resources

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

MEDIA_TYPES = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/")
async def page() -> Response:
    return _file("index.html")


@router.get("/ui/{name}")
async def page_file(name: str) -> Response:
    return _file(name)


def _file(name: str) -> Response:
    if name not in MEDIA_TYPES:
        raise HTTPException(404)
    data = importlib.resources.files("deployments.ingress").joinpath("ui", name).read_bytes()
    return Response(data, media_type=MEDIA_TYPES[name], headers=HEADERS)
