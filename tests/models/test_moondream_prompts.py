"""Moondream's prompts: what stands where, that people cannot write control tokens, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_moondream import SMALL, build_moondream, build_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from deployments.errors import CheckpointError, InvalidRequest
from deployments.models.family import ImageSpan, Options
from deployments.models.moondream_prompt import MoondreamPromptFormat
from deployments.models.moondream_tokenizer import MoondreamTokenizer
from deployments.models.moondream_tokens import CURRENT, OLD, TokenIds, read_token_ids
from deployments.models.registry import open_family
from deployments.types import (
    CaptionTask,
    DetectTask,
    ImagePart,
    ImageRef,
    Message,
    PointTask,
    QueryTask,
    Role,
    Task,
    TextPart,
)

pytestmark = pytest.mark.torch

IMAGE_TOKENS = 64
PICTURE = ImageRef("a" * 64, 300, 200, 1, "image/png")
OTHER = ImageRef("b" * 64, 30, 20, 1, "image/png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_moondream(tmp_path_factory.mktemp("moondream"), config=SMALL)


@pytest.fixture(scope="module")
def prompts(folder: Path) -> Any:
    return open_family("moondream").open_prompt_format(folder)


def ids(text: str) -> list[int]:
    return list(build_tokenizer().encode(text).ids)


def say(role: Role, *parts: str | ImageRef) -> Message:
    return Message(role, tuple(TextPart(part) if isinstance(part, str) else ImagePart(part) for part in parts))


def asked(prompts: Any, task: Task, picture: ImageRef | None = PICTURE) -> Any:
    return prompts.build([say("user", *([] if picture is None else [picture]))], task)


def after_picture(prompt: Any) -> list[int]:
    assert prompt.num_mutual == 1 + IMAGE_TOKENS
    assert prompt.images == (ImageSpan(PICTURE.id, 1, IMAGE_TOKENS),)
    return list(prompt.token_ids[prompt.num_mutual :])


QUERY, CAPTION = [1, *ids("query"), 2], [1, *ids("caption"), 2]


# --------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        (CaptionTask("short"), [*CAPTION, *ids("short"), 3]),
        (CaptionTask(), [*CAPTION, *ids("normal"), 3]),
        (CaptionTask("long"), [*CAPTION, *ids("long"), 3]),
        (CaptionTask(prompt="Name it."), [*QUERY, *ids("Name it."), 3, 3]),
        (QueryTask("What is it?"), [*QUERY, *ids("What is it?"), 3, 3]),
        (QueryTask("What is it?", reasoning=True), [*QUERY, *ids("What is it?"), 3, 4]),
        (DetectTask("boat"), [1, *ids("detect"), 2, *ids(" boat"), 3]),
        (PointTask("boat"), [1, *ids("point"), 2, *ids(" boat"), 3]),
    ],
)
def test_tasks(prompts: Any, task: Task, wanted: list[int]) -> None:
    prompt = asked(prompts, task)
    assert after_picture(prompt) == wanted
    assert prompt.task == task
    assert prompt.places == ()
    assert prompt.token_ids[0] == 0
    np.testing.assert_array_equal(prompt.positions, [range(len(prompt.token_ids))])
    assert prompt.positions.dtype == np.int64
    assert prompt.next_position == len(prompt.token_ids)


def test_a_question_without_a_picture(prompts: Any) -> None:
    prompt = asked(prompts, QueryTask("What is it?"), picture=None)
    assert list(prompt.token_ids) == [0, *QUERY, *ids("What is it?"), 3, 3]
    assert (prompt.num_mutual, prompt.images) == (0, ())


def test_points_and_boxes_stand_before_the_question(prompts: Any) -> None:
    references = ((0.25, 0.75), (0.125, 0.25, 0.625, 1.0), (0.0, 1.0))
    prompt = asked(prompts, QueryTask("What is it?", spatial_refs=references, reasoning=True))
    assert after_picture(prompt) == [*QUERY, 5, 5, 5, 5, 6, 5, 5, *ids("What is it?"), 3, 4]
    first = prompt.num_mutual + len(QUERY)
    coordinates = [(0.25,), (0.75,), (0.375,), (0.625,), (0.5, 0.75), (0.0,), (1.0,)]
    assert prompt.places == tuple((first + index, each) for index, each in enumerate(coordinates))


# --------------------------------------------------------------------------------- conversations


def test_a_conversation_is_written_exchange_by_exchange(prompts: Any) -> None:
    messages = [
        say("user", "What is it?"),
        say("assistant", "A boat."),
        say("user", "Which ", PICTURE, "colour?"),
        say("assistant", "Red."),
        say("user", "And the lake?"),
    ]
    prompt = prompts.build(messages)
    assert after_picture(prompt) == [
        *(*QUERY, *ids("What is it?"), 3, 3, *ids("A boat."), 0),
        *(*QUERY, *ids("Which colour?"), 3, 3, *ids("Red."), 0),
        *(*QUERY, *ids("And the lake?"), 3, 3),
    ]
    assert prompt.task is None


def test_a_conversation_without_a_picture(prompts: Any) -> None:
    prompt = prompts.build([say("user", "What is it?")])
    assert list(prompt.token_ids) == [0, *QUERY, *ids("What is it?"), 3, 3]
    assert (prompt.num_mutual, prompt.images) == (0, ())


def test_a_picture_shown_twice_is_one(prompts: Any) -> None:
    prompt = prompts.build([say("user", PICTURE, "A?"), say("assistant", "B."), say("user", PICTURE, "C?")])
    assert len(prompt.images) == 1


# --------------------------------------------------------------------------------- what people write


@pytest.mark.parametrize("control", ["<|endoftext|>", "<|md_reserved_2|>", "<|md_reserved_4|>"])
def test_control_tokens_in_people_s_words_are_words(prompts: Any, control: str) -> None:
    words = f"a{control}b"
    tasks: Sequence[Task] = (QueryTask(words), CaptionTask(prompt=words), DetectTask(words), PointTask(words))
    texts = [after_picture(asked(prompts, task)) for task in tasks]
    texts.append(after_picture(prompts.build([say("user", PICTURE, words), say("assistant", words), say("user", "?")])))
    control_id = build_tokenizer().token_to_id(control)
    harmless = [asked(prompts, task) for task in (QueryTask("ab"), CaptionTask(prompt="ab"), DetectTask("ab"))]
    templates = [after_picture(each) for each in (*harmless, asked(prompts, PointTask("ab")))]
    templates.append(after_picture(prompts.build([say("user", PICTURE, "a"), say("assistant", "a"), say("user", "?")])))
    for token_ids, template in zip(texts, templates, strict=True):
        assert token_ids.count(control_id) == template.count(control_id)
        assert control in prompts.decode(token_ids)


@pytest.mark.parametrize("text", ["", " ", "What's\n\n 12345?", "青い船 \N{SHIP} é", "<|md_reserved", "  two  spaces "])
def test_other_words_are_as_the_tokenizer_has_them(prompts: Any, text: str) -> None:
    assert after_picture(asked(prompts, QueryTask(text))) == [*QUERY, *ids(text), 3, 3]
    assert prompts.decode(ids(text)) == text


def test_decoding_skips_control_tokens(prompts: Any) -> None:
    assert prompts.decode([*ids("A boat"), 3, 5, 0, *ids(".")]) == "A boat."


def test_what_ends_an_answer_is_not_read_from_generation_config(prompts: Any, folder: Path) -> None:
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 7
    assert prompts.stop_token_ids == {0}
    assert prompts.repetition_penalty == 1


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "user's"),
        ([say("user", "A?"), say("assistant", "B.")], "user's"),
        ([say("system", "Be kind."), say("user", "A?")], "user and assistant"),
        ([say("user", PICTURE, "A?"), say("assistant", "B."), say("user", OTHER, "C?")], "one picture"),
    ],
)
def test_conversations_it_cannot_have(prompts: Any, messages: list[Message], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        prompts.build(messages)


@pytest.mark.parametrize(
    ("task", "picture", "param"),
    [
        (CaptionTask(), None, "image"),
        (CaptionTask(prompt="Name it."), None, "image"),
        (DetectTask("boat"), None, "image"),
        (PointTask("boat"), None, "image"),
        (QueryTask("?", spatial_refs=((0.5, 0.5),)), None, "spatial_refs"),
        (QueryTask("?", spatial_refs=((0.5, 0.5, 0.5),)), PICTURE, "spatial_refs"),
        (QueryTask("?", spatial_refs=((0.5, float("nan")),)), PICTURE, "spatial_refs"),
        (CaptionTask(language="ja"), PICTURE, "language"),
        (CaptionTask("huge"), PICTURE, "length"),  # type: ignore[arg-type]
        (CaptionTask(prompt=""), PICTURE, "prompt"),
        (QueryTask("\ud83d"), PICTURE, "message"),
        (DetectTask("a \udfff"), PICTURE, "message"),
    ],
)
def test_tasks_it_cannot_do(prompts: Any, task: Task, picture: ImageRef | None, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(prompts, task, picture)
    assert caught.value.param == param


def test_english_of_a_region_is_english(prompts: Any) -> None:
    british, plain = (asked(prompts, CaptionTask("short", language), PICTURE) for language in ("en-GB", "en"))
    assert british.token_ids == plain.token_ids


# --------------------------------------------------------------------------------- tokenizers


def format_with(tokens: TokenIds, folder: Path, vocab_size: int = 51200) -> MoondreamPromptFormat:
    return MoondreamPromptFormat(MoondreamTokenizer(folder, tokens, vocab_size), tokens, IMAGE_TOKENS)


def old_tokenizer(folder: Path) -> Path:
    """Bytes, ids of the end token as in GPT-2, and runs of spaces as added tokens."""
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**letters, "<|endoftext|>": 50256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("   ", normalized=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_the_tokenizer_may_lie_elsewhere(tmp_path: Path, folder: Path) -> None:
    elsewhere = tmp_path / "starmie"
    elsewhere.mkdir()
    checkpoint = build_moondream(tmp_path / "checkpoint", config=SMALL)
    (checkpoint / "tokenizer.json").rename(elsewhere / "tokenizer.json")
    family = open_family("moondream")
    prompt = asked(family.open_prompt_format(checkpoint, Options(tokenizer=elsewhere)), QueryTask("Who?"))
    assert prompt.token_ids == asked(family.open_prompt_format(folder), QueryTask("Who?")).token_ids
    with pytest.raises(CheckpointError, match="tokenizer: moondream/starmie-v1"):
        family.open_prompt_format(checkpoint)


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"its token 1 is .*md_reserved_0.*set tokenizer: moondream/starmie-v1"):
        format_with(CURRENT, old_tokenizer(tmp_path))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="goes up to id 511"):
        format_with(CURRENT, folder, vocab_size=511)


def test_the_hub_s_own_prompts(folder: Path) -> None:
    """Its config.json is silent, so these are the ids that moondream2's code assumes."""
    prompts = format_with(CURRENT, folder)
    assert after_picture(asked(prompts, CaptionTask("normal"))) == [1, 32708, 2, 6382, 3]
    assert after_picture(asked(prompts, QueryTask("A?"))) == [1, 15381, 2, *ids("A?"), 3, 3]
    assert after_picture(asked(prompts, DetectTask("A"))) == [1, 7235, 476, 2, *ids(" A"), 3]
    assert after_picture(asked(prompts, PointTask("A"))) == [1, 2581, 2, *ids(" A"), 3]


def test_prompts_of_old_revisions(tmp_path: Path, folder: Path) -> None:
    prompts = format_with(OLD, old_tokenizer(tmp_path))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    question = [tokenizer.token_to_id(letter) for letter in "a?"]
    assert after_picture(asked(prompts, QueryTask("a?"))) == [198, 198, 24361, 25, *question, 198, 198, 33706, 25]
    assert after_picture(asked(prompts, CaptionTask("short"))) == [198, 198, 16438, 8305, 25]
    assert after_picture(asked(prompts, DetectTask("a?")))[-3:] == [*question, 628]
    assert prompts.stop_token_ids == {50256}
    with pytest.raises(InvalidRequest, match="short, normal"):
        asked(prompts, CaptionTask("long"))
    with pytest.raises(InvalidRequest, match="no reasoning"):
        asked(prompts, QueryTask("a?", reasoning=True))
    with pytest.raises(InvalidRequest, match="no points and boxes"):
        asked(prompts, QueryTask("a?", spatial_refs=((0.5, 0.5),)))
    words = after_picture(asked(prompts, QueryTask("a   a<|endoftext|>")))
    assert tokenizer.token_to_id("   ") in words  # an added token, but text
    assert 50256 not in words
    with pytest.raises(CheckpointError, match="leave out `tokenizer`"):
        format_with(OLD, folder)


# --------------------------------------------------------------------------------- config.tokenizer


def tokens_of(folder: Path, tokenizer: object, *, has_old_names: bool = False) -> TokenIds:
    content = {"model_type": "moondream1", "config": {} if tokenizer is None else {"tokenizer": tokenizer}}
    (folder / "config.json").write_text(json.dumps(content))
    return read_token_ids(folder, has_old_names=has_old_names, vocab_size=51200)


def test_silence_means_the_ids_of_the_code_of_the_time(tmp_path: Path) -> None:
    assert tokens_of(tmp_path, None) == CURRENT
    assert tokens_of(tmp_path, None, has_old_names=True) == OLD


def test_a_given_end_token_tells_the_time_better_than_names(tmp_path: Path) -> None:
    assert tokens_of(tmp_path, {"bos_id": 50256, "eos_id": 50256}) == OLD
    assert tokens_of(tmp_path, {"bos_id": 0, "eos_id": 0}, has_old_names=True) == CURRENT


def test_a_checkpoint_may_lack_skills(tmp_path: Path, folder: Path) -> None:
    templates = {"query": {"prefix": [1, 9, 2], "suffix": [3]}, "caption": None}
    tokens = tokens_of(tmp_path, {"templates": templates})
    assert tokens.skills == ("query",)
    prompts = format_with(tokens, folder)
    for task in (CaptionTask(), DetectTask("a"), PointTask("a")):
        with pytest.raises(InvalidRequest, match="it has query"):
            asked(prompts, task)


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        ({"eos": 0}, "unknown key 'eos'"),
        ({"answer_id": "3"}, "answer_id should be a token id"),
        ({"coord_id": 60_000}, "id 60000"),
        ({"templates": []}, "templates should be an object"),
        ({"templates": {"gaze": None}}, "unknown key 'gaze'"),
        ({"templates": {"query": {"prefix": [1]}}}, "suffix should be a list"),
        ({"templates": {"caption": {"tiny": [1]}}}, "unknown key 'tiny'"),
    ],
)
def test_ids_that_mean_nothing_are_refused(tmp_path: Path, tokenizer: object, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        tokens_of(tmp_path, tokenizer)
