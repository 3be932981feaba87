"""Turns of several messages, of instructions, and such that follow a certain turn; titles of sessions."""

from __future__ import annotations

import pytest

from deployments.errors import InvalidRequest, MessageTooLong, NotLastTurn, SessionBusy, SessionNotFound
from deployments.session_router.service import Router
from deployments.session_router.stores import SessionKey
from deployments.types import ImagePart, ImageRef, Message, TextPart

NOON = "2025-01-01T12:00:00.000Z"


def user(*parts: object) -> Message:
    return Message("user", tuple(ImagePart(part) if isinstance(part, ImageRef) else TextPart(part) for part in parts))


def assistant(text: str) -> Message:
    return Message("assistant", (TextPart(text),))


@pytest.fixture
def alice(router: Router, client: type) -> object:
    return client(router)


def roles_and_texts(messages: tuple[Message, ...]) -> list[str]:
    return [f"{message.role}: {message.text}" for message in messages]


# ------------------------------------------------------------------------------- input and instructions


async def test_all_messages_are_prompt_and_kept(alice, router: Router) -> None:
    await alice.say("s", "before", "yes")
    turn = await alice.ask("s", user("a"), user("b"), assistant("c"), user("d"))
    expected = ["user: before", "assistant: yes", "user: a", "user: b", "assistant: c", "user: d"]
    assert roles_and_texts(turn.messages) == expected
    assert turn.num_new == 4
    assert await alice.close(turn, "e") == 7
    history = await router.history("tenant", "s")
    assert roles_and_texts(history) == [*expected, "assistant: e"]
    assert {message.timestamp for message in history} == {NOON}


async def test_one_message_is_as_a_text_and_a_picture(alice, picture) -> None:
    plain = await alice.open("plain", "what?", image=picture("a"))
    several = await alice.ask("several", user(picture("a"), "what?"))
    assert plain.messages == several.messages
    assert plain.num_new == several.num_new == 1


async def test_instructions_lead_and_are_not_kept(alice, router: Router) -> None:
    await alice.say("s", "before", "yes", instructions="be short")
    assert await alice.texts("s") == ["before", "yes"]
    turn = await alice.ask("s", user("a"), user("b"), instructions="be kind")
    assert roles_and_texts(turn.messages) == [
        "system: be kind",
        "user: before",
        "assistant: yes",
        "user: a",
        "user: b",
    ]
    assert turn.num_new == 2
    assert await alice.close(turn, "c") == 5
    assert all(message.role != "system" for message in await router.history("tenant", "s"))
    assert (await alice.open("s")).messages[0].role == "user"


async def test_instructions_do_not_count(open_a_router, store_kind, client) -> None:
    alice = client(open_a_router(store_kind, max_messages=4))
    for number in range(3):
        turn = await alice.open("s", f"question {number}", instructions="be kind")
        expected = min(2 * number + 1, 3)
        assert len(turn.messages) == 1 + expected
        await alice.close(turn, "fine")
    assert await alice.texts("s") == ["question 1", "fine", "question 2", "fine"]


async def test_a_long_input_keeps_its_newest(open_a_router, store_kind, client) -> None:
    alice = client(open_a_router(store_kind, max_messages=4))
    await alice.say("s", "before", "yes")
    turn = await alice.ask("s", user("a"), assistant("b"), assistant("c"), user("d"), instructions="be kind")
    assert roles_and_texts(turn.messages) == ["system: be kind", "user: d"]
    assert turn.num_new == 1
    assert await alice.close(turn, "e") == 2, "nothing from before what was cut stays"
    assert await alice.texts("s") == ["d", "e"]
    turn = await alice.ask("s", user("f"), user("g"))
    assert roles_and_texts(turn.messages) == ["user: f", "user: g"]
    assert turn.num_new == 2


async def test_all_new_pictures_are_shown_and_the_newest_is_kept(alice, router: Router, picture) -> None:
    await alice.say("s", image=picture("0"))
    turn = await alice.ask("s", user(picture("a"), "left", picture("b")), user(picture("c")), user("which?"))
    shown = [message.images for message in turn.messages]
    assert shown == [(), (), (picture("a"), picture("b")), (picture("c"),), ()]
    assert turn.has_image
    await alice.close(turn)
    history = await router.history("tenant", "s")
    assert [message.images for message in history] == [(), (), (), (picture("c"),), (), ()]
    following = await alice.open("s", "and now?")
    assert [image for message in following.messages for image in message.images] == [picture("c")]
    await alice.close(following)
    later = await alice.ask("s", user("no picture here"), user("at all"))
    assert [image for message in later.messages for image in message.images] == [picture("c")]


async def test_pictures_of_earlier_input_messages_survive_the_cut(open_a_router, client, picture) -> None:
    alice = client(open_a_router(max_messages=4))
    turn = await alice.ask("s", user(picture("a"), "x"), user(picture("b")), *map(user, "123"))
    assert [message.images for message in turn.messages] == [(picture("b"),), (), ()]
    assert await alice.close(turn) == 4
    history = await alice.router.history("tenant", "s")
    assert history[0].content == (ImagePart(picture("b")), TextPart("1"))


async def test_a_question_may_be_a_picture(alice, picture) -> None:
    turn = await alice.ask(None, user(picture("a")))
    assert turn.messages[0].content == (ImagePart(picture("a")),)
    assert await alice.close(turn, "a ball") == 2
    replaced = await alice.ask(turn.session_id, user(picture("b")))
    assert replaced.messages[0].content == (TextPart(""),), "what was a picture alone is still a message"
    assert await alice.close(replaced, "a cat") == 4


@pytest.mark.parametrize(
    ("messages", "fields", "error"),
    [
        ([user("a"), assistant("b")], {}, InvalidRequest),
        ([user("")], {}, InvalidRequest),
        ([user("x" * 32_000), user("x" * 32_001)], {}, MessageTooLong),
        ([user("a")], {"instructions": "x" * 64_000}, MessageTooLong),
    ],
)
async def test_what_is_refused_leaves_no_trace(alice, router: Router, messages, fields, error) -> None:
    with pytest.raises(error):
        await alice.ask("s", *messages, **fields)
    assert await router._store.read(SessionKey("tenant", "s")) is None


# ------------------------------------------------------------------------------- following a turn


async def test_a_turn_may_follow_the_last_one(alice) -> None:
    first = await alice.open("s", "one")
    await alice.close(first, "1")
    second = await alice.open("s", "two", follows=first.lease)
    await alice.close(second, None)  # what failed is no turn of the session
    second = await alice.ask("s", user("two"), follows=first.lease)
    assert roles_and_texts(second.messages) == ["user: one", "assistant: 1", "user: two"]
    assert await alice.close(second, "2") == 4


async def test_only_the_last_turn_can_be_followed(alice, router: Router) -> None:
    first = await alice.open("s", "one")
    await alice.close(first)
    await alice.say("s", "two")
    before = await router._store.read(SessionKey("tenant", "s"))
    for follows in (first.lease, "unheard of", ""):
        with pytest.raises(NotLastTurn, match="session 's' went on") as error:
            await alice.open("s", "three", follows=follows)
        assert (error.value.status, error.value.param) == (409, "follows")
    assert await router._store.read(SessionKey("tenant", "s")) == before, "no lease is left"
    assert await alice.say("s", "three") == 6


@pytest.mark.parametrize("session_id", ["nowhere", None])
async def test_what_follows_must_have_a_session(alice, router: Router, session_id) -> None:
    with pytest.raises(SessionNotFound):
        await alice.open(session_id, follows="lease")
    statistics = await router.statistics()
    assert (statistics["sessions"], statistics["open_turns"]) == (0, 0)


async def test_following_waits_for_an_open_turn_as_others_do(alice) -> None:
    first = await alice.open("s", "one")
    await alice.close(first)
    second = await alice.open("s", "two")
    with pytest.raises(SessionBusy):
        await alice.open("s", "three", follows=first.lease)
    await alice.close(second, None)
    assert (await alice.open("s", "three", follows=first.lease)).messages[-1].text == "three"


async def test_tenants_cannot_follow_each_other(alice, router: Router, client) -> None:
    turn = await alice.open("s")
    await alice.close(turn)
    with pytest.raises(SessionNotFound):
        await client(router, "other").open("s", follows=turn.lease)


# ------------------------------------------------------------------------------- titles


async def titles(alice) -> dict[str, str]:
    return {summary.session_id: summary.title for summary in await alice.router.sessions(alice.tenant, 100)}


async def test_the_title_is_the_first_question_and_stays(alice) -> None:
    await alice.say("s", "  What\nis   this?  ")
    assert await titles(alice) == {"s": "What is this?"}
    for number in range(12):
        await alice.say("s", f"question {number}")
    assert await titles(alice) == {"s": "What is this?"}
    assert "What" not in "".join(await alice.texts("s")), "although the question is no longer kept"


async def test_titles_are_short(alice) -> None:
    await alice.say("s", "word " * 100)
    assert await titles(alice) == {"s": ("word " * 16).rstrip()}


async def test_titles_come_from_the_question_not_from_instructions(alice) -> None:
    await alice.close(await alice.ask("s", assistant("Hello!"), user("What is this?"), instructions="be kind"))
    assert await titles(alice) == {"s": "What is this?"}


async def test_without_words_there_is_no_title_until_there_are(alice, picture) -> None:
    await alice.close(await alice.ask("s", user(picture("a"))))
    assert await titles(alice) == {"s": ""}
    await alice.say("s", "which colour?")
    assert await titles(alice) == {"s": "which colour?"}


async def test_a_failed_turn_gives_no_title(alice) -> None:
    await alice.close(await alice.open("s", "one"), None)
    await alice.say("s", "two")
    assert await titles(alice) == {"s": "two"}


async def test_leases_leave_titles_alone(alice) -> None:
    await alice.say("s", "one")
    turn = await alice.open("s", "two")
    assert await titles(alice) == {"s": "one"}
    await alice.close(turn, None)
    assert await titles(alice) == {"s": "one"}
