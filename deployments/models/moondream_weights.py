"""Reads one half of a moondream checkpoint into its networks, from the current tensor names and from the old ones.

Current names are those of `moondream_modules.py` behind `vision.`, `text.` or `region.`, in the hub's files with
`model.` before that. Revisions of 2024 have the names of the code of that time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from deployments.errors import CheckpointError
from deployments.models.weights import list_tensors, read_tensors

Network = TypeVar("Network", bound=nn.Module)

OLD_PARTS = ("vision_encoder.", "text_model.", "region_model.")
OLD_NAMES: Mapping[str, str] = {
    r"^vision_encoder\.encoder\.model\.visual\.patch_embed\.linear\.": "vision.patch_emb.",
    r"^vision_encoder\.encoder\.model\.visual\.pos_embed$": "vision.pos_emb",
    r"^vision_encoder\.encoder\.model\.visual\.blocks\.(\d+)\.norm([12])\.": r"vision.blocks.\1.ln\2.",
    r"^vision_encoder\.encoder\.model\.visual\.blocks\.": "vision.blocks.",
    r"^vision_encoder\.encoder\.model\.visual\.norm\.": "vision.post_ln.",
    r"^vision_encoder\.projection\.mlp\.": "vision.proj_mlp.",
    r"^text_model\.transformer\.embd\.wte\.weight$": "text.wte",
    r"^text_model\.transformer\.h\.(\d+)\.mixer\.Wqkv\.": r"text.blocks.\1.attn.qkv.",
    r"^text_model\.transformer\.h\.(\d+)\.mixer\.out_proj\.": r"text.blocks.\1.attn.proj.",
    r"^text_model\.transformer\.h\.": "text.blocks.",
    r"^text_model\.lm_head\.ln\.": "text.post_ln.",
    r"^text_model\.lm_head\.linear\.": "text.lm_head.",
    r"^region_model\.coordinate_(encoder|decoder)\.": r"region.coord_\1.",
    r"^region_model\.coordinate_features\.weight$": "region.coord_features",
    r"^region_model\.size_features\.weight$": "region.size_features",
    r"^region_model\.": "region.",
}
TURNED = re.compile(r"^region_model\.\w+_features(\._orig_mod)?\.weight$")  # the old files hold them transposed
COMPUTED = re.compile(r"(kv_cache\.[kv]_cache|freqs_cis|attn_mask)$")  # buffers that some files hold, and nobody reads


def has_old_names(folder: Path) -> bool:
    """Whether it is a revision of the time before the current names. Reads headers only. Raises CheckpointError."""
    return any(name.startswith(OLD_PARTS) for name in list_tensors(folder))


def current_name(name: str) -> str:
    """Of a tensor in a file of whatever layout: `vision...`, `text...` or `region...`."""
    name = name.replace("._orig_mod", "").removeprefix("model.")
    for pattern, replacement in OLD_NAMES.items():
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def load_part(network: Network, part: str, folder: Path, dtype: str) -> Network:
    """Give `network`, made on the meta device, its tensors (those of `part`), on the CPU. Others are not read.

    Raises CheckpointError where a tensor is missing, is left over or has another shape than config.json says.
    """
    sources = {
        current_name(name): name
        for name in list_tensors(folder)
        if current_name(name).startswith(f"{part}.") and not COMPUTED.search(name)
    }
    expected = {f"{part}.{name}": tensor for name, tensor in network.state_dict().items()}
    _require_same_names(folder, part, set(expected), set(sources))
    stored = read_tensors(folder, sources.values(), dtype)
    tensors: dict[str, torch.Tensor] = {}
    for name, source in sources.items():
        tensor = stored[source].T.contiguous() if TURNED.match(source) else stored[source]
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"checkpoint {folder}: {source} has the shape {tuple(tensor.shape)}, by config.json it should be "
                f"{tuple(expected[name].shape)}",
                param="checkpoint",
            )
        tensors[name.removeprefix(f"{part}.")] = tensor
    network.load_state_dict(tensors, assign=True)
    network.eval().requires_grad_(requires_grad=False)
    return network


def _require_same_names(folder: Path, part: str, expected: set[str], found: set[str]) -> None:
    missing, left_over = sorted(expected - found), sorted(found - expected)
    if missing:
        raise CheckpointError(
            f"checkpoint {folder} lacks {len(missing)} tensors of the {part} part, such as {', '.join(missing[:3])}: "
            "it is incomplete, quantised, or does not belong to its config.json",
            param="checkpoint",
        )
    if left_over:
        raise CheckpointError(
            f"checkpoint {folder} holds {len(left_over)} tensors of the {part} part that have no place in it, such as "
            f"{', '.join(left_over[:3])}: it does not belong to its config.json, or is of a revision unknown here",
            param="checkpoint",
        )
