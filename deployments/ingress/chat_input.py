"""What a native client asks in a conversation, as a turn: its text checked, its picture stored."""

from __future__ import annotations

from deployments.ingress.form_body import check_text
from deployments.ingress.request_id import current_request_id
from deployments.ingress.schemas import ChatFields
from deployments.ingress.services import Services
from deployments.ingress.turn_types import TurnInput


async def to_turn_input(asked: ChatFields, picture: bytes | None, services: Services, tenant: str) -> TurnInput:
    """Raises what the checks of text and picture raise."""
    check_text("message", asked.message, services.config.ingress)  # the session_router has the rule, too
    image = await services.pictures.take(tenant, picture, asked.image_id)
    return TurnInput(
        request_id=current_request_id(),
        tenant=tenant,
        text=asked.message,
        session_id=asked.session_id,
        image=image,
        model=asked.model,
        sampling=asked.to_sampling(),
    )
