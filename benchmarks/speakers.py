"""How users word their questions to a service and read its answers: Retina's POST /chat, and OpenAI's chat completions.

A bad answer is refused, whatever makes it so: figures of a service that does not answer would be the best of all.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.events import Block, Event, parse_events


class BadAnswer(RuntimeError):
    """What came is no complete answer."""


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    max_tokens: int
    picture: bytes | None = None  # PNG


@dataclass(frozen=True, slots=True)
class Body:
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    times_s: tuple[float, ...]  # when each piece of text came; at least one
    num_tokens: int
    num_prompt_tokens: int
    num_reused_tokens: int  # of the prompt; 0 also where the server does not say


class Conversation(Protocol):
    """One conversation with one service; questions are asked one after the other."""

    path: str  # of the service's URL

    def ask(self, question: Question) -> Body: ...

    def read(self, question: Question, blocks: Iterable[Block]) -> Answer:
        """The answer to the question that was asked last. Raises BadAnswer."""
        ...


OpenConversation = Callable[[], Conversation]


# ------------------------------------------------------------------------------------- Retina


@dataclass(slots=True)
class RetinaConversation:
    """The service remembers what was said; turns after the first send their question alone."""

    model: str | None = None  # None: the service's default
    path: str = field(default="/chat", init=False)
    session_id: str | None = field(default=None, init=False)

    def ask(self, question: Question) -> Body:
        fields = {"message": question.text, "stream": "true", "max_new_tokens": str(question.max_tokens)}
        if self.model is not None:
            fields["model"] = self.model
        if self.session_id is not None:
            fields["session_id"] = self.session_id
        return _multipart(fields, question.picture)

    def read(self, question: Question, blocks: Iterable[Block]) -> Answer:
        times: list[float] = []
        texts: list[str] = []
        done: Mapping[str, Any] | None = None
        for event in parse_events(blocks):
            content = _object(event)
            if event.name == "error":
                raise BadAnswer(f"the stream ended with an error: {event.data[:300]}")
            if event.name == "start":
                self.session_id = str(content["session_id"])
            elif event.name == "chunk":
                times.append(event.time_s)
                texts.append(str(content["text"]))
            elif event.name == "done":
                done = content
        if done is None:
            raise BadAnswer("the stream ended without the event `done`")
        usage = _usage(done, ("prompt_tokens", "completion_tokens"))
        return _answer(texts, times, usage, int(usage.get("reused_tokens", 0)))


def _multipart(fields: Mapping[str, str], picture: bytes | None) -> Body:
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if picture is not None:
        disposition = 'Content-Disposition: form-data; name="image"; filename="picture.png"'
        head = f"--{boundary}\r\n{disposition}\r\nContent-Type: image/png\r\n\r\n"
        parts += [head.encode(), picture, b"\r\n"]
    parts.append(f"--{boundary}--\r\n".encode())
    return Body(f"multipart/form-data; boundary={boundary}", b"".join(parts))


# ------------------------------------------------------------------------------------- OpenAI


@dataclass(slots=True)
class OpenAIConversation:
    """The service remembers nothing; every turn sends the whole conversation, pictures included."""

    model: str
    path: str = field(default="/v1/chat/completions", init=False)
    messages: list[dict[str, object]] = field(default_factory=list, init=False)

    def ask(self, question: Question) -> Body:
        content: list[dict[str, object]] = [{"type": "text", "text": question.text}]
        if question.picture is not None:
            url = "data:image/png;base64," + base64.b64encode(question.picture).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        self.messages.append({"role": "user", "content": content})
        body = {
            "model": self.model,
            "messages": self.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": question.max_tokens,
            "temperature": 0,
        }
        return Body("application/json", json.dumps(body).encode())

    def read(self, question: Question, blocks: Iterable[Block]) -> Answer:
        times: list[float] = []
        texts: list[str] = []
        usage: Mapping[str, Any] | None = None
        is_finished = False
        for event in parse_events(blocks):
            if event.data == "[DONE]":
                continue
            content = _object(event)
            if content.get("error"):
                raise BadAnswer(f"the stream ended with an error: {event.data[:300]}")
            if content.get("usage"):
                usage = _usage(content, ("prompt_tokens", "completion_tokens"))
            for choice in content.get("choices") or ():
                is_finished |= bool(choice.get("finish_reason"))
                if text := (choice.get("delta") or {}).get("content"):
                    times.append(event.time_s)
                    texts.append(str(text))
        if not is_finished:
            raise BadAnswer("the stream ended without a finish_reason")
        if usage is None:
            raise BadAnswer("the stream ended without usage")
        answer = _answer(texts, times, usage, int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0))
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": answer.text}]})
        return answer


# ------------------------------------------------------------------------------------- both


def _object(event: Event) -> Mapping[str, Any]:
    try:
        content = json.loads(event.data)
    except json.JSONDecodeError as error:
        raise BadAnswer(f"an event is not JSON: {event.data[:300]}") from error
    if not isinstance(content, dict):
        raise BadAnswer(f"an event is no JSON object: {event.data[:300]}")
    return content


def _usage(holder: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    usage = holder.get("usage")
    if not isinstance(usage, dict) or not all(isinstance(usage.get(name), int) for name in names):
        raise BadAnswer(f"the answer's usage does not give {' and '.join(names)}: {usage}")
    return usage


def _answer(texts: list[str], times: list[float], usage: Mapping[str, Any], num_reused_tokens: int) -> Answer:
    text = "".join(texts)
    if not text.strip():
        raise BadAnswer("the answer has no text")
    if usage["completion_tokens"] < 1:
        raise BadAnswer(f"the answer has a text and {usage['completion_tokens']} tokens")
    return Answer(text, tuple(times), usage["completion_tokens"], usage["prompt_tokens"], num_reused_tokens)
