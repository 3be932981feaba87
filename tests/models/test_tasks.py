"""Tasks become words; what a chat model cannot do is refused with what it can."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.errors import InvalidRequest
from deployments.models.tasks import choose_language, to_messages
from deployments.models.words import check_text
from deployments.types import CaptionTask, DetectTask, ImagePart, ImageRef, Message, QueryTask, Task

CAPTIONS: Any = {
    "en": {"short": "brief", "normal": "plain", "long": "detailed"},
    "pt": {"short": "breve", "normal": "simples"},
    "zh": {"normal": "one"},
    "zh-hant": {"normal": "other"},
}
MESSAGE = Message("user", (ImagePart(ImageRef("0", 4, 3, 1, "image/png")),))


def words_of(task: Task) -> str:
    [message] = to_messages(task, [MESSAGE], CAPTIONS)
    assert message.content[0] == MESSAGE.content[0]
    return message.text


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (CaptionTask(), "plain"),
        (CaptionTask("long"), "detailed"),
        (CaptionTask("short", "pt-BR"), "breve"),
        (CaptionTask("normal", "PT"), "simples"),
        (CaptionTask("normal", "zh-Hans-CN"), "one"),
        (CaptionTask("normal", "zh-Hant"), "other"),
        (CaptionTask(prompt=" Say it."), " Say it."),
        (QueryTask("Is it red?"), "Is it red?"),
    ],
)
def test_words(task: Task, words: str) -> None:
    assert words_of(task) == words


HUGE: Any = "huge"


@pytest.mark.parametrize(
    ("task", "param", "said"),
    [
        (CaptionTask(HUGE), "length", "'huge'; this model has short, normal, long"),
        (CaptionTask("long", "pt"), "length", "'long'; this model has short, normal"),
        (CaptionTask("short", "xx-PT"), "language", "'xx-PT'; this model writes captions in en, pt, zh, zh-hant"),
        (CaptionTask("short", ""), "language", "''; this model writes"),
        (CaptionTask(prompt=""), "prompt", "prompt is empty"),
        (CaptionTask(prompt=" \n"), "prompt", "prompt is empty"),
        (DetectTask("star"), "model", "no skill 'detect'; it has caption and query"),
        (QueryTask("x", reasoning=True), "reasoning", "no reasoning"),
        (QueryTask("x", spatial_refs=((0.1, 0.2),)), "spatial_refs", "no points and boxes"),
    ],
)
def test_refusals(task: Task, param: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        words_of(task)
    assert caught.value.param == param


def test_a_region_of_its_own_comes_first() -> None:
    assert choose_language("pt-BR", ("pt", "pt-br")) == "pt-br"


def test_text_is_text() -> None:
    assert check_text("a 🙂 \0 \ufffd") == "a 🙂 \0 \ufffd"
    with pytest.raises(InvalidRequest, match=r"U\+D83D\) at position 2") as caught:
        check_text("a \ud83d", "question")
    assert caught.value.param == "question"
