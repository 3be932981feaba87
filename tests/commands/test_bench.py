"""`retina bench`: figures that are true, failures that count as failures, and nothing left behind."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from commands.stage import CIRCLE, config_file, retina, served

from deployments.client.service_client import ServiceClient
from deployments.commands.load import Answered, Load, Measured, make_picture, percentile, run_load, warm_up
from deployments.commands.service import Where, open_service
from deployments.errors import Overloaded, UnknownModel
from deployments.fakes import FakeGenerator
from deployments.ingress.tenants import PUBLIC_TENANT

LOAD = Load(users=3, requests=4, question="one two three", model=None, max_new_tokens=64, picture=None)


def test_percentiles() -> None:
    assert percentile([], 50) is None
    assert percentile([7.0], 95) == 7.0
    assert percentile([float(value) for value in range(101)], 50) == 50.0
    assert percentile([float(value) for value in range(101)], 95) == 95.0


def test_figures_are_of_answers_alone() -> None:
    answers = [Answered(0.1, 0.3, 10, (0.1, 0.1)), Answered(0.3, 0.5, 30, ())]
    measured = Measured(LOAD, answers, Counter(overloaded=2), "overloaded: too much", wall_s=2.0)
    assert measured.figures() == {
        "users": 3,
        "requests": 4,
        "failed": 2,
        "wall_s": 2.0,
        "tokens": 40,
        "tokens_per_s": 20.0,
        "answers_per_s": 1.0,
        "ttft_p50_ms": 200.0,
        "ttft_p95_ms": 290.0,
        "gap_p50_ms": 100.0,
        "gap_p95_ms": 100.0,
        "answer_p50_ms": 400.0,
        "answer_p95_ms": 490.0,
    }


def test_no_two_made_pictures_are_equal() -> None:
    assert make_picture() != make_picture()


async def _measure(client: ServiceClient, load: Load) -> Measured:
    return [measured async for measured in run_load(client, load)][-1]


async def test_every_request_is_counted_and_nothing_is_left(config: Path, loaded: list[str]) -> None:
    async with served(config) as (address, graph), open_service(Where(address, config)) as service:
        await warm_up(service.client, LOAD)
        measured = await _measure(service.client, LOAD)
        sessions = await graph.router.sessions(PUBLIC_TENANT, 10)
    assert (len(measured.answered), measured.num_failed) == (12, 0)
    assert measured.figures()["tokens"] == sum(one.num_tokens for one in measured.answered) > 12 * 5
    assert all(0 < one.first_text_s <= one.whole_s <= measured.wall_s for one in measured.answered)
    assert not sessions
    assert not [path for path in (config.parent / "data").rglob("*") if path.suffix == ".png"]


async def test_a_picture_of_ones_own_stays(config: Path, loaded: list[str]) -> None:
    load = Load(1, 1, "x", None, 8, CIRCLE.read_bytes())
    async with served(config) as (address, _), open_service(Where(address, config)) as service:
        picture = await service.client.add_image(CIRCLE.read_bytes())
        await _measure(service.client, load)
        assert (await service.client.get(f"/images/{picture.id}")).is_success


async def test_failures_are_counted_as_failures(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = FakeGenerator(failure=Overloaded("too much"), fail_after_chunks=2, max_failures=5)
    monkeypatch.setattr("deployments.local.open_generator", lambda config, model, encoder: failing)
    async with served(config) as (address, _), open_service(Where(address, config)) as service:
        measured = await _measure(service.client, LOAD)
    assert (len(measured.answered), measured.num_failed) == (7, 5)
    assert measured.failures == {"overloaded": 5}
    assert "too much" in measured.first_failure


async def test_a_warm_up_that_fails_is_told(config: Path, loaded: list[str]) -> None:
    async with served(config) as (address, _), open_service(Where(address, config)) as service:
        with pytest.raises(UnknownModel):
            await warm_up(service.client, Load(1, 1, "x", "gpt-9", 8, None))


async def test_the_command(tmp_path: Path, loaded: list[str]) -> None:
    async with served(config_file(tmp_path)) as (address, _):
        figures = await retina(tmp_path, "bench", "--server", address, "-u", "2", "-n", "2", "--json")
        table = await retina(tmp_path, "bench", "--server", address, "-u", "1", "-n", "1", "-m", "another")
    assert figures.code == table.code == 0, figures.err + table.err
    assert json.loads(figures.out)["requests"] == 4
    assert "ttft_p95_ms" in table.out
