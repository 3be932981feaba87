"""JSON that the fake generator answers with where a grammar is asked for: the least that fits. Pure.

Of JSON Schema it knows what describes a shape; whatever narrows a value further is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deployments.errors import InvalidRequest
from deployments.types import Grammar

Schema = Mapping[str, Any]  # as JSON gives it

REMARKS = {"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated"}
SHAPES = {"type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref", "$defs"}
MAX_DEPTH = 32  # of a document; schemas may speak of themselves
LEAST: Mapping[str, object] = {"integer": 0, "number": 0, "boolean": False, "null": None, "array": []}


def document(grammar: Grammar, text: str) -> str:
    """Says `text` wherever a string belongs. Raises InvalidRequest."""
    if grammar.kind == "json_object":
        return json.dumps({"answer": text}, ensure_ascii=False)
    try:
        schema = json.loads(grammar.schema)
    except ValueError as error:
        raise _refusal(f"the schema is not JSON: {error}") from error
    return json.dumps(_Writer(schema, text).write(schema), ensure_ascii=False)


class _Writer:
    def __init__(self, root: object, text: str) -> None:
        self._root = root
        self._text = text

    def write(self, schema: object, depth: int = 0) -> object:
        if depth > MAX_DEPTH:
            raise _refusal(f"the fake model writes no documents deeper than {MAX_DEPTH}")
        if schema is True:
            return self._text
        if not isinstance(schema, dict):
            raise _refusal(f"nothing fits the schema {json.dumps(schema)}")
        if unknown := sorted(schema.keys() - REMARKS - SHAPES):
            raise _refusal(f"the fake model knows no {unknown[0]!r} in schemas; it knows {', '.join(sorted(SHAPES))}")
        return self._write_known(schema, depth)

    def _write_known(self, schema: Schema, depth: int) -> object:
        if "$ref" in schema:
            return self.write(self._resolve(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][0]
        if schema.get("anyOf"):
            return self.write(schema["anyOf"][0], depth + 1)
        kinds = schema.get("type", "object" if "properties" in schema else "string")
        kind = kinds[0] if isinstance(kinds, list) and kinds else kinds
        if kind == "object":
            return self._write_object(schema, depth)
        if kind == "string":
            return self._text
        if kind not in LEAST:
            raise _refusal(f"{kind!r} is no type of JSON Schema")
        return LEAST[kind]

    def _write_object(self, schema: Schema, depth: int) -> object:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        ordered = [name for name in properties if name in required]
        ordered += [name for name in required if name not in properties]
        return {name: self.write(properties.get(name, True), depth + 1) for name in ordered}

    def _resolve(self, reference: object) -> object:
        """Of pointers into this schema: "#", "#/$defs/Name"."""
        found = self._root
        for name in str(reference).removeprefix("#").split("/")[1:]:
            if not isinstance(found, dict) or name not in found:
                raise _refusal(f"the schema has no {reference!r}")
            found = found[name]
        return found


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(reason, "response_format")
