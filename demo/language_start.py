"""Begins a language half with the weights of a finished demo model whose layers have the same shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer


def load_known(folder: Path) -> tuple[dict[str, torch.Tensor], Tokenizer]:
    """A finished model's weights as `begin_language` names them, and its tokenizer."""
    weights = load_file(folder / "model.safetensors")
    named = {name.removeprefix("model.").removeprefix("text_model."): value for name, value in weights.items()}
    return named, Tokenizer.from_file(str(folder / "tokenizer.json"))


def narrow(weights: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """Keep, in every layer, the `width` neurons of the MLP whose weights are the largest together."""
    found = dict(weights)
    for name in weights:
        if name.endswith("mlp.gate_proj.weight"):
            gate, up, down = (name.replace("gate", part) for part in ("gate", "up", "down"))
            sizes = weights[gate].float().norm(dim=1) * weights[up].float().norm(dim=1)
            kept = (sizes * weights[down].float().norm(dim=0)).topk(width).indices.sort().values
            found |= {gate: weights[gate][kept], up: weights[up][kept], down: weights[down][:, kept]}
    return found


@torch.no_grad()
def begin_language(
    model: Any, tokenizer: Tokenizer, weights: dict[str, torch.Tensor], known: Tokenizer, same: dict[str, str]
) -> None:
    """Copy layers and words in place.

    `weights` have the names of `model.state_dict()`, without what stands before `layers`, `embed_tokens` and `norm`.
    Biases that they lack become zero. A token that `known` lacks begins as the mean of the pieces that
    `known` cuts its text into; `same` says which control token of the model takes the place of which known one.
    """
    text_model = model.model.language_model
    for name, parameter in text_model.named_parameters():
        if "embed_tokens" not in name:
            parameter.copy_(weights[name]) if name in weights else parameter.zero_()
    tables = ((text_model.embed_tokens.weight, "embed_tokens.weight"), (model.lm_head.weight, "lm_head.weight"))
    for token, pieces in _pieces(tokenizer, known, same):
        for rows, name in tables:
            rows[token] = weights[name][pieces].float().mean(0)


def _pieces(tokenizer: Tokenizer, known: Tokenizer, same: dict[str, str]) -> list[tuple[int, list[int]]]:
    """For each token the known tokens it begins as; control tokens that nothing is like are left as they are."""
    control = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    found = []
    for text, token in tokenizer.get_vocab().items():
        known_token = known.token_to_id(same.get(text, text))
        if known_token is not None:
            found.append((token, [known_token]))
        elif text not in control:
            found.append((token, [piece.id for piece in known.model.tokenize(text)]))
    return found
