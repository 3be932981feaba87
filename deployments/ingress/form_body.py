"""Reads the body of a request about a picture, in any of three encodings, into a pydantic model and a picture's bytes.

The model has a field `image`: a data URL in JSON, a file in multipart; URL-encoded bodies have none.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from deployments.config import IngressConfig
from deployments.errors import InvalidImage, InvalidRequest, MessageTooLong, UnsupportedContentType
from deployments.ingress.error_replies import shorten

REPEATABLE = frozenset({"stop"})  # fields that forms give several times
JSON_FIELDS = frozenset({"spatial_refs"})  # fields that forms give as JSON
SLICE_CHARS = 2**18  # of base64, decoded at a time; whole groups of 4
MAX_FORM_FIELDS = 100  # of any name, so that a wrong name can still be told
DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+(?:;[a-z0-9._-]+=[^;,]*)*;base64,", re.IGNORECASE)
SPACES = " \t\n\f\r"  # what the WHATWG's standard leaves out of base64

Asked = TypeVar("Asked", bound=BaseModel)
Asked_co = TypeVar("Asked_co", bound=BaseModel, covariant=True)
Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Form(Generic[Asked_co]):
    asked: Asked_co
    picture: bytes | None = None  # of `image`; not looked at yet


async def read_form(request: Request, model: type[Asked], limits: IngressConfig) -> Form[Asked]:
    """Raises InvalidRequest, InvalidImage, UnsupportedContentType, BodyTooLarge; and RequestValidationError for values
    of the wrong type or out of range.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        return await _read_multipart(request, model, limits)
    if kind == "application/json":
        return to_form(read_object(await request.body()), model)
    if kind in ("application/x-www-form-urlencoded", ""):
        return _read_urlencoded(await request.body(), model)
    raise UnsupportedContentType(
        f"content type {shorten(kind)!r} is not read here; use multipart/form-data, application/json or "
        "application/x-www-form-urlencoded"
    )


def to_form(fields: Fields, model: type[Asked]) -> Form[Asked]:
    """Of a JSON object: types must be right. Raises InvalidRequest, InvalidImage, RequestValidationError."""
    _refuse_unknown(fields, model)
    asked = _validate(fields, model, is_text=False)
    url = fields.get("image")
    return Form(asked, decode_data_url(str(url)) if url is not None else None)


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_text(name: str, text: str, limits: IngressConfig) -> None:
    """Raises MessageTooLong, and InvalidRequest for one without words or that cannot be written down.

    Made before a picture is decoded and stored, and megabytes of text are sent on, for a request that is refused.
    """
    max_chars = limits.max_message_chars
    if len(text) > max_chars:
        raise MessageTooLong(
            f"{name} has {len(text)} characters; at most {max_chars} are allowed (ingress.max_message_chars)", name
        )
    if not text.strip():
        raise InvalidRequest(f"{name} is empty", name)
    if not _is_unicode(text):
        raise InvalidRequest(f"{name} holds half of a surrogate pair, which is no character", name)


def read_object(body: bytes, what: str = "body") -> Fields:
    """A JSON object that gives no field twice. Raises InvalidRequest."""
    try:
        fields = json.loads(body, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the {what} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest(f"the {what} must be a JSON object")
    return fields


def decode_data_url(url: str, param: str = "image") -> bytes:
    """The bytes, not looked at yet. Raises InvalidImage."""
    return b"".join(_decode_slices(url, param, len(url)))


async def decode_long_data_url(url: str, param: str) -> bytes:
    """The same, with others' events in between: Python decodes base64 without letting go of the interpreter, and
    20 MB take it 40 ms, in whichever thread.
    """
    pieces = []
    for piece in _decode_slices(url, param, SLICE_CHARS):
        pieces.append(piece)
        await asyncio.sleep(0)
    return b"".join(pieces)


def _decode_slices(url: str, param: str, num_chars: int) -> Iterator[bytes]:
    prefix = DATA_URL.match(url)
    if prefix is None:
        raise InvalidImage(f"{param} must be a data URL, data:image/...;base64,...; other URLs are not fetched", param)
    text = _without_spaces(url[prefix.end() :])
    # Python's decoder takes too much padding; padding in the middle would pass at the end of a slice.
    if len(text) % 4 or "=" in text[:-2]:
        raise _not_base64(param)
    for start in range(0, len(text), num_chars):
        try:
            yield base64.b64decode(text[start : start + num_chars], validate=True)
        except (binascii.Error, ValueError) as error:
            raise _not_base64(param) from error


def _without_spaces(text: str) -> str:
    """Encoders for mail break lines, command lines end with one."""
    for space in SPACES:
        text = text.replace(space, "")
    return text


def _not_base64(param: str) -> InvalidImage:
    return InvalidImage(f"the data URL of {param} is not base64", param)


def document_body(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI of the body, which the route reads by itself."""
    schema = model.model_json_schema()
    in_forms = {
        name: {"type": "string", "contentMediaType": "application/json", "description": field.get("description", "")}
        if name in JSON_FIELDS
        else field
        for name, field in schema["properties"].items()
    }
    file = {"type": "string", "format": "binary", "description": "The picture's file."}
    without_image = {name: field for name, field in in_forms.items() if name != "image"}
    schemas = {
        "multipart/form-data": {**schema, "properties": {**in_forms, "image": file}},
        "application/json": schema,
        "application/x-www-form-urlencoded": {**schema, "properties": without_image},
    }
    return {"required": True, "content": {kind: {"schema": each} for kind, each in schemas.items()}}


# ------------------------------------------------------------------------------------- encodings


async def _read_multipart(request: Request, model: type[Asked], limits: IngressConfig) -> Form[Asked]:
    # Parts are as large as bodies may be: a long message then meets our own limit, which names its setting.
    async with request.form(
        max_files=MAX_FORM_FIELDS, max_fields=MAX_FORM_FIELDS, max_part_size=limits.max_body_bytes
    ) as form:
        fields = _collect(form.multi_items())
        _refuse_unknown(fields, model)
        picture = fields.pop("image", None)
        for name, value in fields.items():
            if isinstance(value, UploadFile):
                raise InvalidRequest(f"{name} must be text, not a file", name)
        if picture is not None and not isinstance(picture, UploadFile):
            raise InvalidRequest('image must be a file in a form: curl -F "image=@photo.jpg"', "image")
        asked = _validate(fields, model, is_text=True)
        return Form(asked, await picture.read() if picture is not None else None)


def _read_urlencoded(body: bytes, model: type[Asked]) -> Form[Asked]:
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
    _refuse_unknown(fields, model)
    if "image" in fields:
        raise InvalidRequest("a picture cannot be sent URL-encoded; use multipart/form-data", "image")
    return Form(_validate(fields, model, is_text=True))


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


def _refuse_unknown(fields: Fields, model: type[BaseModel]) -> None:
    allowed = model.model_fields
    unknown = [shorten(name) for name in fields if name not in allowed]
    if unknown:
        raise InvalidRequest(f"unknown field {', '.join(unknown[:5])}; allowed are {', '.join(allowed)}", unknown[0])


def _validate(fields: Fields, model: type[Asked], *, is_text: bool) -> Asked:
    """Forms have only text, which is converted; in JSON the types must be right."""
    try:
        if is_text:
            return model.model_validate(_read_json_fields(fields))
        return model.model_validate(fields, strict=True)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from error


def _read_json_fields(fields: Fields) -> Fields:
    return {name: _from_json(name, value) if name in JSON_FIELDS else value for name, value in fields.items()}


def _from_json(name: str, value: object) -> object:
    assert isinstance(value, str)  # files were refused before
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not JSON: {error}", name) from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
