"""What the log of a stream holds, as JSON: the plan of its turn, and one entry for each event."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter

from deployments.ingress.said import Said
from deployments.ingress.turn_types import KeptEvent, TurnChunk, TurnInput
from deployments.types import Timings, Turn, Usage


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a replica must know to go on with a stream, beside the entries."""

    asked: TurnInput
    turn: Turn
    began_s: float  # Unix time


@dataclass(frozen=True, slots=True)
class Entry:
    event: KeptEvent  # the kinds of events share no field that must be there, so that JSON tells them apart
    usage: Usage | None = None  # of the first chunk: what is said of an answer that is stopped
    timings: Timings | None = None


# Tuples: pydantic takes a config for them and none for dataclasses. Log probabilities may be -inf.
_plan = TypeAdapter(tuple[Plan])
_entry = TypeAdapter(tuple[Entry], config=ConfigDict(ser_json_inf_nan="constants"))


def plan_to_json(plan: Plan) -> str:
    return _plan.dump_json((plan,)).decode()


def plan_from_json(text: str) -> Plan:
    return _plan.validate_json(text)[0]


def entry_to_json(entry: Entry) -> str:
    return _entry.dump_json((entry,), exclude_defaults=True).decode()


def entry_from_json(text: str) -> Entry:
    return _entry.validate_json(text)[0]


def said_in(entries: Iterable[Entry]) -> Said:
    """What there is of the answer by these entries."""
    said = Said()
    for entry in entries:
        if said.usage is None and entry.usage is not None:
            said.usage, said.timings = entry.usage, entry.timings
        if isinstance(entry.event, TurnChunk):
            said.texts.append(entry.event.text)
            said.logprobs.extend(entry.event.logprobs)
            said.token_ids.extend(entry.event.token_ids)
            said.num_tokens += len(entry.event.token_ids)
    return said
