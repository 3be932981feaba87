"""What a batch is to do: folders, lines, defaults, fingerprints, and lines that say nothing that can be done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands.stage import CIRCLE, PICTURES

from deployments.commands.batch_items import Defaults, Given, Item, models_of, open_source, read_item
from deployments.config import parse_config
from deployments.errors import InvalidRequest

CAPTIONS = Defaults("caption", {"length": "short", "question": "What?"})


def item(what: object, defaults: Defaults = CAPTIONS, folder: Path = PICTURES) -> Item:
    return read_item(Given("1", what), folder, defaults)


def test_a_folder_gives_its_pictures_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "sub/a.png", "notes.txt", ".hidden/c.png", "a.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(CIRCLE, path)
    source = open_source(str(tmp_path))
    assert source.given == [Given(name, {"image": name}) for name in ("a.webp", "b.JPG", "sub/a.png")]
    assert source.folder == tmp_path


def test_file_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    shutil.copy(CIRCLE, tmp_path / name)
    source = open_source(str(tmp_path))
    assert source.given is not None
    read = read_item(source.given[0], source.folder, CAPTIONS)
    assert read.problem is None
    assert (read.id, read.image) == ("caf\\udce9.png",) * 2


def test_lines_are_numbered_and_blank_ones_are_none(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('\ufeff{"image": "a.png"}\n\n{"question": "x\u2028y"}\nno json\n', encoding="utf-8")
    source = open_source(str(path))
    assert source.given == [
        Given("1", {"image": "a.png"}),
        Given("3", {"question": "x\u2028y"}),
        Given("4", "no json"),
    ]


@pytest.mark.parametrize("make", ["nothing", "empty folder", "picture"])
def test_what_is_no_source_is_refused(tmp_path: Path, make: str) -> None:
    place = {"nothing": tmp_path / "x", "empty folder": tmp_path, "picture": CIRCLE}[make]
    with pytest.raises(InvalidRequest, match=place.name):
        open_source(str(place))


def test_defaults_count_for_tasks_that_have_them() -> None:
    caption, query = item({"image": "red-circle.png"}), item({"image": "red-circle.png", "task": "query"})
    own = item({"image": "red-circle.png", "length": "long"})
    assert (caption.problem, query.problem, own.problem) == (None, None, None)
    assert caption.asked is not None
    assert query.asked is not None
    assert own.asked is not None
    assert caption.asked.model_dump(exclude_unset=True) == {"length": "short"}
    assert query.asked.model_dump(exclude_unset=True) == {"question": "What?"}
    assert own.asked.model_dump(exclude_unset=True) == {"length": "long"}
    assert caption.picture == CIRCLE.read_bytes()


def test_chat_has_a_question_too_and_may_go_without_a_picture() -> None:
    chat = item({"task": "chat", "question": "Who are you?"})
    assert chat.problem is None
    assert chat.asked is not None
    assert chat.asked.model_dump(exclude_unset=True) == {"message": "Who are you?"}


def test_the_fingerprint_is_of_what_is_asked_and_of_the_pictures_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        shutil.copy(CIRCLE, tmp_path / name)
    same = [item({"image": name, "id": name}, folder=tmp_path) for name in ("a.png", "b.png")]
    other_words = item({"image": "a.png", "length": "long"}, folder=tmp_path)
    other_task = item({"image": "a.png", "task": "query"}, folder=tmp_path)
    (tmp_path / "a.png").write_bytes(b"changed")
    other_bytes = item({"image": "a.png"}, folder=tmp_path)
    assert same[0].fingerprint == same[1].fingerprint
    assert [one.id for one in same] == ["a.png", "b.png"]
    assert len({one.fingerprint for one in (same[0], other_words, other_task, other_bytes)}) == 4


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no json", "a line is a JSON object"),
        ([1], "a line is a JSON object"),
        ({"image": "https://example.com/a.png"}, "URL"),
        ({"image": "data:image/png;base64,AAAA"}, "URL"),
        ({"image": 3}, "path of a picture"),
        ({"image": "gone.png"}, "gone.png: No such file"),
        ({"task": "paint"}, "caption, query, detect, point, chat"),
        ({"id": True}, "id is"),
        ({"image": "red-circle.png", "colour": "red"}, "takes no 'colour'; there are"),
        ({"task": "chat", "question": "x", "session_id": "s"}, "takes no 'session_id'"),
        ({"image": "red-circle.png", "length": "endless"}, "length"),
        ({"image": "red-circle.png", "max_new_tokens": "5"}, "max_new_tokens"),
        ({"task": "detect"}, "object"),
    ],
    ids=json.dumps,
)
def test_what_is_wrong_stands_in_the_item(what: object, said: str) -> None:
    broken = item(what)
    assert broken.problem is not None
    assert said in broken.problem.message
    assert broken.fingerprint == item(what).fingerprint


def test_only_models_that_are_asked_are_loaded() -> None:
    models = [
        {"name": "first", "family": "smolvlm", "checkpoint": "x"},
        {"name": "finder", "family": "fake"},
        {"name": "third", "family": "fake"},
    ]
    config = parse_config({"models": models})
    lines = [
        Given("1", {}),
        Given("2", {"task": "detect", "object": "x"}),
        Given("3", {"model": "gpt-9"}),
        Given("4", 5),
    ]
    assert models_of(lines, Defaults("caption", {}), config) == ["first", "finder"]
    assert models_of(lines[:1], Defaults("caption", {"model": "third"}), config) == ["third"]
    assert models_of([Given("1", {"task": "chat", "question": "x"})], CAPTIONS, config) == ["first"]


def test_an_item_that_cannot_be_says_what_it_was_to_be() -> None:
    gone = item({"id": "x", "image": "no-such.png"})
    assert (gone.id, gone.task, gone.image) == ("x", "caption", "no-such.png")
    nameless = item({"image": "a.png", "task": "paint"})
    assert (nameless.task, nameless.image) == ("", None)
