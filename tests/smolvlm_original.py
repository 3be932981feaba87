"""transformers' own model and processor of a tiny SmolVLM checkpoint, in float32: what ours must equal."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tiny_checkpoints import CHAT_TEMPLATE
from transformers import AutoImageProcessor, AutoModelForImageTextToText, Idefics3Processor, TokenizersBackend


class Original:
    """Parts are loaded when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def model(self) -> Any:
        return AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def processor(self) -> Any:
        config = self.model.config
        patches = config.vision_config.image_size // config.vision_config.patch_size
        # Idefics3Processor for smolvlm as well: SmolVLMProcessor cannot be made without torchvision.
        return Idefics3Processor(
            AutoImageProcessor.from_pretrained(self.folder, backend="pil"),
            TokenizersBackend.from_pretrained(self.folder),
            image_seq_len=(patches // config.scale_factor) ** 2,
            chat_template=CHAT_TEMPLATE,
        )

    @torch.inference_mode()
    def answer(self, turns: list[dict[str, object]], pictures: list[Image.Image], max_new_tokens: int) -> list[int]:
        """Greedy; the stop token included."""
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        inputs = self.processor(text=text, images=[pictures] if pictures else None, return_tensors="pt")
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return ids
