"""LLaVA's half of the vision encoder: a frozen CLIP or SigLIP tower, up to the last layer that is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoModel, LlavaConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.llava.modeling_llava import LlavaPreTrainedModel

from deployments.errors import CheckpointError
from deployments.models.byte_pixels import look_up
from deployments.models.family import Pixels
from deployments.models.fused_vision import can_fuse, fuse_layers, name_fused
from deployments.models.module_loading import load_module
from deployments.models.weights import fingerprint_tensors, fingerprint_values, require_counts

TOWERS = ("clip_vision_model", "siglip_vision_model")
# Of a vision_config: all that the layers read by us depend on. Other keys (projection_dim, dropout, who trained it)
# differ between checkpoints whose towers are the same.
ARITHMETIC = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)


@dataclass(frozen=True, slots=True)
class View:
    """What of a tower's states are features."""

    layers: tuple[int, ...]  # index into the hidden states, 0 is before the first layer; side by side in a feature
    drops_first: bool  # of the positions: CLIP's class token
    num_tokens: int  # of one picture

    @property
    def depth(self) -> int:
        """Layers to load and to run."""
        return max(self.layers)


def read_view(folder: Path, config: LlavaConfig) -> View:
    """Raises CheckpointError for towers and layers that there are not."""
    vision = config.vision_config
    if vision.model_type not in TOWERS:
        raise CheckpointError(
            f"checkpoint {folder} has a vision tower of type {vision.model_type!r}; there is {', '.join(TOWERS)}"
        )
    chosen = config.vision_feature_layer
    layers = [chosen] if isinstance(chosen, int) else list(chosen)
    num_states = vision.num_hidden_layers + 1
    if not layers or not all(-num_states <= layer < num_states for layer in layers):
        raise CheckpointError(
            f"checkpoint {folder}: vision_feature_layer is {chosen}, of a tower with {vision.num_hidden_layers} layers"
        )
    require_counts(
        folder, {"vision_config.image_size": vision.image_size, "vision_config.patch_size": vision.patch_size}
    )
    drops_first = config.vision_feature_select_strategy == "default"
    # Not image_seq_length: nothing in transformers reads it, and saved configurations hold a default that fits no other
    # picture size.
    positions = (vision.image_size // vision.patch_size) ** 2 + (vision.model_type == "clip_vision_model")
    return View(tuple(layer % num_states for layer in layers), drops_first, positions - drops_first)


class LlavaTower:
    def __init__(self, tower: PreTrainedModel, view: View, fingerprint: str) -> None:
        self._tower = tower
        self._view = view
        self.fingerprint = fingerprint
        weight: torch.Tensor = tower.embeddings.patch_embedding.weight
        self._device, self._dtype = weight.device, weight.dtype
        self.width: int = weight.shape[0] * len(view.layers)
        # In float32 and on a CPU a picture's rounding depends on its neighbours in the pass.
        self.shares_passes = weight.device.type != "cpu" and weight.dtype != torch.float32
        self._layers: list[Callable[[torch.Tensor], torch.Tensor]] = _layers_of(tower)

    @torch.inference_mode()
    def encode(self, batch: Sequence[Pixels]) -> list[torch.Tensor]:
        if not self.shares_passes:
            return [self._look([pixels])[0] for pixels in batch]
        return list(self._look(batch))

    def _look(self, batch: Sequence[Pixels]) -> torch.Tensor:
        """(B, num_tokens, width): what LlavaModel.get_image_features gives its projector."""
        pictures = torch.cat([torch.from_numpy(pixels.tensors["picture"]) for pixels in batch])  # (B, 3, S, S)
        table = torch.from_numpy(batch[0].tensors["values"])  # all pictures of a tower have been prepared alike
        states = self._states(look_up(pictures, table, pictures[0, 0].numel(), self._device, self._dtype))
        chosen = [states[layer][:, int(self._view.drops_first) :] for layer in self._view.layers]
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)

    def _states(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """(B, positions, D of the tower) before the first layer and after each."""
        state = self._tower.embeddings(pictures)
        if hasattr(self._tower, "pre_layrnorm"):  # CLIP
            state = self._tower.pre_layrnorm(state)
        states = [state]
        for layer in self._layers:
            states.append(layer(states[-1]))
        return states


def _layers_of(tower: PreTrainedModel) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """Each from (B, positions, D) to the same."""
    layers, config = tower.encoder.layers, tower.config
    weight = tower.embeddings.patch_embedding.weight
    if can_fuse(weight.device, weight.dtype):
        return list(fuse_layers(layers, config.num_attention_heads, config.hidden_act))
    return [partial(layer, attention_mask=None) for layer in layers]


def open_llava_tower(folder: Path, config: LlavaConfig, device: str, dtype: str) -> LlavaTower:
    """Reads the tensors of the tower up to the last layer that is looked at. Raises CheckpointError."""
    view = read_view(folder, config)
    config = deepcopy(config)
    config.vision_config.num_hidden_layers = view.depth
    tower = load_module(_TowerAlone, folder, config, dtype).vision_tower
    weights = fingerprint_tensors(tower.state_dict())  # before they move: hashing reads them from the page cache
    tower = tower.to(torch.device(device))
    return LlavaTower(tower, view, fingerprint_values({"weights": weights, **_arithmetic_of(tower, view)}))


class _TowerAlone(LlavaPreTrainedModel):  # type: ignore[misc]
    _keys_to_ignore_on_load_unexpected = (r".*",)  # all else, layers behind the last one that is read included

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        config.vision_config.vision_use_head = False  # SigLIP's; CLIP has none
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.vision_tower.post_layernorm = nn.Identity()  # comes after the layers
        self.post_init()


def _arithmetic_of(tower: PreTrainedModel, view: View) -> dict[str, object]:
    """What decides the features besides weights and pixels: equal in checkpoints that differ in other respects."""
    config: PreTrainedConfig = tower.config
    weight = next(tower.parameters())
    return {
        "vision": {key: getattr(config, key) for key in ARITHMETIC},
        "layers": view.layers,
        "drops_first": view.drops_first,
        "place": {
            "device": weight.device.type,
            "dtype": str(weight.dtype),
            **name_fused(weight.device, weight.dtype),
        },
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
