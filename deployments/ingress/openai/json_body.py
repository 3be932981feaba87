"""Reads the JSON body of a request under /v1 into a pydantic model; tells what is wrong by its place in the body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from deployments.errors import UnsupportedContentType
from deployments.ingress.error_replies import shorten
from deployments.ingress.form_body import media_type, read_object

Asked = TypeVar("Asked", bound=BaseModel)
NO_OBJECT = "Input should be an object"
NO_TAG = ("union_tag_invalid", "union_tag_not_found")


async def read_json(request: Request, model: type[Asked]) -> Asked:
    """Types must be right, nothing is converted. Raises InvalidRequest, UnsupportedContentType, BodyTooLarge; and
    RequestValidationError, whose places are those of the body, without pydantic's names for the members of unions.
    """
    kind = media_type(request)
    if kind != "application/json":
        raise UnsupportedContentType(f"content type {shorten(kind)!r} is not read here; send application/json")
    fields = read_object(await request.body())
    try:
        return model.model_validate(fields, strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([_in_terms_of_json(each, fields) for each in problems]) from error


def document_json(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI of the body, which the route reads by itself; whole, for FastAPI does not know its definitions."""
    schema = model.model_json_schema()
    whole = _inline(schema, schema.pop("$defs", {}))
    return {"required": True, "content": {"application/json": {"schema": whole}}}


def _in_terms_of_json(problem: Mapping[str, Any], body: object) -> dict[str, Any]:
    """pydantic's words name our classes where an object is missing."""
    words = NO_OBJECT if problem["type"] in ("model_type", "dict_type") else problem["msg"]
    return {**problem, "loc": tuple(_place(problem, body)), "msg": words}


def _place(problem: Mapping[str, Any], body: object) -> Iterator[int | str]:
    """The steps that lead through the body; a step that is neither in it nor the last one is a member of a union."""
    steps: Sequence[int | str] = problem["loc"]
    here, is_told = body, False
    for position, step in enumerate(steps):
        is_last = position == len(steps) - 1
        is_missing = problem["type"] == "missing" and is_last
        # Which member it is comes first, and once: parts of `type` text have a field `text`, too.
        if isinstance(here, Mapping) and here.get("type") == step and not (is_told or is_last):
            is_told = True
            continue
        if isinstance(here, Mapping) and step in here:
            here, is_told = here[str(step)], False
        elif isinstance(here, list) and isinstance(step, int):
            here, is_told = here[step], False
        elif not is_missing:
            continue
        yield step
    if problem["type"] in NO_TAG:
        yield problem["ctx"]["discriminator"].strip("'")


def _inline(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inline(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inline(each, definitions) for key, each in schema.items() if key != "discriminator"}
