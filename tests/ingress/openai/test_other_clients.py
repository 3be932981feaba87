"""Clients that other people wrote, over a real server: huggingface_hub's InferenceClient and pydantic-ai."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError
from ingress.bench import Bench, picture, serving
from ingress.openai.openai_bench import RED, sdk_at, user
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.output import NativeOutput
from pydantic_ai.providers.openai import OpenAIProvider

pytestmark = pytest.mark.slow

ANSWER = 'You asked: "Hello". The picture has 40 x 30 pixels.'
SCHEMA = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}


class Colour(BaseModel):
    """The colour that fills most of the picture."""

    colour: str


async def test_huggingface_hub(bench: Bench) -> None:
    async with serving(bench.app) as address, AsyncInferenceClient(base_url=f"{address}/v1") as client:
        messages: list = [user("Hello", RED)]
        done = await client.chat_completion(messages, model="fake", max_tokens=50, seed=1, temperature=0.5)
        assert done.choices[0].message.content == ANSWER
        stream = await client.chat_completion(
            messages, model="fake", stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == ANSWER
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == done.usage.total_tokens
        held = await client.chat_completion(
            messages,
            model="fake",
            logprobs=True,
            top_logprobs=1,
            response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA, "strict": True}},
        )
        assert set(json.loads(held.choices[0].message.content or "")) == {"colour"}
        assert held.choices[0].logprobs is not None
        with pytest.raises(HfHubHTTPError) as refused:
            await client.chat_completion(messages, model="fake", tools=[{"type": "function", "function": {}}])  # type: ignore[list-item]
        assert refused.value.response.status_code == 400


async def test_pydantic_ai(bench: Bench) -> None:
    async with serving(bench.app) as address, sdk_at(address) as client:
        model = OpenAIChatModel("fake", provider=OpenAIProvider(openai_client=client))
        seen = BinaryContent(picture(), media_type="image/png")
        agent = Agent(model, instructions="Be brief.")
        first = await agent.run(["Hello", seen])
        assert first.output.startswith(ANSWER)
        assert first.usage.input_tokens > 16
        again = await agent.run("And now?", message_history=first.all_messages())
        assert "I remember" in again.output
        async with agent.run_stream(["Hello", seen]) as stream:
            pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        assert "".join(pieces) == first.output
        assert len(pieces) > 1
        typed = await Agent(model, output_type=NativeOutput(Colour)).run(["Hello", seen])
        assert isinstance(typed.output, Colour)


async def test_pydantic_ai_with_tools_is_told(bench: Bench) -> None:
    async with serving(bench.app) as address, sdk_at(address) as client:
        model = OpenAIChatModel("fake", provider=OpenAIProvider(openai_client=client))
        with pytest.raises(ModelHTTPError, match="function tools are not supported"):
            await Agent(model, output_type=Colour).run("Hello")
