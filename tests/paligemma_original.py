"""transformers' own model and processor of a tiny PaliGemma checkpoint, in float32: what ours must equal."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PaliGemmaForConditionalGeneration, PaliGemmaProcessor

SIZES = ((1, 1), (30, 2000), (640, 480))  # px; pictures are named by their index
NEW_TOKENS = 20
Answer = tuple[tuple[int, ...], str]  # token ids with the stop token; text


def make_picture(index: int) -> Image.Image:
    """Blotches of colour, so that no two places are alike."""
    noise = np.random.default_rng(index).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(SIZES[index], Image.Resampling.BICUBIC)


class Original:
    """Parts are loaded when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def model(self) -> Any:
        return PaliGemmaForConditionalGeneration.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def processor(self) -> Any:
        return PaliGemmaProcessor.from_pretrained(self.folder, backend="pil")

    def inputs(self, words: str, picture: int) -> dict[str, torch.Tensor]:
        # As arrays: the processor makes arrays of tensors in a way that numpy warns of.
        inputs = self.processor(text=f"<image>{words}", images=make_picture(picture), return_tensors="np")
        return {name: torch.from_numpy(value) for name, value in inputs.items() if name != "labels"}

    @torch.inference_mode()
    def features(self, picture: int) -> torch.Tensor:
        """(tokens, D)"""
        [rows] = self.model.get_image_features(self.inputs("", picture)["pixel_values"]).pooler_output
        return rows

    @torch.inference_mode()
    def answer(self, words: str, picture: int) -> Answer:
        """Greedy."""
        inputs = self.inputs(words, picture)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        shown = ids[:-1] if ids[-1] == self.model.generation_config.eos_token_id else ids
        # The engine leaves out white space before the answer, see AnswerText.
        return tuple(ids), self.processor.tokenizer.decode(shown, skip_special_tokens=True).lstrip()
