"""The official SDK, synchronous, over a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import openai
import pytest
from ingress.bench import Bench, BuildBench, picture, serving
from ingress.openai.openai_bench import RED, image, user
from openai import OpenAI
from pydantic import BaseModel

from deployments.errors import Overloaded
from deployments.fakes import FakeGenerator

pytestmark = pytest.mark.slow

T = TypeVar("T")
HELLO: list = [user("Hello", RED)]
ANSWER = 'You asked: "Hello". The picture has 40 x 30 pixels.'


class Colours(BaseModel):
    main: str


async def with_client(bench: Bench, work: Callable[[OpenAI], T]) -> T:
    """In a thread: the server runs on this one."""

    def run(address: str) -> T:
        with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=2) as client:
            return work(client)

    async with serving(bench.app) as address:
        return await asyncio.to_thread(run, address)


async def test_an_answer_and_a_stream(bench: Bench) -> None:
    def work(client: OpenAI) -> None:
        done = client.chat.completions.create(model="fake", messages=HELLO)
        assert done.choices[0].message.content == ANSWER
        with client.chat.completions.create(model="fake", messages=HELLO, stream=True) as stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER
        with client.chat.completions.stream(model="fake", messages=HELLO) as events:
            assert events.get_final_completion().choices[0].message.content == ANSWER

    await with_client(bench, work)


async def test_files_models_and_structured_output(bench: Bench) -> None:
    def work(client: OpenAI) -> None:
        file = client.files.create(file=("a.png", picture()), purpose="vision")
        message: list = [user("Hello", image(file.id))]
        assert client.chat.completions.create(model="fake", messages=message).choices[0].message.content == ANSWER
        assert [each.id for each in client.files.list()] == [file.id]
        assert client.files.content(file.id).read() == picture()
        assert client.files.wait_for_processing(file.id).status == "processed"
        assert client.files.delete(file.id).deleted
        assert [model.id for model in client.models.list()] == ["fake", "other"]
        parsed = client.chat.completions.parse(model="fake", messages=HELLO, response_format=Colours)
        assert isinstance(parsed.choices[0].message.parsed, Colours)

    await with_client(bench, work)


async def test_errors_and_retries(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=Overloaded("full", None, 0.01), max_failures=1))

    def work(client: OpenAI) -> None:
        raw = client.chat.completions.with_raw_response.create(model="fake", messages=HELLO)
        assert raw.retries_taken == 1
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model="fake", messages=[])
        assert (error.value.param, error.value.request_id) == ("messages", error.value.response.headers["x-request-id"])

    await with_client(bench, work)
