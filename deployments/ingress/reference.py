"""GET /docs: the routes to read and to try, made of the OpenAPI document; the page fetches nothing from elsewhere."""

from __future__ import annotations

import importlib.resources

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

PAGE = b"""<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <meta name="viewport" content="width=device-width, initial-scale=1" />
    <title>Retina: routes</title>
    <link rel="icon" href="data:," />
    <link rel="stylesheet" href="docs/swagger-ui.css" />
    <script src="docs/swagger-ui-bundle.js" defer></script>
    <script src="docs/start.js" defer></script>
  </head>
  <body>
    <div id="swagger-ui"></div>
  </body>
</html>
"""
START = b'SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true });\n'
MEDIA_TYPES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
HEADERS = {
    # Swagger UI writes styles into its elements and draws with data URLs.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; font-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/docs")
async def reference() -> Response:
    return Response(PAGE, media_type="text/html", headers=HEADERS)


@router.get("/docs/start.js")
async def start() -> Response:
    return Response(START, media_type="text/javascript", headers=HEADERS)


@router.get("/docs/{name}")
async def reference_file(name: str) -> Response:
    """fastapi-offline is used for Swagger UI's files, which it brings up to date; its pages need inline scripts."""
    if name not in MEDIA_TYPES:
        raise HTTPException(404)
    data = importlib.resources.files("fastapi_offline").joinpath("static", name).read_bytes()
    return Response(data, media_type=MEDIA_TYPES[name], headers=HEADERS)
