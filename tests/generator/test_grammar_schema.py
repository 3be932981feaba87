"""Schemas that cannot be kept are refused with a reason, before anything is computed."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from generator.grammar_cases import MAX_SCHEMA_CHARS, open_demo, read_allowed, request_of

from deployments.errors import InvalidRequest
from deployments.generator.grammar_schema import MAX_DIVISOR, MAX_SCHEMA_DEPTH, to_llguidance
from deployments.types import Grammar


def nested(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON that can be read"),
        ("{", "no JSON that can be read"),
        ("[" * 20_000, "no JSON that can be read"),
        ("true", "must be an object"),
        ("[]", "must be an object"),
        ('{"title": "' + "x" * MAX_SCHEMA_CHARS + '"}', "at most 65536 are allowed"),
        (json.dumps(nested(MAX_SCHEMA_DEPTH + 1)), "nested more than 64 levels"),
        ('{"x-guidance": {"lenient": true}}', "x-guidance is no part of JSON Schema"),
        ('{"minProperties": 2}', "minProperties is 2"),
        (
            '{"items": {"properties": {"a": {"anyOf": [{"minProperties": 3, "required": ["a", "b"]}]}}}}',
            "minProperties",
        ),
        (f'{{"multipleOf": {MAX_DIVISOR + 1}}}', "least common multiple"),
        ('{"allOf": [{"multipleOf": 97}, {"multipleOf": 0.89}]}', "least common multiple"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        to_llguidance(Grammar("json_schema", text), MAX_SCHEMA_CHARS)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        {"minProperties": 1},
        {"minProperties": 2, "properties": {"a": {}, "b": {}}, "required": ["a", "b"]},
        {"properties": {"minProperties": {"const": 7}, "multipleOf": {"multipleOf": 1000}}},
        {"enum": [{"minProperties": 9}]},
        {"multipleOf": 0.001},
        nested(MAX_SCHEMA_DEPTH - 2),
    ],
)
def test_what_only_looks_like_it_is_not(schema: dict[str, object]) -> None:
    assert to_llguidance(Grammar("json_schema", json.dumps(schema)), MAX_SCHEMA_CHARS)


def test_json_object_takes_no_schema() -> None:
    with pytest.raises(InvalidRequest, match="takes no schema"):
        to_llguidance(Grammar("json_object", "{}"), MAX_SCHEMA_CHARS)


UNSUPPORTED = [
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"not": {"type": "string"}}, "not"),
    ({"if": {}, "then": {}}, "if"),
    ({"propertyNames": {"pattern": "a"}}, "propertyNames"),
    ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"contains": {"type": "integer"}}, "contains"),
    ({"unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"$dynamicRef": "#a"}, "dynamicRef"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
    ({"type": "string", "format": "shoe-size"}, "shoe-size"),
    ({"type": "string", "pattern": "^(?=a)b"}, "look-around"),
    ({"$ref": "http://example.com/x.json"}, "example.com"),
    ({"$ref": "#/$defs/none"}, "none"),
    ({"type": "shoe"}, "shoe"),
    ({"enum": []}, "empty"),
    ({"type": "number", "minimum": 3, "maximum": 2}, "minimum"),
    ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
    ({"$ref": "#"}, "no document was found"),
    (
        {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1}}, "$ref": "#/$defs/n"},
        "no document was found",
    ),
]


@pytest.mark.torch
@pytest.mark.parametrize(("schema", "words"), UNSUPPORTED)
def test_what_is_not_supported_is_named(schema: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        open_demo("smolvlm")(request_of(schema), 100)
    assert caught.value.param == "response_format"


def _doubling(levels: int) -> dict[str, object]:
    """A document of 2^levels objects."""
    names = {
        f"d{n}": {"required": ["a", "b"], "additionalProperties": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(levels)
    }
    names = {name: {"type": "object", **schema} for name, schema in names.items()}
    return {"$defs": {**names, f"d{levels}": {"type": "object"}}, "$ref": "#/$defs/d0"}


HOSTILE = {
    "nested counts": {"type": "string", "pattern": "(a{1,100}){1,100}b(c{1,100}){1,100}"},
    "many states": {"type": "string", "pattern": "^(.*a.{20}){3}$"},
    "long pattern": {"type": "string", "pattern": "^.{60000,70000}$"},
    "long text": {"type": "string", "minLength": 1000, "maxLength": 10**9},
    "many items": {"type": "array", "minItems": 5000, "maxItems": 10**9},
    "many values": {"enum": [f"{number}" * 5 for number in range(2000)]},
    "many optional texts": {"properties": {f"p{n}": {"type": "string", "format": "uri"} for n in range(600)}},
    "doubling": _doubling(40),
    "many joined": {"allOf": [{"anyOf": [{"required": [f"a{n}"]}, {"required": [f"b{n}"]}]} for n in range(20)]},
}


@pytest.mark.torch
@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_take_long_is_done_soon_or_refused(name: str) -> None:
    began = time.perf_counter()
    with contextlib.suppress(InvalidRequest):
        mask = open_demo("smolvlm")(request_of(HOSTILE[name]), 800)
        assert mask is not None
        for _ in range(3):
            assert read_allowed(mask, 684)  # type: ignore[arg-type]
    assert time.perf_counter() - began < 5, "on a busy machine"
