"""Every surface of one running service gives the same answers; clients that people have work on it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pydantic
import pytest
from conftest import ENDLESS
from huggingface_hub import AsyncInferenceClient
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from service import BIN, ROOT, Service, ask, events
from websockets.sync.client import connect

pytestmark = [pytest.mark.cluster, pytest.mark.torch, pytest.mark.timeout(300)]

PICTURES = ROOT / "demo" / "images"
MODELS = ("smolvlm", "qwen2_vl", "llava", "moondream")
QUESTION = "What do you see in this image?"
PICTURE = PICTURES / "blue-square-and-yellow-star.jpg"


def data_url() -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"


@contextlib.contextmanager
def openai_client(service: Service, **options: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="unused", **options) as client:
        yield client


def by_chat(service: Service, model: str) -> str:
    reply = ask(service, PICTURE.read_bytes(), message=QUESTION, model=model)
    return str(reply.raise_for_status().json()["response"])


def by_chat_events(service: Service, model: str) -> str:
    form = {"message": QUESTION, "model": model, "stream": "true", "resumable": "true"}
    with (
        service.client() as client,
        client.stream("POST", "/chat", data=form, files={"image": PICTURE.read_bytes()}) as reply,
    ):
        return "".join(data["text"] for name, data in events(reply) if name == "chunk")


def by_websocket(service: Service, model: str) -> str:
    with connect(f"{service.url.replace('http', 'ws')}/ws/chat", max_size=None) as socket:
        socket.send(json.dumps({"type": "ask", "message": QUESTION, "image": data_url(), "model": model}))
        pieces: list[str] = []
        for text in socket:
            message = json.loads(text)
            if message["event"] == "done":
                break
            pieces.append(message["data"]["text"] if message["event"] == "chunk" else "")
    return "".join(pieces)


def by_completion(service: Service, model: str) -> str:
    with openai_client(service) as client:
        reply = client.chat.completions.create(model=model, messages=[user_message()])
        return reply.choices[0].message.content or ""


def by_completion_events(service: Service, model: str) -> str:
    with openai_client(service) as client:
        stream = client.chat.completions.create(model=model, messages=[user_message()], stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def by_response(service: Service, model: str) -> str:
    with openai_client(service) as client:
        return client.responses.create(model=model, input=[response_item()]).output_text


def by_response_events(service: Service, model: str) -> str:
    with openai_client(service) as client:
        stream = client.responses.create(model=model, input=[response_item()], stream=True)
        return "".join(event.delta for event in stream if event.type == "response.output_text.delta")


def by_command(service: Service, model: str) -> str:
    command = [BIN / "retina", "chat", "--server", service.url, "-m", model, "-i", PICTURE, "-q", QUESTION]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def by_inference_client(service: Service, model: str) -> str:
    async def ask() -> str:
        async with AsyncInferenceClient(base_url=f"{service.url}/v1", api_key="unused") as client:
            reply = await client.chat_completion([user_message()], model=model)
        return str(reply.choices[0].message.content)

    return asyncio.run(ask())


def by_pydantic_ai(service: Service, model: str) -> str:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="unused") as client:
            agent = Agent(OpenAIChatModel(model, provider=OpenAIProvider(openai_client=client)))
            seen = BinaryContent(PICTURE.read_bytes(), media_type="image/jpeg")
            return str((await agent.run([seen, QUESTION])).output)

    return asyncio.run(ask())


def user_message() -> Any:
    parts = [{"type": "image_url", "image_url": {"url": data_url()}}, {"type": "text", "text": QUESTION}]
    return {"role": "user", "content": parts}


def response_item() -> Any:
    parts = [{"type": "input_image", "image_url": data_url()}, {"type": "input_text", "text": QUESTION}]
    return {"role": "user", "content": parts}


SURFACES: tuple[Callable[[Service, str], str], ...] = (
    by_chat_events,
    by_websocket,
    by_completion,
    by_completion_events,
    by_response,
    by_response_events,
    by_command,
    by_inference_client,
    by_pydantic_ai,
)


@pytest.mark.parametrize("model", MODELS)
def test_the_same_question_by_every_surface_gets_the_same_answer(service: Service, model: str) -> None:
    expected = by_chat(service, model)
    assert "blue square" in expected
    assert {surface.__name__: surface(service, model) for surface in SURFACES} == {
        surface.__name__: expected for surface in SURFACES
    }


def test_a_conversation_goes_on_through_chat_responses_and_the_command(service: Service) -> None:
    first = ask(service, message="Hello, my name is Ada").json()
    with openai_client(service) as client:
        seen = client.responses.create(model="smolvlm", input=[response_item()], conversation=first["session_id"])
        named = client.responses.create(model="smolvlm", input="What is my name?", previous_response_id=seen.id)
    assert named.output_text == "Your name is Ada."
    again = ask(service, message="Can you describe the image again?", session_id=first["session_id"]).json()
    assert (again["response"], again["conversation_length"]) == (seen.output_text, 8)


class Seen(pydantic.BaseModel):
    shape: str
    color: str
    count: int


@pytest.mark.parametrize("model", MODELS)
def test_structured_output_is_valid_from_tiny_models(service: Service, model: str) -> None:
    messages = [user_message()]
    with openai_client(service) as client:
        parsed = client.chat.completions.parse(
            model=model, messages=messages, response_format=Seen, max_completion_tokens=60
        )
        free = client.chat.completions.create(
            model=model, messages=messages, response_format={"type": "json_object"}, temperature=1.5, max_tokens=40
        )
    assert isinstance(parsed.choices[0].message.parsed, Seen)
    assert isinstance(json.loads(free.choices[0].message.content or ""), dict)


async def test_many_clients_of_the_asynchronous_sdk(service: Service) -> None:
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="unused") as client:

        async def one(index: int) -> str:
            stream = await client.chat.completions.create(
                model=MODELS[index % 2], messages=[user_message()], stream=True, stream_options={"include_usage": True}
            )
            pieces, usages = [], []
            async for chunk in stream:
                pieces += [choice.delta.content or "" for choice in chunk.choices]
                usages += [chunk.usage] if chunk.usage else []
            assert len(usages) == 1
            return "".join(pieces)

        answers = await asyncio.gather(*(one(index) for index in range(12)))
    assert set(answers[0::2]) == {answers[0]}
    assert set(answers[1::2]) == {answers[1]}


def test_errors_reach_the_sdk_as_its_own_classes(service: Service) -> None:
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {}}}
    with openai_client(service, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-9", messages=[user_message()])
        with pytest.raises(openai.BadRequestError, match="tools"):
            client.chat.completions.create(model="smolvlm", messages=[user_message()], tools=[tool])
        slow = client.with_options(timeout=0.2)
        with pytest.raises(openai.APITimeoutError):
            slow.chat.completions.create(model=ENDLESS, messages=[user_message()], max_tokens=4000)
