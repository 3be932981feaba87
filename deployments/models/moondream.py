"""The Moondream family: moondream2 checkpoints, by networks of our own.

transformers has no such model, and the code on the hub runs under no transformers of version 5. Each half is loaded
without the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deployments.models.family import NO_OPTIONS, Options, Pixels
from deployments.models.fused_vision import FusedLayer, can_fuse, name_fused
from deployments.models.image_processor import fingerprint_pixels
from deployments.models.moondream_config import VisionSizes, read_config
from deployments.models.moondream_crops import cut_crops
from deployments.models.moondream_language import MoondreamLanguage
from deployments.models.moondream_modules import Region, Text, Vision, VisionBlock
from deployments.models.moondream_prompt import MoondreamPromptFormat
from deployments.models.moondream_tokenizer import MoondreamTokenizer
from deployments.models.moondream_tokens import TokenIds, read_token_ids
from deployments.models.moondream_weights import has_old_names, load_part
from deployments.models.weights import fingerprint_tensors, fingerprint_values


class Moondream:
    name = "moondream"

    def open_preprocessor(self, folder: Path, options: Options = NO_OPTIONS) -> MoondreamPreprocessor:
        return MoondreamPreprocessor(read_config(folder).vision)

    def open_tower(self, folder: Path, device: str, dtype: str) -> MoondreamTower:
        sizes = read_config(folder).vision
        with torch.device("meta"):
            vision = Vision(sizes)
        vision = load_part(vision, "vision", folder, dtype)
        weights = fingerprint_tensors(vision.state_dict())  # before they move: hashing reads them from the page cache
        vision = vision.to(torch.device(device))
        return MoondreamTower(vision, fingerprint_values({"weights": weights, **_arithmetic_of(vision)}))

    def open_prompt_format(self, folder: Path, options: Options = NO_OPTIONS) -> MoondreamPromptFormat:
        config, tokens = read_config(folder), _read_tokens(folder)
        tokenizer = MoondreamTokenizer(options.tokenizer or folder, tokens, config.text.vocab_size)
        return MoondreamPromptFormat(tokenizer, tokens, config.vision.image_tokens)

    def open_language(self, folder: Path, device: str, dtype: str) -> MoondreamLanguage:
        config = read_config(folder)
        with torch.device("meta"):
            text, region = Text(config.text), Region(config.region)
        text, region = load_part(text, "text", folder, dtype), load_part(region, "region", folder, dtype)
        place = torch.device(device)
        return MoondreamLanguage(text.to(place), region.to(place), _read_tokens(folder), config)


FAMILY = Moondream()


def _read_tokens(folder: Path) -> TokenIds:
    vocab_size = read_config(folder).text.vocab_size
    return read_token_ids(folder, has_old_names=has_old_names(folder), vocab_size=vocab_size)


# --------------------------------------------------------------------------------- pictures


class MoondreamPreprocessor:
    """Crops as bytes: what the tower makes of them, it looks up, and a picture waits in a quarter of the memory."""

    def __init__(self, sizes: VisionSizes) -> None:
        self._sizes = sizes
        geometry = {
            name: getattr(sizes, name) for name in ("crop_size", "enc_patch_size", "max_crops", "overlap_margin")
        }
        self.fingerprint = fingerprint_pixels({**geometry, "resampling": "lanczos"})

    def __call__(self, picture: Image.Image) -> Pixels:
        assert picture.mode == "RGB", picture.mode
        crops = cut_crops(picture, self._sizes)
        return Pixels(
            {"crops": crops.pixels, "tiling": np.array(crops.tiling)},
            cost=len(crops.pixels) * self._sizes.image_tokens,
            num_tokens=self._sizes.image_tokens,
        )


# --------------------------------------------------------------------------------- tower


class MoondreamTower:
    def __init__(self, vision: Vision, fingerprint: str) -> None:
        self._vision = vision
        self._device, self._dtype = vision.pos_emb.device, vision.pos_emb.dtype
        self._normalised = normalised_bytes().to(self._device, self._dtype)
        self.fingerprint = fingerprint
        self.width = vision.sizes.proj_out_dim
        # How a matrix product rounds depends on its number of rows, so pictures share a pass only where that pays and
        # float32 was not asked for. One picture's own crops always share one, as in the published code.
        self.shares_passes = self._device.type != "cpu" and self._dtype != torch.float32
        self._blocks: list[Callable[[torch.Tensor], torch.Tensor]] = list(vision.blocks)
        if can_fuse(self._device, self._dtype):
            self._blocks = [_fuse(block) for block in vision.blocks]  # type: ignore[arg-type]

    @torch.inference_mode()
    def encode(self, batch: Sequence[Pixels]) -> list[torch.Tensor]:
        crops = [torch.from_numpy(pixels.tensors["crops"]) for pixels in batch]
        if self.shares_passes:
            states = torch.split(self._look(torch.cat(crops)), [len(picture) for picture in crops])
        else:
            states = tuple(self._look(picture) for picture in crops)
        return [
            self._vision.project(seen, (int(pixels.tensors["tiling"][0]), int(pixels.tensors["tiling"][1])))
            for seen, pixels in zip(states, batch, strict=True)
        ]

    def _look(self, crops: torch.Tensor) -> torch.Tensor:
        """uint8 (B, S, S, 3) to (B, P, D of the tower)."""
        pixels = self._normalised[crops.to(self._device).int()]  # (B, S, S, 3)
        states = self._vision.embed(pixels.permute(0, 3, 1, 2))
        for block in self._blocks:
            states = block(states)
        seen: torch.Tensor = self._vision.post_ln(states)
        return seen


def _fuse(block: VisionBlock) -> FusedLayer:
    attention, mlp = block.attn, block.mlp
    qkv = attention.qkv
    return FusedLayer(
        attention.num_heads,
        "gelu_pytorch_tanh",
        block.ln1,
        qkv.weight,
        qkv.bias,
        attention.proj,
        block.ln2,
        mlp.fc1,
        mlp.fc2,
    )


def normalised_bytes() -> torch.Tensor:
    """(256,) what each byte of a picture becomes: -1 to 1, rounded to bfloat16 after every step as published.

    A table made on the CPU, because GPUs divide by multiplying with the inverse, which rounds differently.
    """
    return torch.arange(256).to(torch.bfloat16).div_(255.0).sub_(0.5).div_(0.5)


def _arithmetic_of(vision: Vision) -> dict[str, object]:
    """What decides the features besides weights and pixels."""
    device, dtype = vision.pos_emb.device, vision.pos_emb.dtype
    place = {"device": device.type, "dtype": str(dtype), "torch": torch.__version__, **name_fused(device, dtype)}
    return {"family": Moondream.name, "normalised": "bfloat16", "vision": asdict(vision.sizes), **place}
