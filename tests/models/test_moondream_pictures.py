"""Moondream's crops follow the published rule, and its tower sees every picture as if it were alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_moondream import REFERENCE, SMALL, build_moondream

from deployments.models.moondream_config import VisionSizes
from deployments.models.moondream_crops import choose_tiling, cut_crops
from deployments.models.moondream_modules import Vision
from deployments.models.moondream_patches import cut_patches, stitch
from deployments.models.registry import open_family

pytestmark = pytest.mark.torch

SIZES = [(1, 1), (1, 3000), (3000, 1), (30, 2000), (64, 64), (70, 500), (300, 200), (1500, 700)]
SMALL_SIZES = VisionSizes(crop_size=64, enc_patch_size=8, overlap_margin=1, max_crops=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_moondream(tmp_path_factory.mktemp("moondream"), config=SMALL)


@pytest.fixture(scope="module")
def family() -> Any:
    return open_family("moondream")


@pytest.fixture(scope="module")
def tower(family: Any, folder: Path) -> Any:
    return family.open_tower(folder, "cpu", "float32")


@pytest.fixture(scope="module")
def preprocessor(family: Any, folder: Path) -> Any:
    return family.open_preprocessor(folder)


# --------------------------------------------------------------------------------- crops


def tiling_by_the_book(width: int, height: int, window: int, most: int) -> tuple[int, int]:
    """In whole numbers: floor(sqrt(a / b)) is the whole root of a // b."""
    if min(width, height) <= window:
        return 1, 1
    rows, columns = -(-height // window), -(-width // window)
    if rows * columns > most:
        return max(1, math.isqrt(most * rows // columns)), max(1, math.isqrt(most * columns // rows))
    rows, columns = max(rows, math.isqrt(most * height // width)), max(columns, math.isqrt(most * width // height))
    if rows * columns > most and columns > rows:
        columns = most // rows
    elif rows * columns > most:
        rows = most // columns
    return rows, columns


def test_tilings_of_many_sizes() -> None:
    rng = np.random.default_rng(0)
    for width, height in np.exp2(rng.uniform(0, 13, (20_000, 2))).astype(int).tolist():
        assert choose_tiling(width, height, 266, 12) == tiling_by_the_book(width, height, 266, 12), (width, height)
        assert choose_tiling(width, height, 48, 5) == tiling_by_the_book(width, height, 48, 5), (width, height)


@pytest.mark.parametrize(
    ("size", "tiling"),
    [
        ((378, 378), (1, 1)),
        ((379, 378), (1, 1)),
        ((379, 379), (3, 3)),  # more than one window each way, so as many as the limit allows
        ((500, 900), (4, 2)),
        ((1500, 700), (2, 4)),
        ((2500, 2500), (3, 3)),
        ((20_000, 390), (1, 21)),  # the limit of 12 does not hold where one row is left: so it was published
    ],
)
def test_tilings_at_the_hub_s_sizes(size: tuple[int, int], tiling: tuple[int, int]) -> None:
    crops = cut_crops(Image.new("RGB", size), VisionSizes())
    assert crops.tiling == tiling
    assert crops.pixels.shape == (1 + tiling[0] * tiling[1], 378, 378, 3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sizes", [VisionSizes(), SMALL_SIZES])
def test_crops_show_the_stretched_picture(
    size: tuple[int, int], sizes: VisionSizes, picture: Callable[..., Any]
) -> None:
    shown = picture(*size)
    crops = cut_crops(shown, sizes)
    small = shown.resize((sizes.crop_size, sizes.crop_size), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(crops.pixels[0], np.asarray(small))
    rows, columns = crops.tiling
    margin = sizes.overlap_margin * sizes.enc_patch_size
    window = sizes.crop_size - 2 * margin
    whole = shown.resize((columns * window + 2 * margin, rows * window + 2 * margin), Image.Resampling.LANCZOS)
    for row in range(rows):
        for column in range(columns):
            box = (column * window, row * window, column * window + sizes.crop_size, row * window + sizes.crop_size)
            np.testing.assert_array_equal(crops.pixels[1 + row * columns + column], np.asarray(whole.crop(box)))


# --------------------------------------------------------------------------------- patches and stitching


def test_patches_are_read_by_row_and_by_channel() -> None:
    crops = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).view(2, 3, 6, 6)
    patches = cut_patches(crops, 2)
    assert patches.shape == (2, 9, 12)
    for row in range(3):
        for column in range(3):
            wanted = crops[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
            assert torch.equal(patches[1, 3 * row + column], wanted)


@pytest.mark.parametrize("tiling", [(1, 1), (1, 4), (3, 1), (2, 3)])
@pytest.mark.parametrize("margin", [0, 1, 2])
def test_stitched_crops_are_the_picture_they_were_cut_from(tiling: tuple[int, int], margin: int) -> None:
    rows, columns = tiling
    window = 6 - 2 * margin
    whole = torch.randn(rows * window + 2 * margin, columns * window + 2 * margin, 3)
    crops = [
        whole[row * window : row * window + 6, column * window : column * window + 6]
        for row in range(rows)
        for column in range(columns)
    ]
    assert torch.equal(stitch(torch.stack(crops), tiling, margin), whole)


def test_where_crops_overlap_the_inner_edge_is_given_up() -> None:
    crops = torch.stack([torch.full((4, 4, 1), float(number)) for number in range(2)])
    assert stitch(crops, (1, 2), 1)[0, :, 0].tolist() == [0, 0, 0, 1, 1, 1]


# --------------------------------------------------------------------------------- tower


@pytest.mark.parametrize("config", [REFERENCE, SMALL], ids=["reference", "small"])
def test_pixels_say_what_they_cost(tmp_path: Path, family: Any, picture: Callable[..., Any], config: Any) -> None:
    preprocessor = family.open_preprocessor(build_moondream(tmp_path, config=config))
    pixels = preprocessor(picture(640, 480))
    grid = config["vision"]["crop_size"] // config["vision"]["enc_patch_size"]
    assert pixels.tensors["crops"].dtype == np.uint8
    assert pixels.num_tokens == grid**2
    assert pixels.cost == len(pixels.tensors["crops"]) * grid**2


def test_a_picture_of_one_crop_step_by_step(tower: Any, preprocessor: Any, picture: Callable[..., Any]) -> None:
    """Against the formulas, with the tower's own weights."""
    shown = picture(50, 40)
    pixel = np.stack([np.asarray(shown.resize((64, 64), Image.Resampling.LANCZOS))] * 2)
    values = (torch.from_numpy(pixel).bfloat16() / 255 - 0.5) / 0.5
    vision: Vision = tower._vision
    with torch.inference_mode():
        patches = F.unfold(values.float().permute(0, 3, 1, 2), 8, stride=8).transpose(1, 2)  # channel, row, column
        states = vision.patch_emb(patches) + vision.pos_emb
        for block in vision.blocks:
            normed = F.layer_norm(states, (32,), block.ln1.weight, block.ln1.bias, 1e-5)
            q, k, v = (part.view(2, 64, 2, 16).transpose(1, 2) for part in block.attn.qkv(normed).chunk(3, -1))
            weights = (q @ k.transpose(2, 3) / 4).softmax(-1)
            states = states + block.attn.proj((weights @ v).transpose(1, 2).reshape(2, 64, 32))
            normed = F.layer_norm(states, (32,), block.ln2.weight, block.ln2.bias, 1e-5)
            states = states + block.mlp.fc2(F.gelu(block.mlp.fc1(normed), approximate="tanh"))
        states = F.layer_norm(states, (32,), vision.post_ln.weight, vision.post_ln.bias, 1e-5)
        both = torch.cat([states[0], states[1]], dim=-1)  # the grid is pooled to itself
        wanted = vision.proj_mlp.fc2(F.gelu(vision.proj_mlp.fc1(both), approximate="tanh"))
    torch.testing.assert_close(tower.encode([preprocessor(shown)])[0], wanted)


def test_in_company_as_alone(tower: Any, preprocessor: Any, picture: Callable[..., Any]) -> None:
    pixels = [preprocessor(picture(*size, seed)) for seed, size in enumerate(SIZES)]
    assert len({len(each.tensors["crops"]) for each in pixels}) > 1
    for features, each in zip(tower.encode(pixels), pixels, strict=True):
        assert features.shape == (64, tower.width)
        assert torch.equal(features, tower.encode([each])[0])


def test_in_one_pass_as_on_an_accelerator(
    tower: Any, preprocessor: Any, picture: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = [preprocessor(picture(*size, seed)) for seed, size in enumerate(SIZES)]
    one_by_one = tower.encode(pixels)
    monkeypatch.setattr(tower, "shares_passes", True)
    for alone, together in zip(one_by_one, tower.encode(pixels), strict=True):
        torch.testing.assert_close(alone, together)


def test_detail_counts(tower: Any, preprocessor: Any, picture: Callable[..., Any]) -> None:
    """The same in small, but not in detail."""
    pixels = preprocessor(picture(300, 200))
    pixels.tensors["crops"][2, 30:34, 30:34] ^= 255
    assert not torch.equal(tower.encode([pixels])[0], tower.encode([preprocessor(picture(300, 200))])[0])


def test_preprocessing_from_many_threads(preprocessor: Any, picture: Callable[..., Any]) -> None:
    shown = [picture(40 + 13 * seed, 200, seed) for seed in range(16)]
    alone = [preprocessor(each).tensors["crops"] for each in shown]
    with ThreadPoolExecutor(4) as threads:
        together = [pixels.tensors["crops"] for pixels in threads.map(preprocessor, shown)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(
    family: Any, folder: Path, tower: Any, preprocessor: Any, picture: Callable[..., Any], dtype: str
) -> None:
    other = family.open_tower(folder, "cpu", dtype)
    pixels = [preprocessor(picture(90, 90)), preprocessor(picture(300, 100))]
    for features, exact in zip(other.encode(pixels), tower.encode(pixels), strict=True):
        assert features.dtype == getattr(torch, dtype)
        torch.testing.assert_close(features.float(), exact, rtol=0.1, atol=0.5)


# --------------------------------------------------------------------------------- fingerprints


def bump(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[name].view(-1)[-1] += 1e-3

    return change


def fingerprint(family: Any, folder: Path, **options: Any) -> str:
    return str(family.open_tower(build_moondream(folder, config=SMALL, **options), "cpu", "float32").fingerprint)


@pytest.mark.parametrize("options", [{}, {"layout": "bare"}, {"shards": 3}, {"change": bump("text.wte")}])
def test_equal_towers(tmp_path: Path, family: Any, tower: Any, options: Any) -> None:
    assert fingerprint(family, tmp_path, **options) == tower.fingerprint


@pytest.mark.parametrize("name", ["vision.pos_emb", "vision.proj_mlp.fc2.bias"])
def test_one_other_weight_is_another_tower(tmp_path: Path, family: Any, tower: Any, name: str) -> None:
    assert fingerprint(family, tmp_path, change=bump(name)) != tower.fingerprint


def test_dtype_and_stitching_are_part_of_the_tower(tmp_path: Path, family: Any, folder: Path, tower: Any) -> None:
    assert family.open_tower(folder, "cpu", "bfloat16").fingerprint != tower.fingerprint
    config = {**SMALL, "vision": {**SMALL["vision"], "overlap_margin": 2}}
    wider = build_moondream(tmp_path, config=config)
    assert family.open_tower(wider, "cpu", "float32").fingerprint != tower.fingerprint


@pytest.mark.parametrize("change", [{"max_crops": 4}, {"overlap_margin": 2}, {"crop_size": 72}])
def test_fingerprint_of_preprocessing(
    tmp_path: Path, family: Any, folder: Path, preprocessor: Any, change: dict[str, int]
) -> None:
    assert family.open_preprocessor(folder).fingerprint == preprocessor.fingerprint
    config = json.loads((folder / "config.json").read_text())
    config["config"]["vision"].update(change)
    sizes = replace(SMALL_SIZES, **change)
    config["config"]["text"]["prefix_attn"] = 1 + sizes.image_tokens
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert family.open_preprocessor(tmp_path).fingerprint != preprocessor.fingerprint
