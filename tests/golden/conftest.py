"""Reads golden conversations and lets a demo checkpoint hold them behind plain `transformers` calls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "demo"
Hold = Callable[[str], list[tuple[str, str, str]]]


@pytest.fixture(scope="session")
def hold() -> Hold:
    """All golden questions of a model, each with the answer expected and the one found."""

    def holding(model: str) -> list[tuple[str, str, str]]:
        from examinees import load_examinee
        from PIL import Image

        conversations = json.loads(Path(__file__).with_name(f"{model}.json").read_text(encoding="utf-8"))
        images = []
        for conversation in conversations:
            with Image.open(DEMO / "images" / (conversation["image"] or "red-circle.png")) as image:
                images.append(image.convert("RGB"))
        talks = [talk for number, one in enumerate(conversations) for talk in _talks(one, number)]
        answers = load_examinee(DEMO / "checkpoints" / model, images, []).answers(talks)
        return [(talk[-1].user, talk[-1].answer, answer) for talk, answer in zip(talks, answers, strict=True)]

    return holding


def _talks(conversation: dict[str, Any], picture: int) -> list[list[Any]]:
    """The conversation up to each of its questions; earlier answers are taken as given."""
    from conversations import Exchange

    turns = [
        Exchange("", question, answer, picture if number == conversation["image_turn"] else None)
        for number, (question, answer) in enumerate(conversation["turns"])
    ]
    return [turns[:end] for end in range(1, len(turns) + 1)]


@pytest.fixture(scope="session")
def check_folder() -> Callable[[str], None]:
    """Compare a checkpoint folder with its recipe, and its two tokenizers with each other."""

    def checking(model: str) -> None:
        from transformers import AutoTokenizer, TokenizersBackend

        folder = DEMO / "checkpoints" / model
        recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        assert recipe["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        assert sum(file.stat().st_size for file in folder.rglob("*")) <= 7_000_000
        text = "Hello, my name is Zoë 42!\nIt is red. この画像には何がありますか？\n赤い円があります。"
        auto, exact = AutoTokenizer.from_pretrained(folder), TokenizersBackend.from_pretrained(folder)
        assert auto(text)["input_ids"] == exact(text)["input_ids"]

    return checking
