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
        raise RequestValidationError([{**each, "loc": tuple(_place(each, fields))} for each in problems]) from error


def document_json(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI of the body, which the route reads by itself; whole, for FastAPI does not know its definitions."""
    schema = model.model_json_schema()
    whole = _inline(schema, schema.pop("$defs", {}))
    return {"required": True, "content": {"application/json": {"schema": whole}}}


def _place(problem: Mapping[str, Any], body: object) -> Iterator[int | str]:
    """The steps that lead through the body; a step that is neither in it nor the last one is a member of a union."""
    steps: Sequence[int | str] = problem["loc"]
    here = body
    for position, step in enumerate(steps):
        is_missing = problem["type"] == "missing" and position == len(steps) - 1
        if isinstance(here, Mapping) and step in here:
            here = here[str(step)]
        elif isinstance(here, list) and isinstance(step, int):
            here = here[step]
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
