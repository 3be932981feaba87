"""How an answer is chosen and how probable its tokens were: from each encoding to the generator, and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx
import pytest
from ingress.bench import Bench, BuildBench, ScriptedGenerator, error_of, parse_events, picture, post_form
from ingress.vision_bench import ASKED, post_all

from deployments.fakes import FakeGenerator
from deployments.ingress.sampling_schemas import SamplingFields
from deployments.ingress.turn_types import SamplingWish
from deployments.types import Alternative, Chunk, GenerateRequest, SamplingParams, Timings, TokenLogprob, Usage

PATHS = ["/chat", "/caption", "/query"]
FIELDS: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.25,
    "repetition_penalty": 1.25,
    "presence_penalty": -0.5,
    "frequency_penalty": 1.5,
    "max_new_tokens": 3,
    "stop": "zebra",
    "seed": 1,
    "logprobs": 2,
}
PARAMS = SamplingParams(
    temperature=0.5,
    top_p=0.9,
    top_k=5,
    min_p=0.25,
    repetition_penalty=1.25,
    presence_penalty=-0.5,
    frequency_penalty=1.5,
    max_new_tokens=3,
    stop=("zebra",),
    seed=1,
    num_logprobs=2,
)


class Recorder(FakeGenerator):
    def __init__(self) -> None:
        super().__init__()
        self.requests: list[GenerateRequest] = []

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        async for chunk in super().stream(request):
            yield chunk


def question(path: str) -> dict[str, str]:
    return {"message": "one two three"} if path == "/chat" else dict(ASKED[path])


async def post_both(bench: Bench, path: str, fields: Mapping[str, object]) -> list[httpx.Response]:
    """As JSON and as a form."""
    asked = {**question(path), **fields}
    if path != "/chat":
        return await post_all(bench, path, asked)
    return [await bench.client.post(path, json=asked), await post_form(bench, asked, path=path)]


@pytest.mark.parametrize("path", PATHS)
async def test_all_settings_reach_the_generator(build_bench: BuildBench, path: str) -> None:
    assert set(FIELDS) == set(SamplingFields.model_fields)
    recorder = Recorder()
    replies = await post_both(build_bench(recorder), path, FIELDS)
    assert [reply.status_code for reply in replies] == [200] * len(replies)
    assert [request.sampling for request in recorder.requests] == [PARAMS] * len(replies)


@pytest.mark.parametrize("path", PATHS)
async def test_left_out_settings_are_the_generators_own(build_bench: BuildBench, path: str) -> None:
    recorder = Recorder()
    bench = build_bench(recorder)
    await post_both(bench, path, {})
    limits = bench.config.generator_of("fake")
    assert {request.sampling for request in recorder.requests} == {
        SamplingParams(max_new_tokens=limits.default_new_tokens)
    }
    assert SamplingWish().to_params(limits) == SamplingFields().to_sampling().to_params(limits)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("presence_penalty", 2.1),
        ("presence_penalty", "much"),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", 10.5),
        ("logprobs", -1),
        ("logprobs", 21),
        ("logprobs", 1.5),
        ("logprobs", "true"),
    ],
)
async def test_values_out_of_range(bench: Bench, path: str, field: str, value: object) -> None:
    for reply in await post_both(bench, path, {field: value}):
        error = error_of(reply, 422, "invalid_request")
        assert error["param"] == field
        assert field in str(error["message"])


async def test_yes_is_no_number_of_log_probabilities(bench: Bench) -> None:
    assert error_of(await bench.ask(logprobs=True), 422, "invalid_request")["param"] == "logprobs"


@pytest.mark.parametrize("path", ["/detect", "/point"])
async def test_places_have_none_of_them(bench: Bench, path: str) -> None:
    for name, value in FIELDS.items():
        reply = await post_form(bench, {**ASKED[path], name: value}, picture(), path)
        assert error_of(reply, 400, "invalid_request")["param"] == name


# ------------------------------------------------------------------------------------- log probabilities


def token(text: str, *others: str) -> TokenLogprob:
    top = tuple(Alternative(number, each, -1.5 - number) for number, each in enumerate(others))
    return TokenLogprob(Alternative(7, text, -0.25), top)


def shown(text: str, *others: str) -> dict[str, object]:
    top = [{"token_id": number, "text": each, "logprob": -1.5 - number} for number, each in enumerate(others)]
    return {"token_id": 7, "text": text, "logprob": -0.25, "top": top}


# Text that is held back, a chunk of log probabilities alone, and some that come with the end.
SCRIPT = (
    Chunk("It", 1, logprobs=(token("It", "It", "A"),)),
    Chunk("", 1, logprobs=(token("\N{REPLACEMENT CHARACTER}"),)),
    Chunk(" is", 2, logprobs=(token(" is", " is"), token("", ""))),
    Chunk("", 1, "stop", Usage(5, 0, 0, 5), Timings(0, 0, 0, 0, 0), logprobs=(token("!"),)),
)
TOKENS = [shown("It", "It", "A"), shown("\N{REPLACEMENT CHARACTER}"), shown(" is", " is"), shown("", ""), shown("!")]


@pytest.mark.parametrize("path", PATHS)
async def test_replies_hold_all_of_them_in_order(build_bench: BuildBench, path: str) -> None:
    bench = build_bench(ScriptedGenerator(SCRIPT))
    for reply in await post_both(bench, path, {"logprobs": 2}):
        assert reply.json()["logprobs"] == TOKENS


@pytest.mark.parametrize("path", PATHS)
async def test_streams_hold_them_where_they_belong(build_bench: BuildBench, path: str) -> None:
    bench = build_bench(ScriptedGenerator(SCRIPT))
    for reply in await post_both(bench, path, {"logprobs": 2, "stream": True}):
        (start, _), *chunks, (done, whole) = parse_events(reply.text)
        assert (start, done) == ("start", "done")
        assert chunks == [
            ("chunk", {"text": "It", "logprobs": TOKENS[:1]}),
            ("chunk", {"text": "", "logprobs": TOKENS[1:2]}),
            ("chunk", {"text": " is", "logprobs": TOKENS[2:4]}),
            ("chunk", {"text": "", "logprobs": TOKENS[4:]}),
        ]
        assert whole["logprobs"] == TOKENS


@pytest.mark.parametrize("path", PATHS)
async def test_nobody_sees_them_who_has_not_asked(bench: Bench, path: str) -> None:
    for stream in (False, True):
        for reply in await post_both(bench, path, {"stream": stream}):
            assert reply.status_code == 200
            assert "logprob" not in reply.text


async def test_thoughts_have_theirs(build_bench: BuildBench) -> None:
    """Also when they come with the answer's beginning: then nothing parts them."""
    script = (
        Chunk("", 1, thought="It", logprobs=(token("It"),)),
        Chunk(" is", 2, thought="?", logprobs=(token("?"), token(" is"))),
        SCRIPT[-1],
    )
    bench = build_bench(ScriptedGenerator(script))
    fields = {**ASKED["/query"], "reasoning": "true", "logprobs": 0, "stream": "true"}
    reply = await post_form(bench, fields, picture(), "/query")
    _, *chunks, (_, whole) = parse_events(reply.text)
    assert chunks == [
        ("thought", {"text": "It", "logprobs": [shown("It")]}),
        ("thought", {"text": "?"}),
        ("chunk", {"text": " is", "logprobs": [shown("?"), shown(" is")]}),
        ("chunk", {"text": "", "logprobs": [shown("!")]}),
    ]
    assert whole["logprobs"] == [shown("It"), shown("?"), shown(" is"), shown("!")]


async def test_what_could_not_come_at_all_has_a_number(build_bench: BuildBench) -> None:
    never = TokenLogprob(Alternative(1, "a", -0.1), (Alternative(2, "b", float("-inf")),))
    last = Chunk("a", 1, "stop", Usage(1, 0, 0, 1), Timings(0, 0, 0, 0, 0), logprobs=(never,))
    reply = await build_bench(ScriptedGenerator((last,))).ask(logprobs=1)
    assert reply.json()["logprobs"][0]["top"] == [{"token_id": 2, "text": "b", "logprob": -9999.0}]


async def test_sessions_keep_the_text_alone(build_bench: BuildBench) -> None:
    bench = build_bench(ScriptedGenerator(SCRIPT))
    await bench.ask(session_id="s", logprobs=2)
    assert [message["content"] for message in await bench.history("s")][-1] == [{"type": "text", "text": "It is"}]
