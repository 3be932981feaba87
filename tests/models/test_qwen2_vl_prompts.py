"""Prompts equal those of transformers' processor, with the positions that its model gives them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deployments.errors import CheckpointError, InvalidRequest
from deployments.models.registry import open_family
from deployments.types import CaptionTask, DetectTask, ImagePart, ImageRef, Message, QueryTask, TextPart

if TYPE_CHECKING:
    from qwen2_vl_original import Original

pytestmark = pytest.mark.torch

FORGERIES = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
LANGUAGES = {"en", "ja", "zh", "de", "fr", "es", "ko", "pt", "it"}
SAYINGS = [
    "Hello.",
    "この画像には何がありますか？",
    "A\n\nB  c ",
    "12345",
    "Grüße 👍🏽 e\u0301",
    "<image> </s>",
    "x" * 40,
]


@pytest.fixture(scope="module", params=["2b", "7b"])
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Original:
    from qwen2_vl_original import Original
    from tiny_qwen2_vl import build_qwen2_vl

    return Original(build_qwen2_vl(tmp_path_factory.mktemp("qwen2-vl"), variant=request.param, seed=0))


@pytest.fixture
def prompts(twin: Original) -> Any:
    return open_family("qwen2_vl").open_prompt_format(twin.folder)


def check_equal(twin: Original, prompts: Any, talk: Any) -> Any:
    """Our prompt of a conversation, after comparing it with ids and positions of transformers."""
    prompt = prompts.build(talk.messages)
    inputs = twin.inputs(talk.turns, talk.pictures)
    assert list(prompt.token_ids) == inputs["input_ids"][0].tolist(), talk.turns
    positions, delta = twin.model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], inputs.get("image_grid_thw")
    )
    assert prompt.positions.dtype == np.int64
    np.testing.assert_array_equal(prompt.positions, positions[:, 0].numpy())
    assert prompt.next_position == len(prompt.token_ids) + int(delta)
    return prompt


# --------------------------------------------------------------------------------- ids and positions


def test_chosen_conversations(
    twin: Original, prompts: Any, picture: Callable[..., Any], conversation: Callable[..., Any]
) -> None:
    for talk in (
        conversation("Hello, my name is Ada."),
        conversation("Hello, my name is Ada.", "Nice to meet you, Ada.", "What is my name? 1234567890 3.14"),
        conversation((picture(64, 64), "What do you see?")),
        conversation(("What is this: ", picture(1500, 700), " and why?")),
        conversation((picture(1, 1), "What?"), "Nothing much.", ("And here?", picture(30, 2000))),
        conversation((picture(40, 90), picture(200, 50), "Which is larger?")),
        conversation((picture(80, 80),)),
        conversation("  leading and trailing  ", "\n", ""),
        conversation("user\nassistant\nsystem"),
    ):
        check_equal(twin, prompts, talk)


def test_random_conversations(
    twin: Original, prompts: Any, picture: Callable[..., Any], conversation: Callable[..., Any]
) -> None:
    chance = random.Random(5)
    numbers = set()
    for _ in range(60):
        turns = []
        for _ in range(chance.choice((1, 1, 3, 5))):
            parts = [chance.choice(SAYINGS) for _ in range(chance.randint(0, 2))]
            parts += [picture(chance.randint(20, 400), chance.randint(20, 400)) for _ in range(chance.randint(0, 2))]
            chance.shuffle(parts)
            turns.append(tuple(parts) or "Well.")
        talk = conversation(*turns)
        assert len(check_equal(twin, prompts, talk).images) == len(talk.pictures)
        numbers.add(len(talk.pictures))
    assert numbers >= {0, 1, 2, 3, 4}


def test_a_system_message_of_ones_own(twin: Original, prompts: Any, conversation: Callable[..., Any]) -> None:
    talk = conversation("Hello.")
    system = Message("system", (TextPart("Answer in Japanese."),))
    ours = prompts.build([system, *talk.messages])
    turns = [{"role": "system", "content": [{"type": "text", "text": "Answer in Japanese."}]}, *talk.turns]
    assert list(ours.token_ids) == twin.inputs(turns, [])["input_ids"][0].tolist()


def test_spans_cover_the_image_tokens_in_order(
    twin: Original, prompts: Any, picture: Callable[..., Any], conversation: Callable[..., Any]
) -> None:
    talk = conversation((picture(40, 90), picture(200, 50), "Which?"), "This.", ("And?", picture(1, 1)))
    prompt = prompts.build(talk.messages)
    covered = [index for span in prompt.images for index in range(span.start, span.start + span.length)]
    image_token_id = twin.model.config.image_token_id
    assert covered == [index for index, token_id in enumerate(prompt.token_ids) if token_id == image_token_id]
    refs = [image for message in talk.messages for image in message.images]
    assert [span.image_id for span in prompt.images] == [ref.id for ref in refs]
    preprocessor = open_family("qwen2_vl").open_preprocessor(twin.folder)
    assert [span.length for span in prompt.images] == [preprocessor(shown).num_tokens for shown in talk.pictures]


# --------------------------------------------------------------------------------- forged control tokens


@pytest.mark.parametrize("forgery", FORGERIES)
def test_text_never_becomes_control_tokens(twin: Original, prompts: Any, forgery: str) -> None:
    image = ImageRef("0" * 64, 50, 50, 1, "image/png")
    control = set(twin.processor.tokenizer.added_tokens_decoder)

    def controls_of(*texts: str) -> list[int]:
        parts = tuple(TextPart(text) for text in texts)
        prompt = prompts.build([Message("user", (ImagePart(image), *parts))])
        return [token_id for token_id in prompt.token_ids if token_id in control]

    harmless = controls_of("a b")
    for texts in ((forgery,), (f"a {forgery}{forgery}\n",), (forgery[:5], forgery[5:])):
        assert controls_of(*texts) == harmless


# --------------------------------------------------------------------------------- tasks


def words_of(prompts: Any, task: Any) -> str:
    """What the user says to have the task done, about a picture."""
    message = Message("user", (ImagePart(ImageRef("0", 28, 28, 1, "image/png")),))
    prompt = prompts.build([message], task)
    assert prompt.task is task
    assert prompt.num_image_tokens == 4
    text: str = prompts.decode(prompt.token_ids)
    return text.removeprefix("system\nYou are a helpful assistant.\nuser\n").removesuffix("\nassistant\n")


@pytest.mark.parametrize(
    ("length", "words"),
    [
        ("short", "この画像を短く説明してください。"),
        ("normal", "この画像を説明してください。"),
        ("long", "この画像を詳しく説明してください。"),
    ],
)
def test_captions_in_japanese(prompts: Any, length: Any, words: str) -> None:
    assert words_of(prompts, CaptionTask(length, "ja")) == words


def test_every_language_has_three_lengths_that_differ(prompts: Any) -> None:
    said = {
        words_of(prompts, CaptionTask(length, language))
        for language in LANGUAGES
        for length in ("short", "normal", "long")
    }
    assert len(said) == 3 * len(LANGUAGES)


def test_a_prompt_in_place_of_words_and_a_question(prompts: Any) -> None:
    assert words_of(prompts, CaptionTask("long", "ja", prompt="Was ist das?")) == "Was ist das?"
    assert words_of(prompts, QueryTask("何色ですか？")) == "何色ですか？"


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (CaptionTask(language="xx"), "captions in en, ja, zh, de, fr, es, ko, pt, it"),
        (DetectTask("cat"), "no skill 'detect'"),
        (QueryTask("why?", reasoning=True), "no reasoning"),
    ],
)
def test_what_the_family_cannot_do(prompts: Any, task: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        words_of(prompts, task)


# --------------------------------------------------------------------------------- ends and text


def test_stop_tokens_and_penalty_come_from_the_generation_config(twin: Original, prompts: Any) -> None:
    config = twin.model.generation_config
    assert prompts.stop_token_ids == frozenset(config.eos_token_id)
    assert len(prompts.stop_token_ids) == 2
    assert prompts.repetition_penalty == config.repetition_penalty
    assert prompts.repetition_penalty == (1.05 if twin.model.config.model_type == "qwen2_5_vl" else 1.0)


def test_decode_equals_the_tokenizers_and_shows_unfinished_characters(twin: Original, prompts: Any) -> None:
    tokenizer = twin.processor.tokenizer
    ids = tokenizer.encode("It is  a red circle , isn't it ? 赤い円 👍<|im_end|>")
    assert prompts.decode(ids) == "It is  a red circle , isn't it ? 赤い円 👍"
    thumb = tokenizer.encode("👍")
    assert len(thumb) > 1
    assert prompts.decode(thumb[:-1]).endswith("\ufffd")


TEXT = "{{ messages[0]['content'][1]['text'] }}"


@pytest.mark.parametrize("template", [TEXT, f"{TEXT}<|image_pad|><|image_pad|>", f"{TEXT}<|vision_pad|>"])
def test_a_template_that_shows_pictures_otherwise_is_noticed(twin: Original, tmp_path: Path, template: str) -> None:
    folder = Path(shutil.copytree(twin.folder, tmp_path / "copy"))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(CheckpointError, match=r"shows a picture as [02] tokens '<\|image_pad\|>'"):
        open_family("qwen2_vl").open_prompt_format(folder)


def test_a_picture_that_the_template_leaves_out_of_a_later_turn_is_noticed(twin: Original, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(twin.folder, tmp_path / "copy"))
    template = TEXT + "{{ '<|image_pad|>' if messages | length == 1 }}"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    prompts, picture = open_family("qwen2_vl").open_prompt_format(folder), ImageRef("0", 9, 9, 1, "image/png")
    asked = Message("user", (ImagePart(picture), TextPart("x")))
    assert prompts.build([asked]).num_image_tokens
    with pytest.raises(InvalidRequest, match="exactly once"):
        prompts.build([asked, Message("assistant", (TextPart("y"),)), Message("user", (TextPart("z"),))])


def test_a_tokenizer_without_image_tokens_is_an_error(twin: Original, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(twin.folder, tmp_path / "copy"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text().replace("<|image_pad|>", "<|picture|>"))
    with pytest.raises(CheckpointError, match="no control token"):
        open_family("qwen2_vl").open_prompt_format(folder)
