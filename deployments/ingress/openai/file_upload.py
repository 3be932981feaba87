"""Reads the form of POST /v1/files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fastapi import Request
from starlette.datastructures import UploadFile

from deployments.config import IngressConfig
from deployments.errors import InvalidRequest, UnsupportedContentType
from deployments.ingress.error_replies import shorten
from deployments.ingress.form_body import MAX_FORM_FIELDS, media_type
from deployments.ingress.image_routes import FILE

Purpose = Literal["vision", "user_data"]
PURPOSES: tuple[str, ...] = get_args(Purpose)
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"  # how the official SDKs write nested fields
FIELDS = ("file", "purpose", ANCHOR, SECONDS)
LEAST_EXPIRY_S, MOST_EXPIRY_S = 3600, 2_592_000  # an hour and 30 days, as OpenAI has them
MAX_NAME_CHARS = 255

UPLOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "file": {**FILE, "description": "A picture."},
                    "purpose": {"type": "string", "enum": list(PURPOSES), "description": "Both mean the same here."},
                    ANCHOR: {"type": "string", "enum": ["created_at"]},
                    SECONDS: {"type": "integer", "minimum": LEAST_EXPIRY_S, "maximum": MOST_EXPIRY_S},
                },
                "required": ["file", "purpose"],
                "additionalProperties": False,
            }
        }
    },
}


@dataclass(frozen=True, slots=True)
class Upload:
    name: str
    purpose: str
    expires_after_s: int | None
    data: bytes = field(repr=False)  # not looked at yet


async def read_upload(request: Request, limits: IngressConfig) -> Upload:
    """Raises InvalidRequest, UnsupportedContentType, BodyTooLarge."""
    kind = media_type(request)
    if kind != "multipart/form-data":
        raise UnsupportedContentType(f"content type {shorten(kind)!r} is not read here; send multipart/form-data")
    async with request.form(
        max_files=MAX_FORM_FIELDS, max_fields=MAX_FORM_FIELDS, max_part_size=limits.max_body_bytes
    ) as form:
        fields = _by_name(form.multi_items())
        file = fields.pop("file", None)
        if not isinstance(file, UploadFile):
            raise InvalidRequest('file must be a file: curl -F "file=@photo.jpg" -F purpose=vision', "file")
        name = file.filename or ""
        if len(name) > MAX_NAME_CHARS:
            raise InvalidRequest(f"the file's name has {len(name)} characters; at most {MAX_NAME_CHARS}", "file")
        texts = {name: value for name, value in fields.items() if isinstance(value, str)}
        if len(texts) < len(fields):
            raise InvalidRequest("only `file` is a file; the other fields are text", "file")
        return Upload(name, _purpose(texts), _expiry_s(texts), await file.read())


def _by_name(items: list[tuple[str, str | UploadFile]]) -> dict[str, str | UploadFile]:
    fields: dict[str, str | UploadFile] = {}
    for name, value in items:
        if name not in FIELDS:
            raise InvalidRequest(f"unknown field {shorten(name)}; allowed are {', '.join(FIELDS)}", shorten(name))
        if name in fields:
            raise InvalidRequest(f"{name} is given twice", name)
        fields[name] = value
    return fields


def _purpose(texts: Mapping[str, str]) -> str:
    given = texts.get("purpose")
    if given not in PURPOSES:
        what = "is missing" if given is None else f"{shorten(given)!r} is not served here"
        raise InvalidRequest(f"purpose {what}; files are pictures, so it is one of: {', '.join(PURPOSES)}", "purpose")
    return given


def _expiry_s(texts: Mapping[str, str]) -> int | None:
    if ANCHOR not in texts and SECONDS not in texts:
        return None
    anchor, seconds = texts.get(ANCHOR), texts.get(SECONDS, "")
    if anchor != "created_at":
        raise InvalidRequest("the anchor of expires_after must be created_at", ANCHOR)
    # Not more digits than the most has: int() also reads other alphabets' digits, and thousands of them.
    if not re.fullmatch(r"[0-9]{1,7}", seconds) or not LEAST_EXPIRY_S <= int(seconds) <= MOST_EXPIRY_S:
        raise InvalidRequest(f"the seconds of expires_after must be {LEAST_EXPIRY_S} to {MOST_EXPIRY_S}", SECONDS)
    return int(seconds)
