"""The router over every store: models, prompts, commits, failed turns, deletion, lists, limits, statistics."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from deployments.errors import (
    InvalidRequest,
    LeaseLost,
    MessageTooLong,
    RetinaError,
    SessionBusy,
    SessionNotFound,
    UnknownModel,
)
from deployments.session_router.history import from_bytes
from deployments.session_router.service import Router
from deployments.session_router.stores import SessionKey, StoredSession
from deployments.types import ImagePart, SessionSummary, TextPart, TurnOutcome, Usage

NOON = "2025-01-01T12:00:00.000Z"


@pytest.fixture
def alice(router: Router, client: type) -> object:
    return client(router, "alice")


@pytest.fixture
def bob(router: Router, client: type) -> object:
    return client(router, "bob")


async def stored_session(router: Router, session_id: str, tenant: str = "alice") -> StoredSession | None:
    return await router._store.read(SessionKey(tenant, session_id))


# ------------------------------------------------------------------------------- prompts and commits


async def test_a_conversation(alice, clock, picture) -> None:
    first = await alice.open("s", "what is it?", image=picture("a"))
    assert [part for message in first.messages for part in message.content] == [
        ImagePart(picture("a")),
        TextPart("what is it?"),
    ]
    assert first.has_image
    clock.advance(1.5)
    assert await alice.close(first, "a ball") == 2
    second = await alice.open("s", "which colour?")
    assert [message.text for message in second.messages] == ["what is it?", "a ball", "which colour?"]
    assert second.has_image, "a turn without a picture refers to the one that is there"
    assert await alice.close(second, "red") == 4
    history = await alice.router.history("alice", "s")
    assert [(message.role, message.text, message.timestamp) for message in history] == [
        ("user", "what is it?", NOON),
        ("assistant", "a ball", "2025-01-01T12:00:01.500Z"),
        ("user", "which colour?", "2025-01-01T12:00:01.500Z"),
        ("assistant", "red", "2025-01-01T12:00:01.500Z"),
    ]


async def test_the_limit_and_the_picture_over_many_turns(alice, picture) -> None:
    lengths = [await alice.say("s", "question 0", image=picture("a"))]
    lengths += [await alice.say("s", f"question {number}") for number in range(1, 12)]
    assert lengths == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 20, 20]
    history = await alice.router.history("alice", "s")
    assert history[0].text == "question 2"
    assert [message.images for message in history] == [(picture("a"),)] + [()] * 19
    turn = await alice.open("s", "still there?", image=picture("b"))
    assert [image for message in turn.messages for image in message.images] == [picture("b")]


async def test_a_commit_stores_model_usage_and_closing_lease(alice, router) -> None:
    await alice.say("s", model="beta")
    turn = await alice.open("s")
    await router.close_turn(TurnOutcome(turn, "without usage"))
    conversation = from_bytes((await stored_session(router, "s")).conversation)
    assert (conversation.model, conversation.closed_by) == ("beta", turn.lease)
    assert conversation.usage == Usage(3, 2, 1, 1), "of both turns"


async def test_an_answer_of_nothing_is_an_answer(alice) -> None:
    assert await alice.say("s", "hello", "") == 2
    assert await alice.texts("s") == ["hello", ""]


async def test_an_answer_that_is_not_unicode_is_stored(alice) -> None:
    assert await alice.say("s", "hello", "half \ud83d pair") == 2
    assert await alice.texts("s") == ["hello", "half ? pair"]


async def test_closing_again_stores_nothing_again(alice) -> None:
    turn = await alice.open("s")
    assert await alice.close(turn, "once") == 2
    assert await alice.close(turn, "once") == 2
    assert await alice.close(turn, None) == 2
    successor = await alice.open("s")
    assert await alice.close(turn, "once") == 2, "also while the next turn is open"
    assert await alice.close(successor) == 4
    with pytest.raises(LeaseLost):
        await alice.close(turn, "once")
    assert await alice.texts("s") == ["hello", "once", "hello", "fine"]
    assert [await alice.turns(outcome) for outcome in ("opened", "committed", "aborted", "lease_lost")] == [2, 2, 0, 1]


# ------------------------------------------------------------------------------- sessions and tenants


async def test_the_server_makes_ids_that_nobody_guesses(alice) -> None:
    turns = [await alice.open(None) for _ in range(20)]
    ids = {turn.session_id for turn in turns}
    assert len(ids) == 20
    assert all(len(session_id) == 32 for session_id in ids)
    assert [await alice.close(turn) for turn in turns] == [2] * 20


async def test_affinity_keys_differ_by_tenant_and_session_and_stay(alice, bob, router) -> None:
    turns = [await alice.open("s"), await alice.open("t"), await bob.open("s")]
    keys = [turn.session_key for turn in turns]
    assert len(set(keys)) == 3
    assert all(len(key) == 64 for key in keys)
    assert not any(turn.session_id == turn.session_key for turn in turns)
    await alice.close(turns[0])
    assert (await alice.open("s")).session_key == keys[0]


async def test_tenants_do_not_see_each_other(alice, bob) -> None:
    await alice.say("s", "a secret")
    with pytest.raises(SessionNotFound):
        await bob.router.history("bob", "s")
    with pytest.raises(SessionNotFound):
        await bob.router.delete_session("bob", "s")
    assert await bob.router.sessions("bob", 100) == ()
    turn = await bob.open("s", "mine")
    assert [message.text for message in turn.messages] == ["mine"]
    assert await alice.texts("s") == ["a secret", "fine"]


async def test_lists_come_last_used_first(alice, clock, picture) -> None:
    for session_id in ("first", "second", "third"):
        await alice.say(session_id)
        clock.advance(1)
    await alice.say("first", image=picture("a"), model="beta")
    assert await alice.router.sessions("alice", 100) == (
        SessionSummary("first", 4, True, "beta", "2025-01-01T12:00:03.000Z", "hello"),
        SessionSummary("third", 2, False, "alpha", "2025-01-01T12:00:02.000Z", "hello"),
        SessionSummary("second", 2, False, "alpha", "2025-01-01T12:00:01.000Z", "hello"),
    )


async def test_lists_are_limited(alice, clock) -> None:
    for session_id in ("first", "second", "third"):
        await alice.say(session_id)
        clock.advance(1)
    listed = await alice.router.sessions("alice", 2)
    assert [summary.session_id for summary in listed] == ["third", "second"]


async def test_ids_are_as_long_as_the_config_says(open_a_router, client) -> None:
    alice = client(open_a_router(max_session_id_chars=40))
    assert await alice.say("x" * 40) == 2
    too_long = "x" * 41
    for attempt in (
        lambda: alice.open(too_long),
        lambda: alice.router.history("tenant", too_long),
        lambda: alice.router.delete_session("tenant", too_long),
    ):
        with pytest.raises(InvalidRequest, match="1 to 40 characters"):
            await attempt()


async def test_too_many_sessions_push_out_the_longest_unused(open_a_router, store_kind, client, clock) -> None:
    alice = client(open_a_router(store_kind, max_sessions=3), "alice")
    for session_id in ("open", "old", "used", "new"):
        if session_id == "new":
            await alice.say("used")
            clock.advance(1)
            turn = await alice.open("open")
        await alice.say(session_id)
        clock.advance(1)
    assert [summary.session_id for summary in await alice.router.sessions("alice", 100)] == ["new", "used", "open"]
    assert await alice.close(turn) == 4


# ------------------------------------------------------------------------------- models


async def test_a_session_keeps_its_model_until_another_is_asked_for(alice) -> None:
    models = []
    for asked in (None, "beta", None, "alpha", None):
        turn = await alice.open("s", model=asked)
        models.append(turn.model)
        await alice.close(turn)
    assert models == ["alpha", "beta", "beta", "alpha", "alpha"]


async def test_a_failed_turn_does_not_change_the_model(alice) -> None:
    await alice.say("s")
    await alice.close(await alice.open("s", model="beta"), None)
    assert (await alice.open("s")).model == "alpha"


async def test_a_model_that_is_no_longer_configured_gives_way_to_the_default(open_a_router, client) -> None:
    before = client(open_a_router("disk"))
    await before.say("s", model="beta")
    after = client(open_a_router("disk", models=("gamma", "alpha")))
    assert (await after.open("s")).model == "gamma"


async def test_an_unknown_model_is_told_the_choices(alice) -> None:
    with pytest.raises(UnknownModel, match="'gamma'; choose one of: alpha, beta") as refusal:
        await alice.open("s", model="gamma")
    assert refusal.value.param == "model"
    with pytest.raises(UnknownModel) as refusal:
        await alice.open("s", model="\x1b" * 10_000)
    assert len(refusal.value.message) < 400
    assert refusal.value.message.isprintable()


# ------------------------------------------------------------------------------- refusals


async def test_what_is_refused_leaves_no_trace(alice, router) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        await alice.open("s", " \n")
    with pytest.raises(MessageTooLong, match="at most 64000"):
        await alice.open("s", "x" * 64_001)
    for session_id in ("a/b", "x" * 10_000, "a\x00", "", ".."):
        with pytest.raises(InvalidRequest):
            await alice.open(session_id)
        with pytest.raises(InvalidRequest):
            await router.history("alice", session_id)
        with pytest.raises(InvalidRequest):
            await router.delete_session("alice", session_id)
    assert await stored_session(router, "s") is None
    assert (await router.statistics())["open_turns"] == 0


async def test_unknown_sessions_are_not_found(router) -> None:
    with pytest.raises(SessionNotFound, match="no session 'nowhere'"):
        await router.history("alice", "nowhere")
    with pytest.raises(SessionNotFound):
        await router.delete_session("alice", "nowhere")


# ------------------------------------------------------------------------------- failed turns, deletion, expiry


async def test_a_failed_turn_leaves_the_session_byte_for_byte(alice, router, clock, picture) -> None:
    await alice.say("s", image=picture("a"))
    before = await stored_session(router, "s")
    clock.advance(5)
    turn = await alice.open("s", "another", image=picture("b"), model="beta")
    assert await alice.close(turn, None) == 2
    assert await stored_session(router, "s") == before
    assert await alice.turns("aborted") == 1
    with pytest.raises(LeaseLost):
        await alice.close(turn, "too late")


async def test_a_first_turn_that_fails_leaves_no_session(alice, router) -> None:
    turn = await alice.open("s")
    with pytest.raises(SessionNotFound):
        await router.history("alice", "s")
    assert await router.sessions("alice", 100) == ()
    assert await alice.close(turn, None) == 0
    assert await alice.close(turn, None) == 0
    assert await stored_session(router, "s") is None
    with pytest.raises(SessionNotFound):
        await router.delete_session("alice", "s")


async def test_deleting_forgets_the_session_and_its_open_turn(alice, router) -> None:
    await alice.say("s", "a secret")
    turn = await alice.open("s")
    await router.delete_session("alice", "s")
    with pytest.raises(SessionNotFound):
        await router.history("alice", "s")
    with pytest.raises(LeaseLost):
        await alice.close(turn)
    assert await stored_session(router, "s") is None
    reborn = await alice.open("s", "new")
    assert [message.text for message in reborn.messages] == ["new"]
    assert await alice.close(turn, None) == 0, "nothing to lose, and the new turn keeps its lease"
    assert await alice.close(reborn) == 2


async def test_deleting_ends_a_first_turn_too(alice, router) -> None:
    turn = await alice.open("s")
    await router.delete_session("alice", "s")
    with pytest.raises(LeaseLost):
        await alice.close(turn)


async def test_an_open_turn_holds_the_session_until_its_lease_expires(alice, clock) -> None:
    lost = await alice.open("s", "lost")
    with pytest.raises(SessionBusy) as busy:
        await alice.open("s")
    assert (busy.value.status, busy.value.param, busy.value.retry_after_s) == (409, "session_id", 1)
    clock.advance(149.9)
    with pytest.raises(SessionBusy):
        await alice.open("s")
    clock.advance(0.1)
    successor = await alice.open("s", "taken over")
    with pytest.raises(LeaseLost):
        await alice.close(lost)
    assert await alice.close(successor) == 2
    assert await alice.texts("s") == ["taken over", "fine"]
    assert [await alice.turns(outcome) for outcome in ("busy", "expired", "lease_lost")] == [2, 1, 1]


async def test_an_expired_turn_commits_while_nobody_took_its_session(alice, clock) -> None:
    turn = await alice.open("s")
    clock.advance(1000)
    assert await alice.close(turn) == 2
    assert await alice.turns("expired") == 0


async def test_a_failed_successor_still_ends_an_expired_turn(alice, clock) -> None:
    lost = await alice.open("s")
    clock.advance(1000)
    await alice.close(await alice.open("s"), None)
    with pytest.raises(LeaseLost):
        await alice.close(lost)


async def test_a_damaged_session_is_reported_not_forgotten(alice, router, caplog) -> None:
    turn = await alice.open("s")
    await alice.close(turn)
    other = await alice.open("s")
    key = SessionKey("alice", "s")

    def damage(stored: StoredSession) -> StoredSession:
        return StoredSession(stored.used_s, stored.conversation[:-1] + b"?", stored.summary, stored.lease)

    await router._store.update(key, damage)
    attempts: list[Callable[[], object]] = [lambda: router.history("alice", "s"), lambda: alice.close(other)]
    for attempt in attempts:
        with pytest.raises(RetinaError, match="'s' is damaged; delete the session") as error:
            await attempt()
        assert error.value.status == 500
        assert not isinstance(error.value, SessionNotFound)
    await alice.close(other, None)
    for _ in range(2):  # the second is not SessionBusy: the first left no lease
        with pytest.raises(RetinaError, match="is damaged"):
            await alice.open("s")
    assert "checksum" in caplog.text
    assert len(await router.sessions("alice", 100)) == 1
    await router.delete_session("alice", "s")
    assert await alice.say("s") == 2


# ------------------------------------------------------------------------------- restart, statistics


async def test_a_restart_keeps_sessions_and_open_turns(open_a_router, client, picture) -> None:
    before = client(open_a_router("disk"))
    await before.say("s", image=picture("a"))
    open_turn = await before.open("s", "asked before the restart")
    history, sessions = await before.router.history("tenant", "s"), await before.router.sessions("tenant", 100)
    await before.router.close()
    after = client(open_a_router("disk"))
    assert await after.router.history("tenant", "s") == history
    assert await after.router.sessions("tenant", 100) == sessions
    with pytest.raises(SessionBusy):
        await after.open("s")
    assert await after.close(open_turn, "answered after it") == 4
    assert (await after.open("s")).session_key == open_turn.session_key


async def test_statistics_are_json(alice, router, store_kind) -> None:
    await alice.say("s")
    await alice.open("t")
    assert json.loads(json.dumps(await router.statistics())) == {
        "store": store_kind,
        "sessions": 1,
        "open_turns": 1,
        "waiting_turns": 0,
        "records": 0,
        "metrics": {"session_router_turns.committed": 1, "session_router_turns.opened": 2},
    }


def test_importing_the_router_imports_nothing_heavy(run_python: Callable[[str], str]) -> None:
    loaded = run_python("import sys, deployments.session_router.service; print(*sys.modules)").split()
    assert not {"ray", "torch", "transformers", "PIL", "fastapi", "diskcache", "numpy"} & set(loaded)
