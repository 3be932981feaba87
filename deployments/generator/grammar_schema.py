"""Turns what a request asks of its answer's form into llguidance's grammar, or says what of it is not possible."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal

from deployments.errors import InvalidRequest
from deployments.types import Grammar

PARAM = "response_format"
MAX_SCHEMA_DEPTH = 64  # of the schema's own JSON
MAX_DIVISOR = 1_000  # llguidance builds as many states, and without a limit
MAX_PATTERN_NAMES = 64  # in all: llguidance compares each pattern with each other, for minutes where there are 1,000
OF_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # schemas by name
NO_SCHEMAS = ("enum", "const", "default", "examples", "required")


def to_llguidance(grammar: Grammar, max_schema_chars: int) -> str:
    """Raises InvalidRequest for what is no JSON Schema, and for some of what llguidance would take and not keep."""
    from llguidance import LLMatcher

    schema = _read(grammar, max_schema_chars)
    try:
        # At most one space, where people put one. Any white space, as JSON has it, is what small models ramble in;
        # none at all is what models rarely saw.
        return LLMatcher.grammar_from_json_schema(
            json.dumps(schema),
            overrides={"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"},
        )
    except ValueError as error:
        raise refuse(str(error)) from error


def refuse(reason: str) -> InvalidRequest:
    return InvalidRequest(f"answers cannot be made to fit this JSON schema: {reason}", PARAM)


def _read(grammar: Grammar, max_schema_chars: int) -> Mapping[str, object]:
    if grammar.kind == "json_object":
        if grammar.schema:
            raise InvalidRequest("json_object takes no schema; json_schema does", PARAM)
        return {"type": "object"}
    if len(grammar.schema) > max_schema_chars:
        raise InvalidRequest(
            f"the JSON schema has {len(grammar.schema)} characters; at most {max_schema_chars} are allowed", PARAM
        )
    try:
        schema = json.loads(grammar.schema)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the JSON schema is no JSON that can be read: {error}", PARAM) from error
    if not isinstance(schema, dict):
        raise InvalidRequest("the JSON schema must be an object", PARAM)
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise InvalidRequest(f"the JSON schema is nested more than {MAX_SCHEMA_DEPTH} levels deep", PARAM)
    if "x-guidance" in schema:
        raise InvalidRequest("x-guidance is no part of JSON Schema; leave it out", PARAM)
    parts = list(_schemas(schema))
    for part in parts:
        _require_countable(part)
    _require_small_divisors(parts)
    _require_few_patterns(parts)
    return schema


def _require_countable(schema: Mapping[str, object]) -> None:
    """Names that a schema does not list may come twice, and then count twice in the grammar and once for readers."""
    least, required = schema.get("minProperties"), schema.get("required")
    num_required = len(required) if isinstance(required, list) else 0
    if isinstance(least, int | float) and least > max(1, num_required):
        raise refuse(f"minProperties is {least}, more than 1 and more than `required` names")


def _require_small_divisors(schemas: Iterable[Mapping[str, object]]) -> None:
    """All together, since schemas that are joined have their least common multiple. Powers of ten cost nothing."""
    multiple = 1
    for schema in schemas:
        divisor = schema.get("multipleOf")
        if not isinstance(divisor, int | float) or not math.isfinite(divisor) or divisor <= 0:
            continue  # llguidance says what is wrong with it
        digits = "".join(map(str, Decimal(str(divisor)).as_tuple().digits)).rstrip("0")
        multiple = math.lcm(multiple, int(digits))
        if multiple > MAX_DIVISOR:
            raise refuse(f"multipleOf {divisor} has, with the others, more than {MAX_DIVISOR} as least common multiple")


def _require_few_patterns(schemas: Iterable[Mapping[str, object]]) -> None:
    named = [patterns for schema in schemas if isinstance(patterns := schema.get("patternProperties"), dict)]
    count = sum(map(len, named))
    if count > MAX_PATTERN_NAMES:
        raise refuse(f"patternProperties has {count} patterns in all; at most {MAX_PATTERN_NAMES} are allowed")


def _schemas(schema: object) -> Iterator[Mapping[str, object]]:
    """A schema and those within it."""
    if isinstance(schema, list):
        for each in schema:
            yield from _schemas(each)
    if not isinstance(schema, dict):
        return
    yield schema
    for key, value in schema.items():
        if key in NO_SCHEMAS:
            continue
        if key in OF_NAMES and isinstance(value, dict):
            yield from _schemas(list(value.values()))
        else:
            yield from _schemas(value)


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level := [child for each in level for child in _children(each)]:
        depth += 1
    return depth


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
