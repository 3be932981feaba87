"""Another client of the Responses API, pydantic-ai, over a real server: agents that do without tools."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from ingress.bench import Bench, picture, serving
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider

pytestmark = pytest.mark.slow


class Shape(BaseModel):
    name: str
    sides: int


@pytest.fixture
async def model(bench: Bench) -> AsyncIterator[OpenAIResponsesModel]:
    async with serving(bench.app) as address:
        provider = OpenAIProvider(base_url=f"{address}/v1", api_key="none")
        yield OpenAIResponsesModel("fake", provider=provider)
        await provider.client.close()


async def test_a_picture_and_what_was_said_before(model: OpenAIResponsesModel) -> None:
    agent = Agent(model, system_prompt="Be kind.")
    first = await agent.run(["Look", BinaryContent(data=picture(), media_type="image/png")])
    assert first.output == 'You asked: "Look". The picture has 40 x 30 pixels. I remember 1 messages before this one.'
    second = await agent.run("And now?", message_history=first.all_messages())
    assert "40 x 30" in second.output
    assert "I remember 3 messages" in second.output


async def test_streamed(model: OpenAIResponsesModel) -> None:
    async with Agent(model).run_stream("Hello") as run:
        pieces = [piece async for piece in run.stream_text(delta=True, debounce_by=None)]
    assert "".join(pieces) == 'You asked: "Hello".'
    assert len(pieces) == 3


async def test_answers_with_a_shape(model: OpenAIResponsesModel) -> None:
    run = await Agent(model, output_type=NativeOutput(Shape)).run("Hello")
    assert isinstance(run.output, Shape)


async def test_going_on_by_the_id_of_the_response(model: OpenAIResponsesModel) -> None:
    agent = Agent(model, model_settings=OpenAIResponsesModelSettings(openai_previous_response_id="auto"))
    first = await agent.run("One")
    second = await agent.run("Two", message_history=first.all_messages())
    assert second.output == 'You asked: "Two". I remember 2 messages before this one.'


async def test_tools_are_refused(model: OpenAIResponsesModel) -> None:
    agent = Agent(model)

    @agent.tool_plain
    def weather() -> str:
        return "sunny"

    with pytest.raises(ModelHTTPError, match="function tools"):
        await agent.run("What is the weather?")
