"""Towers in bfloat16 on a CPU: as near to float32 as the models' own modules are, and the same in any company."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_llava import build_llava
from tiny_moondream import SMALL, build_moondream
from tiny_qwen2_vl import build_qwen2_vl

from deployments.models import fused_vision, llava_tower, moondream, qwen2_vl, smolvlm_tower
from deployments.models.fused_vision import attend, can_fuse, fuse_layers, mix
from deployments.models.registry import open_family

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not can_fuse(CPU, torch.bfloat16), reason="this CPU has no products in bfloat16"),
]
SIZES = [(64, 64), (500, 200), (90, 300), (1600, 1200)]
TOWERS = ("smolvlm-256m", "smolvlm-smolvlm2", "llava-clip", "llava-siglip", "qwen2_vl-2b", "qwen2_vl-7b", "moondream-")
USERS = (smolvlm_tower, llava_tower, moondream, qwen2_vl)
# Both ways round to 8 bits some dozen times in a row; by chance, one or the other comes out nearer to float32.
SLACK = 1.25


@pytest.fixture(scope="module")
def folder_of(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    known: dict[str, Path] = {}

    def build(name: str) -> Path:
        family, variant = name.split("-")
        target = tmp_path_factory.mktemp("fused") / name
        if family == "smolvlm":
            return tiny_checkpoint(variant)
        if family == "llava":
            return build_llava(target, tower=variant)  # type: ignore[arg-type]
        if family == "qwen2_vl":
            return build_qwen2_vl(target, variant=variant, seed=0)  # type: ignore[arg-type]
        return build_moondream(target, config=SMALL)

    def find(name: str) -> Path:
        if name not in known:
            known[name] = build(name)
        return known[name]

    return find


@pytest.fixture(params=TOWERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def open_tower(folder: Path, name: str, dtype: str) -> Any:
    return open_family(name.split("-")[0]).open_tower(folder, "cpu", dtype)


@pytest.fixture
def unfused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """unfused(folder, name, dtype) -> the tower as it is where nothing can be fused."""

    def open_one(folder: Path, name: str, dtype: str) -> Any:
        with monkeypatch.context() as patched:
            for module in (fused_vision, *USERS):
                patched.setattr(module, "can_fuse", lambda device, dtype: False)
            return open_tower(folder, name, dtype)

    return open_one


def error_of(features: torch.Tensor, exact: torch.Tensor) -> float:
    return float((features.float() - exact).norm() / exact.norm())


def test_as_near_to_float32_as_transformers(
    folder_of: Callable[[str], Path], name: str, unfused: Callable[..., Any], picture: Callable[..., Any]
) -> None:
    folder = folder_of(name)
    preprocess = open_family(name.split("-")[0]).open_preprocessor(folder)
    pixels = [preprocess(picture(*size, seed)) for seed, size in enumerate(SIZES)]
    exact = torch.cat(open_tower(folder, name, "float32").encode(pixels))
    theirs = torch.cat(unfused(folder, name, "bfloat16").encode(pixels))
    ours = torch.cat(open_tower(folder, name, "bfloat16").encode(pixels))
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert not torch.equal(ours, theirs), "nothing was fused"
    assert 0 < error_of(ours, exact) < SLACK * error_of(theirs, exact) < 0.1


def test_no_picture_hangs_on_its_neighbours(
    folder_of: Callable[[str], Path], name: str, picture: Callable[..., Any]
) -> None:
    family, folder = open_family(name.split("-")[0]), folder_of(name)
    preprocess, tower = family.open_preprocessor(folder), family.open_tower(folder, "cpu", "bfloat16")
    assert not tower.shares_passes
    pixels = [preprocess(picture(*size, seed)) for seed, size in enumerate(SIZES)]
    for together, each in zip(tower.encode(pixels), pixels, strict=True):
        assert torch.equal(together, tower.encode([each])[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tiles_one_by_one_are_the_picture(
    folder_of: Callable[[str], Path], picture: Callable[..., Any], dtype: str
) -> None:
    folder = folder_of("smolvlm-256m")
    tower = open_tower(folder, "smolvlm", dtype)
    pixels = open_family("smolvlm").open_preprocessor(folder)(picture(500, 200))
    pieces = tower.split(pixels)
    assert len(pieces) == (len(pixels.tensors["tiles"]) if dtype == "bfloat16" else 1)
    assert sum(piece.cost for piece in pieces) == pixels.cost
    assert sum(piece.num_tokens for piece in pieces) == pixels.num_tokens
    seen = [tower.encode([piece])[0] for piece in pieces]
    assert [len(features) for features in seen] == [piece.num_tokens for piece in pieces]
    assert torch.equal(torch.cat(seen), tower.encode([pixels])[0])
    assert all(np.shares_memory(piece.tensors["tiles"], pixels.tensors["tiles"]) for piece in pieces)


def test_fingerprints_tell_how_it_was_computed(
    folder_of: Callable[[str], Path], name: str, unfused: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(name)
    fused = open_tower(folder, name, "bfloat16").fingerprint
    assert open_tower(folder, name, "bfloat16").fingerprint == fused
    assert unfused(folder, name, "bfloat16").fingerprint != fused
    assert unfused(folder, name, "float32").fingerprint == open_tower(folder, name, "float32").fingerprint
    monkeypatch.setattr(fused_vision, "FUSED_VERSION", fused_vision.FUSED_VERSION + 1)
    assert open_tower(folder, name, "bfloat16").fingerprint != fused


def test_no_weight_is_twice_in_memory_and_the_layers_still_work(folder_of: Callable[[str], Path]) -> None:
    tower = open_tower(folder_of("smolvlm-256m"), "smolvlm", "bfloat16")
    vision = tower._half.vision_model
    config, [layer, *_] = vision.config, vision.encoder.layers
    [fused] = fuse_layers([layer], config.num_attention_heads, config.hidden_act)
    storage = fused.qkv_weight.untyped_storage().data_ptr()
    for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
        assert part.weight.untyped_storage().data_ptr() == storage
    with torch.inference_mode():
        states = torch.randn(2, 16, config.hidden_size).to(torch.bfloat16)
        torch.testing.assert_close(fused(states), layer(states, attention_mask=None), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("max_scores", [1, 50, 700, 2**21])
def test_attention_in_parts_is_attention(max_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, so that only parts could make a difference: some heads, some rows, or all at once."""
    monkeypatch.setattr(fused_vision, "MAX_SCORES", max_scores)
    q, k, v = torch.randn(3, 4, 23, 8)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(0, 1)
    torch.testing.assert_close(mix(q, k, v), expected)
    qkv = torch.stack([q, k, v]).permute(2, 0, 1, 3).reshape(23, 3 * 4 * 8)
    torch.testing.assert_close(attend(qkv, 4), expected.flatten(1))


def test_only_where_the_processor_has_it() -> None:
    assert not can_fuse(CPU, torch.float32)
    assert not can_fuse(CPU, torch.float16)
    assert not can_fuse(torch.device("cuda"), torch.bfloat16)
