"""A process of its own that commits turns with records until it is killed, and says which it was told are stored."""

from __future__ import annotations

import asyncio
import itertools
import sys

from deployments.config import parse_config
from deployments.record_types import Record
from deployments.session_router.service import open_router
from deployments.types import TurnOutcome, TurnRequest, Usage


async def main(folder: str, session_id: str) -> None:
    router = open_router(parse_config({"models": [{"name": "alpha", "family": "fake"}], "data_dir": folder}))
    for number in itertools.count():
        turn = await router.open_turn(TurnRequest("request", "tenant", session_id, f"question {number}"))
        answer = f"answer {number} " + "x" * 50_000  # many pages of the file: a torn write would show
        record = Record("response", f"{session_id}-{number}", number, "x" * 50_000)
        await router.close_turn(TurnOutcome(turn, answer, Usage(1, 0, 0, 1), (record,)))
        print(number, flush=True)


asyncio.run(main(*sys.argv[1:]))
