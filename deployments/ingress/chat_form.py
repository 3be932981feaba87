"""Reads the body of POST /chat, in any of its three encodings, into a ChatRequest and a picture's bytes."""

from __future__ import annotations

import base64
import binascii
import json
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from deployments.config import IngressConfig
from deployments.errors import InvalidImage, InvalidRequest, MessageTooLong, UnsupportedContentType
from deployments.ingress.error_replies import shorten
from deployments.ingress.schemas import ChatRequest

FIELDS = tuple(ChatRequest.model_fields)
REPEATABLE = frozenset({"stop"})
MAX_FORM_FIELDS = 100  # of any name, so that a wrong name can still be told
DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)

Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ChatForm:
    asked: ChatRequest
    picture: bytes | None = None  # of `image`; not looked at yet


async def read_chat_form(request: Request, limits: IngressConfig) -> ChatForm:
    """Raises InvalidRequest, MessageTooLong, InvalidImage, UnsupportedContentType, BodyTooLarge; and
    RequestValidationError for values of the wrong type or out of range.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        form = await _read_multipart(request, limits)
    elif kind == "application/json":
        form = _read_json(await request.body())
    elif kind in ("application/x-www-form-urlencoded", ""):
        form = _read_urlencoded(await request.body())
    else:
        raise UnsupportedContentType(
            f"content type {shorten(kind)!r} is not read here; use multipart/form-data, application/json or "
            "application/x-www-form-urlencoded"
        )
    _check_message(form.asked.message, limits.max_message_chars)
    if form.asked.image_id is not None and form.picture is not None:
        raise InvalidRequest("image and image_id both name a picture; send one of them", "image_id")
    return form


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


# ------------------------------------------------------------------------------------- encodings


async def _read_multipart(request: Request, limits: IngressConfig) -> ChatForm:
    # Parts are as large as bodies may be: a long message then meets our own limit, which names its setting.
    async with request.form(
        max_files=MAX_FORM_FIELDS, max_fields=MAX_FORM_FIELDS, max_part_size=limits.max_body_bytes
    ) as form:
        fields = _collect(form.multi_items())
        _refuse_unknown(fields)
        picture = fields.pop("image", None)
        for name, value in fields.items():
            if isinstance(value, UploadFile):
                raise InvalidRequest(f"{name} must be text, not a file", name)
        if picture is not None and not isinstance(picture, UploadFile):
            raise InvalidRequest('image must be a file in a form: curl -F "image=@photo.jpg"', "image")
        asked = _validate(fields, is_text=True)
        return ChatForm(asked, await picture.read() if picture is not None else None)


def _read_urlencoded(body: bytes) -> ChatForm:
    # Not by Starlette, which reads plain UTF-8 (what curl -d sends) as Latin-1.
    try:
        pairs = urllib.parse.parse_qsl(
            body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FORM_FIELDS
        )
    except UnicodeDecodeError as error:
        raise InvalidRequest("the form is not UTF-8") from error
    except ValueError as error:
        raise InvalidRequest(f"the form has more than {MAX_FORM_FIELDS} fields") from error
    fields = _collect(pairs)
    _refuse_unknown(fields)
    if "image" in fields:
        raise InvalidRequest("a picture cannot be sent URL-encoded; use multipart/form-data", "image")
    return ChatForm(_validate(fields, is_text=True))


def _read_json(body: bytes) -> ChatForm:
    try:
        fields = json.loads(body, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    _refuse_unknown(fields)
    asked = _validate(fields, is_text=False)
    return ChatForm(asked, _decode_data_url(asked.image) if asked.image is not None else None)


# ------------------------------------------------------------------------------------- checks


def _collect(pairs: Iterable[tuple[str, str | UploadFile]]) -> dict[str, object]:
    """Fields by name; those that may be repeated as lists."""
    fields: dict[str, object] = {}
    repeated: dict[str, list[str | UploadFile]] = {}
    for name, value in pairs:
        if name in REPEATABLE:
            repeated.setdefault(name, []).append(value)
        elif name in fields:
            raise InvalidRequest(f"{shorten(name)} is given twice", shorten(name))
        else:
            fields[name] = value
    return fields | repeated


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"{shorten(twice)} is given twice", shorten(twice))
    return fields


def _refuse_unknown(fields: Fields) -> None:
    unknown = [shorten(name) for name in fields if name not in FIELDS]
    if unknown:
        raise InvalidRequest(f"unknown field {', '.join(unknown[:5])}; allowed are {', '.join(FIELDS)}", unknown[0])


def _validate(fields: Fields, *, is_text: bool) -> ChatRequest:
    """Forms have only text, which is converted; in JSON the types must be right."""
    try:
        return ChatRequest.model_validate(fields, strict=not is_text)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from error


def _check_message(message: str, max_chars: int) -> None:
    # The session_router has the rule for messages and applies it again. What people do by mistake is refused here
    # already, before a picture is decoded and stored, and megabytes of text are sent on, for a turn that is refused.
    if len(message) > max_chars:
        raise MessageTooLong(
            f"message has {len(message)} characters; at most {max_chars} are allowed (ingress.max_message_chars)",
            "message",
        )
    if not message.strip():
        raise InvalidRequest("message is empty", "message")


def _decode_data_url(url: str) -> bytes:
    prefix = DATA_URL.match(url)
    if prefix is None:
        raise InvalidImage("image must be a data URL, data:image/...;base64,...; other URLs are not fetched", "image")
    try:
        return base64.b64decode(url[prefix.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidImage("the data URL of image is not base64", "image") from error
