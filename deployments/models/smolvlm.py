"""The SmolVLM family: idefics3 checkpoints (SmolVLM-Instruct, -256M, -500M) and smolvlm ones (SmolVLM2).

Pictures, tower and language part are transformers' own classes, each half loaded without the other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import transformers
from PIL import Image
from transformers import AutoConfig, PreTrainedConfig

from deployments.errors import CheckpointError
from deployments.models.byte_pixels import GEOMETRY_ONLY, value_table
from deployments.models.causal import CausalLanguage, open_llama
from deployments.models.chat_template import ChatTemplate
from deployments.models.family import NO_OPTIONS, Options, Pixels
from deployments.models.generation_config import read_generation_defaults
from deployments.models.image_processor import fingerprint_pixels, probed, read_image_processor, settings_of
from deployments.models.registry import check_model_type
from deployments.models.smolvlm_prompt import SmolVLMPromptFormat
from deployments.models.smolvlm_tower import SmolVLMTower, open_smolvlm_tower
from deployments.models.tiles import Tiling
from deployments.models.weights import reading, require_counts


class SmolVLM:
    name = "smolvlm"

    def open_preprocessor(self, folder: Path, options: Options = NO_OPTIONS) -> SmolVLMPreprocessor:
        processor = read_image_processor(folder)
        tiling, values = _read_tiling(folder, processor, options), value_table(folder, processor)
        return probed(folder, SmolVLMPreprocessor(processor, tiling, values))

    def open_tower(self, folder: Path, device: str, dtype: str) -> SmolVLMTower:
        return open_smolvlm_tower(folder, _read_config(folder), device, dtype)

    def open_prompt_format(self, folder: Path, options: Options = NO_OPTIONS) -> SmolVLMPromptFormat:
        tiling = _read_tiling(folder, read_image_processor(folder), options)
        return SmolVLMPromptFormat(ChatTemplate(folder), tiling, read_generation_defaults(folder))

    def open_language(self, folder: Path, device: str, dtype: str) -> CausalLanguage:
        config = _read_config(folder)
        if config.text_config.model_type != "llama":
            raise CheckpointError(f"checkpoint {folder} has a {config.text_config.model_type} language part, not llama")
        # Whether head and embedding are one matrix is said outside text_config.
        config.text_config.tie_word_embeddings = config.tie_word_embeddings
        return open_llama(folder, config.text_config, {r"^model\.text_model\.": "model."}, device, dtype)


FAMILY = SmolVLM()


# --------------------------------------------------------------------------------- pictures


class SmolVLMPreprocessor:
    def __init__(self, processor: transformers.BaseImageProcessor, tiling: Tiling, values: np.ndarray) -> None:
        self._processor = processor
        self._tiling = tiling
        self._size = {"longest_edge": tiling.longest_side_px}
        self._values = values
        self.fingerprint = fingerprint_pixels({**settings_of(processor), "do_pad": True, "size": self._size})

    def __call__(self, picture: Image.Image) -> Pixels:
        assert picture.mode == "RGB", picture.mode
        rows, columns = self._tiling.grid(*picture.size)
        # do_pad changes nothing about one picture, whose tiles are all of one size, and costs half of the time.
        batch = self._processor([[picture]], size=self._size, return_row_col_info=True, do_pad=False, **GEOMETRY_ONLY)
        assert (batch["rows"], batch["cols"]) == ([[rows]], [[columns]]), (picture.size, batch["rows"], batch["cols"])
        tiles = np.stack(batch["pixel_values"][0])  # uint8 (tiles, 3, S, S)
        return Pixels(
            {"tiles": tiles, "values": self._values},
            cost=len(tiles) * self._tiling.patches_per_tile,
            num_tokens=len(tiles) * self._tiling.tokens_per_tile,
        )


def _read_tiling(folder: Path, processor: transformers.BaseImageProcessor, options: Options) -> Tiling:
    """Raises CheckpointError where tower and image processor do not fit together."""
    config = _read_config(folder)
    vision, shuffle = config.vision_config, config.scale_factor
    with reading(folder, "image processor's max_image_size and size"):
        tile, longest = processor.max_image_size["longest_edge"], processor.size["longest_edge"]
    if not processor.do_resize or not longest:
        raise CheckpointError(f"checkpoint {folder}: preprocessor_config.json must resize by size.longest_edge")
    edges = {"max_image_size.longest_edge": tile, "size.longest_edge": longest, "scale_factor": shuffle}
    sizes = {"vision_config.image_size": vision.image_size, "vision_config.patch_size": vision.patch_size}
    require_counts(folder, {**edges, **sizes})
    if tile != vision.image_size or vision.image_size // vision.patch_size % shuffle:
        raise CheckpointError(
            f"checkpoint {folder}: tiles of {tile} px (preprocessor_config.json) do not fit a tower for "
            f"{vision.image_size} px in patches of {vision.patch_size} px folded {shuffle} x {shuffle} (config.json)"
        )
    tiling = Tiling(tile, vision.patch_size, shuffle, longest, splits=bool(processor.do_image_splitting))
    return tiling if options.max_image_tokens is None else tiling.limited_to(options.max_image_tokens)


# --------------------------------------------------------------------------------- configuration


def _read_config(folder: Path) -> PreTrainedConfig:
    check_model_type(SmolVLM.name, folder)
    with reading(folder, "configuration"):
        return AutoConfig.from_pretrained(folder, local_files_only=True)
