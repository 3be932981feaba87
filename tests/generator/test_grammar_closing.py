"""Short ends of unfinished documents: they end them for certain, and leave the grammar as it was."""

from __future__ import annotations

import json
import random

import pytest
from generator.grammar_cases import MAX_SCHEMA_CHARS, SCHEMAS, require_valid

from deployments.generator.grammar import _match
from deployments.generator.grammar_closing import Closer
from deployments.generator.grammar_place import Place
from deployments.generator.grammar_schema import to_llguidance
from deployments.generator.grammar_vocabulary import BYTE_STOP, open_bytes
from deployments.types import Grammar

TYPICAL_BYTES = 10_000


def match(schema: object):  # type: ignore[no-untyped-def]
    return _match(to_llguidance(Grammar("json_schema", json.dumps(schema)), MAX_SCHEMA_CHARS), open_bytes())


def shortest(schema: object) -> bytes:
    closer = Closer(match(schema))
    end = closer.improve(Place(), closer.close(Place()), TYPICAL_BYTES)
    assert end is not None
    return end


@pytest.mark.parametrize(
    ("schema", "document"),
    [
        ({}, "0"),
        ({"type": "object"}, "{}"),
        ({"enum": ["aaaaaaaaaa", "b", "ab"]}, '"b"'),
        (SCHEMAS["late need"], '{"last":0}'),
        (SCHEMAS["branches"], '{"kind":"none"}'),
        (SCHEMAS["loop"], '"c"'),
        (SCHEMAS["long loop"], '"abababc"'),
        (SCHEMAS["late letter"], '"é"'),
        (SCHEMAS["not in properties"], '{"answer":0}'),
        (SCHEMAS["tree"], '{"value":0,"next":null}'),
        ({"type": "string", "format": "email"}, '"A@A"'),
        (
            {
                "$defs": {
                    "n": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1}, {"const": 7}]}
                }
            }
            | {"$ref": "#/$defs/n"},
            "7",
        ),
    ],
)
def test_the_shortest_document_is_found(schema: object, document: str) -> None:
    assert shortest(schema).decode() == document


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schemas_shortest_document_fits_it(name: str) -> None:
    require_valid(shortest(SCHEMAS[name]).decode(), SCHEMAS[name])


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("seed", range(3))
def test_an_end_is_found_from_everywhere_and_changes_nothing(name: str, seed: int) -> None:
    chance, matcher, text = random.Random(seed), match(SCHEMAS[name]), bytearray()
    closer = Closer(matcher)
    for _ in range(60):
        before = matcher.compute_bitmask()
        place = Place().after(bytes(text))
        end = closer.close(place)
        assert end is not None, bytes(text)
        assert closer.holds(end)
        better = closer.improve(place, end, 300)
        assert better is not None
        assert len(better) <= len(end)
        require_valid((text + better).decode(), SCHEMAS[name])
        assert matcher.compute_bitmask() == before
        allowed = [byte for byte in range(256) if before[byte // 8] >> byte % 8 & 1]
        if not allowed:
            break
        byte = chance.choice(allowed)
        assert matcher.consume_token(byte)
        text.append(byte)


def test_what_has_no_end_is_told() -> None:
    endless = {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1}}, "$ref": "#/$defs/n"}
    closer = Closer(match(endless))
    assert closer.close(Place()) is None
    assert closer.improve(Place(), None, TYPICAL_BYTES) is None


def test_an_end_ends() -> None:
    matcher = match({"type": "integer"})
    closer = Closer(matcher)
    assert closer.holds(b"12")
    assert not closer.holds(b"-")
    assert not closer.holds(b"x")
    assert matcher.validate_tokens([ord("1"), BYTE_STOP]) == 2
