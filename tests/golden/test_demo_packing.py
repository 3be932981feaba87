"""Checks that the demo trains on the very tokens that are served, and that its pointers agree with its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.torch

CHECKPOINTS = Path(__file__).parents[2] / "demo" / "checkpoints"
GRIDS = ((4, 4), (3, 5))  # of the first half of the pictures, and of the others
NUM_PICTURES = 51


def open_packer(model: str) -> Any:
    """The packer that the model is trained with, over pictures of both GRIDS where it knows more than one."""
    from conversations import Talker
    from dialects import SMOLVLM
    from japanese_conversations import BilingualTalker
    from llava_model import LLAMA, QWEN
    from packing import Packer
    from qwen2_vl_model import dialect
    from scenes import sample_scene
    from tokenizers import Tokenizer

    rng = np.random.default_rng(5)
    tokenizer = Tokenizer.from_file(str(CHECKPOINTS / model / "tokenizer.json"))
    if model == "qwen2_vl":
        written: Any = dialect(tokenizer, ((25, GRIDS[0]), (NUM_PICTURES - 25, GRIDS[1])))
    else:
        written = {"smolvlm": SMOLVLM, "llava": LLAMA.dialect, "llava_qwen2": QWEN.dialect}[model]
    kind = BilingualTalker if model in ("qwen2_vl", "llava_qwen2") else Talker
    return Packer(tokenizer, kind([*(sample_scene(rng) for _ in range(NUM_PICTURES - 1)), None], rng), written)


def expand(model: str, text: str, picture: int | None) -> str:
    """Write a prompt's placeholder out, as serving does."""
    from llava_tower import IMAGE_TOKENS
    from model import EXPANDED_IMAGE

    lines, columns = GRIDS[0 if picture is not None and picture < 25 else 1]
    if model == "qwen2_vl":
        return text.replace("<|image_pad|>", "<|image_pad|>" * (lines * columns))
    return text.replace("<image>", EXPANDED_IMAGE if model == "smolvlm" else "<image>" * IMAGE_TOKENS)


def pack(packer: Any, talk: Any) -> Any:
    from packing import Row

    row = Row()
    row.add(packer.piece(packer.dialect.start), 0, 0)
    row.add(packer.block(talk, has_prefix=False), 1, row.next_position)
    return row


def serve(model: str, talk: Any) -> list[int]:
    """The conversation's ids by the checkpoint's own template and tokenizer."""
    import json

    from examinees import messages_of
    from transformers import TokenizersBackend

    serving = TokenizersBackend.from_pretrained(CHECKPOINTS / model)
    template = json.loads((CHECKPOINTS / model / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    messages = [message for turn in talk for message in messages_of(turn)]
    text = serving.apply_chat_template(messages, chat_template=template, tokenize=False)
    ids: list[int] = serving(expand(model, text, picture_of(talk)))["input_ids"]
    return ids


def picture_of(talk: Any) -> int | None:
    return next((turn.picture for turn in talk if turn.picture is not None), None)


@pytest.mark.parametrize("model", ["smolvlm", "qwen2_vl", "llava", "llava_qwen2"])
def test_packed_conversation_equals_the_chat_template(model: str) -> None:
    packer = open_packer(model)
    for length in (*range(1, 11), *range(1, 11)):
        talk = packer.talker.conversation(length)
        assert pack(packer, talk).ids == serve(model, talk)


def test_packed_questions_about_one_picture_stand_as_they_would_alone() -> None:
    packer = open_packer("qwen2_vl")
    from packing import Row

    exchange = packer.talker.single(30)
    alone, row = pack(packer, [exchange]), Row()
    row.add(packer.piece(packer.dialect.start + packer.dialect.before_text(30), 30), 0, 0)
    row.add(packer.block([exchange], has_prefix=True), 1, row.next_position)
    assert (row.ids, row.positions, row.pictures) == (alone.ids, alone.positions, alone.pictures)


def test_positions_are_those_of_transformers() -> None:
    import torch
    from qwen2_vl_model import build_model

    packer = open_packer("qwen2_vl")
    model = build_model(packer.tokenizer, 0)
    grids_seen = set()
    for length in (*range(1, 8), *range(1, 8)):
        talk = packer.talker.conversation(length)
        row, picture = pack(packer, talk), picture_of(talk)
        ids, shown = torch.tensor([row.ids]), None
        if picture is not None:
            grid = GRIDS[0 if picture < 25 else 1]
            shown = torch.tensor([[1, 2 * grid[0], 2 * grid[1]]])
            grids_seen.add(grid)
        expected, _ = model.model.get_rope_index(ids, (ids == packer.dialect.image_id).int(), shown)
        assert torch.equal(expected[:, 0].T, torch.tensor(row.positions))
    assert grids_seen == set(GRIDS)


def test_pointer_names_the_thing_that_the_answer_speaks_of() -> None:
    from pointers import find_pointer
    from questions import ask_about
    from scenes import sample_scene

    rng = np.random.default_rng(6)
    for _ in range(500):
        scene = sample_scene(rng)
        question = ask_about(scene, "where", rng)
        pointer = find_pointer(question.text, scene)
        if pointer is None:
            assert len(scene.things) == 1
        elif pointer.thing is None:
            assert question.answer.startswith("I do not see")
        else:
            assert question.answer == f"It is {pointer.thing.place}."


def test_japanese_pointer_names_the_thing_that_the_answer_speaks_of() -> None:
    from japanese_questions import ask_about
    from japanese_wordings import PLACES
    from pointers import find_pointer
    from scenes import sample_scene

    rng = np.random.default_rng(6)
    for _ in range(500):
        scene = sample_scene(rng)
        question = ask_about(scene, "where", rng)
        pointer = find_pointer(question.text, scene)
        if pointer is None:
            assert len(scene.things) == 1
        elif pointer.thing is None:
            assert question.answer.endswith("は見えません。")
        else:
            assert question.answer == f"{PLACES[pointer.thing.place]}にあります。"


def test_pointer_lies_on_the_last_token_of_its_word() -> None:
    from conversations import Exchange
    from scenes import Scene, Thing

    packer = open_packer("qwen2_vl")
    star = Thing("star", "red", "on the left")
    scene = Scene((star, Thing("circle", "blue", "on the right")), "white")
    for question, word in (("Where is the red star in the image?", " star"), ("赤い星はどこにありますか？", "星")):
        block = packer.block([Exchange("where", question, "", 3, scene=scene)], has_prefix=False)
        [(index, _)] = block.pointed
        assert packer.tokenizer.decode([block.ids[index]]) == word
