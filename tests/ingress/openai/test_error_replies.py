"""Under /v1 whatever goes wrong has OpenAI's shape; elsewhere ours."""

from __future__ import annotations

import httpx
import pytest
from ingress.bench import Bench, BuildBench, error_of, serving
from ingress.openai.openai_bench import complete, openai_error

from deployments import errors
from deployments.errors import DeadlineExceeded, PartUnavailable, PromptTooLong, RetinaError
from deployments.fakes import FakeGenerator
from deployments.ingress.openai.error_shape import is_openai_path, openai_status, place_of, to_openai

JSON = {"content-type": "application/json"}


async def test_paths_and_methods_that_are_not_there(bench: Bench) -> None:
    for path in ("/v1", "/v1/", "/v1/nothing", "/v1/chat", "/v1/embeddings"):
        openai_error(await bench.client.get(path), 404, "not_found", None)
    reply = await bench.client.get("/v1/chat/completions")
    openai_error(reply, 405, "method_not_allowed", None)
    assert reply.headers["allow"] == "POST"
    error_of(await bench.client.get("/v10"), 404, "not_found")
    error_of(await bench.client.get("/nothing"), 404, "not_found")


async def test_behind_a_prefix(bench: Bench) -> None:
    transport = httpx.ASGITransport(bench.app, root_path="/retina")
    async with httpx.AsyncClient(transport=transport, base_url="http://retina") as client:
        openai_error(await client.get("/retina/v1/nothing"), 404, "not_found", None)
        error_of(await client.get("/retina/nothing"), 404, "not_found")
        assert (await client.get("/retina/v1/models")).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", JSON, 400, "invalid_value"),
        (b"{", JSON, 400, "invalid_value"),
        (b"[]", JSON, 400, "invalid_value"),
        (b'{"n": 1, "n": 2}', JSON, 400, "invalid_value"),
        (b'"\xff"', JSON, 400, "invalid_value"),
        (b"[" * 100_000, JSON, 400, "invalid_value"),
        (b'{"messages": []}', {}, 415, "unsupported_content_type"),
        (b'{"messages": []}', {"content-type": "text/plain"}, 415, "unsupported_content_type"),
        (b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_content_type"),
    ],
)
async def test_bodies(bench: Bench, content: bytes, headers: dict[str, str], status: int, code: str) -> None:
    reply = await bench.client.post("/v1/chat/completions", content=content, headers=headers)
    assert openai_error(reply, status)["code"] == code


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
async def test_bodies_over_the_limit(build_bench: BuildBench, path: str) -> None:
    bench = build_bench(ingress={"max_body_bytes": 1000})
    kind = "application/json" if path.endswith("completions") else "multipart/form-data; boundary=x"
    async with serving(bench.app) as address, httpx.AsyncClient(base_url=address) as client:
        reply = await client.post(path, content=b"x" * 1001, headers={"content-type": kind})
    assert openai_error(reply, 413)["code"] == "body_too_large"


async def test_what_nobody_foresaw(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=ZeroDivisionError("secret")))
    error = openai_error(await complete(bench), 500, "internal_error", None)
    assert "secret" not in str(error)
    assert (await bench.ask()).json()["error"]["request_id"]


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (PromptTooLong("too long", "message"), 400, "context_length_exceeded"),
        (PartUnavailable("gone"), 503, "part_unavailable"),
        (DeadlineExceeded("late"), 504, "deadline_exceeded"),
    ],
)
async def test_failures_of_generators(build_bench: BuildBench, failure: RetinaError, status: int, code: str) -> None:
    error = openai_error(await complete(build_bench(FakeGenerator(failure=failure))), status)
    assert (error["code"], error["message"]) == (code, failure.message)
    assert error["param"] == ("messages" if failure.param else None)


def test_every_error_has_a_status_a_type_and_a_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RetinaError)]
    assert len(kinds) > 20
    for kind in kinds:
        error = kind("words", "field")
        shown = to_openai(error).error
        status = openai_status(error)
        assert 400 <= status < 600
        assert shown.type == ("server_error" if status >= 500 else "invalid_request_error")
        assert (shown.message, shown.param) == ("words", "field")
        assert shown.code


@pytest.mark.parametrize(
    ("path", "is_one"),
    [("/v1", True), ("/v1/", True), ("/v1/x", True), ("/v11", False), ("/", False), ("/x/v1", False)],
)
def test_which_paths_are_openais(path: str, is_one: bool) -> None:
    assert is_openai_path(path) == is_one


def test_places() -> None:
    assert place_of(("body", "messages", 0, "content", 1, "type")) == "messages[0].content[1].type"
    assert place_of(("query", "limit")) == "limit"
    assert place_of(()) == ""
