"""Pairs are read in all their forms, and every entry that is wrong is named with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.errors import ConfigError
from deployments.training.pairs import MAX_REPORTED, Exchange, read_pairs

Lines = Callable[..., Path]
GOOD = {"image": "a.png", "prompt": "What?", "response": "A cat."}


def turns(*texts: str, keys: tuple[str, str] = ("role", "content"), roles: tuple[str, str] = ("user", "assistant")):
    return [{keys[0]: roles[index % 2], keys[1]: text} for index, text in enumerate(texts)]


def exchanges(path: Path) -> list[tuple[Exchange, ...]]:
    return [pair.exchanges for pair in read_pairs(path)]


def test_a_line_with_prompt_and_response(tmp_path: Path, lines: Lines) -> None:
    [pair] = read_pairs(lines(tmp_path / "pairs.jsonl", [GOOD]))
    assert pair.image == tmp_path / "a.png"
    assert pair.where == "pairs.jsonl, line 1"
    assert pair.exchanges == (Exchange("What?", "A cat."),)


def test_without_a_prompt_a_caption_is_asked_for(tmp_path: Path, lines: Lines) -> None:
    path = lines(tmp_path / "pairs.jsonl", [{"image": "a.png", "response": " A cat.\n"}])
    assert exchanges(path) == [(Exchange(None, "A cat."),)]


@pytest.mark.parametrize("first", ["<image>\nWho?", "Who?\n<image>", "Who?"])
def test_both_forms_of_a_conversation(tmp_path: Path, lines: Lines, first: str) -> None:
    texts = (first, "Ada.", "Where?", "Here.")
    ours = {"image": "a.png", "conversations": turns(*texts)}
    published = {
        "id": "1",
        "image": "a.png",
        "conversations": turns(*texts, keys=("from", "value"), roles=("human", "gpt")),
    }
    expected = (Exchange("Who?", "Ada."), Exchange("Where?", "Here."))
    assert exchanges(lines(tmp_path / "pairs.jsonl", [ours, published])) == [expected, expected]


def test_a_mark_between_words_leaves_a_line_break(tmp_path: Path, lines: Lines) -> None:
    path = lines(tmp_path / "pairs.jsonl", [{**GOOD, "prompt": "Look: <image> What?"}])
    assert exchanges(path) == [(Exchange("Look:\nWhat?", "A cat."),)]


def test_an_array_as_it_is_published(tmp_path: Path) -> None:
    path = tmp_path / "blip.json"
    path.write_text(json.dumps([GOOD, GOOD], indent=2))
    assert [pair.where for pair in read_pairs(path)] == ["blip.json, entry 1", "blip.json, entry 2"]


def test_empty_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + json.dumps(GOOD).encode() + b"\r\n\r\n" + json.dumps(GOOD).encode())
    assert [pair.where for pair in read_pairs(path)] == ["pairs.jsonl, line 2", "pairs.jsonl, line 4"]


BAD = {
    "no JSON": ("{'image': 1}\n", "is not JSON"),
    "a list": ([GOOD], "is a list instead of an object"),
    "a number": ("7\n", "is a number instead of an object"),
    "unknown key": ({**GOOD, "anwser": "x"}, "unknown key 'anwser'; allowed are conversations, id, image"),
    "no image": ({"prompt": "What?", "response": "A cat."}, 'has no "image"'),
    "image no text": ({**GOOD, "image": None}, '"image" is null instead of a string'),
    "image empty": ({**GOOD, "image": " "}, '"image" is empty'),
    "no answer": ({"image": "a.png", "prompt": "What?"}, 'has neither "response" nor "conversations"'),
    "answer empty": ({**GOOD, "response": "\n"}, '"response" is empty'),
    "prompt empty": ({**GOOD, "prompt": ""}, '"prompt" is empty'),
    "prompt only a mark": ({**GOOD, "prompt": "<image>\n"}, "says nothing besides the picture"),
    "two pictures": ({**GOOD, "prompt": "<image><image>Which?"}, "may stand once"),
    "half a character": ({**GOOD, "response": "\ud83d"}, "half a surrogate pair"),
    "both": ({**GOOD, "conversations": turns("a", "b")}, 'has "conversations" and "prompt"'),
    "no turns": ({"image": "a.png", "conversations": []}, "must be a list of turns"),
    "ends with a question": ({"image": "a.png", "conversations": turns("a", "b", "c")}, "ends with a question: 3"),
    "begins with an answer": (
        {"image": "a.png", "conversations": turns("a", "b", roles=("assistant", "user"))},
        "turn 1 of conversations is the assistant's",
    ),
    "unknown role": (
        {"image": "a.png", "conversations": turns("a", "b", roles=("user", "bot"))},
        "role 'bot'; allowed are user, human, assistant, gpt",
    ),
    "mixed keys": ({"image": "a.png", "conversations": turns("a", "b", keys=("role", "value"))}, 'must be {"role"'),
    "turn no text": (
        {"image": "a.png", "conversations": [{"role": "user", "content": [1]}, {"role": "assistant", "content": "b"}]},
        'turn 1 of conversations: "content" is a list',
    ),
    "picture later": ({"image": "a.png", "conversations": turns("a", "b", "<image>c", "d")}, "in the first question"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_entries_are_named_with_their_line(tmp_path: Path, lines: Lines, kind: str) -> None:
    entry, reason = BAD[kind]
    path = lines(tmp_path / "pairs.jsonl", [GOOD, entry, GOOD])
    with pytest.raises(ConfigError) as caught:
        read_pairs(path)
    assert "pairs.jsonl, line 2: " in caught.value.message
    assert reason in caught.value.message
    assert "line 1" not in caught.value.message
    assert caught.value.param == "data"


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"image": "\xff"}\n')
    with pytest.raises(ConfigError, match="line 2: is not UTF-8"):
        read_pairs(path)


def test_an_array_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text('[{"image": "a.png"')
    with pytest.raises(ConfigError, match="is not JSON"):
        read_pairs(path)


def test_many_bad_entries_come_in_one_message(tmp_path: Path, lines: Lines) -> None:
    with pytest.raises(ConfigError) as caught:
        read_pairs(lines(tmp_path / "pairs.jsonl", ["{}\n"] * (MAX_REPORTED + 5)))
    assert caught.value.message.count("line") == MAX_REPORTED
    assert caught.value.message.endswith("and 5 more")


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_a_file_without_pairs(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match="holds no pairs"):
        read_pairs(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_pairs(tmp_path / "pairs.jsonl")
