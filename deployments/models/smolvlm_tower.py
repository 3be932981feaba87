"""SmolVLM's half of the vision encoder: transformers' tower and connector, and a faster way through the same weights
where a CPU computes in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from deployments.models.byte_pixels import CHANNELS, look_up
from deployments.models.family import Pixels
from deployments.models.fused_vision import can_fuse, fuse_layers
from deployments.models.module_loading import load_module
from deployments.models.tower_arithmetic import arithmetic_of
from deployments.models.weights import fingerprint_tensors, fingerprint_values


class SmolVLMTower:
    def __init__(self, half: PreTrainedModel, fingerprint: str) -> None:
        self._half = half
        self.fingerprint = fingerprint
        self.width: int = half.config.text_config.hidden_size
        self._tokens_per_tile = half.vision_model.embeddings.num_patches // half.config.scale_factor**2
        # How a matrix product rounds depends on its number of rows: in float32, 384 px tiles on a CPU differ by 1e-7
        # with and without neighbours. So pictures share a pass only where that pays and float32 was not asked for.
        self.shares_passes = half.device.type != "cpu" and half.dtype != torch.float32
        self._is_fused = can_fuse(half.device, half.dtype)
        self._look: Callable[[Tensor, Tensor], Tensor] = FusedLook(half.vision_model) if self._is_fused else self._plain

    def split(self, pixels: Pixels) -> list[Pixels]:
        """The tiles one by one, save in float32, whose rounding would change."""
        tiles = pixels.tensors["tiles"]
        if not (self._is_fused or self.shares_passes):
            return [pixels]
        return [
            Pixels(
                {**pixels.tensors, "tiles": tiles[index : index + 1]}, pixels.cost // len(tiles), self._tokens_per_tile
            )
            for index in range(len(tiles))
        ]

    @torch.inference_mode()
    def encode(self, batch: Sequence[Pixels]) -> list[Tensor]:
        if not self.shares_passes:
            return [self._encode_together([pixels]) for pixels in batch]
        features = self._encode_together(batch)
        return list(torch.split(features, [pixels.num_tokens for pixels in batch]))

    def _encode_together(self, batch: Sequence[Pixels]) -> Tensor:
        """(tiles of all pictures * tokens_per_tile, D)"""
        tiles = torch.cat([torch.from_numpy(pixels.tensors["tiles"]) for pixels in batch])
        table = torch.from_numpy(batch[0].tensors["values"])  # all pictures of a tower have been prepared alike
        features: Tensor = self._half.connector(self._look(tiles, table))  # (tiles, tokens_per_tile, D)
        return features.flatten(0, 1)

    def _plain(self, tiles: Tensor, table: Tensor) -> Tensor:
        """(tiles, patches, D of the tower).

        `get_image_features` does the same, but drops tiles of zeros as padding, and a picture may be all zeros.
        """
        values = look_up(tiles, table, tiles[0, 0].numel(), self._half.device, self._half.dtype)
        states: Tensor = self._half.vision_model(pixel_values=values).last_hidden_state
        return states


class FusedLook:
    """The tower without its connector; every tile as if it were alone."""

    def __init__(self, vision: PreTrainedModel) -> None:
        config, embeddings = vision.config, vision.embeddings
        self._layers = fuse_layers(vision.encoder.layers, config.num_attention_heads, config.hidden_act)
        self._last_norm = vision.post_layernorm
        self._patch_px: int = config.patch_size
        self._side = embeddings.num_patches_per_side
        self._patches = embeddings.patch_embedding
        self._positions = _positions_of(vision)  # (patches, D)

    def __call__(self, tiles: Tensor, table: Tensor) -> Tensor:
        """uint8 (tiles, 3, S, S) to (tiles, patches, D)."""
        states = self._embed(tiles, table)
        for layer in self._layers:
            states = layer(states)
        normed: Tensor = self._last_norm(states)
        return normed

    def _embed(self, tiles: Tensor, table: Tensor) -> Tensor:
        """The convolution is a matrix product: its windows do not overlap."""
        px, side = self._patch_px, self._side
        whole = tiles[:, :, : side * px, : side * px]  # a rest that fills no patch is left out
        cut = whole.reshape(len(tiles), CHANNELS, side, px, side, px)
        patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(len(tiles), side * side, CHANNELS * px * px)
        weight = self._patches.weight
        values = look_up(patches, table, px * px, weight.device, weight.dtype)
        return F.linear(values, weight.flatten(1), self._patches.bias) + self._positions


def _positions_of(vision: PreTrainedModel) -> Tensor:
    """(patches, D) which transformers adds to the patches of a whole tile; how it chooses them is left to it."""
    embeddings, side = vision.embeddings, vision.embeddings.num_patches_per_side
    seen: list[Tensor] = []
    hook = embeddings.position_embedding.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    weight = embeddings.patch_embedding.weight
    try:
        blank = torch.zeros(1, CHANNELS, vision.config.image_size, vision.config.image_size, dtype=weight.dtype)
        embeddings(blank, torch.ones(1, side, side, dtype=torch.bool))
    finally:
        hook.remove()
    return seen[0]


def open_smolvlm_tower(folder: Path, config: PreTrainedConfig, device: str, dtype: str) -> SmolVLMTower:
    """Raises CheckpointError."""
    half = load_module(_vision_half_class(config.model_type), folder, config, dtype)
    weights = fingerprint_tensors(half.state_dict())  # before they move: hashing reads them from the page cache
    half = half.to(torch.device(device))
    return SmolVLMTower(
        half, fingerprint_values({"weights": weights, "shuffle": config.scale_factor, **arithmetic_of(half)})
    )


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
