"""The OpenAPI document says what every route and field is; its examples fit, and its links lead to routes there are."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from deployments.ingress.app import openapi_document
from deployments.ingress.openapi_words import OPERATIONS

DOCUMENT = json.loads(json.dumps(openapi_document()))
SHAPES = DOCUMENT["components"]["schemas"]
ROUTES = {(method, path): each for path, methods in DOCUMENT["paths"].items() for method, each in methods.items()}


def test_every_route_is_named_and_no_route_is_named_that_is_not() -> None:
    assert ROUTES.keys() == OPERATIONS.keys()
    names = [each["operationId"] for each in ROUTES.values()]
    assert len(set(names)) == len(names)
    assert all(each["summary"] for each in ROUTES.values())


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_parameters_and_fields_of_bodies_say_what_they_are(route: tuple[str, str]) -> None:
    described = [*ROUTES[route].get("parameters", ())]
    for content in ROUTES[route].get("requestBody", {}).get("content", {}).values():
        described += [{"name": name, **each} for name, each in content["schema"].get("properties", {}).items()]
    assert [each["name"] for each in described if not each.get("description")] == []


def test_examples_fit_their_bodies() -> None:
    num_checked = 0
    for operation in ROUTES.values():
        for content in operation.get("requestBody", {}).get("content", {}).values():
            if "example" in content:
                schema = {**content["schema"], "components": DOCUMENT["components"]}
                jsonschema.validate(content["example"], schema)
                num_checked += 1
    assert num_checked == sum(each.example is not None for each in OPERATIONS.values())


def test_links_take_an_id_out_of_the_reply_to_a_route_that_wants_it() -> None:
    targets = {each["operationId"]: each for each in ROUTES.values()}
    num_followed = 0
    for operation in ROUTES.values():
        for status, reply in operation["responses"].items():
            for link in reply.get("links", {}).values():
                assert status in ("200", "201")
                ((parameter, place),) = link["parameters"].items()
                assert parameter in {each["name"] for each in targets[link["operationId"]]["parameters"]}
                first = re.fullmatch(r"\$response\.body#/(\w+).*", place)
                assert first is not None
                shape = _resolved(reply["content"]["application/json"]["schema"])
                assert first[1] in shape["properties"]
                num_followed += 1
    assert num_followed >= 16


def test_shapes_within_bodies_are_named_and_every_reference_leads_to_one() -> None:
    text = json.dumps(DOCUMENT)
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert named <= SHAPES.keys()
    assert {"UserMessageBody", "ImageUrlBody", "InputImage", "JsonSchemaBody"} <= named
    messages = ROUTES["post", "/v1/chat/completions"]["requestBody"]["content"]["application/json"]["schema"]
    assert {each["$ref"].rpartition("/")[2] for each in messages["properties"]["messages"]["items"]["oneOf"]} == {
        "SystemMessageBody",
        "UserMessageBody",
        "AssistantMessageBody",
    }


def test_limits_of_whole_numbers_are_whole() -> None:
    assert not re.search(r'"(minimum|maximum)": -?[0-9.]+e\+', json.dumps(DOCUMENT))


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    return SHAPES[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
