"""Pictures stay bytes until a tower has them; a table says which number stands for each byte of a channel.

So a picture that waits takes a quarter of the memory, and of the way to a device. The numbers are the image processor's
bit for bit: each of them hangs on its own byte and channel alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deployments.models.weights import reading

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import BaseImageProcessor

CHANNELS = 3
# What an image processor is told, so that it resizes and cuts and leaves the bytes as they are.
GEOMETRY_ONLY: Mapping[str, bool] = {"do_rescale": False, "do_normalize": False}


def value_table(folder: Path, processor: BaseImageProcessor) -> np.ndarray:
    """(3, 256) float32: what the checkpoint's image processor makes of each byte of each channel.

    Raises CheckpointError where its settings cannot work.
    """
    values = np.tile(np.arange(256, dtype=np.uint8), (CHANNELS, 1, 1))  # (3, 1, 256): a picture of all bytes
    with reading(folder, "image processor's settings"):
        if processor.do_rescale:
            values = processor.rescale(values, processor.rescale_factor)
        if processor.do_normalize:
            values = processor.normalize(values, processor.image_mean, processor.image_std)
    return values.reshape(CHANNELS, 256).astype(np.float32)


def look_up(pixels: Tensor, table: Tensor, channel_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """uint8 pixels of any shape to their values on the device; their channels take turns every `channel_size` bytes."""
    import torch

    values = table.to(device, dtype).flatten()  # (3 * 256,)
    starts = torch.arange(0, CHANNELS * 256, 256, dtype=torch.int32, device=device)[:, None]
    # The bytes travel, not the values.
    index = pixels.to(device).view(-1, CHANNELS, channel_size).to(torch.int32).add_(starts)
    return values.index_select(0, index.flatten()).view(pixels.shape)
