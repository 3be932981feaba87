"""What taking a session, giving it back and committing a turn make of the stored session. Pure.

A lease that is past its time holds nobody up, but its turn may still commit as long as no other turn took the session
and nobody deleted it: until then the session is as the turn found it.
"""

from __future__ import annotations

from dataclasses import replace

from deployments.errors import LeaseLost
from deployments.session_router.history import (
    NO_USAGE,
    Conversation,
    add_usage,
    build_answer,
    from_bytes,
    to_bytes,
    to_timestamp,
    to_title,
    with_answer,
)
from deployments.session_router.stores import Lease, StoredSession
from deployments.types import TurnOutcome


def take(stored: StoredSession | None, lease: Lease, now_s: float) -> StoredSession:
    """With this lease; unchanged while another turn holds the session."""
    if stored is None:
        return StoredSession(used_s=now_s, lease=lease)
    return stored if stored.is_held(now_s) else replace(stored, lease=lease)


def give_back(stored: StoredSession | None, token: str) -> StoredSession | None:
    """Without this lease and otherwise as it was; None when no turn was ever committed."""
    if stored is None or not stored.has_lease(token):
        return stored
    return replace(stored, lease=None) if stored.summary else None


def commit(stored: StoredSession | None, outcome: TurnOutcome, now_s: float) -> StoredSession:
    """With the exchange, without the lease; unchanged when this turn was committed before.

    Raises LeaseLost and UnreadableConversation.
    """
    turn = outcome.turn
    before = conversation_of(stored)
    if stored is not None and before.closed_by == turn.lease:
        return stored
    if stored is None or not stored.has_lease(turn.lease):
        raise LeaseLost("the turn outlived its lease, or its session was deleted; its answer is not stored")
    assert outcome.answer is not None, "a turn without an answer is given back"
    # The prompt begins with what was kept and still is: only who holds the lease changes a session.
    prompt = tuple(message for message in turn.messages if message.role != "system")
    after = Conversation(
        messages=with_answer(prompt, build_answer(outcome.answer, now_s)),
        model=turn.model,
        updated=to_timestamp(now_s),
        usage=add_usage(before.usage, outcome.usage or NO_USAGE),
        closed_by=turn.lease,
    )
    title = (stored.summary.title if stored.summary else "") or to_title(prompt)
    return StoredSession(now_s, to_bytes(after), after.summary(turn.session_id, title))


def conversation_of(stored: StoredSession | None) -> Conversation:
    """Empty before the first commit. Raises UnreadableConversation."""
    return Conversation() if stored is None or stored.summary is None else from_bytes(stored.conversation)
