"""WS /ws/chat: who may open a socket, and how it ends. What is said on it: `chat_socket.py`, `socket_schemas.py`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from urllib.parse import urlsplit

from fastapi import APIRouter, WebSocket
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect, WebSocketDisconnected

from deployments.errors import OriginRefused, Overloaded
from deployments.ingress.chat_socket import ChatSocket, SocketOver
from deployments.ingress.error_replies import shorten, to_response
from deployments.ingress.request_id import named_request
from deployments.ingress.services import Given, Services
from deployments.ingress.tenants import Tenant

router = APIRouter(tags=["chat"])
log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 1.0  # a client that does not read will not answer either
FAILED = 1011  # close code of RFC 6455
MAX_REASON_BYTES = 123  # of a close frame, by RFC 6455
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@router.websocket("/ws/chat")
async def chat_by_socket(socket: WebSocket, services: Given, tenant: Tenant) -> None:
    """Several turns on one socket, in sessions of their own or one after another in one session."""
    with named_request(None):
        try:
            _check_origin(socket)
            with services.sockets.another(services.config.ingress.max_sockets):
                await socket.accept()
                await _serve(socket, services, tenant)
        except (OriginRefused, Overloaded) as error:
            services.turns.metrics.count("ingress_sockets", label="refused")
            await _refuse(socket, to_response(error, socket.scope))


async def _serve(socket: WebSocket, services: Services, tenant: str) -> None:
    over = SocketOver("failed", FAILED, "something went wrong on our side")
    try:
        await ChatSocket(socket, services, tenant).run()
    except SocketOver as error:
        over = error
    except Exception:
        log.exception("a socket failed")
    finally:
        services.turns.metrics.count("ingress_sockets", label=over.why)
    if over.code is not None:
        await _close(socket, over.code, over.reason)


def _check_origin(socket: WebSocket) -> None:
    """Browsers let any page open a socket to anywhere; what they say of the page is all there is against it."""
    origin = socket.headers.get("origin")
    if origin is not None and not _stands_on(origin, socket.headers.get("host", "")):
        raise OriginRefused(f"pages of {shorten(origin)!r} may not open sockets here, only pages of this very server")


def _stands_on(origin: str, host: str) -> bool:
    """Browsers leave the scheme's own port out; a proxy between them and us may put it in."""
    try:
        page = urlsplit(origin)
    except ValueError:
        return False
    port = DEFAULT_PORTS.get(page.scheme, "")
    return page.netloc != "" and page.netloc.lower().removesuffix(port) == host.lower().removesuffix(port)


async def _refuse(socket: WebSocket, reply: Response) -> None:
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(reply)
    else:  # the server makes a 403 of it
        await socket.close()


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    short = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
    # Gone already, or it does not read: then the server drops the connection when we return.
    with contextlib.suppress(TimeoutError, WebSocketDisconnect, WebSocketDisconnected):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await socket.close(code, short)
