"""On which device a model's halves run here, and in which dtype: one answer for tower and language part."""

from __future__ import annotations

import logging
from typing import Literal

from deployments.config import Dtype
from deployments.errors import ConfigError
from deployments.types import FeatureDtype

Device = Literal["cpu", "cuda"]
logger = logging.getLogger(__name__)


def resolve_device(device: Literal["auto"] | Device) -> Device:
    """`auto` is cuda where this process sees one, else the CPU, which the log says. Raises ConfigError when cuda is
    asked for and not there."""
    import torch

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError("device is cuda, but torch sees no CUDA device here; set it to auto or cpu", "device")
    if device != "auto":
        return device
    if not has_cuda:
        logger.warning("device: auto, and torch sees no CUDA device here: running on the CPU")
    return "cuda" if has_cuda else "cpu"


def resolve_dtype(dtype: Dtype, device: Device) -> FeatureDtype:
    """`auto` is bfloat16 where the device computes it natively; else float16 on a GPU and float32 on a CPU.

    Answers in bfloat16 differ from transformers' in float32 now and then; who wants these says float32.
    """
    import torch

    if dtype != "auto":
        return dtype
    if device == "cpu":
        return "bfloat16" if _has_bfloat16_instructions() else "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def _has_bfloat16_instructions() -> bool:
    """Of the CPU. oneDNN emulates bfloat16 on others, slower than it computes float32."""
    import torch

    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
