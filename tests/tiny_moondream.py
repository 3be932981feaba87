"""Builds tiny random moondream2 checkpoints in the hub's file layout: equality of two code paths, never sense.

Weights hang on seed, name and shape alone. `REFERENCE` with the default seed gives the checkpoint that
tests/models/moondream_expected.json was made with.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Literal

import tiny_checkpoints
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

Layout = Literal["hub", "bare", "old"]  # names behind `model.`, as in hub files; without; as in revisions of 2024
Config = dict[str, dict[str, object]]

CONTROL_TOKENS = ("<|endoftext|>", *(f"<|md_reserved_{number}|>" for number in range(12)))
CORPUS = (
    "A small red boat floats on the calm blue lake near the old wooden pier.",
    "What is in this image? The image shows a cat sitting on a green chair.",
    "Describe this picture in detail. There are two dogs running on the beach.",
    "How many people are in the picture? There are three people and one child.",
    "Can you describe this image? The photograph shows a city street at night.",
    "Where is the bicycle? The bicycle is in front of the shop, to the left of the tree.",
    "You are a helpful assistant. Answer the question with a single word or phrase.",
    "The quick brown fox jumps over the lazy dog while the sun sets behind the hills.",
    "query caption short normal long detect point object gaze answer thinking region",
    "User: Assistant: system user assistant image images picture photo question",
    "0 1 2 3 4 5 6 7 8 9 10 12 24 36 100 2024 3.14",
)
# What the published code can run: it has crops of 378 px and a grid of 27 fixed in places.
REFERENCE: Config = {
    "text": {
        "dim": 128,
        "ff_dim": 256,
        "n_layers": 3,
        "vocab_size": 512,
        "max_context": 2048,
        "n_heads": 2,
        "n_kv_heads": 2,
        "prefix_attn": 730,
        "group_size": None,
    },
    "vision": {
        "enc_dim": 32,
        "enc_patch_size": 14,
        "enc_n_layers": 27,
        "enc_ff_dim": 48,
        "enc_n_heads": 2,
        "proj_out_dim": 128,
        "crop_size": 378,
        "in_channels": 3,
        "max_crops": 12,
        "overlap_margin": 4,
        "proj_inner_dim": 96,
    },
    "region": {
        "dim": 128,
        "coord_feat_dim": 32,
        "coord_out_dim": 1024,
        "size_feat_dim": 64,
        "size_out_dim": 2048,
        "inner_dim": 64,
        "group_size": None,
    },
}
# Quick, and nothing in it is equal to anything else by chance.
SMALL: Config = {
    "text": {**REFERENCE["text"], "ff_dim": 96, "n_layers": 2, "n_kv_heads": 1, "prefix_attn": 65, "max_context": 512},
    "vision": {
        **REFERENCE["vision"],
        "enc_patch_size": 8,
        "enc_n_layers": 2,
        "crop_size": 64,
        "max_crops": 5,
        "overlap_margin": 1,
    },
    "region": {**REFERENCE["region"], "inner_dim": 48},
}


def build_moondream(
    folder: Path,
    *,
    config: Config = REFERENCE,
    seed: int = 6,
    layout: Layout = "hub",
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    change: Callable[[dict[str, torch.Tensor]], None] | None = None,
) -> Path:
    """Write a checkpoint of 1 to 2 MB into `folder`, which is made; returns the folder.

    `change` may alter the tensors, by their current names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    whole = {**deepcopy(config), "tokenizer": token_config(tokenizer)}
    write_json(
        folder / "config.json",
        {"architectures": ["HfMoondream"], "config": whole, "model_type": "moondream1", "torch_dtype": "bfloat16"},
    )
    # Not the end token: nothing may take it from here.
    write_json(folder / "generation_config.json", {"bos_token_id": 7, "eos_token_id": 7})
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = random_weights(config, seed)
    if change is not None:
        change(weights)
    stored = dict(stored_form(name, tensor, layout) for name, tensor in weights.items())
    tiny_checkpoints.write_weights(folder, {name: t.to(dtype).contiguous() for name, t in stored.items()}, shards)
    return folder


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------- tokenizer


@cache
def build_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in CONTROL_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def token_config(tokenizer: Tokenizer) -> dict[str, object]:
    """The meaning that ids have on the hub, in words of this vocabulary."""

    def prefix(skill: str) -> list[int]:
        return [1, *tokenizer.encode(skill).ids, 2]

    around = {skill: {"prefix": prefix(skill), "suffix": [3]} for skill in ("query", "detect", "point")}
    lengths = ("short", "normal", "long")
    captions = {length: [*prefix("caption"), *tokenizer.encode(length).ids, 3] for length in lengths}
    marks = {"answer_id": 3, "thinking_id": 4, "coord_id": 5, "size_id": 6}
    grounds = {"start_ground_points_id": 7, "end_ground_id": 9}
    return {"bos_id": 0, "eos_id": 0, **marks, **grounds, "templates": {"caption": captions, **around}}


# --------------------------------------------------------------------------------- weights


def random_weights(config: Config, seed: int) -> dict[str, torch.Tensor]:
    """Wild enough that answers vary and hang on the picture; float32, by current names."""
    shapes = tensor_shapes(config)
    value_rows = int(str(config["text"]["n_kv_heads"])) * 64
    return {name: scaled(name, random_tensor(name, shape, seed), value_rows) for name, shape in shapes.items()}


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed}:model.{name}".encode()).hexdigest()
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(int(digest[:15], 16)))
    if re.search(r"ln\d?\.weight$", name):
        return 1.0 + 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if re.search(r"wte|pos_emb|_features", name):
        return noise
    gain = 3.0 if name == "text.lm_head.weight" else 1.4
    return gain / math.sqrt(math.prod(shape[1:])) * noise


def scaled(name: str, tensor: torch.Tensor, value_rows: int) -> torch.Tensor:
    """Many blocks add up, and greedy text should not run in a circle: found by trial."""
    if re.search(r"vision\.blocks\.\d+\.(attn\.proj|mlp\.fc2)\.weight", name):
        return tensor * 0.4
    if name == "vision.pos_emb":
        return tensor * 0.5
    if re.search(r"text\.blocks\.\d+\.attn\.qkv\.weight", name):
        return torch.cat([tensor[:-value_rows] * 1.6, tensor[-value_rows:] * 0.7])
    if re.search(r"text\.blocks\.\d+\.mlp\.fc2\.weight", name):
        return tensor * 1.5
    return tensor


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for write, section in ((_vision_shapes, "vision"), (_text_shapes, "text"), (_region_shapes, "region")):
        sizes = {name: size for name, size in config[section].items() if isinstance(size, int)}
        shapes.update({f"{section}.{name}": shape for name, shape in write(sizes).items()})
    return shapes


def _vision_shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    width, inner, patch = sizes["enc_dim"], sizes["enc_ff_dim"], sizes["enc_patch_size"]
    shapes: dict[str, tuple[int, ...]] = {"pos_emb": (1, (sizes["crop_size"] // patch) ** 2, width)}
    shapes |= _linear("patch_emb", patch**2 * sizes["in_channels"], width)
    for block in (f"blocks.{number}" for number in range(sizes["enc_n_layers"])):
        shapes |= _norm(f"{block}.ln1", width) | _norm(f"{block}.ln2", width)
        shapes |= _linear(f"{block}.attn.qkv", width, 3 * width) | _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.mlp.fc1", width, inner) | _linear(f"{block}.mlp.fc2", inner, width)
    shapes |= _norm("post_ln", width) | _linear("proj_mlp.fc1", 2 * width, sizes["proj_inner_dim"])
    return shapes | _linear("proj_mlp.fc2", sizes["proj_inner_dim"], sizes["proj_out_dim"])


def _text_shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    width, inner, vocabulary = sizes["dim"], sizes["ff_dim"], sizes["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"wte": (vocabulary, width)}
    for block in (f"blocks.{number}" for number in range(sizes["n_layers"])):
        shapes |= _norm(f"{block}.ln", width) | _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.attn.qkv", width, (sizes["n_heads"] + 2 * sizes["n_kv_heads"]) * 64)
        shapes |= _linear(f"{block}.mlp.fc1", width, inner) | _linear(f"{block}.mlp.fc2", inner, width)
    return shapes | _norm("post_ln", width) | _linear("lm_head", width, vocabulary)


def _region_shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (kind, bins) in enumerate((("coord", "coord_out_dim"), ("size", "size_out_dim")), start=1):
        waves = sizes[f"{kind}_feat_dim"]
        shapes[f"{kind}_features"] = (number, waves // 2)
        shapes |= _linear(f"{kind}_encoder", waves, sizes["dim"])
        shapes |= _linear(f"{kind}_decoder.fc1", sizes["dim"], sizes["inner_dim"])
        shapes |= _linear(f"{kind}_decoder.fc2", sizes["inner_dim"], sizes[bins])
    return shapes


def _linear(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


# --------------------------------------------------------------------------------- names in files

OLD_NAMES = (
    ("vision.patch_emb.", "vision_encoder.encoder.model.visual.patch_embed.linear."),
    ("vision.pos_emb", "vision_encoder.encoder.model.visual.pos_embed"),
    ("vision.post_ln.", "vision_encoder.encoder.model.visual.norm."),
    ("vision.proj_mlp.", "vision_encoder.projection.mlp."),
    ("vision.blocks.", "vision_encoder.encoder.model.visual.blocks."),
    ("text.wte", "text_model.transformer.embd.wte.weight"),
    ("text.post_ln.", "text_model.lm_head.ln."),
    ("text.lm_head.", "text_model.lm_head.linear."),
    ("text.blocks.", "text_model.transformer.h."),
    ("region.coord_features", "region_model.coordinate_features.weight"),
    ("region.size_features", "region_model.size_features.weight"),
    ("region.coord_", "region_model.coordinate_"),
    ("region.", "region_model."),
)


def stored_form(name: str, tensor: torch.Tensor, layout: Layout) -> tuple[str, torch.Tensor]:
    if layout == "hub":
        return f"model.{name}", tensor
    if layout == "bare":
        return name, tensor
    old = next(there + name.removeprefix(here) for here, there in OLD_NAMES if name.startswith(here))
    if name.startswith("text."):
        old = old.replace(".attn.qkv.", ".mixer.Wqkv.").replace(".attn.proj.", ".mixer.out_proj.")
    else:
        # The last of these marks is what torch.compile leaves in the names of some old files.
        old = old.replace(".ln1.", ".norm1.").replace(".ln2.", ".norm2.").replace(".mlp.fc1.", ".mlp._orig_mod.fc1.")
    return old, tensor.T if name.endswith("_features") else tensor
