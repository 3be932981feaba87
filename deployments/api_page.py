"""The HTTP API as Markdown, made of the OpenAPI document: docs/api.md is what `retina openapi --markdown` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]  # a JSON Schema, which has no narrower type
Route = tuple[str, str, Schema]  # tag, method and path, operation

INTRODUCTION = """# HTTP API

Made of the OpenAPI document, which a running service has at `/openapi.json`; `/docs` there lets you try every route.
This page is what `retina openapi --markdown` prints. Examples that work as pasted stand in the README.
"""
REFERENCE = "#/components/schemas/"
EVENTS = "text/event-stream"
METHODS = ("post", "get", "put", "patch", "delete")
BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "minLength": "length ≥",
    "maxLength": "length ≤",
    "minItems": "items ≥",
    "maxItems": "items ≤",
}


def api_page(document: Mapping[str, Any]) -> str:
    """All routes by tag, then all named shapes."""
    routes = list(_routes(document["paths"]))
    parts = (INTRODUCTION, *_contents(routes), *_sections(routes), *_shapes(document["components"]["schemas"]))
    return "".join(parts)


def _routes(paths: Schema) -> Iterator[Route]:
    """By tag, the tags in the order in which they first come."""
    routes = [
        (operations[method].get("tags", ["other"])[0], f"{method.upper()} {path}", operations[method])
        for path, operations in paths.items()
        for method in METHODS
        if method in operations
    ]
    for tag in dict.fromkeys(tag for tag, _, _ in routes):
        yield from (route for route in routes if route[0] == tag)


def _contents(routes: list[Route]) -> Iterator[str]:
    yield "\n| route | |\n|---|---|\n"
    for _, name, operation in routes:
        yield f"| [`{name}`](#{_anchor(name)}) | {_cell(operation.get('summary', ''))} |\n"


def _sections(routes: list[Route]) -> Iterator[str]:
    before = None
    for tag, name, operation in routes:
        if tag != before:
            before = tag
            yield f"\n## {tag}\n"
        yield f"\n### `{name}`\n"
        yield from _operation(operation)


def _operation(operation: Schema) -> Iterator[str]:
    if text := operation.get("description"):
        yield f"\n{text.strip()}\n"
    if parameters := operation.get("parameters"):
        yield _table("parameter", (_parameter_row(each) for each in parameters))
    if body := operation.get("requestBody"):
        yield from _body(body)
    yield "\n| status | content | body |\n|---|---|---|\n"
    for status, reply in sorted(operation["responses"].items()):
        yield from _reply_rows(status, reply)


def _parameter_row(parameter: Schema) -> str:
    schema = {**parameter["schema"], "description": parameter.get("description")}
    return _row(f"`{parameter['name']}` ({parameter['in']})", schema, parameter.get("required", False))


def _body(body: Schema) -> Iterator[str]:
    kinds = {kind: content.get("schema", {}) for kind, content in body["content"].items()}
    yield f"\nBody: {', '.join(f'`{kind}`' for kind in kinds)}.\n"
    schema = kinds.get("application/json") or next(iter(kinds.values()))
    if "properties" in schema:
        yield _table("field", _property_rows(schema))
    elif words := _type(schema):
        yield f"\nIt is: {words}\n"
    if example := body["content"].get("application/json", {}).get("example"):
        yield f"\n```json\n{json.dumps(example, indent=2, ensure_ascii=False)}\n```\n"


def _reply_rows(status: str, reply: Schema) -> Iterator[str]:
    contents = reply.get("content", {})
    if not contents:
        yield f"| {status} | | {_cell(reply.get('description', ''))} |\n"
    for kind, content in contents.items():
        words = _type(content.get("schema", {})) or ("as said above" if kind == EVENTS else "the bytes")
        yield f"| {status} | `{kind}` | {words} |\n"


def _shapes(schemas: Schema) -> Iterator[str]:
    yield "\n## Shapes\n"
    for name in sorted(schemas):
        yield f"\n### {name}\n"
        schema = schemas[name]
        if text := schema.get("description"):
            yield f"\n{text.strip()}\n"
        if "properties" in schema:
            yield _table("field", _property_rows(schema))
        elif schema.get("type") != "object":
            yield f"\n{_type(schema)}\n"


def _property_rows(schema: Schema) -> Iterator[str]:
    required = schema.get("required", ())
    for name, each in schema["properties"].items():
        yield _row(f"`{name}`", each, name in required)


def _table(what: str, rows: Iterator[str]) -> str:
    return f"\n| {what} | type | default | meaning |\n|---|---|---|---|\n" + "".join(rows)


def _row(label: str, schema: Schema, is_required: bool) -> str:
    default = "required" if is_required else _default(schema)
    return f"| {label} | {_type(schema)} | {default} | {_cell(schema.get('description') or '')} |\n"


def _default(schema: Schema) -> str:
    return f"`{_word(schema['default'])}`" if schema.get("default") not in (None, [], {}) else ""


def _type(schema: Schema) -> str:
    """In a few words, with links to named shapes."""
    if reference := schema.get("$ref"):
        name = reference.removeprefix(REFERENCE)
        return f"[{name}](#{_anchor(name)})"
    if "const" in schema:
        return f"`{_word(schema['const'])}`"
    if choices := schema.get("enum"):
        return ", ".join(f"`{_word(choice)}`" for choice in choices)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(each) for each in schema[key]))
    return _plain_type(schema)


def _plain_type(schema: Schema) -> str:
    kind = schema.get("type", "anything" if schema else "")
    if 0 in (schema.get("maxItems"), schema.get("maxProperties")):
        return "empty list" if kind == "array" else "empty object"
    if kind == "array":
        inner = _type(schema.get("items", {}))
        kind = f"list of {inner}" if inner else "list"
    elif kind == "object" and isinstance(values := schema.get("additionalProperties"), Mapping) and values:
        kind = f"object of {_type(values)}"
    elif schema.get("format") == "binary":
        kind = "file"
    bounds = " ".join(f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema)
    return f"{kind} {bounds}".strip()


def _word(value: object) -> str:
    """As in JSON, but for texts, which stand without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9_-]", "", name.lower().replace(" ", "-"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
