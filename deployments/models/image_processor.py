"""Reads a checkpoint's image processor, and names all that shapes pixels in one fingerprint; knows no family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import PIL
import transformers
from PIL import Image
from transformers import AutoImageProcessor, BaseImageProcessor

from deployments.models.family import Preprocessor
from deployments.models.weights import fingerprint_values, read_json, reading, require_files

# Part of every preprocessor's fingerprint. Raise it with each change of our own code after which a picture has other
# pixels (of a family, or of images/decode.py, whose pictures they all take): features in a cache on disk are found by
# that fingerprint.
PIXELS_VERSION = 1
# What an image processor takes and no pixel of one RGB picture depends on.
NOT_PIXELS = frozenset(
    {"data_format", "device", "disable_grouping", "do_convert_rgb", "image_seq_length", "input_data_format"}
    | {"return_row_col_info", "return_tensors"}
)
PROBE_SIZE = (12, 9)  # px
Probed = TypeVar("Probed", bound=Preprocessor)


def read_image_processor(folder: Path) -> BaseImageProcessor:
    """From preprocessor_config.json, or from processor_config.json, where transformers 5 saves it.

    Raises CheckpointError.
    """
    if "image_processor" not in _saved_with_processor(folder):
        require_files(folder, ["preprocessor_config.json"])
    with reading(folder, "image processor"):
        # Left to itself it would take torchvision where that is installed, whose pixels differ a little.
        return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)


def _saved_with_processor(folder: Path) -> Mapping[str, object]:
    name = "processor_config.json"
    return read_json(folder, name) if (folder / name).is_file() else {}


def settings_of(processor: BaseImageProcessor) -> dict[str, object]:
    """What of an image processor shapes pixels: equal in checkpoints that write the same in other words.

    Keys that its code does not take play no part, nor do switches that are off.
    """
    taken = set(type(processor).valid_kwargs.__annotations__) - NOT_PIXELS
    given = processor.to_dict()
    settings = {key: given[key] for key in taken & set(given) if given[key] is not None and given[key] is not False}
    return {**settings, "code": given["image_processor_type"]}


def fingerprint_pixels(settings: Mapping[str, object]) -> str:
    """Of a preprocessor with these settings: pixels of a picture are equal where it is; hex."""
    versions = {"transformers": transformers.__version__, "pillow": PIL.__version__, "pixels": PIXELS_VERSION}
    return fingerprint_values({**settings, **versions})


def probed(folder: Path, preprocessor: Probed) -> Probed:
    """The same, after one small picture. Raises CheckpointError where its settings cannot work."""
    with reading(folder, "image processor's settings"):
        preprocessor(Image.new("RGB", PROBE_SIZE))
    return preprocessor
