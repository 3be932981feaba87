"""The LLaVA family, late fusion in its plain form: a frozen tower sees, a projector and a language model answer.

The tower's features leave the vision encoder before the projector, so that LLaVA models over the same tower share one
tower and its cached features. All parts are transformers' own classes, each loaded without the others.
"""

from __future__ import annotations

from pathlib import Path

import PIL
import transformers
from PIL import Image
from transformers import AutoImageProcessor, LlavaConfig

from deployments.errors import CheckpointError
from deployments.models.chat_template import ChatTemplate
from deployments.models.family import NO_OPTIONS, Options, Pixels
from deployments.models.generation_config import read_generation_defaults
from deployments.models.llava_language import LlavaLanguage, open_llava_language
from deployments.models.llava_prompt import LlavaPromptFormat
from deployments.models.llava_tower import LlavaTower, View, open_llava_tower, read_view
from deployments.models.registry import check_model_type
from deployments.models.weights import fingerprint_values, reading, require_files

MAX_ASPECT_RATIO = 100  # of a picture that is resized whole


class Llava:
    name = "llava"

    def open_preprocessor(self, folder: Path, options: Options = NO_OPTIONS) -> LlavaPreprocessor:
        config = read_config(folder)
        processor = _read_image_processor(folder)
        _require_size(folder, processor, config.vision_config.image_size)
        return LlavaPreprocessor(processor, config.vision_config.image_size, read_view(folder, config))

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
    def __init__(self, processor: transformers.BaseImageProcessor, side_px: int, view: View) -> None:
        self._processor = processor
        self._side_px = side_px
        self._num_tokens = view.num_tokens
        settings = {key: value for key, value in processor.to_dict().items() if key != "processor_class"}
        versions = {"transformers": transformers.__version__, "pillow": PIL.__version__}
        self.fingerprint = fingerprint_values({**settings, **versions})

    def __call__(self, picture: Image.Image) -> Pixels:
        assert picture.mode == "RGB", picture.mode
        if getattr(self._processor, "do_center_crop", False):
            picture = _without_far_ends(picture)
        pixels = self._processor([picture], return_tensors="np")["pixel_values"]
        assert pixels.shape == (1, 3, self._side_px, self._side_px), pixels.shape
        return Pixels({"pixel_values": pixels}, cost=self._num_tokens, num_tokens=self._num_tokens)


def _without_far_ends(picture: Image.Image) -> Image.Image:
    """The middle of a very thin picture; others as they are.

    The short side is resized to the tower's, the long side with it, and then the middle is cut out: a picture of
    1 x 10000 pixels would become gigabytes on the way. What is seen may shift by half a resized pixel.
    """
    short, long = sorted(picture.size)
    if long <= MAX_ASPECT_RATIO * short:
        return picture
    margin = (long - MAX_ASPECT_RATIO * short) // 2
    width, height = picture.size
    if width == long:
        return picture.crop((margin, 0, width - margin, height))
    return picture.crop((0, margin, width, height - margin))


def _read_image_processor(folder: Path) -> transformers.BaseImageProcessor:
    require_files(folder, ["preprocessor_config.json"])
    with reading(folder, "image processor"):
        # Left to itself it would take torchvision where that is installed, whose pixels differ a little.
        return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)


def _require_size(folder: Path, processor: transformers.BaseImageProcessor, side_px: int) -> None:
    """Raises CheckpointError unless every picture comes out as the tower takes it."""
    if getattr(processor, "do_pad", False):  # a picture of 16384 x 2 px would become a square on the way
        raise CheckpointError(f"checkpoint {folder}: do_pad in preprocessor_config.json is not supported")
    cropped = getattr(processor, "do_center_crop", False)
    size = processor.crop_size if cropped else processor.size
    if not (cropped or processor.do_resize) or (size.height, size.width) != (side_px, side_px):
        raise CheckpointError(
            f"checkpoint {folder}: preprocessor_config.json makes pictures of {dict(size)} px, while the tower takes "
            f"{side_px} x {side_px} px (config.json)"
        )
