"""/v1/files: pictures with a name, uploaded once and referred to by the id of the file."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from deployments.errors import ImageNotFound, RetinaError
from deployments.ingress.body import Body
from deployments.ingress.connection import run_while_connected
from deployments.ingress.image_routes import FILE, SAFE_HEADERS
from deployments.ingress.openai.error_shape import ERRORS, PREFIX
from deployments.ingress.openai.file_records import StoredFile, delete_file, find_file, list_files, new_file_id
from deployments.ingress.openai.file_upload import UPLOAD_BODY, Purpose, Upload, read_upload
from deployments.ingress.services import Given, Services
from deployments.ingress.tenants import Tenant

router = APIRouter(prefix=f"{PREFIX}/files", tags=["openai"], responses=ERRORS)

MAX_LISTED = 10_000


class FileBody(Body):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = Field(description="Unix time from which on it is gone; null: it stays until deleted.")
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    status_details: None = None
    image_id: str = Field(description="Retina's own: names the picture for POST /chat and for the vision routes.")

    @classmethod
    def from_file(cls, file: StoredFile) -> FileBody:
        return cls.model_validate(
            {
                "id": file.id,
                "bytes": file.num_bytes,
                "created_at": int(file.created_s),
                "expires_at": None if file.expires_s is None else int(file.expires_s),
                "filename": file.name,
                "purpose": file.purpose,
                "image_id": file.image_id,
            }
        )


class FilesQuery(Body):
    limit: int = Field(MAX_LISTED, ge=1, le=MAX_LISTED)
    order: Literal["asc", "desc"] = Field("desc", description="By the time of the upload; `desc`: newest first.")
    after: str | None = Field(None, description="The id of the last file of the page before.")
    purpose: str | None = Field(None, description="Only files with this one.")


class FileList(Body):
    object: Literal["list"] = "list"
    data: list[FileBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Body):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


@router.post("", openapi_extra={"requestBody": UPLOAD_BODY})
async def upload_file(request: Request, services: Given, tenant: Tenant) -> FileBody:
    """Store a picture, sent as multipart form with `file` and `purpose`. The file's bytes decide what it is, its name
    and its declared type play no part.
    """
    upload = await read_upload(request, services.config.ingress)
    return await run_while_connected(request.receive, _store(upload, services, tenant))


@router.get("")
async def get_files(asked: Annotated[FilesQuery, Query()], services: Given, tenant: Tenant) -> FileList:
    files, has_more = await list_files(
        services, tenant, asked.limit, asked.after, asked.purpose, oldest_first=asked.order == "asc"
    )
    return FileList(
        data=[FileBody.from_file(file) for file in files],
        first_id=files[0].id if files else None,
        last_id=files[-1].id if files else None,
        has_more=has_more,
    )


@router.get("/{file_id}")
async def get_file(file_id: str, services: Given, tenant: Tenant) -> FileBody:
    return FileBody.from_file(await find_file(services, tenant, file_id))


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={200: {"content": {"image/*": {"schema": FILE}}}},
)
async def get_content(file_id: str, services: Given, tenant: Tenant) -> Response:
    """The file's bytes as they were uploaded."""
    file = await find_file(services, tenant, file_id)
    try:
        picture = await services.pictures.get(tenant, file.image_id)
    except ImageNotFound as error:
        raise ImageNotFound(
            f"the bytes of file {file_id!r} are no longer stored; upload it again", "file_id"
        ) from error
    headers = {**SAFE_HEADERS, "Cache-Control": "private, no-cache"}  # a deleted file must not live on in caches
    return Response(picture.data, media_type=picture.ref.media_type, headers=headers)


@router.delete("/{file_id}")
async def remove_file(file_id: str, services: Given, tenant: Tenant) -> FileDeleted:
    """Forget the file, and its picture's bytes unless another file has the same ones. Sessions that show the picture
    cannot be gone on with until they get a new one.
    """
    await delete_file(services, tenant, file_id)
    return FileDeleted(id=file_id)


async def _store(upload: Upload, services: Services, tenant: str) -> FileBody:
    try:
        ref = await services.pictures.add(tenant, upload.data)
    except RetinaError as error:
        raise type(error)(error.message, "file", error.retry_after_s) from error
    now_s = time.time()
    expires_s = None if upload.expires_after_s is None else now_s + upload.expires_after_s
    file = StoredFile(new_file_id(), now_s, expires_s, upload.name, upload.purpose, len(upload.data), ref.id)
    await services.records.put_record(tenant, file.to_record())
    return FileBody.from_file(file)
