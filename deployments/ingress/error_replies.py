"""Whatever goes wrong, as one shape: {"error": {"code", "message", "param", "request_id"}}; under /v1 as OpenAI's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from deployments.errors import RetinaError
from deployments.ingress.openai.error_shape import (
    is_openai_path,
    openai_headers,
    openai_status,
    to_openai,
    to_openai_status_error,
    to_openai_validation,
)
from deployments.ingress.request_id import current_request_id
from deployments.ingress.schemas import ErrorBody, ErrorReply

MAX_ECHO_CHARS = 80  # of what a client sent, in a message to it


def install_error_replies(app: FastAPI) -> None:
    app.add_exception_handler(RetinaError, _retina_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def to_reply(error: RetinaError) -> ErrorReply:
    return _reply(error.code, error.message, error.param)


def to_validation_reply(error: RequestValidationError) -> ErrorReply:
    problems = error.errors()
    message = "; ".join(_explain(problem) for problem in problems)
    return _reply("invalid_request", message, _field(problems[0]["loc"]))


def to_response(error: RetinaError, scope: Scope) -> JSONResponse:
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if _speaks_openai(scope):
        return JSONResponse(to_openai(error).model_dump(), openai_status(error), headers | openai_headers(error))
    return JSONResponse(to_reply(error).model_dump(), error.status, headers)


def internal_error() -> RetinaError:
    """For what nobody foresaw: its details are in the log only, under the same request id."""
    return RetinaError("something went wrong on our side; the log has the details under this request id")


def shorten(value: str) -> str:
    """What a client sent, fit to be shown: of bounded length, and without surrogates, which UTF-8 cannot write."""
    value = value[: MAX_ECHO_CHARS + 1].encode(errors="backslashreplace").decode()
    return value if len(value) <= MAX_ECHO_CHARS else f"{value[:MAX_ECHO_CHARS]}…"


async def _retina_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RetinaError)
    return to_response(error, request.scope)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if _speaks_openai(request.scope):
        return JSONResponse(to_openai_validation(problems).model_dump(), 400)
    return JSONResponse(to_validation_reply(error).model_dump(), 422)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code, message = _words_for(error, request.method)
    openai = _speaks_openai(request.scope)
    reply = to_openai_status_error(error.status_code, code, message) if openai else _reply(code, message, None)
    return JSONResponse(reply.model_dump(), error.status_code, error.headers)


def _speaks_openai(scope: Scope) -> bool:
    path: str = scope["path"]
    return is_openai_path(path.removeprefix(scope.get("root_path", "")))


def _words_for(error: HTTPException, method: str) -> tuple[str, str]:
    if error.status_code == 404:
        return "not_found", "nothing is served at this path; /docs lists what is"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "other methods")
        return "method_not_allowed", f"{shorten(method)} is not served at this path; it has {allowed}"
    return "invalid_request" if error.status_code < 500 else "internal_error", str(error.detail)


def _reply(code: str, message: str, param: str | None) -> ErrorReply:
    return ErrorReply(error=ErrorBody(code=code, message=message, param=param, request_id=current_request_id()))


def _explain(problem: Mapping[str, Any]) -> str:
    # pydantic's own words name what is allowed; the value itself is left out, it may be long or private.
    return f"{_field(problem['loc'])}: {problem['msg'].removeprefix('Value error, ')}"


def _field(location: Sequence[int | str]) -> str:
    return ".".join(str(step) for step in location if step not in ("body", "query", "path"))
