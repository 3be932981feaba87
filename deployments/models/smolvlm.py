"""The SmolVLM family: idefics3 checkpoints (SmolVLM-Instruct, -256M, -500M) and smolvlm ones (SmolVLM2).

Pictures, tower and language part are transformers' own classes, each half loaded without the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from deployments.errors import CheckpointError
from deployments.models.causal import CausalLanguage, open_llama
from deployments.models.chat_template import ChatTemplate
from deployments.models.family import NO_OPTIONS, Options, Pixels
from deployments.models.generation_config import read_generation_defaults
from deployments.models.image_processor import fingerprint_pixels, probed, read_image_processor, settings_of
from deployments.models.module_loading import load_module
from deployments.models.registry import check_model_type
from deployments.models.smolvlm_prompt import SmolVLMPromptFormat
from deployments.models.tiles import Tiling
from deployments.models.weights import fingerprint_tensors, fingerprint_values, reading, require_counts


class SmolVLM:
    name = "smolvlm"

    def open_preprocessor(self, folder: Path, options: Options = NO_OPTIONS) -> SmolVLMPreprocessor:
        processor = read_image_processor(folder)
        return probed(folder, SmolVLMPreprocessor(processor, _read_tiling(folder, processor, options)))

    def open_tower(self, folder: Path, device: str, dtype: str) -> SmolVLMTower:
        config = _read_config(folder)
        half = load_module(_vision_half_class(config.model_type), folder, config, dtype)
        weights = fingerprint_tensors(half.state_dict())  # before they move: hashing reads them from the page cache
        half = half.to(torch.device(device))
        return SmolVLMTower(half, fingerprint_values({"weights": weights, **_arithmetic_of(half)}))

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
    def __init__(self, processor: transformers.BaseImageProcessor, tiling: Tiling) -> None:
        self._processor = processor
        self._tiling = tiling
        self._size = {"longest_edge": tiling.longest_side_px}
        self.fingerprint = fingerprint_pixels({**settings_of(processor), "do_pad": True, "size": self._size})

    def __call__(self, picture: Image.Image) -> Pixels:
        assert picture.mode == "RGB", picture.mode
        rows, columns = self._tiling.grid(*picture.size)
        # do_pad changes nothing about one picture, whose tiles are all of one size; without it they come as a list.
        batch = self._processor(
            [[picture]], size=self._size, return_tensors="np", return_row_col_info=True, do_pad=True
        )
        assert (batch["rows"], batch["cols"]) == ([[rows]], [[columns]]), (picture.size, batch["rows"], batch["cols"])
        tiles = batch["pixel_values"][0]  # (tiles, 3, S, S) float32; its pixel_attention_mask is all ones, see Tiling
        return Pixels(
            {"pixel_values": tiles},
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


# --------------------------------------------------------------------------------- tower


class SmolVLMTower:
    def __init__(self, half: PreTrainedModel, fingerprint: str) -> None:
        self._half = half
        self.fingerprint = fingerprint
        self.width: int = half.config.text_config.hidden_size
        # How a matrix product rounds depends on its number of rows: in float32, 384 px tiles on a CPU differ by 1e-7
        # with and without neighbours. So pictures share a pass only where that pays and float32 was not asked for.
        self._shares_passes = half.device.type != "cpu" and half.dtype != torch.float32

    @torch.inference_mode()
    def encode(self, batch: Sequence[Pixels]) -> list[torch.Tensor]:
        tiles = [torch.from_numpy(pixels.tensors["pixel_values"]) for pixels in batch]
        if not self._shares_passes:
            return [self._encode_tiles(picture) for picture in tiles]
        features = self._encode_tiles(torch.cat(tiles))
        return list(torch.split(features, [pixels.num_tokens for pixels in batch]))

    def _encode_tiles(self, tiles: torch.Tensor) -> torch.Tensor:
        """(tiles, 3, S, S) to (tiles * tokens_per_tile, D).

        `get_image_features` does the same, but drops tiles of zeros as padding, and a picture may be all zeros.
        """
        tiles = tiles.to(self._half.device, self._half.dtype)
        states = self._half.vision_model(pixel_values=tiles).last_hidden_state  # (tiles, patches, D of the tower)
        features: torch.Tensor = self._half.connector(states)  # (tiles, tokens_per_tile, D)
        return features.flatten(0, 1)


@cache
def _vision_half_class(model_type: str) -> type[PreTrainedModel]:
    """Tower and connector under the names they have in the full model, so that the checkpoint's tensors find them."""
    if model_type == "idefics3":
        from transformers.models.idefics3 import modeling_idefics3 as modeling

        family = (modeling.Idefics3PreTrainedModel, modeling.Idefics3VisionTransformer, modeling.Idefics3Connector)
    else:
        from transformers.models.smolvlm import modeling_smolvlm

        modeling = modeling_smolvlm
        family = (modeling.SmolVLMPreTrainedModel, modeling.SmolVLMVisionTransformer, modeling.SmolVLMConnector)
    pretrained_class, tower_class, connector_class = family

    class VisionHalf(pretrained_class):  # type: ignore[valid-type, misc]
        _keys_to_ignore_on_load_unexpected = (r".*",)  # the language part's tensors

        def __init__(self, config: PreTrainedConfig) -> None:
            super().__init__(config)
            self.vision_model = tower_class._from_config(config.vision_config)
            self.connector = connector_class(config)
            self.post_init()

    return VisionHalf


def _arithmetic_of(half: PreTrainedModel) -> dict[str, object]:
    """What decides the features besides weights and pixels: equal in checkpoints that differ in other respects."""
    config = half.config
    generic = PreTrainedConfig().to_dict()
    vision = {key: value for key, value in config.vision_config.to_dict().items() if key not in generic}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    place = {"device": half.device.type, "dtype": str(half.dtype)}
    return {"model_type": config.model_type, "vision": vision, "shuffle": config.scale_factor, **versions, **place}


# --------------------------------------------------------------------------------- configuration


def _read_config(folder: Path) -> PreTrainedConfig:
    check_model_type(SmolVLM.name, folder)
    with reading(folder, "configuration"):
        return AutoConfig.from_pretrained(folder, local_files_only=True)
