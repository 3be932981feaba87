"""Upload a picture once, refer to it by its id."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.datastructures import UploadFile
from starlette.responses import Response

from deployments.errors import InvalidRequest, UnsupportedContentType
from deployments.ingress.connection import run_while_connected
from deployments.ingress.error_replies import shorten
from deployments.ingress.form_body import MAX_FORM_FIELDS, media_type
from deployments.ingress.schemas import DeletedImage, ImageReply
from deployments.ingress.services import Given
from deployments.ingress.tenants import Tenant
from deployments.types import ImageRef

router = APIRouter(prefix="/images", tags=["images"])

FILE = {"type": "string", "format": "binary"}
UPLOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": FILE},
                "required": ["image"],
                "additionalProperties": False,
            }
        },
        "image/*": {"schema": FILE},
    },
}
# Stored bytes come from strangers: a browser that opens them must neither guess a type nor run anything.
SAFE_HEADERS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}


@router.post("", status_code=201, openapi_extra={"requestBody": UPLOAD_BODY})
async def upload_image(request: Request, services: Given, tenant: Tenant) -> ImageReply:
    """Store a picture, sent as the multipart file `image` or as the body itself. The same bytes get the same id."""
    data = await _read_upload(request, services.config.ingress.max_body_bytes)
    ref = await run_while_connected(request.receive, services.pictures.add(tenant, data))
    return ImageReply.from_ref(ref)


@router.get(
    "/{image_id:path}",
    response_class=Response,
    responses={200: {"content": {"image/*": {"schema": FILE}}}, 304: {"description": "If-None-Match names its ETag."}},
)
async def get_image(
    image_id: str, services: Given, tenant: Tenant, if_none_match: Annotated[str, Header()] = ""
) -> Response:
    """The picture's bytes as they were uploaded."""
    ref = await services.pictures.find(tenant, image_id)
    headers = {
        **SAFE_HEADERS,
        "Cache-Control": "private, no-cache",  # a deleted picture must not live on in caches
        "ETag": f'"{ref.id}"',
    }
    if _names(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    image = await services.pictures.get(tenant, image_id)
    headers["Content-Disposition"] = f'inline; filename="{_file_name(ref)}"'
    return Response(image.data, media_type=ref.media_type, headers=headers)


@router.delete("/{image_id:path}")
async def delete_image(image_id: str, services: Given, tenant: Tenant) -> DeletedImage:
    """Forget the picture. Sessions that show it cannot be gone on with until they get a new one."""
    await services.pictures.delete(tenant, image_id)
    return DeletedImage(id=image_id)


async def _read_upload(request: Request, max_body_bytes: int) -> bytes:
    kind = media_type(request)
    if kind.startswith("image/"):
        return await request.body()
    if kind != "multipart/form-data":
        raise UnsupportedContentType(
            f"content type {shorten(kind)!r} is not read here; send multipart/form-data with a file `image`, "
            "or the picture itself with its image type"
        )
    async with request.form(
        max_files=MAX_FORM_FIELDS, max_fields=MAX_FORM_FIELDS, max_part_size=max_body_bytes
    ) as form:
        items = form.multi_items()
        if len(items) != 1 or items[0][0] != "image":
            names = ", ".join(shorten(name) for name, _ in items[:5]) or "none"
            raise InvalidRequest(f"exactly one field is allowed, a file `image`; this form has: {names}", "image")
        file = items[0][1]
        if not isinstance(file, UploadFile):
            raise InvalidRequest('image must be a file: curl -F "image=@photo.jpg"', "image")
        return await file.read()


def _names(if_none_match: str, etag: str) -> bool:
    """RFC 9110, 13.1.2: a list of tags, weak ones count as well, or * for whatever there is."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]


def _file_name(ref: ImageRef) -> str:
    return f"{ref.id[:12]}.{ref.media_type.removeprefix('image/')}"
