"""Liveness, readiness and introspection."""

from __future__ import annotations

from ingress.bench import Bench, BuildBench, error_of

from deployments.config import parse_config
from deployments.errors import PartUnavailable


async def test_alive(bench: Bench) -> None:
    bench.parts.states = {"generator-fake": "loading"}
    reply = await bench.client.get("/healthz")
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


async def test_ready_when_all_parts_are(bench: Bench) -> None:
    reply = await bench.client.get("/readyz")
    assert reply.status_code == 200
    assert reply.json() == {"ready": True, "parts": {"session_router": True, "generator-fake": True}}
    for state in ("loading", False):
        bench.parts.states = {"session_router": True, "generator-fake": state}
        reply = await bench.client.get("/readyz")
        assert reply.status_code == 503
        assert reply.json() == {"ready": False, "parts": {"session_router": True, "generator-fake": state}}


async def test_the_config_as_resolved(build_bench: BuildBench) -> None:
    bench = build_bench(ingress={"turn_timeout_s": 7})
    shown = (await bench.client.get("/-/config")).json()
    assert shown["ingress"]["turn_timeout_s"] == 7
    assert parse_config(shown) == bench.config


async def test_what_the_parts_say(bench: Bench) -> None:
    assert (await bench.client.get("/-/engine")).json() == {"fake": {"running": 0}}
    assert (await bench.client.get("/-/cache")).json() == {"hits": 3}
    assert (await bench.client.get("/-/session_router")).json() == {"sessions": 0}


async def test_a_part_that_is_gone(bench: Bench) -> None:
    bench.parts.failure = PartUnavailable("vision_encoder is gone", None, 5)
    reply = await bench.client.get("/-/cache")
    error_of(reply, 503, "part_unavailable")
    assert reply.headers["retry-after"] == "5"
