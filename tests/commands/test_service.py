"""One contract for who answers: the graph in this process, and a server, are the same to a command."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from commands.stage import CIRCLE, config_file, served

from deployments.commands.service import ListedModel, Service, Where, open_service
from deployments.errors import (
    ImageNotFound,
    InvalidImage,
    InvalidRequest,
    MessageTooLong,
    SessionNotFound,
    StreamNotFound,
    UnknownModel,
)
from deployments.ingress.schemas import ChatReply, ChatRequest, ChunkEvent, StartEvent
from deployments.ingress.task_replies import (
    CaptionReply,
    DetectReply,
    MadeFields,
    PointReply,
    QueryReply,
    TaskStartEvent,
)
from deployments.ingress.task_requests import CaptionRequest, DetectRequest, PictureFields, PointRequest, QueryRequest
from deployments.types import Skill


@pytest.fixture(params=["here", "elsewhere"])
async def service(request: pytest.FixtureRequest, config: Path, loaded: list[str]) -> AsyncIterator[Service]:
    async with contextlib.AsyncExitStack() as stack:
        address = None
        if request.param == "elsewhere":
            address, _ = await stack.enter_async_context(served(config))
        yield await stack.enter_async_context(open_service(Where(address, config)))


async def test_a_streamed_answer_is_the_plain_one(service: Service) -> None:
    plain = await service.client.chat(ChatRequest(message="Hello there"))
    events = [event async for event in service.client.stream_chat(ChatRequest(message="Hello there"))]
    started, *pieces, done = events
    assert isinstance(started, StartEvent)
    assert isinstance(done, ChatReply)
    assert started.stream_id is not None
    assert started.session_id == done.session_id != plain.session_id
    texts = [piece.text for piece in pieces if isinstance(piece, ChunkEvent)]
    assert len(texts) == len(pieces) > 1
    assert "".join(texts) == done.response == plain.response
    once = [event async for event in service.client.stream_chat_once(ChatRequest(message="Hello there"))]
    assert isinstance(once[0], StartEvent)
    assert once[0].stream_id is None
    assert once[1:-1] == pieces


async def test_a_session_is_gone_on_with_listed_and_deleted(service: Service) -> None:
    first = await service.client.chat(ChatRequest(message="My name is Ada"))
    second = await service.client.chat(ChatRequest(message="Who?", session_id=first.session_id, model="another"))
    other = await service.client.chat(ChatRequest(message="Other"))
    assert (second.conversation_length, second.model_used) == (4, "another")
    history = await service.client.history(first.session_id)
    assert [message.role for message in history.history] == ["user", "assistant"] * 2
    listed = await service.client.sessions()
    assert [one.session_id for one in listed.sessions] == [other.session_id, first.session_id]
    assert [one.title for one in listed.sessions] == ["Other", "My name is Ada"]
    assert (await service.client.sessions(1)).has_more
    await service.client.delete_session(first.session_id)
    with pytest.raises(SessionNotFound):
        await service.client.history(first.session_id)


async def test_session_ids_may_hold_what_urls_may_not(service: Service) -> None:
    reply = await service.client.chat(ChatRequest(message="x", session_id="a.b~c_d-e"))
    assert (await service.client.history(reply.session_id)).length == 2
    with pytest.raises(InvalidRequest, match="session"):
        await service.client.history("a/b?c#d e")


async def test_a_picture_is_uploaded_once_and_named(service: Service) -> None:
    picture = await service.client.add_image(CIRCLE.read_bytes())
    reply = await service.client.chat(ChatRequest(message="What is it?", image_id=picture.id))
    assert reply.has_image
    assert (await service.client.get(f"/images/{picture.id}")).content == CIRCLE.read_bytes()
    await service.client.delete_image(picture.id)
    with pytest.raises(ImageNotFound):
        await service.client.chat(ChatRequest(message="And now?", session_id=reply.session_id))


TASKS: list[tuple[PictureFields, type[MadeFields]]] = [
    (CaptionRequest(length="short"), CaptionReply),
    (QueryRequest(question="What is it?", reasoning=True), QueryReply),
    (DetectRequest(object="dot", max_objects=2), DetectReply),
    (PointRequest(object="dot"), PointReply),
]


@pytest.mark.parametrize(("asked", "shape"), TASKS, ids=[shape.__name__ for _, shape in TASKS])
async def test_a_streamed_task_is_the_plain_one(
    service: Service, asked: PictureFields, shape: type[MadeFields]
) -> None:
    picture = await service.client.add_image(CIRCLE.read_bytes())
    asked = asked.model_copy(update={"image_id": picture.id, "model": "another"})
    plain = await service.client.run_task(asked)
    events = [event async for event in service.client.stream_task(asked)]
    assert events[0] == TaskStartEvent(model="another", image_id=picture.id)
    assert len(events) > 2
    assert isinstance(plain, shape)
    left_out = {"request_id", "timings"}
    done = events[-1]
    assert isinstance(done, shape)
    assert done.model_dump(exclude=left_out) == plain.model_dump(exclude=left_out)


async def test_errors_are_those_of_the_service(service: Service) -> None:
    client = service.client
    with pytest.raises(UnknownModel, match="one, another"):
        await client.chat(ChatRequest(message="x", model="gpt-9"))
    with pytest.raises(UnknownModel, match="one, another"):
        await anext(client.stream_chat(ChatRequest(message="x", model="gpt-9")))
    with pytest.raises(MessageTooLong):
        await client.chat(ChatRequest(message="x" * 80_000))
    with pytest.raises(InvalidImage):
        await client.add_image(b"no picture")
    with pytest.raises(InvalidRequest, match="picture is missing") as caught:
        await client.run_task(CaptionRequest())
    assert caught.value.param == "image"
    with pytest.raises(StreamNotFound):
        await client.stop("stream-of-nobody")


async def test_all_models_are_listed_and_unknown_ones_are_refused(service: Service) -> None:
    skills: tuple[Skill, ...] = ("caption", "query", "detect", "point")
    assert await service.models() == (ListedModel("one", skills, True), ListedModel("another", skills, False))
    await service.use("another")
    assert (await service.client.chat(ChatRequest(message="x", model="another"))).model_used == "another"
    with pytest.raises(UnknownModel, match="one, another"):
        await service.use("gpt-9")


async def test_any_page_is_read_with_its_status(service: Service) -> None:
    assert (await service.client.get("/readyz")).json()["ready"] is True
    assert (await service.client.get("/nowhere")).status_code == 404


async def test_another_model_takes_the_place_of_the_first_and_the_session_stays(
    tmp_path: Path, loaded: list[str]
) -> None:
    where = Where(None, config_file(tmp_path))
    async with open_service(where, lambda config: config.with_model("one")) as service:
        first = await service.client.chat(ChatRequest(message="Hello"))
        await service.use("another")
        second = await service.client.chat(ChatRequest(message="Hello", session_id=first.session_id, model="another"))
        await service.use("another")
    assert loaded == ["one", "another"]
    assert (first.model_used, second.model_used, second.conversation_length) == ("one", "another", 4)


async def test_a_model_that_cannot_be_loaded_leaves_the_one_that_was_there(tmp_path: Path, loaded: list[str]) -> None:
    from deployments.errors import CheckpointError

    models = [{"name": "one", "family": "fake"}, {"name": "gone", "family": "smolvlm", "checkpoint": "nowhere"}]
    where = Where(None, config_file(tmp_path, models=models))
    async with open_service(where, lambda config: config.with_model("one")) as service:
        with pytest.raises(CheckpointError, match="nowhere"):
            await service.use("gone")
        assert (await service.client.chat(ChatRequest(message="Hello"))).model_used == "one"
