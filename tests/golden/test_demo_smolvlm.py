"""Holds the demo SmolVLM checkpoint to its answers, its size and its recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch

DEMO = Path(__file__).parents[2] / "demo"
CHECKPOINT = DEMO / "checkpoints" / "smolvlm"
CONVERSATIONS = json.loads(Path(__file__).with_name("smolvlm.json").read_text(encoding="utf-8"))
IMAGE_TOKENS = 16


class Chat:
    """The checkpoint behind plain `transformers` calls."""

    def __init__(self) -> None:
        import torch
        from transformers import Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, TokenizersBackend

        self.model = Idefics3ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
        self.tokenizer = TokenizersBackend.from_pretrained(CHECKPOINT)
        self.processor = Idefics3ImageProcessorPil.from_pretrained(CHECKPOINT)

    def answer(self, messages: list[dict[str, Any]], image: Path | None) -> str:
        """Generate greedily what follows the messages."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        around = "<fake_token_around_image>"
        expanded = text.replace("<image>", f"{around}<global-img>{'<image>' * IMAGE_TOKENS}{around}")
        inputs = self.tokenizer(expanded, return_tensors="pt")
        pixels = {"pixel_values": self._pixels(image)} if image else {}
        ids = self.model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **pixels, max_new_tokens=48
        )
        return self.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    def _pixels(self, path: Path) -> Any:
        from PIL import Image

        with Image.open(path) as image:
            return self.processor([[image.convert("RGB")]], return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat()


def questions(conversation: dict[str, Any]) -> Iterator[tuple[list[dict[str, Any]], Path | None, str]]:
    """Yield each question's messages, its picture and the answer expected; earlier answers are taken as given."""
    messages: list[dict[str, Any]] = []
    image = None
    for turn, (question, answer) in enumerate(conversation["turns"]):
        parts = [{"type": "text", "text": question}]
        if turn == conversation["image_turn"]:
            image = DEMO / "images" / conversation["image"]
            parts.insert(0, {"type": "image"})
        messages.append({"role": "user", "content": parts})
        yield list(messages), image, answer
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: str(conversation["image"]))
def test_answers_stay(chat: Chat, conversation: dict[str, Any]) -> None:
    for messages, image, answer in questions(conversation):
        assert chat.answer(messages, image) == answer, messages[-1]["content"][-1]["text"]


def test_recipe_belongs_to_weights() -> None:
    recipe = json.loads((CHECKPOINT / "recipe.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()
    assert recipe["weights_sha256"] == digest


def test_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*")) <= 6_000_000


def test_tokenizers_agree() -> None:
    from transformers import AutoTokenizer, TokenizersBackend

    text = "<|im_start|>User:<image>Hello, my name is Zoë 42!<end_of_utterance>\nAssistant: It is red."
    one, other = AutoTokenizer.from_pretrained(CHECKPOINT), TokenizersBackend.from_pretrained(CHECKPOINT)
    assert one(text)["input_ids"] == other(text)["input_ids"]
