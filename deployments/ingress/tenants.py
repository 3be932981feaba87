"""Whose sessions and pictures a request may see: everybody's are the same tenant's until there are keys."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

PUBLIC_TENANT = "public"


async def tenant_of_request() -> str:
    """The one place where a request gets its tenant; API keys will be read here."""
    return PUBLIC_TENANT


Tenant = Annotated[str, Depends(tenant_of_request)]
