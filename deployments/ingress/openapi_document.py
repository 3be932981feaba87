"""FastAPI's OpenAPI document made fit to read: names, summaries, examples, links, and a name for every shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from fastapi import FastAPI

from deployments.ingress.openapi_words import EMPTY_ONLY, MEANINGS, NULL_ONLY, OPERATIONS, Operation

Json: TypeAlias = dict[str, Any]  # OpenAPI, which has no narrower type
JSON = "application/json"
REFERENCE = "#/components/schemas/"


class DocumentedApp(FastAPI):
    """An app whose /openapi.json is the completed one."""

    def openapi(self) -> Json:
        if self.openapi_schema is None:
            self.openapi_schema = _completed(super().openapi())
        return self.openapi_schema


def _completed(document: Json) -> Json:
    document = _with_whole_numbers(document)
    shapes: Json = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _describe(operation, OPERATIONS[method, path])
            if "requestBody" in operation:
                operation["requestBody"]["content"] = _contents(operation["requestBody"]["content"], shapes)
    for shape in shapes.values():
        _add_meanings(shape)
    return document


def _describe(operation: Json, words: Operation) -> None:
    operation["operationId"], operation["summary"] = words.id, words.summary
    for parameter in operation.get("parameters", ()):
        if not parameter.get("description"):
            parameter["description"] = MEANINGS[parameter["name"]]
    if words.example is not None:
        operation["requestBody"]["content"][JSON]["example"] = words.example
    if words.leads_to:
        success = next(reply for status, reply in operation["responses"].items() if status.startswith("2"))
        success["links"] = {
            target: {"operationId": target, "parameters": {parameter: place}}
            for target, (parameter, place) in words.leads_to.items()
        }


def _contents(contents: Json, shapes: Json) -> Json:
    """JSON first: it is what /docs sends then, whose forms hold every field, empty ones as well."""
    for content in contents.values():
        schema = content["schema"]
        content["schema"] = {  # its own place keeps it whole: the page shows its fields there
            key: value if key == "examples" else _named(value, shapes) for key, value in schema.items()
        }
        _add_meanings(content["schema"])
    return dict(sorted(contents.items(), key=lambda each: each[0] != JSON))


def _add_meanings(shape: Json) -> None:
    for name, each in shape.get("properties", {}).items():
        words = _refusal(each) or MEANINGS.get(f"{shape.get('title')}.{name}") or MEANINGS.get(name)
        if words is not None and not each.get("description"):
            each["description"] = words


def _refusal(schema: Json) -> str | None:
    """What is said of a field that takes nothing that could count."""
    if schema.get("type") == "null":
        return NULL_ONLY
    kinds = schema.get("anyOf", ())
    return EMPTY_ONLY if any(0 in (each.get("maxItems"), each.get("maxProperties")) for each in kinds) else None


def _named(schema: Any, shapes: Json) -> Any:
    """With a reference in place of each object that has a title, which is put among the shapes."""
    if isinstance(schema, list):
        return [_named(each, shapes) for each in schema]
    if not isinstance(schema, dict):
        return schema
    whole = {key: each if key == "examples" else _named(each, shapes) for key, each in schema.items()}
    title = whole.get("title")
    if whole.get("type") != "object" or "properties" not in whole or not isinstance(title, str):
        return whole
    name = next(each for each in _names(title) if shapes.get(each, whole) == whole)
    shapes[name] = whole
    return {"$ref": f"{REFERENCE}{name}"}


def _names(title: str) -> Iterator[str]:
    """What is asked and what is answered may bear the same title and differ."""
    yield title
    yield f"{title}Asked"
    raise AssertionError(f"three different shapes are called {title}")


def _with_whole_numbers(value: Any) -> Any:
    """FastAPI makes floats of the limits of integers, which are no longer exact then."""
    if isinstance(value, dict):
        return {key: _with_whole_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_whole_numbers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
