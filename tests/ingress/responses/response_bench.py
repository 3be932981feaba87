"""What the tests of /v1/responses work with: requests, events read raw and checked, replicas over one set of stores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import httpx
from httpx_sse import EventSource
from ingress.bench import Bench, data_url, picture
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

RED = data_url(picture(size=(40, 30)))
WIDE = data_url(picture(size=(80, 20)))
ORDER = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
_sdk_events: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)

Body = dict[str, Any]


def message(*parts: object, role: str = "user") -> Body:
    """Texts as they are, data URLs as image_url."""
    return {"role": role, "content": [part if isinstance(part, dict) else _part(str(part)) for part in parts]}


def image(url: str, **fields: object) -> Body:
    return {"type": "input_image", "image_url": url, **fields}


def _part(value: str) -> Body:
    return image(value) if value.startswith("data:") else {"type": "input_text", "text": value}


async def post(bench: Bench, question: object = "Hello", **fields: object) -> httpx.Response:
    return await bench.client.post("/v1/responses", json={"input": question, **fields})


async def create(bench: Bench, question: object = "Hello", **fields: object) -> Body:
    """The response; asserts that OpenAI's SDK reads it."""
    return read(await post(bench, question, **fields))


async def fetch(bench: Bench, response_id: str) -> Body:
    return read(await bench.client.get(f"/v1/responses/{response_id}"))


def read(reply: httpx.Response) -> Body:
    assert reply.status_code == 200, reply.text
    Response.model_validate(reply.json())
    return dict(reply.json())


def said(response: Body) -> str:
    return Response.model_validate(response).output_text


async def stream(bench: Bench, question: object = "Hello", **fields: object) -> list[Body]:
    return events_of(await post(bench, question, stream=True, **fields))


def events_of(reply: httpx.Response, first: int = 0) -> list[Body]:
    """Data of all events; asserts what holds of every stream: names, ids and numbers in a row, [DONE] once at the end,
    and that OpenAI's SDK reads each event.
    """
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    sent = list(EventSource(reply).iter_sse())
    assert [each.data for each in sent].index("[DONE]") == len(sent) - 1
    assert "id: " not in reply.text.rsplit("\n\n", 2)[1]
    events = [each.json() for each in sent[:-1]]
    assert [each.event for each in sent[:-1]] == types_of(events)
    assert [each.id for each in sent[:-1]] == [str(event["sequence_number"]) for event in events]
    assert [event["sequence_number"] for event in events] == list(range(first, first + len(events)))
    for event in events:
        _sdk_events.validate_python(event)
    return events


def types_of(events: Iterable[Mapping[str, object]]) -> list[object]:
    return [event["type"] for event in events]


def text_of(events: Iterable[Body]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def without_repeats(types: list[object]) -> list[object]:
    """Each type once where it comes several times in a row."""
    return [kind for index, kind in enumerate(types) if index == 0 or types[index - 1] != kind]


async def chat(bench: Bench, text: str, session_id: str | None = None, **fields: object) -> Body:
    reply = await bench.ask(text, session_id=session_id, **fields)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def session_of(response: Body) -> str:
    return str(response["conversation"]["id"])
