"""What is learnt stands behind exactly the prompt that the service builds, and nothing else is learnt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.errors import CheckpointError, ConfigError, InvalidRequest
from deployments.training.batches import IGNORED, Example
from deployments.training.pairs import Exchange, Pair
from deployments.types import CaptionTask, ImagePart, ImageRef, Message, Role, TextPart

pytestmark = pytest.mark.torch

TinyLlava = Callable[..., Path]
LANGUAGES = ("llama", "mistral", "qwen2")
REF = ImageRef("a" * 64, 7, 9, 100, "image/png")


def builder_of(folder: Path, max_tokens: int = 2048):
    from deployments.models.llava import FAMILY
    from deployments.training.examples import ExampleBuilder, read_first_stop_token

    return ExampleBuilder(FAMILY.open_prompt_format(folder), read_first_stop_token(folder), max_tokens)


def served_prompt(folder: Path, *texts: str | None) -> list[int]:
    from deployments.models.llava import FAMILY

    roles: tuple[Role, Role] = ("user", "assistant")
    messages = [
        Message(roles[index % 2], (() if index else (ImagePart(REF),)) + ((TextPart(text),) if text else ()))
        for index, text in enumerate(texts)
    ]
    task = CaptionTask() if texts[0] is None else None
    return list(FAMILY.open_prompt_format(folder).build(messages, task).token_ids)


def decode(folder: Path, ids: list[int]) -> str:
    from deployments.models.llava import FAMILY

    return FAMILY.open_prompt_format(folder).decode(ids)


def pair(*texts: str | None) -> Pair:
    exchanges = tuple(Exchange(texts[index], texts[index + 1] or "") for index in range(0, len(texts), 2))
    return Pair("pairs.jsonl, line 1", Path("a.png"), exchanges)


def row(example: Example, image_token: int, image_tokens: int) -> list[int]:
    return [*example.head.tolist(), *[image_token] * image_tokens, *example.tail.tolist()]


def learnt(example: Example) -> list[int]:
    return [int(target) for target in example.targets if target != IGNORED]


def stop_token(folder: Path) -> int:
    return int(json.loads((folder / "generation_config.json").read_text())["eos_token_id"])


@pytest.fixture(params=LANGUAGES)
def folder(request: pytest.FixtureRequest, tiny_llava: TinyLlava) -> Path:
    return tiny_llava(language=request.param)


@pytest.mark.parametrize(
    "answer", ["red", "7", "A circle, 12 px wide.", "Yes", "</s> <|im_end|> <image>", "été 日本 🙂"]
)
@pytest.mark.parametrize("question", ["What is it?", None, "Is <image> </s> a word?"])
def test_an_answer_stands_behind_the_served_prompt(folder: Path, question: str | None, answer: str) -> None:
    builder = builder_of(folder)
    [example] = builder.build(pair(question, answer), 3)
    prompt = served_prompt(folder, question)
    ids = row(example, json.loads((folder / "config.json").read_text())["image_token_index"], builder.image_tokens)
    assert ids[: len(prompt)] == prompt
    assert learnt(example) == [*ids[len(prompt) :], stop_token(folder)]
    assert decode(folder, ids[len(prompt) :]).strip() == answer
    assert example.picture == 3


def test_every_target_is_the_token_that_comes_next(folder: Path) -> None:
    [example] = builder_of(folder).build(pair("What is it?", "A red circle."), 0)
    places = [index for index, target in enumerate(example.targets) if target != IGNORED]
    assert places == list(range(places[0], len(example.tail)))  # from the end of the prompt to the stop token
    assert example.targets[places[0] : -1].tolist() == example.tail[places[0] + 1 :].tolist()
    assert example.targets[-1] == stop_token(folder)


@pytest.mark.parametrize("language", ["llama", "mistral"])
def test_a_conversation_is_one_row_with_all_its_answers(tiny_llava: TinyLlava, language: str) -> None:
    folder = tiny_llava(language=language)
    builder = builder_of(folder)
    texts = ("What is it?", "A circle.", "Which colour?", "Red.", "Sure?", "Yes.")
    [example] = builder.build(pair(*texts), 0)
    assert row(example, 0, 0)[: len(example.head)] == served_prompt(folder, texts[0])[: len(example.head)]
    stop = stop_token(folder)
    parts = decode(folder, [0 if target == stop else target for target in learnt(example)]).split("<unk>")
    assert decode(folder, learnt(example)).replace(" ", "") == "Acircle.Red.Yes."
    assert learnt(example).count(stop) == 3
    assert len(parts) == 1  # <unk> is special and not shown
    whole = served_prompt(folder, *texts[:-1])
    image_tokens = builder.image_tokens
    assert [*example.head, *example.tail][len(example.head) :][
        : len(whole) - image_tokens - len(example.head)
    ] == whole[len(example.head) + image_tokens :]


def test_a_template_that_writes_the_past_otherwise_gives_a_row_for_each_answer(tiny_llava: TinyLlava) -> None:
    """LLaVA interleave's asks with `assistant` and a line break, and writes a space between them afterwards."""
    folder = tiny_llava(language="qwen2")
    texts = ("What is it?", "A circle.", "Which colour?", "Red.")
    first, second = builder_of(folder).build(pair(*texts), 0)
    image_token = json.loads((folder / "config.json").read_text())["image_token_index"]
    for example, count in ((first, 1), (second, 3)):
        prompt = served_prompt(folder, *texts[:count])
        ids = row(example, image_token, builder_of(folder).image_tokens)
        assert ids[: len(prompt)] == prompt
        assert learnt(example) == [*ids[len(prompt) :], stop_token(folder)]
    assert decode(folder, learnt(first)) == "A circle."
    assert decode(folder, learnt(second)) == "Red."


def test_equal_questions_are_rendered_once(tiny_llava: TinyLlava, monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments.models.llava_prompt import LlavaPromptFormat

    builder = builder_of(tiny_llava())
    built = []
    build = LlavaPromptFormat.build
    monkeypatch.setattr(LlavaPromptFormat, "build", lambda *args: built.append(1) or build(*args))
    builder.build_all([pair("What?", answer) for answer in ("Red.", "Blue.", "Red.")], [0, 1, 2])
    assert len(built) == 1 + 2  # the question, and each answer


def test_rows_longer_than_the_context_are_named(tiny_llava: TinyLlava) -> None:
    builder = builder_of(tiny_llava(), max_tokens=60)
    with pytest.raises(ConfigError, match=r"line 1: takes \d+ tokens with its picture; the checkpoint has 60"):
        builder.build_all([pair("What?", "word " * 40), pair("What?", "Red.")], [0, 0])
    assert len(builder.build_all([pair("What?", "Red.")], [0])) == 1


def test_an_answer_that_runs_into_the_template(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    """Without anything between them, an answer's first letters would change the prompt's last token."""
    folder = Path(shutil.copytree(tiny_llava(), tmp_path / "glued"))
    template = (
        "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}"
        ":T{{ part.text }}\n{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}:T{% endif %}"
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    builder = builder_of(folder)
    with pytest.raises(InvalidRequest, match="runs into the template"):
        builder.build(pair("What?", "he"), 0)  # the tokenizer makes one token of `The`
    assert builder.build(pair("What?", "bread"), 0)


def test_a_template_that_drops_answers(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llava(), tmp_path / "deaf"))
    said = "<image>{{ message.content[-1].text }}"
    template = f"{{% for message in messages if message.role == 'user' %}}{said}{{% endfor %}}ASSISTANT:"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(CheckpointError, match="does not part answers from prompts"):
        builder_of(folder)


@pytest.mark.parametrize("named", [2, [2, 5]])
def test_of_several_stop_tokens_the_first_is_learnt(tiny_llava: TinyLlava, tmp_path: Path, named: object) -> None:
    folder = Path(shutil.copytree(tiny_llava(), tmp_path / "stops"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    [example] = builder_of(folder).build(pair("What?", "Red."), 0)
    assert example.targets[-1] == 2
