"""What tests of grammars share: schemas, vocabularies, and walks in which chance stands for a model. No torch model."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
from tokenizers import Tokenizer

from deployments.generator.grammar import Grammars
from deployments.generator.grammar_vocabulary import Vocabulary
from deployments.types import GenerateRequest, Grammar, Message, SamplingParams, TextPart

if TYPE_CHECKING:
    from deployments.generator.grammar_mask import GrammarMask

CHECKPOINTS = Path(__file__).parents[2] / "demo" / "checkpoints"
FAMILIES = {"smolvlm": "smolvlm", "moondream": "moondream", "qwen2_vl": "qwen2_vl", "llava": "llava"}
MAX_SCHEMA_CHARS = 65_536

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 40},
        "age": {"type": "integer", "minimum": 10, "maximum": 5000},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 5},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "tags", "address"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": ["integer", "null"]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: Mapping[str, dict[str, Any]] = {
    "anything": {},
    "object": {"type": "object"},
    "string": {"type": "string"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "array": {"type": "array"},
    "several types": {"type": ["string", "number", "null"]},
    "person": PERSON,
    "tree": TREE,
    "late need": {
        "type": "object",
        "properties": {f"option{number}": {"type": "string", "minLength": 9} for number in range(8)} | {"last": {}},
        "required": ["last"],
    },
    "not in properties": {"type": "object", "required": ["answer"], "additionalProperties": {"type": "integer"}},
    "closed": {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False},
    "map": {"type": "object", "additionalProperties": {"type": "number"}, "maxProperties": 3},
    "pattern names": {"type": "object", "patternProperties": {"^x_": {"type": "integer"}}},
    "lists": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}, "minItems": 2}, "minItems": 2},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
    "enum": {"enum": ["a rather long choice", "short", 12, None, True, {"a": [1]}]},
    "branches": {
        "anyOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "long"}, "text": {"type": "string", "minLength": 30}},
                "required": ["kind", "text"],
            },
            {"type": "object", "properties": {"kind": {"const": "none"}}, "required": ["kind"]},
        ]
    },
    "one of": {"oneOf": [{"type": "string", "maxLength": 6}, {"type": "integer"}]},
    "all of": {"allOf": [{"type": "object", "properties": {"a": {"type": "string"}}}, {"required": ["a"]}]},
    "bounds": {"type": "number", "exclusiveMinimum": 1.5, "maximum": 1.75},
    "great number": {"type": "integer", "minimum": 10**12},
    "multiples": {"type": "integer", "minimum": 1000, "multipleOf": 7},
    "loop": {"type": "string", "pattern": "^(ab)*c$"},
    "long loop": {"type": "string", "pattern": "^(ab){3,}X?c$"},
    "words": {"type": "string", "pattern": "^[a-z]+( [a-z]+){2,}$"},
    "greek": {"type": "string", "pattern": "^[α-ω]{2,5}$"},
    "late letter": {"type": "string", "pattern": "^[a-zé]*é$"},
    "unicode": {"const": {"ü日": ["😀", None, 'quote " and \\']}},
    "date": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "escapes": {"type": "string", "minLength": 2, "maxLength": 3},
    "described": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "T",
        "description": "D",
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "blue"], "default": "red"}},
        "required": ["colour"],
    },
}


@dataclass(frozen=True)
class Walk:
    text: str
    num_tokens: int  # with the one that stops
    num_revised: int
    token_ids: tuple[int, ...]  # without it


def request_of(schema: object, *, request_id: str = "r", max_new_tokens: int = 100, **sampling: Any) -> GenerateRequest:
    """None asks for any object."""
    grammar = Grammar("json_object") if schema is None else Grammar("json_schema", json.dumps(schema))
    wish = SamplingParams(max_new_tokens=max_new_tokens, grammar=grammar, **sampling)
    return GenerateRequest(request_id, "tenant", (Message("user", (TextPart("As JSON, please"),)),), wish, 60)


@cache
def open_demo(name: str) -> Grammars:
    """Grammars over a demo checkpoint's vocabulary, with stop tokens of a number of their own."""
    return open_over(Tokenizer.from_file(str(CHECKPOINTS / name / "tokenizer.json")))


def open_over(tokenizer: Tokenizer, num_unused: int = 37) -> Grammars:
    """As many ids as `num_unused` are the model's alone."""
    added = sorted(token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    size = tokenizer.get_vocab_size() + num_unused
    return Grammars(Vocabulary(tokenizer.to_str(), size, added[-2:]), MAX_SCHEMA_CHARS)


def read_allowed(mask: GrammarMask, vocab_size: int) -> list[int]:
    import numpy as np
    import torch

    words = torch.zeros(1, -(-vocab_size // 32), dtype=torch.int32)
    mask.fill(words)
    bits = np.unpackbits(words.numpy().view(np.uint8), bitorder="little")
    return [int(token_id) for token_id in np.flatnonzero(bits)]


def walk(grammars: Grammars, tokenizer: Tokenizer, schema: object, max_new_tokens: int, chance: random.Random) -> Walk:
    """An answer in which each token is drawn from all that are allowed, alike."""
    mask = grammars(request_of(schema), max_new_tokens)
    assert mask is not None
    vocab_size = tokenizer.get_vocab_size() + 37
    token_ids: list[int] = []
    num_revised = 0
    for _ in range(max_new_tokens):
        allowed = read_allowed(mask, vocab_size)  # type: ignore[arg-type]
        assert allowed, token_ids
        drawn = chance.choice(allowed)
        token_id = mask.revise(drawn)
        num_revised += token_id != drawn
        mask.accept(token_id)
        if token_id in grammars._vocabulary.stop_token_ids:
            text = tokenizer.decode(token_ids, skip_special_tokens=True)
            return Walk(text, len(token_ids) + 1, num_revised, tuple(token_ids))
        token_ids.append(token_id)
    raise AssertionError(f"no end after {max_new_tokens} tokens: {tokenizer.decode(token_ids)!r}")


def require_valid(text: str, schema: object) -> object:
    """The document. Raises AssertionError for what is no JSON of this schema."""
    text.encode()  # no half characters
    document = json.loads(text, parse_constant=lambda name: pytest_fail(name))
    try:
        jsonschema.validate(document, {"type": "object"} if schema is None else schema)
    except jsonschema.ValidationError as error:
        raise AssertionError(f"{text!r} does not fit: {error.message}") from error
    return document


def pytest_fail(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
