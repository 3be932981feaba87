"""What of a transformers tower decides its features besides weights and pixels, for fingerprints."""

from __future__ import annotations

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from deployments.models.fused_vision import name_fused


def arithmetic_of(half: PreTrainedModel) -> dict[str, object]:
    """Of a vision half whose config has a `vision_config`: equal in checkpoints that differ in other respects."""
    config = half.config
    generic = PreTrainedConfig().to_dict()
    vision = {key: value for key, value in config.vision_config.to_dict().items() if key not in generic}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    place = {"device": half.device.type, "dtype": str(half.dtype), **name_fused(half.device, half.dtype)}
    return {"model_type": config.model_type, "vision": vision, **versions, **place}
