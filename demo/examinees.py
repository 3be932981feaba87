"""Loads a demo checkpoint of any family behind plain `transformers` calls and lets it answer, greedily, in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conversations import Exchange
from PIL import Image
from scenes import Scene
from transformers import TokenizersBackend

BATCH = 64

Inputs = dict[str, torch.Tensor]
See = Callable[
    [list[Image.Image]], tuple[Inputs, list[str]]
]  # pixel inputs, and each picture's text for its placeholder


@dataclass(slots=True)
class Examinee:
    """A loaded checkpoint and the pictures it is asked about."""

    model: Any
    tokenizer: TokenizersBackend
    see: See
    placeholder: str  # that the chat template writes for a picture
    languages: list[str]
    images: list[Image.Image]
    scenes: list[Scene | None]

    def answers(self, conversations: list[list[Exchange]]) -> list[str]:
        """Answer the last question of each conversation; earlier answers are taken as given."""
        found = [""] * len(conversations)
        for has_picture in (False, True):
            chosen = [i for i, talk in enumerate(conversations) if (_picture(talk) is not None) == has_picture]
            chosen.sort(key=lambda i: len(conversations[i]))
            for start in range(0, len(chosen), BATCH):
                batch = chosen[start : start + BATCH]
                for index, answer in zip(batch, self._answer([conversations[i] for i in batch]), strict=True):
                    found[index] = answer
        return found

    def _answer(self, conversations: list[list[Exchange]]) -> list[str]:
        prompts = [self._prompt(talk) for talk in conversations]
        pictures = [picture for talk in conversations if (picture := _picture(talk)) is not None]
        pixels: Inputs = {}
        if pictures:
            pixels, texts = self.see([self.images[picture] for picture in pictures])
            prompts = [p.replace(self.placeholder, text) for p, text in zip(prompts, texts, strict=True)]
        inputs = dict(self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt"))
        inputs.pop("token_type_ids", None)
        if "image_grid_thw" in pixels:
            pixels["mm_token_type_ids"] = (inputs["input_ids"] == self.model.config.image_token_id).int()
        ids = self.model.generate(**inputs, **pixels, do_sample=False, max_new_tokens=64)
        texts = self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _prompt(self, talk: list[Exchange]) -> str:
        messages = [message for turn in talk for message in messages_of(turn)][:-1]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def messages_of(turn: Exchange) -> list[dict[str, object]]:
    """The exchange as the chat template takes it."""
    picture = [{"type": "image"}] if turn.picture is not None else []
    user: dict[str, object] = {"role": "user", "content": [*picture, {"type": "text", "text": turn.user}]}
    return [user, {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]}]


def _picture(talk: list[Exchange]) -> int | None:
    return next((turn.picture for turn in talk if turn.picture is not None), None)


def load_examinee(folder: Path, images: list[Image.Image], scenes: list[Scene | None]) -> Examinee:
    """Load a checkpoint folder in float32."""
    model_type = _read(folder / "config.json")["model_type"]
    model, see, placeholder = {"idefics3": _load_smolvlm, "qwen2_vl": _load_qwen, "llava": _load_llava}[model_type](
        folder
    )
    tokenizer = TokenizersBackend.from_pretrained(folder)
    tokenizer.chat_template = _read(folder / "chat_template.json")["chat_template"]
    languages = _read(folder / "recipe.json").get("languages", ["en"])
    return Examinee(model.eval(), tokenizer, see, placeholder, languages, images, scenes)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _load_smolvlm(folder: Path) -> tuple[Any, See, str]:
    from model import EXPANDED_IMAGE, IMAGE
    from transformers import Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil

    processor = Idefics3ImageProcessorPil.from_pretrained(folder)

    def see(images: list[Image.Image]) -> tuple[Inputs, list[str]]:
        values = processor([[image] for image in images], return_tensors="pt")["pixel_values"]
        return {"pixel_values": values}, [EXPANDED_IMAGE] * len(images)

    return Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32), see, IMAGE


def _load_qwen(folder: Path) -> tuple[Any, See, str]:
    from qwen2_vl_model import IMAGE
    from qwen2_vl_tower import MERGE
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def see(images: list[Image.Image]) -> tuple[Inputs, list[str]]:
        inputs = dict(processor(images, return_tensors="pt"))
        counts = inputs["image_grid_thw"].prod(-1) // MERGE**2
        return inputs, [IMAGE * count for count in counts.tolist()]

    return Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32), see, IMAGE


def _load_llava(folder: Path) -> tuple[Any, See, str]:
    from llava_model import IMAGE
    from llava_tower import IMAGE_TOKENS
    from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration

    processor = CLIPImageProcessorPil.from_pretrained(folder)

    def see(images: list[Image.Image]) -> tuple[Inputs, list[str]]:
        return dict(processor(images, return_tensors="pt")), [IMAGE * IMAGE_TOKENS] * len(images)

    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32), see, IMAGE
