"""Work that ends when the client leaves: servers do not cancel a handler by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, cancelled when the client leaves; raises ClientDisconnect then.

    The request's body must have been read. Returns when the work has ended, its clean-up included.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_until_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        watching.result()  # raises what the server's receive raised
        raise ClientDisconnect
    finally:
        unfinished = {task for task in (working, watching) if not task.done()}
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
