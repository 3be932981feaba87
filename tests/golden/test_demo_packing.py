"""Checks that the demo trains on the very tokens that are served, and that its pointers agree with its answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.torch

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoints" / "smolvlm"


def test_packed_conversation_equals_the_chat_template() -> None:
    from conversations import Talker
    from evaluate import messages_of
    from model import EXPANDED_IMAGE, IMAGE, START
    from packing import Packer
    from scenes import sample_scene
    from tokenizers import Tokenizer
    from transformers import TokenizersBackend

    rng = np.random.default_rng(5)
    talker = Talker([*(sample_scene(rng) for _ in range(50)), None], rng)
    packer = Packer(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")), talker)
    serving = TokenizersBackend.from_pretrained(CHECKPOINT)
    for length in range(1, 11):
        talk = talker.conversation(length)
        text = serving.apply_chat_template([m for turn in talk for m in messages_of(turn)], tokenize=False)
        served = serving(text.replace(IMAGE, EXPANDED_IMAGE))["input_ids"]
        assert served == [serving.convert_tokens_to_ids(START), *packer.block(talk, has_prefix=False).ids]


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
