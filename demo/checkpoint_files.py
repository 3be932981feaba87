"""Writes the files of a checkpoint folder: each one is replaced at once, and recipe.json comes last."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one file of a checkpoint."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """The number of a token that there must be."""
    number = tokenizer.token_to_id(token)
    assert number is not None, token
    return number


def write_tokenizer(folder: Path, tokenizer: Tokenizer, about: dict[str, Any]) -> None:
    """Write tokenizer.json, and tokenizer_config.json with its control tokens and what `about` says."""
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    tokens = sorted(tokenizer.get_added_tokens_decoder().items())
    added = {str(number): {"content": token.content, **flags, "special": True} for number, token in tokens}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added, **about})


def write_weights(folder: Path, weights: dict[str, torch.Tensor], recipe: dict[str, Any]) -> None:
    """Write the weights in bfloat16, then recipe.json with their sha256."""
    partial = folder / "model.safetensors.partial"
    rounded = {name: value.to(torch.bfloat16).contiguous() for name, value in weights.items()}
    save_file(rounded, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors makes it for its owner alone
    os.replace(partial, folder / "model.safetensors")
    write_recipe(folder, recipe)


def write_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    """Write recipe.json with the sha256 of the weights that lie there."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    write_json(folder / "recipe.json", {**recipe, "weights_sha256": digest})
