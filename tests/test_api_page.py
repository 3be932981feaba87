"""The API's page says of each route and shape what the document says."""

from __future__ import annotations

from deployments.api_page import api_page

DOCUMENT = {
    "paths": {
        "/things/{thing_id}": {
            "post": {
                "tags": ["things"],
                "description": "Make a thing.",
                "parameters": [
                    {"name": "thing_id", "in": "path", "required": True, "schema": {"type": "string"}},
                    {
                        "name": "limit",
                        "in": "query",
                        "description": "At most so many.",
                        "schema": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"type": "null"}]},
                    },
                ],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
                "responses": {
                    "200": {
                        "description": "OK",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}},
                    },
                    "304": {"description": "It is as it was."},
                },
            }
        }
    },
    "components": {
        "schemas": {
            "Thing": {
                "type": "object",
                "description": "A thing.",
                "required": ["kind"],
                "properties": {
                    "kind": {"enum": ["a", "b"], "description": "One | the other."},
                    "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Thing"}, "maxItems": 3},
                    "share": {"type": "number", "exclusiveMinimum": 0, "default": 0.5},
                },
            }
        }
    },
}


def test_routes_and_shapes() -> None:
    page = api_page(DOCUMENT)
    for line in (
        "## things",
        "### `POST /things/{thing_id}`",
        "Make a thing.",
        "| `thing_id` (path) | string | required |  |",
        "| `limit` (query) | integer ≥ 1 ≤ 9 or null |  | At most so many. |",
        "Body: `application/json`.",
        "It is: [Thing](#thing)",
        "| 200 | `application/json` | [Thing](#thing) |",
        "| 304 | | It is as it was. |",
        "### Thing",
        "A thing.",
        "| `kind` | `a`, `b` | required | One \\| the other. |",
        "| `parts` | list of [Thing](#thing) items ≤ 3 |  |  |",
        "| `share` | number > 0 | `0.5` |  |",
    ):
        assert line in page.splitlines(), line
