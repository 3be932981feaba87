"""What users send and how answers are read: good ones exactly, bad ones not at all."""

from __future__ import annotations

import base64
import json
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

import pytest

from benchmarks.events import Block
from benchmarks.speakers import BadAnswer, Body, OpenAIConversation, Question, RetinaConversation

ASKED = Question("What is it?", 8)
USAGE = {"prompt_tokens": 88, "completion_tokens": 2}


def blocks(*events: tuple[str, object]) -> list[Block]:
    """One block an event, a second apart."""
    lines = [
        (f"event: {name}\n" if name else "") + f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"
        for name, data in events
    ]
    return [Block(float(number), line.encode()) for number, line in enumerate(lines)]


def without(events: list[tuple[str, Any]], position: int) -> list[tuple[str, Any]]:
    return events[:position] + events[position + 1 :]


# ------------------------------------------------------------------------------------- Retina

START = ("start", {"session_id": "s1", "model": "m"})
CHUNKS = [("chunk", {"text": "A "}), ("chunk", {"text": "cat"})]
DONE = ("done", {"response": "A cat", "usage": {**USAGE, "reused_tokens": 64}})


def form(body: Body) -> dict[str, Any]:
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + body.content_type.encode() + b"\r\n\r\n" + body.data
    )
    return {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
        for part in message.iter_parts()
    }


def test_retina_is_asked_with_a_form() -> None:
    picture = bytes(range(256))

    sent = form(RetinaConversation("smolvlm").ask(Question("Wo ist die Küche?", 8, picture)))

    assert sent["message"].decode() == "Wo ist die Küche?"
    assert sent["model"] == b"smolvlm"
    assert sent["max_new_tokens"] == b"8"
    assert sent["stream"] == b"true"
    assert sent["image"] == picture
    assert "session_id" not in sent


def test_retina_answers_are_read_whole() -> None:
    answer = RetinaConversation().read(ASKED, blocks(START, *CHUNKS, DONE))

    assert answer.text == "A cat"
    assert answer.times_s == (1.0, 2.0)
    assert (answer.num_tokens, answer.num_prompt_tokens, answer.num_reused_tokens) == (2, 88, 64)


def test_later_turns_name_the_session() -> None:
    conversation = RetinaConversation()
    conversation.ask(ASKED)
    conversation.read(ASKED, blocks(START, *CHUNKS, DONE))

    assert form(conversation.ask(ASKED))["session_id"] == b"s1"


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([START, *CHUNKS], "without the event `done`"),
        ([START, DONE], "no text"),
        ([START, ("chunk", {"text": " \n"}), DONE], "no text"),
        ([START, *CHUNKS, ("done", {"response": "A cat"})], "usage"),
        ([START, *CHUNKS, ("done", {"usage": {"prompt_tokens": 1, "completion_tokens": 0}})], "0 tokens"),
        ([START, *CHUNKS, ("error", {"error": {"code": "overloaded"}})], "overloaded"),
        ([START, ("chunk", "not json"), DONE], "not JSON"),
        ([START, ("chunk", "[1]"), DONE], "no JSON object"),
    ],
)
def test_bad_answers_of_retina_are_refused(events: list[tuple[str, object]], reason: str) -> None:
    with pytest.raises(BadAnswer, match=reason):
        RetinaConversation().read(ASKED, blocks(*events))


# ------------------------------------------------------------------------------------- OpenAI


def delta(content: str | None, finish: str | None = None) -> tuple[str, object]:
    return "", {"choices": [{"delta": {"content": content}, "finish_reason": finish}]}


TOTAL = ("", {"choices": [], "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 80}}})
GOOD = [delta(None), delta("A "), delta("cat"), delta(None, "length"), TOTAL, ("", "[DONE]")]


def test_openai_services_get_the_picture_as_a_data_url() -> None:
    body = json.loads(OpenAIConversation("m").ask(Question("What?", 8, b"png")).data)

    picture, text = body["messages"][0]["content"]
    assert base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,")) == b"png"
    assert text == {"type": "text", "text": "What?"}
    assert (body["max_tokens"], body["stream"], body["temperature"]) == (8, True, 0)


def test_openai_answers_are_read_whole() -> None:
    answer = OpenAIConversation("m").read(ASKED, blocks(*GOOD))

    assert answer.text == "A cat"
    assert answer.times_s == (1.0, 2.0)
    assert (answer.num_tokens, answer.num_prompt_tokens, answer.num_reused_tokens) == (2, 88, 80)


def test_the_whole_conversation_is_sent_again() -> None:
    conversation = OpenAIConversation("m")
    conversation.ask(Question("What?", 8, b"png"))
    conversation.read(ASKED, blocks(*GOOD))

    messages = json.loads(conversation.ask(Question("And now?", 8)).data)["messages"]

    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == [{"type": "text", "text": "A cat"}]
    assert messages[0]["content"][0]["type"] == "image_url"


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (without(GOOD, 3), "without a finish_reason"),
        (without(GOOD, 4), "without usage"),
        ([delta(None), delta(None, "stop"), TOTAL], "no text"),
        ([("", {"error": {"message": "out of memory"}})], "out of memory"),
        ([*GOOD[:4], ("", {"usage": {"prompt_tokens": 1}})], "completion_tokens"),
    ],
)
def test_bad_answers_of_openai_services_are_refused(events: list[tuple[str, object]], reason: str) -> None:
    with pytest.raises(BadAnswer, match=reason):
        OpenAIConversation("m").read(ASKED, blocks(*events))
