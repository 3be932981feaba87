"""The table of a checkpoint's image processor gives its own numbers, bit for bit, wherever a channel's bytes lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments.errors import CheckpointError
from deployments.models.byte_pixels import look_up, value_table

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")
HERE = Path("here")


def processor(**settings: object) -> Any:
    from transformers import CLIPImageProcessor

    uneven = {"image_mean": [0.1, 0.5, 0.9], "image_std": [0.3, 0.25, 0.2]}
    return CLIPImageProcessor(do_resize=False, do_center_crop=False, **{**uneven, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": 0.25, "image_std": 0.5},  # of all channels
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
    ],
)
def test_values_are_the_processors_bit_for_bit(settings: dict[str, Any]) -> None:
    maker = processor(**settings)
    picture = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    [expected] = maker([picture], return_tensors="np", input_data_format="channels_last")["pixel_values"]
    table = torch.from_numpy(value_table(HERE, maker))
    pixels = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    values = look_up(pixels, table, 7 * 9, CPU, torch.float32)
    assert (table.shape, values.dtype) == ((3, 256), torch.float32)
    assert np.array_equal(values.numpy(), expected.astype(np.float32))


def test_channels_that_take_turns_within_a_patch() -> None:
    table = torch.arange(3 * 256, dtype=torch.float32).view(3, 256)
    patches = torch.randint(0, 256, (5, 3 * 4), dtype=torch.uint8)
    channel = torch.arange(12) // 4
    assert torch.equal(look_up(patches, table, 4, CPU, torch.float32), patches.float() + 256 * channel)


def test_values_are_rounded_as_casting_them_would() -> None:
    table, pixels = torch.randn(3, 256), torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    exact = look_up(pixels, table, 16, CPU, torch.float32)
    assert torch.equal(look_up(pixels, table, 16, CPU, torch.bfloat16), exact.to(torch.bfloat16))


def test_settings_that_cannot_work_are_the_checkpoints_fault() -> None:
    with pytest.raises(CheckpointError, match="image processor's settings of checkpoint here"):
        value_table(HERE, processor(image_mean=[0.5]))
