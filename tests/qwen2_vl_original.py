"""transformers' own model and processor of a tiny Qwen2-VL checkpoint, in float32: what ours must equal."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tiny_qwen2_vl import CHAT_TEMPLATE
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    ProcessorMixin,
    Qwen2VLProcessor,
    TokenizersBackend,
)

MAX_PIXELS = 1280 * 28 * 28  # what our default budget of image tokens comes to


class PicturesOnly(Qwen2VLProcessor):  # type: ignore[misc]
    """Qwen2VLProcessor wants a video processor, which needs torchvision; the parts are read from this signature."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token = "<|image_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class Original:
    """Parts are loaded when first asked for."""

    def __init__(self, folder: Path, max_pixels: int = MAX_PIXELS) -> None:
        self.folder = folder
        self._max_pixels = max_pixels

    @cached_property
    def model(self) -> Any:
        return AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def processor(self) -> Any:
        pictures = AutoImageProcessor.from_pretrained(self.folder, backend="pil", max_pixels=self._max_pixels)
        tokenizer = TokenizersBackend.from_pretrained(self.folder)
        return PicturesOnly(pictures, tokenizer, chat_template=CHAT_TEMPLATE)

    def inputs(self, turns: list[dict[str, object]], pictures: list[Image.Image]) -> Any:
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        return self.processor(text=[text], images=pictures or None, return_tensors="pt")

    @torch.inference_mode()
    def features(self, picture: Image.Image) -> torch.Tensor:
        """(tokens, D)"""
        batch = self.processor.image_processor([picture], return_tensors="pt")
        output = self.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True)
        [features] = output.pooler_output
        return features

    @torch.inference_mode()
    def answer(self, turns: list[dict[str, object]], pictures: list[Image.Image], max_new_tokens: int) -> list[int]:
        """Greedy, with whatever penalty generation_config.json names; the stop token included."""
        inputs = self.inputs(turns, pictures)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return ids
