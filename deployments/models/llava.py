"""The LLaVA family, late fusion in its plain form: a frozen tower sees, a projector and a language model answer.

The tower's features leave the vision encoder before the projector, so that LLaVA models over the same tower share one
tower and its cached features. All parts are transformers' own classes, each loaded without the others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from transformers import BaseImageProcessor, LlavaConfig

from deployments.errors import CheckpointError
from deployments.models.byte_pixels import GEOMETRY_ONLY, value_table
from deployments.models.chat_template import ChatTemplate
from deployments.models.family import NO_OPTIONS, Options, Pixels
from deployments.models.generation_config import read_generation_defaults
from deployments.models.image_processor import fingerprint_pixels, probed, read_image_processor, settings_of
from deployments.models.llava_language import LlavaLanguage, open_llava_language
from deployments.models.llava_prompt import LlavaPromptFormat
from deployments.models.llava_tower import LlavaTower, View, open_llava_tower, read_view
from deployments.models.registry import check_model_type
from deployments.models.thin_pictures import resize_middle
from deployments.models.weights import reading

# Of one and the same code, once do_pad is refused.
PLAIN = ("CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor")


class Llava:
    name = "llava"

    def open_preprocessor(self, folder: Path, options: Options = NO_OPTIONS) -> LlavaPreprocessor:
        config = read_config(folder)
        processor = read_image_processor(folder)
        _require_size(folder, processor, config.vision_config.image_size)
        view, values = read_view(folder, config), value_table(folder, processor)
        return probed(folder, LlavaPreprocessor(processor, config.vision_config.image_size, view, values))

    def open_tower(self, folder: Path, device: str, dtype: str) -> LlavaTower:
        return open_llava_tower(folder, read_config(folder), device, dtype)

    def open_prompt_format(self, folder: Path, options: Options = NO_OPTIONS) -> LlavaPromptFormat:
        config = read_config(folder)
        # Its template has no beginning-of-sequence token: the tokenizer's post-processor adds it.
        chat = ChatTemplate(folder, adds_special_tokens=True)
        view = read_view(folder, config)
        return LlavaPromptFormat(chat, config.image_token_index, view.num_tokens, read_generation_defaults(folder))

    def open_language(self, folder: Path, device: str, dtype: str) -> LlavaLanguage:
        return open_llava_language(folder, read_config(folder), device, dtype)


FAMILY = Llava()


def read_config(folder: Path) -> LlavaConfig:
    """Raises CheckpointError."""
    check_model_type(Llava.name, folder)
    with reading(folder, "configuration"):
        return LlavaConfig.from_pretrained(folder, local_files_only=True)


# --------------------------------------------------------------------------------- pictures


class LlavaPreprocessor:
    def __init__(self, processor: BaseImageProcessor, side_px: int, view: View, values: np.ndarray) -> None:
        self._processor = processor
        self._side_px = side_px
        self._num_tokens = view.num_tokens
        self._values = values
        settings = settings_of(processor)
        if settings["code"] in PLAIN:
            settings["code"] = "plain"
        self.fingerprint = fingerprint_pixels(settings)

    def __call__(self, picture: Image.Image) -> Pixels:
        assert picture.mode == "RGB", picture.mode
        picture = self._shorten(picture)
        pixels = self._processor([picture], return_tensors="np", **GEOMETRY_ONLY)["pixel_values"]
        assert pixels.shape == (1, 3, self._side_px, self._side_px), pixels.shape
        assert pixels.dtype == np.uint8, pixels.dtype
        tensors = {"picture": pixels, "values": self._values}
        return Pixels(tensors, cost=self._num_tokens, num_tokens=self._num_tokens)

    def _shorten(self, picture: Image.Image) -> Image.Image:
        """Of a very thin picture what is left of it in the end; others as they are."""
        size = self._processor.size
        if not self._processor.do_resize or not size.shortest_edge or size.longest_edge:
            return picture  # it does not grow on its way
        return resize_middle(picture, size.shortest_edge, self._side_px, self._processor.resample)


def _require_size(folder: Path, processor: BaseImageProcessor, side_px: int) -> None:
    """Raises CheckpointError unless every picture comes out as the tower takes it."""
    if getattr(processor, "do_pad", False):  # a picture of 16384 x 2 px would become a square on the way
        raise CheckpointError(f"checkpoint {folder}: do_pad in preprocessor_config.json is not supported")
    cropped = getattr(processor, "do_center_crop", False)
    size = processor.crop_size if cropped else processor.size
    sides = (size.height, size.width) if size else None
    if not (cropped or processor.do_resize) or sides != (side_px, side_px):
        raise CheckpointError(
            f"checkpoint {folder}: preprocessor_config.json makes pictures of {dict(size or {})} px, while the tower "
            f"takes {side_px} x {side_px} px (config.json)"
        )
