"""`retina get`: one page of the service, of one that runs or of one that is opened for it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from deployments.commands.service import Where, open_service
from deployments.commands.terminal import ConfigInstead, ServerOption, output, run


def get(
    path: Annotated[str, typer.Argument(metavar="PATH", help="As in /-/engine or /chat/sessions.")],
    server: ServerOption = None,
    config: ConfigInstead = None,
) -> None:
    """Get one page: /readyz, /-/config, /-/engine, /-/cache, /-/ingress, /chat/sessions, …

    Without a server the graph of the config is opened for this one request, with all its models.
    """
    if not path.startswith("/"):
        raise typer.BadParameter(f"{path!r} does not begin with a slash", param_hint="PATH")
    run(_get(Where.of(server, config), path))


async def _get(where: Where, path: str) -> None:
    from deployments.client.failures import error_of

    async with open_service(where) as service:
        reply = await service.client.get(path)
    if output.is_terminal and reply.headers.get("content-type", "").startswith("application/json"):
        output.print_json(reply.text)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(reply.content)
        sys.stdout.flush()
    if not reply.is_success:
        raise error_of(reply)
