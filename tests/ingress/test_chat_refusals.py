"""Questions that POST /chat can read but refuses: for their values, their pictures, or what the parts behind it say."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from ingress.bench import Bench, BuildBench, data_url, error_of, picture, post_form

from deployments.errors import ImageNotFound, Overloaded, RetinaError
from deployments.fakes import FakeGenerator
from deployments.images.stores.memory import MemoryImageStore
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.ingress.turns import TurnInput
from deployments.types import StoredImage

# ------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("message", ["", "  \n\t"])
async def test_an_empty_message(bench: Bench, message: str) -> None:
    for reply in (await post_form(bench, {"message": message}), await bench.ask(message)):
        assert error_of(reply, 400, "invalid_request")["param"] == "message"


async def test_a_message_of_1_mb(bench: Bench) -> None:
    message = "a" * 1_000_000
    for reply in (
        await post_form(bench, {"message": message}),
        await bench.ask(message),
        await bench.client.post("/chat", data={"message": message}),
    ):
        error = error_of(reply, 413, "message_too_long")
        assert "1000000 characters; at most 64000" in str(error["message"])


@pytest.mark.parametrize("message", ["", " \n", "x" * 64_001, "ok", "x" * 64_000])
async def test_what_is_refused_before_the_router_is_what_the_router_refuses(bench: Bench, message: str) -> None:
    reply = await bench.ask(message)
    (turn,) = await asyncio.gather(bench.turns.reply(TurnInput("r", PUBLIC_TENANT, message)), return_exceptions=True)
    if isinstance(turn, RetinaError):
        assert error_of(reply, turn.status, turn.code)["param"] == turn.param
    else:
        assert reply.status_code == 200


async def test_an_unknown_model(bench: Bench) -> None:
    error = error_of(await bench.ask(model="gpt-7"), 400, "unknown_model")
    assert error["param"] == "model"
    assert "fake, other" in str(error["message"])


@pytest.mark.parametrize("session_id", ["a/b", "a\nb", "a\x00b", "x" * 10_000, "", "..", "é"])
async def test_bad_session_ids(bench: Bench, session_id: str) -> None:
    for reply in (
        await bench.ask(session_id=session_id),
        await post_form(bench, {"message": "Hello", "session_id": session_id}),
    ):
        assert error_of(reply, 400, "invalid_request")["param"] == "session_id"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "warm"),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("top_k", 1.5),
        ("max_new_tokens", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("stream", "perhaps"),
        ("stop", ""),
    ],
)
async def test_values_out_of_range(bench: Bench, field: str, value: object) -> None:
    for reply in (await bench.ask(**{field: value}), await post_form(bench, {"message": "Hello", field: value})):
        error = error_of(reply, 422, "invalid_request")
        assert str(error["param"]).startswith(field)
        assert field in str(error["message"])


async def test_more_tokens_than_the_model_gives(bench: Bench) -> None:
    error = error_of(await bench.ask(max_new_tokens=100_000), 400, "invalid_request")
    assert error["param"] == "max_new_tokens"
    assert "at most 4096" in str(error["message"])


@pytest.mark.parametrize(("stop", "allowed"), [(["x"] * 9, "at most 8"), (["ok", "x" * 257], "at most 256")])
@pytest.mark.parametrize("stream", [False, True])
async def test_too_many_and_too_long_stops(bench: Bench, stop: list[str], allowed: str, stream: bool) -> None:
    error = error_of(await bench.ask(stop=stop, stream=stream), 400, "invalid_request")
    assert error["param"] == "stop"
    assert allowed in str(error["message"])


async def test_stops_are_limited_by_the_model_that_answers(build_bench: BuildBench) -> None:
    models = [
        {"name": "fake", "family": "fake", "generator": {"max_stop_strings": 1, "max_stop_chars": 3}},
        {"name": "other", "family": "fake"},
    ]
    bench = build_bench(models=models)
    await bench.ask(session_id="s", model="other", stop=["x" * 256] * 8)
    assert (await bench.ask(session_id="s", stop=["four", "five"])).status_code == 200
    for stop in (["a", "b"], ["four"]):
        error_of(await bench.ask(session_id="s", model="fake", stop=stop), 400, "invalid_request")
    assert (await bench.ask(session_id="s", model="fake", stop=["abc"])).json()["conversation_length"] == 6


# ------------------------------------------------------------------------------------- pictures


async def test_two_pictures_in_one_question(bench: Bench) -> None:
    reply = await post_form(bench, {"message": "Hello", "image_id": "0" * 64}, picture())
    assert error_of(reply, 400, "invalid_request")["param"] == "image_id"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "invalid_image"),
        (b"just some text", 415, "unsupported_image"),
        (picture("JPEG", (200, 200))[:-300], 400, "invalid_image"),
        (picture("TIFF"), 415, "unsupported_image"),
        (picture(size=(20_000, 1)), 413, "image_too_large"),
    ],
)
async def test_bad_pictures_harm_nobody_else(bench: Bench, data: bytes, status: int, code: str) -> None:
    for reply in (await post_form(bench, {"message": "Hello"}, data), await bench.ask(image=data_url(data))):
        assert error_of(reply, status, code)["param"] == "image"
    assert (await bench.client.get("/chat/sessions")).json()["count"] == 0
    assert (await bench.ask()).status_code == 200


@pytest.mark.parametrize("url", ["http://example.com/a.png", "data:text/html;base64,AAAA", "data:image/png;base64,?"])
async def test_bad_data_urls(bench: Bench, url: str) -> None:
    assert error_of(await bench.ask(image=url), 400, "invalid_image")["param"] == "image"


@pytest.mark.parametrize("image_id", ["0" * 64, "../secret", "", "0" * 10_000])
async def test_unknown_pictures(bench: Bench, image_id: str) -> None:
    error_of(await bench.ask(image_id=image_id), 404, "image_not_found")


async def test_a_picture_for_an_empty_message_is_not_stored(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[object] = []

    async def put(self: MemoryImageStore, tenant: str, image: StoredImage) -> None:
        stored.append(image)

    monkeypatch.setattr(MemoryImageStore, "put", put)
    error_of(await post_form(bench, {"message": " "}, picture()), 400, "invalid_request")
    assert stored == []
    await post_form(bench, {"message": "Hello"}, picture())
    assert len(stored) == 1


async def test_the_picture_of_the_session_is_gone(build_bench: BuildBench) -> None:
    lost = ImageNotFound("no picture 'abc'", "image")
    bench = build_bench(FakeGenerator(failure=lost))
    reply = await bench.ask(session_id="s")
    error = error_of(reply, 404, "image_not_found")
    assert error["message"] == ("the session's picture is no longer stored; send another one or begin a new session")
    assert error["param"] == "image"
    brought = await bench.ask(session_id="s", image=data_url(picture()))
    assert error_of(brought, 404, "image_not_found")["message"] == "no picture 'abc'"


# ------------------------------------------------------------------------------------- the parts behind


async def test_errors_of_the_generator_keep_status_and_retry_after(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=Overloaded("128 requests wait already", None, 1.2)))
    reply = await bench.ask()
    error_of(reply, 503, "overloaded")
    assert reply.headers["retry-after"] == "2"


async def test_a_busy_session(build_bench: BuildBench) -> None:
    bench = build_bench(session_router={"lease_wait_s": 0})
    async with contextlib.aclosing(bench.turns.stream(TurnInput("r", PUBLIC_TENANT, "Hello", "s"))) as events:
        await anext(events)
        error_of(await bench.ask(session_id="s"), 409, "session_busy")
