"""Builds the demo Moondream's tokenizer, configuration, tower and checkpoint folder in moondream2's own layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from checkpoint_files import write_json, write_tokenizer, write_weights
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from deployments.models.moondream_tokens import LENGTHS

CROP, PATCH, MAX_CROPS, MARGIN = 64, 8, 4, 1
GRID = CROP // PATCH
PREFIX = 1 + GRID**2  # the start token and the picture see each other in both directions
VOCABULARY = 768
LAYERS, WIDTH, HEADS = 5, 192, 3
BINS = 1024
SPECIAL = ("<|endoftext|>", *(f"<|md_reserved_{i}|>" for i in range(12)))
END, ASK, ASKED, ANSWER, THINK, COORD, SIZE, GROUND, GROUND_END = 0, 1, 2, 3, 4, 5, 6, 7, 9
TASKS = ("caption", "query", "detect", "point")


def build_tokenizer(corpus: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE on the corpus; control tokens stand first, as in moondream's own tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def build_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Write down the model's shape and prompts, as config.json's `config` entry holds them."""
    return {
        "text": {
            "dim": WIDTH, "ff_dim": 512, "n_layers": LAYERS, "vocab_size": tokenizer.get_vocab_size(),
            "max_context": 2048, "n_heads": HEADS, "n_kv_heads": HEADS, "prefix_attn": PREFIX, "group_size": None,
        },
        "vision": {
            "enc_dim": 128, "enc_patch_size": PATCH, "enc_n_layers": 4, "enc_ff_dim": 512, "enc_n_heads": 4,
            "proj_out_dim": WIDTH, "crop_size": CROP, "in_channels": 3, "max_crops": MAX_CROPS,
            "overlap_margin": MARGIN, "proj_inner_dim": 384,
        },
        "region": {
            "dim": WIDTH, "coord_feat_dim": 32, "coord_out_dim": BINS, "size_feat_dim": 64,
            "size_out_dim": 2 * BINS, "inner_dim": 64, "group_size": None,
        },
        "tokenizer": {
            "bos_id": END, "eos_id": END, "answer_id": ANSWER, "thinking_id": THINK, "coord_id": COORD,
            "size_id": SIZE, "start_ground_points_id": GROUND, "end_ground_id": GROUND_END,
            "templates": templates(tokenizer),
        },
    }  # fmt: skip


def templates(tokenizer: Tokenizer) -> dict[str, Any]:
    """Token ids around what is asked, by task."""

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    prefix = {task: [ASK, *ids(task), ASKED] for task in TASKS}
    around = {task: {"prefix": prefix[task], "suffix": [ANSWER]} for task in TASKS[1:]}
    return {"caption": {length: [*prefix["caption"], *ids(length), ANSWER] for length in LENGTHS}, **around}


def tower_weights(smolvlm: Path) -> dict[str, torch.Tensor]:
    """Take over the demo SmolVLM's trained tower, under Moondream's tensor names; both compute the same."""
    source = load_file(smolvlm / "model.safetensors")
    tower = {name.removeprefix("model.vision_model."): value for name, value in source.items() if "vision" in name}
    position = tower["embeddings.position_embedding.weight"]
    named = {
        "pos_emb": position[None],
        "patch_emb.weight": tower["embeddings.patch_embedding.weight"].flatten(1),  # (D, channel * y * x)
        "patch_emb.bias": tower["embeddings.patch_embedding.bias"],
    }
    for part in ("weight", "bias"):
        named[f"post_ln.{part}"] = tower[f"post_layernorm.{part}"]
        for layer in range(4):
            named |= _tower_layer(tower, layer, part)
    return {name: value.float() for name, value in named.items()}


def _tower_layer(tower: dict[str, torch.Tensor], layer: int, part: str) -> dict[str, torch.Tensor]:
    there, here = f"encoder.layers.{layer}", f"blocks.{layer}"
    return {
        f"{here}.ln1.{part}": tower[f"{there}.layer_norm1.{part}"],
        f"{here}.ln2.{part}": tower[f"{there}.layer_norm2.{part}"],
        f"{here}.attn.qkv.{part}": torch.cat([tower[f"{there}.self_attn.{x}_proj.{part}"] for x in "qkv"]),
        f"{here}.attn.proj.{part}": tower[f"{there}.self_attn.out_proj.{part}"],
        f"{here}.mlp.fc1.{part}": tower[f"{there}.mlp.fc1.{part}"],
        f"{here}.mlp.fc2.{part}": tower[f"{there}.mlp.fc2.{part}"],
    }


def write_checkpoint(
    folder: Path, weights: dict[str, torch.Tensor], tokenizer: Tokenizer, recipe: dict[str, Any]
) -> None:
    """Write a whole checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    end = SPECIAL[END]
    named = {"bos_token": end, "eos_token": end, "unk_token": end}
    kind = {"architectures": ["HfMoondream"], "model_type": "moondream1", "torch_dtype": "bfloat16"}
    about = {"add_prefix_space": False, "clean_up_tokenization_spaces": False, "model_max_length": 2048}
    write_tokenizer(folder, tokenizer, {**about, "tokenizer_class": "PreTrainedTokenizerFast", **named})
    write_json(folder / "special_tokens_map.json", named)
    write_json(folder / "config.json", {**kind, "config": build_config(tokenizer)})
    write_json(folder / "generation_config.json", {"bos_token_id": END, "eos_token_id": END})
    write_weights(folder, {f"model.{name}": value for name, value in weights.items()}, recipe)
