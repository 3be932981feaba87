"""GET /: the chat page, the files of this project alone."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

MEDIA_TYPES = {
    "html": "text/html",
    "js": "text/javascript",
    "css": "text/css",
    "svg": "image/svg+xml",
}
HEADERS = {
    # Trusted types: no string becomes markup but in markdown.js, which takes the one policy that there may be.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types retina-markdown",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again each time, and sent again where it has changed
}


@dataclass(frozen=True, slots=True)
class PageFile:
    data: bytes = field(repr=False)
    media_type: str
    etag: str


@router.get("/")
async def page(request: Request) -> Response:
    return _reply(request, "index.html")


@router.get("/ui/{name:path}")
async def page_file(request: Request, name: str) -> Response:
    return _reply(request, name)


def _reply(request: Request, name: str) -> Response:
    file = _files().get(name)
    if file is None:
        raise HTTPException(404)
    headers = {**HEADERS, "ETag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.media_type, headers=headers)


@functools.cache
def _files() -> Mapping[str, PageFile]:
    """By the name that clients ask for. Looked up here, a name can lead nowhere else."""
    return dict(_read_files(importlib.resources.files("deployments.ingress").joinpath("ui")))


def _read_files(folder: Traversable) -> Iterator[tuple[str, PageFile]]:
    for entry in folder.iterdir():
        media_type = MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            data = entry.read_bytes()
            yield entry.name, PageFile(data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
