"""The outermost layer: names each request, counts and logs how it ended, and answers what nobody foresaw."""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.ingress.error_replies import internal_error, shorten, to_response
from deployments.ingress.request_id import named_request
from deployments.metrics import Metrics

REQUEST_ID_HEADER = "X-Request-ID"
CLIENT_CLOSED_REQUEST = 499  # nobody reads it, but a server wants some answer; the number is nginx's

log = logging.getLogger(__name__)


class RequestScope:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with named_request(Headers(scope=scope).get(REQUEST_ID_HEADER)) as request_id:
            await self._serve(request_id, scope, receive, send)

    async def _serve(self, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        outcome = "cancelled"  # until a status is sent
        started_s = time.monotonic()

        async def send_named(message: Message) -> None:
            nonlocal outcome
            if message["type"] == "http.response.start":
                outcome = str(message["status"])
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except ClientDisconnect:
            if outcome == "cancelled":
                await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)
            outcome = "cancelled"
        except Exception:
            log.exception("%s %r failed", scope["method"], shorten(scope["path"]))
            if outcome != "cancelled":
                raise  # too late for a status: the server must break the connection off
            await to_response(internal_error(), scope)(scope, receive, send_named)
        finally:
            self._metrics.count("ingress_requests", label=outcome)
            spent_ms = (time.monotonic() - started_s) * 1000
            log.info("%s %r: %s in %.0f ms", scope["method"], shorten(scope["path"]), outcome, spent_ms)
