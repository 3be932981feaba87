"""What the fake generator writes for a grammar fits it, or is refused by name."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel

from deployments.errors import InvalidRequest
from deployments.fake_documents import document
from deployments.types import Grammar

TEXT = 'She said "うん",\nand left.'


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Shape(BaseModel):
    name: str
    colour: Colour
    sides: int
    area: float | None
    is_filled: bool
    parts: list[Shape]
    remark: str = "none"


class Scene(BaseModel):
    """Speaks of others by reference."""

    shape: Shape
    kind: str | int


def test_any_object() -> None:
    assert json.loads(document(Grammar("json_object"), TEXT)) == {"answer": TEXT}


def test_models_of_pydantic_read_it_back() -> None:
    schema = json.dumps(Scene.model_json_schema())
    scene = Scene.model_validate_json(document(Grammar("json_schema", schema), TEXT))
    assert scene.shape == Shape(name=TEXT, colour=Colour.RED, sides=0, area=0, is_filled=False, parts=[])
    assert scene.kind == TEXT


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (True, TEXT),
        ({}, TEXT),
        ({"title": "Anything"}, TEXT),
        ({"type": ["null", "string"]}, None),
        ({"const": [1, 2]}, [1, 2]),
        ({"enum": [3, 4]}, 3),
        ({"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["b"]}, {"b": 0}),
        ({"type": "object", "required": ["x"]}, {"x": TEXT}),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "number"}}}, 0),
    ],
)
def test_shapes(schema: object, expected: object) -> None:
    assert json.loads(document(Grammar("json_schema", json.dumps(schema)), TEXT)) == expected


ENDLESS: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "not JSON"),
        ("false", "nothing fits"),
        ("3", "nothing fits"),
        ('{"type": "string", "pattern": "a+"}', "'pattern'"),
        ('{"type": "array", "minItems": 1}', "'minItems'"),
        ('{"type": "date"}', "'date'"),
        ('{"$ref": "#/$defs/Missing"}', "Missing"),
        (json.dumps(ENDLESS), "deeper"),
    ],
)
def test_refusals(schema: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        document(Grammar("json_schema", schema), TEXT)
