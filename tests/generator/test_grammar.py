"""Grammars in the engine: demo checkpoints of all families answer in valid JSON, and neighbours notice nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from generator.grammar_cases import CHECKPOINTS, FAMILIES, PERSON, SCHEMAS, TREE, request_of, require_valid
from generator.letters import LetterEncoder, ask, read

from deployments.config import RetinaConfig
from deployments.errors import InvalidRequest
from deployments.types import CaptionTask, GenerateRequest, Grammar

if TYPE_CHECKING:
    from deployments.generator.engine import Engine

pytestmark = pytest.mark.torch
SOME = ["object", "person", "tree", "branches", "multiples", "words", "unicode", "late need"]
WAIT_S = 20


@cache
def config_of(family: str, mode: str, dtype: str) -> RetinaConfig:
    model = {"name": "m", "family": family, "checkpoint": str(CHECKPOINTS / family)}
    generator = {"mode": mode, "dtype": dtype, "max_new_tokens": 400, "max_context_tokens": 512, "num_slots": 6}
    return RetinaConfig.model_validate({"models": [model], "generator": generator})


opened: list[Engine] = []


@cache
def open_demo_engine(family: str, mode: str = "batch", dtype: str = "float32") -> Engine:
    from deployments.generator.engine import open_engine

    opened.append(open_engine(config_of(family, mode, dtype), "m", LetterEncoder()))
    return opened[-1]


@pytest.fixture(scope="module", autouse=True)
def closed_engines() -> Iterator[None]:
    yield
    open_demo_engine.cache_clear()
    while opened:
        engine = opened.pop()
        assert engine.wait_idle(WAIT_S)
        engine.close()


async def answer(engine: Engine, request: GenerateRequest, schema: object) -> Any:
    found = await read(engine.stream(request))
    require_valid(found.text, schema)
    assert found.last.finish_reason == "stop"
    assert found.last.usage is not None
    assert found.last.usage.completion_tokens < request.sampling.max_new_tokens
    return found


async def fewest(engine: Engine, schema: object) -> int:
    with pytest.raises(InvalidRequest, match="at least") as caught:
        await read(engine.stream(request_of(schema, max_new_tokens=1)))
    return int(str(caught.value).split("at least ")[1].split()[0])


@pytest.mark.parametrize("mode", ["batch", "simple"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
async def test_every_answer_fits_its_schema(family: str, mode: str, dtype: str) -> None:
    engine = open_demo_engine(family, mode, dtype)
    wishes: list[dict[str, Any]] = [
        {},
        {"temperature": 1.5, "seed": 1},
        {"temperature": 30.0, "seed": 2, "top_p": 0.99},
    ]
    for name in SOME if mode == "batch" else SOME[1:4]:
        schema = SCHEMAS[name]
        least = await fewest(engine, schema)
        asked = [request_of(schema, max_new_tokens=least + spare, **wish) for wish in wishes for spare in (0, 7, 60)]
        await asyncio.gather(*(answer(engine, request, schema) for request in asked))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"temperature": 1.2, "seed": 5, "min_p": 0.01, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"temperature": 0.8, "seed": 6, "top_k": 40, "repetition_penalty": 1.3},
    ],
)
async def test_neighbours_notice_nothing(family: str, wish: dict[str, Any]) -> None:
    """The same tokens beside answers with a grammar, without them, and in the slow twin."""
    engine, slow = open_demo_engine(family), open_demo_engine(family, "simple")
    free = [ask(text, max_new_tokens=30, **wish) for text in ("Hello, my name is Ada", "What can you do?")]
    held = [request_of(schema, max_new_tokens=120, num_logprobs=2, **wish) for schema in (PERSON, TREE, None)]
    alone = [(await read(engine.stream(request))).text for request in [*free, *held]]
    together = await asyncio.gather(*(read(engine.stream(request)) for request in [*free, *held]))
    twin = [(await read(slow.stream(request))).text for request in [*free, *held]]
    assert [each.text for each in together] == alone == twin
    for each in together[len(free) :]:
        logprobs = [item for chunk in each.chunks for item in chunk.logprobs]
        ids = [token_id for chunk in each.chunks for token_id in chunk.token_ids]
        assert [item.chosen.token_id for item in logprobs] == ids, "also of tokens that took another's place"
        assert all(item.chosen.logprob <= 0 and len(item.top) == 2 for item in logprobs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wish", [{}, {"temperature": 1.5, "seed": 3, "frequency_penalty": 0.4}])
async def test_an_answer_is_gone_on_with_from_everywhere(family: str, wish: dict[str, Any]) -> None:
    engine = open_demo_engine(family)
    request = request_of(PERSON, max_new_tokens=await fewest(engine, PERSON) + 9, **wish)
    whole = await read(engine.stream(request))
    ids = tuple(token_id for chunk in whole.chunks for token_id in chunk.token_ids)
    assert len(ids) > 20
    for count in (1, len(ids) // 2, len(ids) - 1, len(ids)):
        rest = [chunk async for chunk in engine.stream(replace(request, answered=ids[:count]))]
        assert tuple(token_id for chunk in rest for token_id in chunk.token_ids) == ids[count:]
        assert whole.text.endswith("".join(chunk.text for chunk in rest))
        assert rest[-1].finish_reason == "stop"


async def test_what_was_answered_must_fit_the_grammar() -> None:
    engine = open_demo_engine("smolvlm")
    with pytest.raises(InvalidRequest, match="does not fit the answer's grammar"):
        await read(engine.stream(replace(request_of(PERSON), answered=(300, 301))))


async def test_the_context_bounds_the_answer_as_well() -> None:
    engine = open_demo_engine("smolvlm")
    long = ask("word " * 120, max_new_tokens=400)
    for schema in (PERSON, {"type": "string"}):
        request = replace(long, sampling=request_of(schema, max_new_tokens=400).sampling)
        found = await answer(engine, request, schema)
        usage = found.last.usage
        assert usage.prompt_tokens + usage.completion_tokens < 512
    too_much = request_of({"type": "array", "minItems": 200}, max_new_tokens=400).sampling
    with pytest.raises(InvalidRequest, match="this request leaves room for") as caught:
        await read(engine.stream(replace(long, sampling=too_much)))
    assert caught.value.param == "max_new_tokens"


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"task": CaptionTask()}, "response_format", "caption has a form of its own"),
        ({"stop": ("}",)}, "stop", "would cut a JSON answer short"),
        ({"grammar": Grammar("json_schema", '{"not": {}}')}, "response_format", "not"),
        ({"grammar": Grammar("json_schema", "nonsense")}, "response_format", "no JSON"),
        ({"grammar": Grammar("json_object", "{}")}, "response_format", "takes no schema"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
async def test_what_does_not_go_together_is_refused(
    family: str, change: dict[str, Any], param: str, words: str
) -> None:
    request = request_of(PERSON)
    if "task" in change:
        request = replace(request, **change, messages=(replace(request.messages[0], content=()),))
        words = f"{words}|picture"  # which captions need as well
    else:
        request = replace(request, sampling=replace(request.sampling, **change))
    with pytest.raises(InvalidRequest, match=words) as caught:
        await read(open_demo_engine(family).stream(request))
    assert caught.value.param in (param, "image")


async def test_without_grammars_none_is_ignored(open_test_engine: Any) -> None:
    with pytest.raises(InvalidRequest, match="opened without grammars"):
        await read(open_test_engine().stream(request_of(None)))


async def test_a_format_that_hides_its_tokenizer_has_no_grammars(open_test_engine: Any) -> None:
    from generator.letters import LetterPrompts

    from deployments.config import GeneratorConfig
    from deployments.generator.grammar import open_grammars

    engine = open_test_engine(open_mask=open_grammars(LetterPrompts(), 292, GeneratorConfig()))
    with pytest.raises(InvalidRequest, match="does not show its tokenizer"):
        await read(engine.stream(request_of(None)))
    assert (await read(engine.stream(ask("hi", max_new_tokens=3)))).text


def test_a_tokenizer_of_another_kind_is_told() -> None:
    from tokenizers import Tokenizer, decoders

    from deployments.generator.grammar_vocabulary import Vocabulary

    tokenizer = Tokenizer.from_file(str(CHECKPOINTS / "llava" / "tokenizer.json"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="neither ByteLevel nor ByteFallback"):
        Vocabulary(tokenizer.to_str(), 700, [0])


async def test_a_grammar_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments.generator import grammar

    compiled: list[str] = []
    inner = grammar.to_llguidance
    monkeypatch.setattr(grammar, "to_llguidance", lambda *each: compiled.append(each[0].schema) or inner(*each))
    engine, schema = open_demo_engine("smolvlm"), {"const": "only here"}
    for _ in range(3):
        found = await answer(engine, request_of(schema), schema)
        assert json.loads(found.text) == "only here"
    assert compiled == [json.dumps(schema)]
