"""Reads the sizes of a moondream2 checkpoint from config.json and refuses those that cannot work; no torch.

The hub's config.json says `config: {}`, which stands for the sizes of the 2B model below; the names are the hub's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from deployments.errors import CheckpointError
from deployments.models.registry import check_model_type
from deployments.models.weights import read_json

HEAD_DIM = 64  # of the language part: rotary covers 32 of them


@dataclass(frozen=True, slots=True)
class TextSizes:
    dim: int = 2048
    ff_dim: int = 8192
    n_layers: int = 24
    vocab_size: int = 51200
    max_context: int = 2048  # tokens
    n_heads: int = 32
    n_kv_heads: int = 32
    prefix_attn: int = 730  # positions that see each other: BOS and the picture's


@dataclass(frozen=True, slots=True)
class VisionSizes:
    enc_dim: int = 1152
    enc_patch_size: int = 14  # px per side
    enc_n_layers: int = 27
    enc_ff_dim: int = 4304
    enc_n_heads: int = 16
    proj_out_dim: int = 2048
    crop_size: int = 378  # px per side
    in_channels: int = 3
    max_crops: int = 12  # besides the one of the whole picture
    overlap_margin: int = 4  # patches that neighbouring crops share on each side of their common edge
    proj_inner_dim: int = 8192

    @property
    def grid(self) -> int:
        """Patches per side of a crop."""
        return self.crop_size // self.enc_patch_size

    @property
    def image_tokens(self) -> int:
        """Of any picture, however many crops it is cut into."""
        return self.grid**2


@dataclass(frozen=True, slots=True)
class RegionSizes:
    dim: int = 2048
    coord_feat_dim: int = 256
    coord_out_dim: int = 1024  # bins
    size_feat_dim: int = 512
    size_out_dim: int = 2048  # bins of a width, then bins of a height
    inner_dim: int = 8192


@dataclass(frozen=True, slots=True)
class MoondreamConfig:
    text: TextSizes = TextSizes()
    vision: VisionSizes = VisionSizes()
    region: RegionSizes = RegionSizes()


SECTIONS = ("text", "vision", "region", "tokenizer")
Sizes = TypeVar("Sizes", TextSizes, VisionSizes, RegionSizes)


def read_config(folder: Path) -> MoondreamConfig:
    """Raises CheckpointError naming the key that is unknown, or the sizes that do not fit each other."""
    sections = read_sections(folder)
    text = dict(sections["text"])
    if "n_heads" in text:  # older configurations know no other number of K/V heads
        text.setdefault("n_kv_heads", text["n_heads"])
    config = MoondreamConfig(
        _read_sizes(TextSizes, text, f"{folder}/config.json, text"),
        _read_sizes(VisionSizes, sections["vision"], f"{folder}/config.json, vision"),
        _read_sizes(RegionSizes, sections["region"], f"{folder}/config.json, region"),
    )
    problems = [*_text_problems(config), *_vision_problems(config.vision), *_region_problems(config)]
    if problems:
        raise CheckpointError(f"checkpoint {folder}: config.json cannot work: {'; '.join(problems)}", "checkpoint")
    return config


def read_sections(folder: Path) -> Mapping[str, Mapping[str, object]]:
    """The parts of config.json's `config`, by name; empty where it says nothing. Raises CheckpointError."""
    check_model_type("moondream", folder)
    content = read_json(folder, "config.json").get("config", {})
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {folder}: `config` in config.json should be an object", "checkpoint")
    _refuse_unknown(content, SECTIONS, f"{folder}/config.json, config")
    sections = {name: content.get(name, {}) for name in SECTIONS}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise CheckpointError(f"checkpoint {folder}: config.{name} in config.json should be an object")
    return sections


def _read_sizes(sizes: type[Sizes], given: Mapping[str, object], where: str) -> Sizes:
    values = dict(given)
    if values.pop("group_size", None) is not None:
        raise CheckpointError(f"{where}: group_size is set: quantised checkpoints cannot be read", "checkpoint")
    _refuse_unknown(values, [each.name for each in fields(sizes)], where)
    checked: dict[str, int] = {}
    for name, value in values.items():
        least = 0 if name == "overlap_margin" else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise CheckpointError(f"{where}: {name} should be a whole number from {least} up, not {value!r}")
        checked[name] = value
    return sizes(**checked)


def _refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    choices = sorted(known)
    unknown = sorted(set(given) - set(choices))
    if unknown:
        raise CheckpointError(f"{where}: unknown key {', '.join(unknown)}; there is {', '.join(choices)}", "checkpoint")


def _text_problems(config: MoondreamConfig) -> list[str]:
    text, vision = config.text, config.vision
    prefix = 1 + vision.image_tokens
    checks = [
        (text.dim == text.n_heads * HEAD_DIM, f"text: dim {text.dim} is not {text.n_heads} heads of {HEAD_DIM}"),
        (text.n_heads % text.n_kv_heads == 0, f"text: {text.n_heads} heads over {text.n_kv_heads} K/V heads"),
        (
            text.prefix_attn == prefix,
            f"text: prefix_attn is {text.prefix_attn}, but a picture takes 1 + {vision.grid} x {vision.grid} = {prefix}"
            " positions",
        ),
        (text.max_context > prefix, f"text: max_context {text.max_context} has no room beyond a picture's {prefix}"),
        (
            vision.proj_out_dim == text.dim,
            f"vision: proj_out_dim {vision.proj_out_dim} is not the language part's dim {text.dim}",
        ),
    ]
    return [problem for holds, problem in checks if not holds]


def _vision_problems(vision: VisionSizes) -> list[str]:
    checks = [
        (vision.in_channels == 3, f"vision: in_channels is {vision.in_channels}, pictures have 3"),
        (
            vision.enc_dim % vision.enc_n_heads == 0,
            f"vision: enc_dim {vision.enc_dim} is no multiple of {vision.enc_n_heads} heads",
        ),
        (
            vision.crop_size % vision.enc_patch_size == 0,
            f"vision: crop_size {vision.crop_size} px is no multiple of patches of {vision.enc_patch_size} px",
        ),
        (
            vision.grid > 2 * vision.overlap_margin,
            f"vision: crops of {vision.grid} patches per side have none left between two margins of"
            f" {vision.overlap_margin}",
        ),
    ]
    return [problem for holds, problem in checks if not holds]


def _region_problems(config: MoondreamConfig) -> list[str]:
    region, dim = config.region, config.text.dim
    checks = [(region.dim == dim, f"region: dim {region.dim} is not the language part's dim {dim}")]
    for name in ("coord_feat_dim", "size_feat_dim", "size_out_dim"):
        value = getattr(region, name)
        checks.append((value % 2 == 0, f"region: {name} {value} cannot be halved"))
    return [problem for holds, problem in checks if not holds]
