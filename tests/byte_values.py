"""The float32 values that a tower makes of pixels which travel as bytes, to hold against an image processor's."""

from __future__ import annotations

import numpy as np

from deployments.models.family import Pixels


def values_of(pixels: Pixels) -> np.ndarray:
    """In the shape of the image processor's pixel_values."""
    import torch

    from deployments.models.byte_pixels import look_up

    [name] = pixels.tensors.keys() & {"tiles", "picture", "patches"}
    data = torch.from_numpy(pixels.tensors[name])
    channel_size = data.shape[1] // 3 if name == "patches" else data[0, 0].numel()
    table = torch.from_numpy(pixels.tensors["values"])
    return look_up(data, table, channel_size, torch.device("cpu"), torch.float32).numpy()
