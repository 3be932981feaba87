"""What becomes of a draft when its turn is answered: the record that is stored together with the answer."""

from __future__ import annotations

from deployments.ingress.responses.states import Outcome, answered
from deployments.ingress.responses.stored import StoredResponse, keep_newest_picture
from deployments.ingress.turn_types import Draft, TurnReply
from deployments.record_types import Record
from deployments.types import Message, TextPart, Turn


def complete_record(draft: Draft, reply: TurnReply, turn: Turn) -> Record:
    """The response with its answer. `turn` tells what went before: whoever forks the conversation begins with it."""
    stored = StoredResponse.model_validate_json(draft.body)
    prompt = tuple(message for message in turn.messages if message.role != "system")
    said = Message("assistant", (TextPart(reply.response),))
    return stored.model_copy(
        update={
            "response": answered(stored.response, Outcome.of_turn(reply)),
            "context": keep_newest_picture((*prompt, said)),
            "lease": reply.lease,
        }
    ).to_record()
