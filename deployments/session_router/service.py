"""The session router: opens turns (who may speak, which model, which prompt) and commits or forgets them.

It decides with the pure files beside it and acts through a session store; it never sees a token or a picture's bytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from deployments.config import RetinaConfig
from deployments.errors import LeaseLost, NotLastTurn, PartUnavailable, RetinaError, SessionNotFound, UnknownModel
from deployments.images.secret import open_secret, tenant_secret
from deployments.metrics import Metrics
from deployments.record_types import Record, RecordKind
from deployments.session_router.changes import commit, conversation_of
from deployments.session_router.history import Conversation, UnreadableConversation, build_asked, to_prompt
from deployments.session_router.leases import Leases
from deployments.session_router.limits import check_session_id, check_turn
from deployments.session_router.records import Records
from deployments.session_router.stores import Change, SessionKey, SessionStore, StoredSession
from deployments.session_router.stores.open import open_session_store
from deployments.session_router.uninterrupted import Uninterrupted
from deployments.types import Json, Message, SessionSummary, TextPart, Turn, TurnOutcome, TurnRequest

logger = logging.getLogger(__name__)
SHOWN_NAME_CHARS = 64


def open_router(config: RetinaConfig, clock: Callable[[], float] = time.time) -> Router:
    """A router over the configured store; close() when done. Blocks for a disk. Raises StartupError."""
    section = config.session_router
    data_dir = Path(config.data_dir)
    return Router(config, open_session_store(section, data_dir), open_secret(data_dir), clock)


class Router:
    """SessionRouter and SessionArchive of types.py, RecordArchive of record_types.py. Used by one event loop."""

    def __init__(
        self, config: RetinaConfig, store: SessionStore, secret: bytes, clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._models = tuple(model.name for model in config.models)
        self._max_messages = config.session_router.max_messages
        self._max_session_id_chars = config.session_router.max_session_id_chars
        self._store = store
        self._secret = secret  # keys the affinity keys, so that no client can aim at a replica
        self._clock = clock  # Unix time in seconds
        self._metrics = Metrics()
        self._uninterrupted = Uninterrupted()
        self._records = Records(store, config.session_router.max_records, clock, self._uninterrupted)
        self._leases = Leases(config.session_router, store, clock, self._metrics, self._uninterrupted)

    async def open_turn(self, request: TurnRequest) -> Turn:
        """Take the session's lease, in order of arrival. Cancelled, it leaves no lease behind.

        Raises InvalidRequest, MessageTooLong, UnknownModel, SessionBusy, PartUnavailable; with `follows`
        SessionNotFound and NotLastTurn.
        """
        key = self._check(request)
        token = request.lease or secrets.token_hex(16)
        stored = await self._leases.take(key, token)
        try:
            turn = self._build_turn(request, key, token, stored)
        except BaseException:
            await self._uninterrupted.run(self._leases.give_back(key, token))
            raise
        self._count("opened")
        return turn

    async def close_turn(self, outcome: TurnOutcome) -> int:
        """Carried to the end even when the caller is cancelled. A second close of a turn changes nothing.

        Raises LeaseLost, for outcomes with an answer only: without one there is nothing to lose.
        """
        return await self._uninterrupted.run(self._close(outcome))

    async def history(self, tenant: str, session_id: str) -> tuple[Message, ...]:
        """Raises SessionNotFound, InvalidRequest for what cannot be an id, RetinaError for a damaged record."""
        check_session_id(session_id, self._max_session_id_chars)
        stored = await self._store.read(SessionKey(tenant, session_id))
        if stored is None or stored.summary is None:
            raise _not_found(session_id)
        with _reporting_damage(session_id):
            return conversation_of(stored).messages

    async def sessions(self, tenant: str, limit: int) -> tuple[SessionSummary, ...]:
        return await self._store.summaries(tenant, limit)

    async def delete_session(self, tenant: str, session_id: str) -> None:
        """Also ends an open turn, the first of a session included. Raises SessionNotFound, InvalidRequest."""
        check_session_id(session_id, self._max_session_id_chars)
        key = SessionKey(tenant, session_id)
        before = await self._uninterrupted.run(self._delete(key))
        if before is None or not (before.summary or before.is_held(self._clock())):
            raise _not_found(session_id)

    async def put_record(self, tenant: str, record: Record) -> None:
        """Carried to the end even when the caller is cancelled."""
        await self._records.put(tenant, record)

    async def record(self, tenant: str, kind: RecordKind, record_id: str) -> Record:
        """Raises RecordNotFound."""
        return await self._records.get(tenant, kind, record_id)

    async def records(
        self, tenant: str, kind: RecordKind, limit: int, after: str | None = None, *, oldest_first: bool = False
    ) -> tuple[Record, ...]:
        """Raises RecordNotFound for `after`."""
        return await self._records.list(tenant, kind, limit, after, oldest_first=oldest_first)

    async def delete_record(self, tenant: str, kind: RecordKind, record_id: str) -> Record:
        """Carried to the end even when the caller is cancelled. Raises RecordNotFound."""
        return await self._records.delete(tenant, kind, record_id)

    async def statistics(self) -> Json:
        counts = await self._store.count(self._clock())
        return {
            "store": self._store.kind,
            "sessions": counts.sessions,
            "open_turns": counts.open_turns,
            "records": counts.records,
            "waiting_turns": self._leases.num_waiting,
            "metrics": self._metrics.snapshot(),
        }

    async def close(self) -> None:
        """Finishes what cancelled callers left to be stored, then closes the store. Open leases stay valid."""
        await self._uninterrupted.finish()
        await self._store.close()

    def _check(self, request: TurnRequest) -> SessionKey:
        """What can be refused without looking at the session."""
        check_turn(request, self._config.ingress.max_message_chars)
        if request.model is not None and request.model not in self._models:
            name = request.model[:SHOWN_NAME_CHARS]
            raise UnknownModel(f"unknown model {name!r}; choose one of: {', '.join(self._models)}", "model")
        if request.session_id is None:
            return SessionKey(request.tenant, secrets.token_hex(16))
        check_session_id(request.session_id, self._max_session_id_chars)
        return SessionKey(request.tenant, request.session_id)

    def _build_turn(self, request: TurnRequest, key: SessionKey, token: str, stored: StoredSession) -> Turn:
        with _reporting_damage(key.session_id):
            conversation = conversation_of(stored)
        if request.follows is not None:
            _check_follows(request.follows, key, stored, conversation)
        asked = build_asked(request, self._clock())
        prompt = to_prompt(conversation.messages, asked, self._max_messages)
        instructions = (Message("system", (TextPart(request.instructions),)),) if request.instructions else ()
        return Turn(
            tenant=key.tenant,
            session_id=key.session_id,
            lease=token,
            model=request.model or self._model_of(conversation),
            messages=(*instructions, *prompt),
            session_key=_affinity_key(self._secret, key),
            num_new=min(len(asked), len(prompt)),
        )

    def _model_of(self, conversation: Conversation) -> str:
        return conversation.model if conversation.model in self._models else self._config.first_model

    async def _close(self, outcome: TurnOutcome) -> int:
        key = SessionKey(outcome.turn.tenant, outcome.turn.session_id)
        if outcome.answer is None:
            change = await self._leases.give_back(key, outcome.turn.lease)
            label = "aborted"
        else:
            change = await self._commit(key, outcome)
            label = "committed"
        if change.after is not change.before:
            self._count(label)
        return change.after.summary.length if change.after and change.after.summary else 0

    async def _commit(self, key: SessionKey, outcome: TurnOutcome) -> Change:
        now_s = self._clock()
        decide = functools.partial(commit, outcome=outcome, now_s=now_s)
        try:
            with _reporting_damage(key.session_id):
                change = await self._store.update(key, decide, outcome.records)
        except LeaseLost:
            self._count("lease_lost")
            raise
        self._leases.wake(key)
        await self._records.trim(key.tenant, {record.kind for record in outcome.records})
        if change.before is None or change.before.summary is None:
            await self._evict(key.tenant, now_s)
        return change

    async def _evict(self, tenant: str, now_s: float) -> None:
        """After a session joined. A failure is logged: it does not undo what was stored."""
        try:
            await self._store.evict(tenant, self._config.session_router.max_sessions, now_s)
        except PartUnavailable as error:
            logger.warning("more sessions than allowed may be kept until the next one begins: %s", error)

    async def _delete(self, key: SessionKey) -> StoredSession | None:
        change = await self._store.update(key, lambda stored: None)
        self._leases.wake(key)
        return change.before

    def _count(self, outcome: str) -> None:
        self._metrics.count("session_router_turns", label=outcome)


@contextlib.contextmanager
def _reporting_damage(session_id: str) -> Iterator[None]:
    """A damaged session is an error of ours, not an absent session: that would look like lost memory."""
    try:
        yield
    except UnreadableConversation as error:
        logger.error("session %s: %s", session_id, error)
        raise RetinaError(
            f"the stored record of session {session_id!r} is damaged; delete the session to begin it anew", "session_id"
        ) from error


def _check_follows(token: str, key: SessionKey, stored: StoredSession, conversation: Conversation) -> None:
    if stored.summary is None:
        raise _not_found(key.session_id)
    if conversation.closed_by != token:
        raise NotLastTurn(
            f"session {key.session_id!r} went on since the turn that is to be followed; only its last one can be",
            "follows",
        )


def _not_found(session_id: str) -> SessionNotFound:
    return SessionNotFound(f"there is no session {session_id!r}", "session_id")


def _affinity_key(secret: bytes, key: SessionKey) -> str:
    return hmac.digest(tenant_secret(secret, key.tenant), b"session\0" + key.session_id.encode(), hashlib.sha256).hex()
