"""What the log of a stream holds comes back from JSON as it was."""

from __future__ import annotations

import math

import pytest

from deployments.ingress.said import Said
from deployments.ingress.streams.log_entry import (
    Entry,
    Plan,
    entry_from_json,
    entry_to_json,
    plan_from_json,
    plan_to_json,
    said_in,
)
from deployments.ingress.turn_types import (
    Draft,
    SamplingWish,
    TurnChunk,
    TurnFailed,
    TurnFinished,
    TurnInput,
    TurnReply,
    TurnStarted,
)
from deployments.types import (
    Alternative,
    Grammar,
    ImagePart,
    ImageRef,
    Message,
    TextPart,
    Timings,
    TokenLogprob,
    Turn,
    Usage,
)

USAGE, TIMINGS = Usage(4, 3, 2, 1), Timings(0.5, 1.5, 2.5, 3.5, 4.5, "kv")
LOGPROBS = (TokenLogprob(Alternative(7, "é", -0.1), (Alternative(8, "\ud7ff", -math.inf),)),)
REPLY = TurnReply("r", "Q", "A", True, "m", "s", 2, "cancelled", USAGE, TIMINGS, LOGPROBS, "lease")


@pytest.mark.parametrize(
    "entry",
    [
        Entry(TurnStarted("s", "m", "stream-1")),
        Entry(TurnChunk("")),
        Entry(TurnChunk(' "Ω"\u2028', LOGPROBS, (1, 2)), USAGE, TIMINGS),
        Entry(TurnFinished(REPLY)),
        Entry(TurnFailed("code", "message", "param", 503)),
        Entry(TurnFailed("code", "message")),
    ],
)
def test_entries(entry: Entry) -> None:
    assert entry_from_json(entry_to_json(entry)) == entry


def test_plans() -> None:
    picture = ImageRef("a" * 64, 1, 2, 3, "image/png")
    message = Message("user", (ImagePart(picture), TextPart("What?")), "2025-01-01T12:00:00.000Z")
    sampling = SamplingWish(0.5, stop=("x",), seed=2**63 - 1, grammar=Grammar("json_schema", "{}"))
    asked = TurnInput(
        "r", "t", "What?", None, picture, "m", sampling, (message,), "Be brief", "l", Draft("file", "f", "{}")
    )
    plan = Plan(asked, Turn("t", "s", "l", "m", (message, message), "key", 2), 1234.5)
    assert plan_from_json(plan_to_json(plan)) == plan


def test_what_was_said() -> None:
    entries = [
        Entry(TurnStarted("s", "m")),
        Entry(TurnChunk("a", LOGPROBS, (1, 2)), USAGE, TIMINGS),
        Entry(TurnChunk("b", (), (3,))),
    ]
    said = said_in(entries)
    assert (said.text, said.token_ids, said.num_tokens, said.logprobs) == ("ab", [1, 2, 3], 3, list(LOGPROBS))
    assert (said.usage_so_far(), said.timings) == (Usage(4, 3, 2, 3), TIMINGS)
    assert said_in([]).text == Said().text == ""
