"""Names of requests, one shape for all errors, and counts by outcome."""

from __future__ import annotations

import logging
import os

import pytest
from ingress.bench import Bench, BuildBench, error_of

from deployments.errors import PartUnavailable
from deployments.fakes import FakeGenerator
from deployments.ingress.request_id import RequestIdFilter, current_request_id


@pytest.mark.parametrize("given", ["abc-123", "A.b_c", "x" * 128])
async def test_safe_names_are_kept(bench: Bench, given: str) -> None:
    reply = await bench.client.get("/healthz", headers={"X-Request-ID": given})
    assert reply.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", [None, "", "a b", "a\tb", "<script>", "x" * 129, "é"])
async def test_other_names_are_replaced(bench: Bench, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given.encode("latin-1")}
    replies = [await bench.client.get("/nothing/here", headers=headers) for _ in range(2)]  # type: ignore[arg-type]
    names = [reply.headers["x-request-id"] for reply in replies]
    assert len(set(names)) == 2
    assert all(name.startswith("req-") for name in names)


async def test_the_name_is_in_all_log_lines_of_the_request(
    build_bench: BuildBench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(RequestIdFilter())
    caplog.set_level(logging.INFO, "deployments")
    bench = build_bench(FakeGenerator(failure=ValueError("boom"), fail_after_chunks=1))
    await bench.client.post("/chat", json={"message": "x", "stream": True}, headers={"X-Request-ID": "mine"})
    lines = [record for record in caplog.records if record.name.startswith("deployments.ingress")]
    assert len(lines) == 2
    assert {record.request_id for record in lines} == {"mine"}  # type: ignore[attr-defined]
    assert current_request_id() == "-"


async def test_paths_cannot_forge_log_lines(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "deployments")
    await bench.client.get("/x%0AERROR forged" + "y" * 5000)
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 200


async def test_paths_and_methods_that_are_not_there(bench: Bench) -> None:
    error_of(await bench.client.get("/nothing"), 404, "not_found")
    reply = await bench.client.get("/chat")
    error = error_of(reply, 405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    assert "POST" in str(error["message"])


async def test_what_nobody_foresaw(build_bench: BuildBench, caplog: pytest.LogCaptureFixture) -> None:
    bench = build_bench(FakeGenerator(failure=ZeroDivisionError("secret detail")))
    reply = await bench.ask()
    error_of(reply, 500, "internal_error")
    assert "secret detail" not in reply.text
    assert "secret detail" in caplog.text


async def test_requests_are_counted_by_outcome(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=PartUnavailable("gone")))
    await bench.ask()
    await bench.client.get("/healthz")
    await bench.client.get("/nothing")
    counts = (await bench.client.get("/-/ingress")).json()
    expected = {"ingress_requests.200": 1, "ingress_requests.404": 1, "ingress_requests.503": 1}
    assert counts.pop("pid") == os.getpid()
    assert counts.pop("streams") == {"store": "memory", "owned": 0, "readers": 0, "running": 0, "ended": 0}
    assert {name: count for name, count in counts.items() if count} == expected
