"""Holds the demo Qwen2-VL checkpoint to its answers in two languages, its size, its recipe and its tower's shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

MODEL = "qwen2_vl"
CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoints" / MODEL


def test_answers_stay(hold: Callable[[str], list[tuple[str, str, str]]]) -> None:
    held = hold(MODEL)
    assert [(question, found) for question, _, found in held] == [(question, right) for question, right, _ in held]


def test_folder_is_whole(check_folder: Callable[[str], None]) -> None:
    check_folder(MODEL)


def test_batched_tower_equals_its_own_forward() -> None:
    import torch
    from qwen2_vl_tower import GRIDS, pixels_of, see
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

    visual = Qwen2VLForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).model.visual
    processor = Qwen2VLImageProcessorPil.from_pretrained(CHECKPOINT)
    for grid in GRIDS:
        height, width = pixels_of(grid)
        pictures = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        inputs = processor(list(pictures), do_resize=False, return_tensors="pt")
        assert inputs["image_grid_thw"].tolist() == [[1, 2 * grid[0], 2 * grid[1]]] * 2
        with torch.no_grad():
            served = visual(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
            trained = see(visual, (pictures.float() / 255 - 0.5) / 0.5)
        torch.testing.assert_close(trained.flatten(0, 1), served, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [(256, 256, (4, 4)), (400, 300, (3, 4)), (300, 400, (4, 3)), (1920, 1080, (3, 5)), (64, 48, (4, 5))],
)
def test_pictures_get_the_grids_that_were_trained(width: int, height: int, grid: tuple[int, int]) -> None:
    from PIL import Image
    from qwen2_vl_tower import GRIDS
    from transformers import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(CHECKPOINT)
    shown = processor([Image.new("RGB", (width, height))], return_tensors="pt")["image_grid_thw"]
    assert shown.tolist() == [[1, 2 * grid[0], 2 * grid[1]]]
    assert grid in GRIDS
