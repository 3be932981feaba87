"""A piece of text as a server-sent event, with its log probabilities where they were asked for."""

from __future__ import annotations

from collections.abc import Sequence

from deployments.ingress.sampling_schemas import to_bodies
from deployments.ingress.schemas import ChunkEvent
from deployments.ingress.sse import encode_event, encode_text
from deployments.types import TokenLogprob


def encode_piece(name: str, text: str, logprobs: Sequence[TokenLogprob], event_id: str) -> bytes:
    if not logprobs:
        return encode_text(name, text, event_id)
    return encode_event(name, ChunkEvent(text=text, logprobs=to_bodies(logprobs)), event_id)
