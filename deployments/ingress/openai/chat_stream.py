"""A completion as OpenAI's chunks: server-sent events without names, and [DONE] as the last one."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from deployments.errors import RetinaError
from deployments.ingress.completions import CompletionChunk, CompletionEvent, CompletionFinished, CompletionStarted
from deployments.ingress.error_replies import internal_error
from deployments.ingress.openai.completion_schemas import ChatUsageBody, ChoiceLogprobsBody
from deployments.ingress.openai.error_shape import to_openai
from deployments.types import TokenLogprob, Usage

DONE = b"data: [DONE]\n\n"
log = logging.getLogger(__name__)
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(slots=True)
class ChunkWriter:
    """Writes one completion. What all its chunks have in common is made into JSON once: there is one per token."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    num_choices: int
    includes_usage: bool
    usages: list[Usage] = field(default_factory=list)
    head: str = field(init=False)
    tail: str = field(init=False)

    def __post_init__(self) -> None:
        common = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "service_tier": "default",
        }
        self.head = f'data: {_to_json(common).removesuffix("}")},"choices":['
        self.tail = '],"usage":null}\n\n' if self.includes_usage else "]}\n\n"

    def encode(self, event: CompletionEvent) -> bytes:
        if isinstance(event, CompletionChunk):
            return self._chunk(event.index, f'{{"content":{_to_json(event.text)}}}', event.logprobs)
        if isinstance(event, CompletionFinished):
            self.usages.append(event.usage)
            return self._chunk(event.index, "{}", (), f'"{event.finish_reason}"')
        begin = '{"role":"assistant","content":"","refusal":null}'
        return b"".join(self._chunk(index, begin, ()) for index in range(self.num_choices))

    def end(self) -> bytes:
        """Behind all choices."""
        if not self.includes_usage:
            return DONE
        usage = ChatUsageBody.from_usages(self.usages).model_dump_json()
        return f'{self.head}],"usage":{usage}}}\n\n'.encode() + DONE

    def _chunk(self, index: int, delta: str, logprobs: tuple[TokenLogprob, ...], reason: str = "null") -> bytes:
        known = ChoiceLogprobsBody.from_tokens(logprobs or None)
        shown = "null" if known is None else known.model_dump_json()
        choice = f'{{"index":{index},"delta":{delta},"logprobs":{shown},"finish_reason":{reason}}}'
        return f"{self.head}{choice}{self.tail}".encode()


async def write_chunks(
    events: AsyncGenerator[CompletionEvent, None],
    writer: ChunkWriter,
    to_client: Callable[[RetinaError], RetinaError],
) -> AsyncGenerator[bytes, None]:
    """All of the completion's chunks. Failures up to the first piece are raised, while a status can be sent; later
    ones are told as the last event, and then there is no [DONE]: the official SDKs raise APIError for it.
    """
    async with contextlib.aclosing(events):
        try:
            started, first = await anext(events), await anext(events)
        except RetinaError as error:
            raise to_client(error) from error
        assert isinstance(started, CompletionStarted)
        yield writer.encode(started)
        yield writer.encode(first)
        try:
            async for event in events:
                yield writer.encode(event)
            yield writer.end()
        except RetinaError as error:
            yield _encode_error(to_client(error))
        except Exception:
            log.exception("a completion failed in mid-stream")
            yield _encode_error(internal_error())


def _encode_error(error: RetinaError) -> bytes:
    return f"data: {to_openai(error).model_dump_json()}\n\n".encode()
