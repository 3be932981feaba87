"""On tens of thousands of sizes, at several budgets, our arithmetic of sizes is the image processor's."""

from __future__ import annotations

import random

import pytest

from deployments.errors import InvalidImage
from deployments.models.qwen2_vl_patches import Patching

MIN_PIXELS = 3136
BUDGETS = [1, 4, 30, 256, 1280, 16384]  # image tokens


def patching(max_tokens: int, min_pixels: int = MIN_PIXELS) -> Patching:
    max_pixels = max_tokens * 28 * 28
    return Patching(14, 2, min(min_pixels, max_pixels), max_pixels)


def sizes(count: int, seed: int) -> list[tuple[int, int]]:
    chance = random.Random(seed)
    scales = (3, 30, 300, 3000, 30_000)
    return [(chance.randint(1, chance.choice(scales)), chance.randint(1, chance.choice(scales))) for _ in range(count)]


def tokens_of_processor(size: tuple[int, int], ours: Patching) -> tuple[int, int] | None:
    """By the function that the image processor resizes with; None where it refuses."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    width, height = size
    try:
        high, wide = smart_resize(height, width, ours.token_px, ours.min_pixels, ours.max_pixels)
    except ValueError:
        return None
    assert (high % ours.token_px, wide % ours.token_px) == (0, 0)
    return high // ours.token_px, wide // ours.token_px


def tokens_of_ours(size: tuple[int, int], ours: Patching) -> tuple[int, int] | None:
    try:
        return ours.tokens(*size)
    except InvalidImage:
        return None


@pytest.mark.torch
@pytest.mark.parametrize("budget", BUDGETS)
def test_any_size(budget: int) -> None:
    ours = patching(budget)
    shapes = sizes(20_000, seed=budget)
    results = [tokens_of_ours(size, ours) for size in shapes]
    assert results == [tokens_of_processor(size, ours) for size in shapes]
    assert 0 < results.count(None) < len(shapes) / 2


@pytest.mark.torch
@pytest.mark.parametrize(
    "geometry", [Patching(14, 2, 0, 784), Patching(16, 2, 65536, 16_777_216), Patching(7, 1, 9, 99)]
)
def test_other_geometries_and_all_small_sizes(geometry: Patching) -> None:
    shapes = [(width, height) for width in range(1, 100) for height in range(1, 100)] + sizes(2000, seed=1)
    assert [tokens_of_ours(size, geometry) for size in shapes] == [
        tokens_of_processor(size, geometry) for size in shapes
    ]


@pytest.mark.torch
@pytest.mark.parametrize("size", [(200, 1), (1, 200), (1, 1), (14, 42), (42, 14), (2800, 14), (70, 98), (13, 2600)])
def test_at_the_edges(size: tuple[int, int]) -> None:
    for budget in BUDGETS:
        assert patching(budget).tokens(*size) == tokens_of_processor(size, patching(budget))


@pytest.mark.torch
@pytest.mark.parametrize("size", [(1, 1), (30, 2000), (1500, 700), (3, 1), (1, 3), (640, 480), (200, 1), (5000, 4000)])
def test_the_image_processor_itself(size: tuple[int, int]) -> None:
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    ours = patching(256)
    processor = Qwen2VLImageProcessorPil(min_pixels=ours.min_pixels, max_pixels=ours.max_pixels)
    grid = processor([Image.new("RGB", size)], return_tensors="np")["image_grid_thw"]
    rows, columns = ours.tokens(*size)
    assert grid.tolist() == [[1, 2 * rows, 2 * columns]]


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((224, 224), (8, 8)), ((1024, 768), (27, 37)), ((1500, 700), (24, 52)), ((1, 1), (2, 2)), ((30, 2000), (71, 1))],
)
def test_familiar_sizes(size: tuple[int, int], tokens: tuple[int, int]) -> None:
    assert patching(1280).tokens(*size) == tokens


@pytest.mark.parametrize("size", [(10_000, 1), (1, 10_000), (201, 1), (6030, 30), (30, 6001)])
def test_a_picture_too_thin_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage, match=f"{size[0]} x {size[1]} pixels is too thin .* at most 200 times") as raised:
        patching(1280).tokens(*size)
    assert raised.value.param == "image"


@pytest.mark.parametrize("budget", [200, 256, 1280])
def test_the_budget_holds_for_every_shape(budget: int) -> None:
    ours = patching(budget)
    taken = [rows * columns for rows, columns in filter(None, (tokens_of_ours(size, ours) for size in sizes(5000, 7)))]
    assert max(taken) <= budget
    assert max(taken) > budget * 0.95


def test_below_200_tokens_only_thin_pictures_exceed_the_budget() -> None:
    ours = patching(64)
    over = [
        (size, found) for size in sizes(20_000, 8) if (found := tokens_of_ours(size, ours)) and found[0] * found[1] > 64
    ]
    assert over
    for _, (rows, columns) in over:
        assert min(rows, columns) == 1
        assert rows * columns <= (200 * 64) ** 0.5
