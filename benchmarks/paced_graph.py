"""The application of graph.py with a PacedGenerator for its generator, under Ray and in one process."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import uvicorn
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

import graph
from benchmarks.paced import PacedGenerator
from deployments import local
from deployments.config import RetinaConfig, read_config
from deployments.generator.deployment import GeneratorReplica

STEP_VARIABLE = "PACED_STEP_S"


class PacedReplica(GeneratorReplica):
    async def __init__(self, config: RetinaConfig, model: str, encoder: DeploymentHandle) -> None:  # type: ignore[misc]
        await super().__init__(config, model, encoder)
        self._generator = PacedGenerator(step_s())


def step_s() -> float:
    return float(os.environ[STEP_VARIABLE])


def build(args: dict[str, object]) -> Application:
    graph.GeneratorReplica = PacedReplica  # type: ignore[attr-defined]
    return graph.build(args)


async def serve_here(config: RetinaConfig, port: int) -> None:
    local.open_generator = lambda config, model, encoder: PacedGenerator(step_s())  # type: ignore[attr-defined]
    async with local.open_graph(config) as here:
        await uvicorn.Server(uvicorn.Config(here.app(), port=port, log_level="warning")).serve()


if __name__ == "__main__":
    asyncio.run(serve_here(read_config(Path(sys.argv[1])), int(sys.argv[2])))
