"""Loads into a transformers module those tensors of a checkpoint that it has: all of them, or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from deployments.errors import CheckpointError
from deployments.models.weights import check_dtype, reading, tensor_shapes

Module = TypeVar("Module", bound=PreTrainedModel)


def load_module(
    module_class: type[Module],
    folder: Path,
    config: PreTrainedConfig,
    dtype: str,
    key_mapping: Mapping[str, str] | None = None,
) -> Module:
    """The checkpoint's tensors that `module_class` has, on the CPU; others are not read. Raises CheckpointError."""
    check_dtype(dtype)
    _require_tensors(module_class, folder, config)
    with reading(folder, "weights"):
        module: Module
        module, report = module_class.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            key_mapping=dict(key_mapping) if key_mapping else None,
            use_safetensors=True,  # never a pickle
            local_files_only=True,
            output_loading_info=True,
        )
    # transformers fills what it did not find with random numbers and goes on.
    absent = sorted(report["missing_keys"]) + [str(key) for key in report["mismatched_keys"]]
    if absent:
        raise _lacks(folder, absent)
    module.eval().requires_grad_(requires_grad=False)
    return module


def _require_tensors(module_class: type[PreTrainedModel], folder: Path, config: PreTrainedConfig) -> None:
    """Raises CheckpointError where there are not enough tensors of a name's end and a shape.

    Before transformers is asked, because it would fill what is missing first: a config.json without its text_config
    stands for a language model of 7 billion random numbers. Names' beginnings differ between hub and transformers.
    """
    with reading(folder, "sizes in config.json"), torch.device("meta"):
        module = module_class(config)
    found = Counter((_end(name), shape) for name, shape in tensor_shapes(folder).items())
    tied = module.all_tied_weights_keys
    absent: list[str] = []
    for name, tensor in module.state_dict().items():
        wanted = (_end(name), tuple(tensor.shape))
        if name in tied:
            continue
        if not found[wanted]:
            absent.append(f"{name} {wanted[1]}")
        found[wanted] -= 1
    if absent:
        raise _lacks(folder, absent)


def _end(name: str) -> str:
    """Of a tensor's name: its module's own name and the parameter's."""
    return ".".join(name.split(".")[-2:])


def _lacks(folder: Path, absent: list[str]) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder} lacks fitting tensors for {len(absent)} parameters, such as {', '.join(absent[:3])}: "
        "it is incomplete or does not belong to its config.json",
        param="checkpoint",
    )
