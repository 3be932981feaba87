"""Answers within a grammar and within a budget: whatever is drawn, what comes out is a whole document."""

from __future__ import annotations

import json
import random
import time
from functools import cache
from typing import Any

import pytest
from generator.grammar_cases import (
    CHECKPOINTS,
    PERSON,
    SCHEMAS,
    TREE,
    open_over,
    read_allowed,
    request_of,
    require_valid,
    walk,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from deployments.errors import InvalidRequest
from deployments.generator.grammar import Grammars

pytestmark = pytest.mark.torch
VOCABULARIES = ["smolvlm", "moondream", "qwen2_vl", "llava", "byte fallback"]


@cache
def open_vocabulary(name: str) -> tuple[Tokenizer, Grammars]:
    if name == "byte fallback":
        from tiny_llava import byte_fallback_tokenizer

        tokenizer = byte_fallback_tokenizer()
    else:
        tokenizer = Tokenizer.from_file(str(CHECKPOINTS / name / "tokenizer.json"))
    return tokenizer, open_over(tokenizer)


def least(grammars: Grammars, schema: object) -> int:
    """Tokens of the shortest answer, as the refusal of fewer names them."""
    with pytest.raises(InvalidRequest, match="takes at least") as caught:
        grammars(request_of(schema), 1)
    assert caught.value.param == "max_new_tokens"
    return int(str(caught.value).split("at least ")[1].split()[0])


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("name", SCHEMAS)
def test_any_choice_ends_in_a_document_of_the_schema(vocabulary: str, name: str) -> None:
    tokenizer, grammars = open_vocabulary(vocabulary)
    fewest, chance = least(grammars, SCHEMAS[name]), random.Random(name)
    for budget in (fewest, fewest + 1, fewest + 2, fewest + 5, 2 * fewest + 30, fewest + 150):
        answer = walk(grammars, tokenizer, SCHEMAS[name], budget, chance)
        require_valid(answer.text, SCHEMAS[name])
        assert answer.num_tokens <= budget


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_text_is_what_the_tokens_say(vocabulary: str) -> None:
    """What the grammar takes a token for is what a reader sees of it."""
    tokenizer, grammars = open_vocabulary(vocabulary)
    for seed in range(20):
        answer = walk(grammars, tokenizer, {"type": "string"}, 60, random.Random(seed))
        said = b"".join(map(grammars._vocabulary.bytes_of, answer.token_ids))
        assert said.decode() == answer.text


def test_an_answer_may_be_gone_on_with() -> None:
    """Told of its beginning alone, a mask says what the first one said."""
    tokenizer, grammars = open_vocabulary("smolvlm")
    vocab_size, budget = tokenizer.get_vocab_size() + 37, least(grammars, PERSON) + 40
    for seed in range(5):
        answer = walk(grammars, tokenizer, PERSON, budget, random.Random(seed))
        first, chance = grammars(request_of(PERSON), budget), random.Random(seed + 100)
        assert first is not None
        for count, token_id in enumerate(answer.token_ids):
            again = grammars(request_of(PERSON), budget)
            assert again is not None
            for earlier in answer.token_ids[:count]:
                again.accept(earlier)
            allowed = read_allowed(first, vocab_size)  # type: ignore[arg-type]
            assert read_allowed(again, vocab_size) == allowed  # type: ignore[arg-type]
            for drawn in chance.sample(allowed, min(5, len(allowed))):
                assert again.revise(drawn) == first.revise(drawn)
            first.accept(token_id)


@pytest.mark.parametrize("text", ["x", "{", '["a', "]"])
def test_a_beginning_that_does_not_fit_is_refused(text: str) -> None:
    tokenizer, grammars = open_vocabulary("smolvlm")
    mask = grammars(request_of({"type": "array", "items": {"type": "null"}}), 50)
    assert mask is not None
    *good, bad = tokenizer.encode(text, add_special_tokens=False).ids[:2]
    for token_id in good:
        mask.accept(token_id)
    with pytest.raises(InvalidRequest, match="does not fit the answer's grammar"):
        mask.accept(bad)


def test_a_document_is_followed_by_stop_tokens_alone() -> None:
    tokenizer, grammars = open_vocabulary("smolvlm")
    mask = grammars(request_of({"type": "object"}), 50)
    assert mask is not None
    for token_id in tokenizer.encode("{}", add_special_tokens=False).ids:
        mask.accept(token_id)
    stop = sorted(grammars._vocabulary.stop_token_ids)
    assert len(stop) == 2
    assert read_allowed(mask, tokenizer.get_vocab_size() + 37) == stop  # type: ignore[arg-type]
    assert [mask.revise(token_id) for token_id in stop] == stop


def test_stop_tokens_come_only_after_a_whole_document() -> None:
    tokenizer, grammars = open_vocabulary("smolvlm")
    mask = grammars(request_of({"type": "integer"}), 50)
    assert mask is not None
    stop = grammars._vocabulary.stop_token_ids
    assert not stop & set(read_allowed(mask, tokenizer.get_vocab_size()))  # type: ignore[arg-type]
    mask.accept(tokenizer.encode("1", add_special_tokens=False).ids[0])
    allowed = set(read_allowed(mask, tokenizer.get_vocab_size()))  # type: ignore[arg-type]
    assert stop < allowed, "more digits may come as well"


@pytest.mark.parametrize("schema", [{"type": "array"}, {"type": "number"}, {"type": "integer"}, TREE])
def test_who_never_ends_is_ended_where_readers_would_give_up(schema: dict[str, Any]) -> None:
    """Deepest brackets, endless digits: a wish that comes from the model, 2000 tokens long."""
    tokenizer, grammars = open_vocabulary("smolvlm")
    mask = grammars(request_of(schema), 2000)
    assert mask is not None
    wanted = [tokenizer.token_to_id(token) for token in ("[", "{", "9", ".")]
    token_ids: list[int] = []
    while not set(token_ids[-1:]) & grammars._vocabulary.stop_token_ids:
        allowed = read_allowed(mask, tokenizer.get_vocab_size())  # type: ignore[arg-type]
        drawn = next((token_id for token_id in wanted if token_id in allowed), allowed[-1])
        token_ids.append(mask.revise(drawn))
        mask.accept(token_ids[-1])
    text = tokenizer.decode(token_ids[:-1])
    require_valid(text, schema)
    assert len(text) < 2000 or "next" in text


# --------------------------------------------------------------------------------- schemas that nobody thought of

NAMES = st.sampled_from(["a", "b", "name", "größe", "x y", 'quo"te', "日本"])
SCALARS = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["string", "integer", "number", "boolean", "null"])}),
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 12),
        st.integers(0, 12),
    ),
    st.builds(
        lambda least, more: {"type": "integer", "minimum": least, "maximum": least + more},
        st.integers(-(10**6), 10**6),
        st.integers(0, 10**6),
    ),
    st.builds(
        lambda pattern: {"type": "string", "pattern": pattern}, st.sampled_from(["^a+b?$", "[0-9]{3}", "^(x|yy)*z$"])
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=9), min_size=1, max_size=5),
    ),
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], chosen: list[bool], rest: Any) -> dict[str, Any]:
        required = [name for name, is_chosen in zip(properties, chosen, strict=False) if is_chosen]
        closed = {} if rest is None else {"additionalProperties": rest}
        return {"type": "object", "properties": properties, "required": required, **closed}

    others = st.none() | st.just(False) | inner
    return st.builds(build, st.dictionaries(NAMES, inner, max_size=4), st.lists(st.booleans(), min_size=4), others)


ANY_SCHEMA = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        objects(inner),
        st.builds(
            lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
            inner,
            st.integers(0, 3),
            st.integers(0, 4),
        ),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=8,
)


@given(ANY_SCHEMA, st.integers(0, 80), st.integers(0, 10**6), st.sampled_from(VOCABULARIES))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_schema_and_any_budget(schema: dict[str, Any], spare: int, seed: int, vocabulary: str) -> None:
    tokenizer, grammars = open_vocabulary(vocabulary)
    budget = least(grammars, schema) + spare
    answer = walk(grammars, tokenizer, schema, budget, random.Random(seed))
    require_valid(answer.text, schema)


# --------------------------------------------------------------------------------- what it costs


def test_ends_of_long_documents_do_not_hold_up_the_others() -> None:
    """Sixty texts that must all come, and a model that is never done with the first one."""
    tokenizer, grammars = open_vocabulary("smolvlm")
    names = [f"key{number}" for number in range(60)]
    schema = {"type": "object", "properties": {key: {"type": "string"} for key in names}, "required": names}
    budget = least(grammars, schema) + 200
    began = time.perf_counter()
    answer = walk(grammars, tokenizer, schema, budget, random.Random(3))
    assert set(json.loads(answer.text)) >= set(names)
    assert (time.perf_counter() - began) / answer.num_tokens < 0.05, "seconds a token, on a busy machine"
