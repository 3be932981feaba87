"""The Qwen2-VL family: qwen2_vl checkpoints (Qwen2-VL) and qwen2_5_vl ones (Qwen2.5-VL).

Pictures, tower and language part are transformers' own classes, each half loaded without the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl

from deployments.errors import CheckpointError, ConfigError
from deployments.models.byte_pixels import CHANNELS, GEOMETRY_ONLY, look_up, value_table
from deployments.models.causal import CausalLanguage
from deployments.models.chat_template import ChatTemplate
from deployments.models.family import NO_OPTIONS, Options, Pixels
from deployments.models.fused_vision import ATTENTION_NAME, can_fuse
from deployments.models.generation_config import read_generation_defaults
from deployments.models.image_processor import fingerprint_pixels, probed, read_image_processor, settings_of
from deployments.models.module_loading import load_module
from deployments.models.qwen2_vl_patches import Patching
from deployments.models.qwen2_vl_prompt import Qwen2VLPromptFormat
from deployments.models.registry import check_model_type
from deployments.models.tower_arithmetic import arithmetic_of
from deployments.models.weights import fingerprint_tensors, fingerprint_values, reading

DEFAULT_MAX_IMAGE_TOKENS = 1280  # checkpoints allow 16384, several seconds of prefill for one photograph
# Tensors are `visual.` and `model.` on the hub; some checkpoints were saved again under transformers' inner names, of
# which `model.visual.` needs no mapping: transformers tries names with and without `model.` by itself.
LANGUAGE_NAMES = {r"^model\.language_model\.": "model."}


class Qwen2VL:
    name = "qwen2_vl"

    def open_preprocessor(self, folder: Path, options: Options = NO_OPTIONS) -> Qwen2VLPreprocessor:
        processor = read_image_processor(folder)
        patching, values = _read_patching(folder, processor, options), value_table(folder, processor)
        return probed(folder, Qwen2VLPreprocessor(processor, patching, values))

    def open_tower(self, folder: Path, device: str, dtype: str) -> Qwen2VLTower:
        config = _read_config(folder)
        half = load_module(_vision_half_class(config.model_type), folder, config, dtype)
        weights = fingerprint_tensors(half.state_dict())  # before they move: hashing reads them from the page cache
        half = half.to(torch.device(device))
        return Qwen2VLTower(half, fingerprint_values({"weights": weights, **arithmetic_of(half)}))

    def open_prompt_format(self, folder: Path, options: Options = NO_OPTIONS) -> Qwen2VLPromptFormat:
        patching = _read_patching(folder, read_image_processor(folder), options)
        return Qwen2VLPromptFormat(ChatTemplate(folder), patching, read_generation_defaults(folder))

    def open_language(self, folder: Path, device: str, dtype: str) -> CausalLanguage:
        config = _read_config(folder)
        if "sliding_attention" in config.text_config.layer_types:
            raise CheckpointError(f"checkpoint {folder}: use_sliding_window (config.json) is not supported")
        half = load_module(_language_half_class(config.model_type), folder, config, dtype, LANGUAGE_NAMES)
        return CausalLanguage(half.to(torch.device(device)), position_rows=3)


FAMILY = Qwen2VL()


# --------------------------------------------------------------------------------- pictures


class Qwen2VLPreprocessor:
    def __init__(self, processor: transformers.BaseImageProcessor, patching: Patching, values: np.ndarray) -> None:
        self._processor = processor
        self._patching = patching
        self._size = {"shortest_edge": patching.min_pixels, "longest_edge": patching.max_pixels}  # px of the area
        self._values = values
        said_by_size = {"min_pixels": None, "max_pixels": None}
        self.fingerprint = fingerprint_pixels({**settings_of(processor), **said_by_size, "size": self._size})

    def __call__(self, picture: Image.Image) -> Pixels:
        """Raises InvalidImage for a picture too thin."""
        assert picture.mode == "RGB", picture.mode
        rows, columns = self._patching.tokens(*picture.size)
        batch = self._processor([picture], size=self._size, return_tensors="np", **GEOMETRY_ONLY)
        # The processor has bytes as floats: (patches, C * time * P * P); (3,).
        patches, [grid] = batch["pixel_values"].astype(np.uint8), batch["image_grid_thw"]
        merge = self._patching.merge
        assert grid.tolist() == [1, rows * merge, columns * merge], (picture.size, grid, rows, columns)
        return Pixels(
            {"patches": patches, "grid_thw": grid.astype(np.int64), "values": self._values},
            cost=len(patches),
            num_tokens=rows * columns,
        )


def _read_patching(folder: Path, processor: transformers.BaseImageProcessor, options: Options) -> Patching:
    """Raises CheckpointError where tower and image processor do not fit together."""
    vision = _read_config(folder).vision_config
    if not processor.do_resize:
        raise CheckpointError(f"checkpoint {folder}: preprocessor_config.json must resize")
    cut = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
    taken = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if cut != taken:
        raise CheckpointError(
            f"checkpoint {folder}: patch, merge and temporal patch size {cut} (preprocessor_config.json) do not fit "
            f"a tower for {taken} (config.json)"
        )
    min_pixels, max_pixels = _read_pixel_limits(folder, processor)
    max_pixels = min(max_pixels, _max_image_tokens(options) * (vision.patch_size * vision.spatial_merge_size) ** 2)
    return Patching(vision.patch_size, vision.spatial_merge_size, min(min_pixels, max_pixels), max_pixels)


def _read_pixel_limits(folder: Path, processor: transformers.BaseImageProcessor) -> tuple[int, int]:
    """Smallest and largest area of a picture, which the image processor calls edges."""
    limits = (processor.size["shortest_edge"], processor.size["longest_edge"])
    if not all(isinstance(limit, int) and limit > 0 for limit in limits):
        raise CheckpointError(
            f"checkpoint {folder}: preprocessor_config.json should have min_pixels and max_pixels above 0, not {limits}"
        )
    return limits


def _max_image_tokens(options: Options) -> int:
    if options.max_image_tokens is None:
        return DEFAULT_MAX_IMAGE_TOKENS
    if options.max_image_tokens < 1:
        raise ConfigError(
            f"max_image_tokens is {options.max_image_tokens}; a picture needs at least 1", param="max_image_tokens"
        )
    return options.max_image_tokens


# --------------------------------------------------------------------------------- tower


class Qwen2VLTower:
    def __init__(self, half: PreTrainedModel, fingerprint: str) -> None:
        self._half = half
        self.fingerprint = fingerprint
        self.width: int = half.visual.merger.mlp[-1].out_features
        # How a matrix product rounds depends on its number of rows. So pictures share a pass only where that pays and
        # float32 was not asked for; in a shared pass each one still sees itself alone.
        self.shares_passes = half.device.type != "cpu" and half.dtype != torch.float32
        if can_fuse(half.device, half.dtype):
            half.visual.set_attn_implementation(ATTENTION_NAME)

    @torch.inference_mode()
    def encode(self, batch: Sequence[Pixels]) -> list[torch.Tensor]:
        if not self.shares_passes:
            return [self._encode_together([pixels]) for pixels in batch]
        features = self._encode_together(batch)
        return list(torch.split(features, [pixels.num_tokens for pixels in batch]))

    def _encode_together(self, batch: Sequence[Pixels]) -> torch.Tensor:
        """(tokens of all pictures, D)"""
        patches = torch.from_numpy(np.concatenate([pixels.tensors["patches"] for pixels in batch]))
        table = torch.from_numpy(batch[0].tensors["values"])  # all pictures of a tower have been prepared alike
        grids = torch.from_numpy(np.stack([pixels.tensors["grid_thw"] for pixels in batch]))  # (pictures, 3)
        half = self._half
        values = look_up(patches, table, patches.shape[1] // CHANNELS, half.device, half.dtype)
        output = half.visual(values, grid_thw=grids.to(half.device))
        features: torch.Tensor = output.pooler_output
        return features


@cache
def _vision_half_class(model_type: str) -> type[PreTrainedModel]:
    """The tower with its merger under the name it has on the hub, so that the checkpoint's tensors find it."""
    if model_type == "qwen2_vl":
        pretrained_class = modeling_qwen2_vl.Qwen2VLPreTrainedModel
        tower_class = modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel
    else:
        pretrained_class = modeling_qwen2_5_vl.Qwen2_5_VLPreTrainedModel
        tower_class = modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel

    class VisionHalf(pretrained_class):  # type: ignore[valid-type, misc]
        _keys_to_ignore_on_load_unexpected = (r".*",)  # the language part's tensors

        def __init__(self, config: PreTrainedConfig) -> None:
            super().__init__(config)
            self.visual = tower_class._from_config(config.vision_config)
            self.post_init()

    return VisionHalf


# --------------------------------------------------------------------------------- language


@cache
def _language_half_class(model_type: str) -> type[PreTrainedModel]:
    """The text model with its head under the names they have on the hub; transformers has no such class."""
    if model_type == "qwen2_vl":
        pretrained_class = modeling_qwen2_vl.Qwen2VLPreTrainedModel
        text_class = modeling_qwen2_vl.Qwen2VLTextModel
    else:
        pretrained_class = modeling_qwen2_5_vl.Qwen2_5_VLPreTrainedModel
        text_class = modeling_qwen2_5_vl.Qwen2_5_VLTextModel

    class LanguageHalf(pretrained_class):  # type: ignore[valid-type, misc]
        _keys_to_ignore_on_load_unexpected = (r".*",)  # the vision half's tensors
        _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

        def __init__(self, config: PreTrainedConfig) -> None:
            super().__init__(config)
            text = config.text_config
            self.model = text_class._from_config(text)
            self.lm_head = torch.nn.Linear(text.hidden_size, text.vocab_size, bias=False)
            self.post_init()

        def forward(self, *, logits_to_keep: int, **inputs: object) -> CausalLMOutputWithPast:
            states = self.model(**inputs).last_hidden_state  # (B, S, D)
            return CausalLMOutputWithPast(logits=self.lm_head(states[:, -logits_to_keep:]))

    return LanguageHalf


# --------------------------------------------------------------------------------- configuration


def _read_config(folder: Path) -> PreTrainedConfig:
    check_model_type(Qwen2VL.name, folder)
    with reading(folder, "configuration"):
        return AutoConfig.from_pretrained(folder, local_files_only=True)
