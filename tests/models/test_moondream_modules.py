"""Moondream's networks: equal to the formulas, with and without a cache, and trainable."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from deployments.models.moondream_config import RegionSizes, TextSizes, VisionSizes
from deployments.models.moondream_modules import Region, Text, Vision, rotary_waves, rotate

pytestmark = pytest.mark.torch

TEXT = TextSizes(dim=256, ff_dim=96, n_layers=2, vocab_size=50, n_heads=4, n_kv_heads=2)
VISION = VisionSizes(
    enc_dim=24, enc_patch_size=4, enc_n_layers=2, enc_ff_dim=40, enc_n_heads=2, proj_out_dim=256, crop_size=32,
    overlap_margin=1, proj_inner_dim=48,
)  # fmt: skip
REGION = RegionSizes(dim=256, coord_feat_dim=8, coord_out_dim=16, size_feat_dim=12, size_out_dim=32, inner_dim=20)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def positions_of(batch: int, length: int) -> torch.Tensor:
    return torch.arange(length).expand(batch, -1)


def causal(length: int) -> torch.Tensor:
    return torch.ones(1, 1, length, length, dtype=torch.bool).tril()


def test_positions_turn_half_of_each_head() -> None:
    """Elements i and i + 16 are the parts of a complex number, turned by position * 10000 ** (-i / 16)."""
    heads = torch.randn(1, 2, 5, 64, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 7, 300, 2047]])
    turned = rotate(heads, *rotary_waves(positions))
    numbers = torch.complex(heads[..., :16], heads[..., 16:32])
    angles = positions[0, :, None] * torch.tensor([10_000.0 ** (-i / 16) for i in range(16)])
    wanted = numbers * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned[..., :16], wanted.real, rtol=1e-3, atol=1e-3)  # angles are float32
    torch.testing.assert_close(turned[..., 16:32], wanted.imag, rtol=1e-3, atol=1e-3)
    assert torch.equal(turned[..., 32:], heads[..., 32:])


def test_positions_are_exact_in_any_dtype() -> None:
    """In bfloat16 the position 2047 would be 2048."""
    heads = torch.ones(1, 1, 1, 64)
    waves = rotary_waves(torch.tensor([[2047]]))
    assert waves[0].dtype == torch.float32
    turned = rotate(heads.bfloat16(), *waves)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned, rotate(heads, *waves).bfloat16())


@torch.inference_mode()
def test_a_text_block_by_its_formula() -> None:
    text = Text(TEXT)
    states, block = torch.randn(1, 6, 256), text.blocks[0]
    waves, mask = rotary_waves(positions_of(1, 6)), causal(6)
    normed = F.layer_norm(states, (256,), block.ln.weight, block.ln.bias, 1e-5)
    q, k, v = block.attn.qkv(normed).split([256, 128, 128], dim=-1)
    q, k, v = (part.view(1, 6, -1, 64).transpose(1, 2) for part in (q, k, v))
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)  # each K/V head serves two heads
    scores = rotate(q, *waves) @ rotate(k, *waves).transpose(2, 3) / 8
    mixed = scores.masked_fill(~mask, -math.inf).softmax(-1) @ v
    attended = block.attn.proj(mixed.transpose(1, 2).reshape(1, 6, 256))
    torch.testing.assert_close(block(states, waves, mask, None), states + attended + block.mlp(normed))


@torch.inference_mode()
def test_in_steps_over_a_cache_as_at_once() -> None:
    text, embeddings = Text(TEXT), torch.randn(2, 9, 256)
    at_once = text(embeddings, positions_of(2, 9), causal(9))
    cache, pieces = DynamicCache(), []
    for start, stop in ((0, 5), (5, 6), (6, 9)):
        mask = causal(9)[:, :, start:stop, :stop]
        pieces.append(text(embeddings[:, start:stop], positions_of(2, 9)[:, start:stop], mask, cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1), at_once)
    assert text.logits(at_once).shape == (2, 9, 50)


@torch.inference_mode()
def test_coordinates_and_sizes_by_their_formulas() -> None:
    region = Region(REGION)
    torch.nn.init.normal_(region.coord_features)
    torch.nn.init.normal_(region.size_features)
    angles = 2 * math.pi * 0.3 * region.coord_features[0]
    wanted = region.coord_encoder(torch.cat([angles.cos(), angles.sin()]))
    torch.testing.assert_close(region.encode_coordinate(torch.tensor([[0.3]]))[0], wanted)
    angles = 2 * math.pi * (0.3 * region.size_features[0] + 0.7 * region.size_features[1])
    wanted = region.size_encoder(torch.cat([angles.cos(), angles.sin()]))
    torch.testing.assert_close(region.encode_size(torch.tensor([0.3, 0.7])), wanted)
    hidden = torch.randn(3, 256)
    assert region.coordinate_logits(hidden).shape == (3, 16)
    assert torch.equal(region.size_logits(hidden)[1], region.size_decoder(hidden)[1].view(2, 16))


def test_everything_learns() -> None:
    """A gradient reaches every parameter, through projection, language and region."""
    vision, text, region = Vision(VISION), Text(TEXT), Region(REGION)
    for features in (region.coord_features, region.size_features):
        torch.nn.init.normal_(features)
    features = vision.project(vision(torch.randn(3, 3, 32, 32)), (1, 2))
    place = region.encode_coordinate(torch.tensor([[0.5]])) + region.encode_size(torch.tensor([[0.5, 0.25]]))
    rows = torch.cat([features, text.embed(torch.tensor([1, 2])), place])[None]
    hidden = text(rows, positions_of(1, len(rows[0])), causal(len(rows[0])))
    outputs = (text.logits(hidden), region.coordinate_logits(hidden), region.size_logits(hidden))
    loss: torch.Tensor = sum(each.square().mean() for each in outputs)  # type: ignore[assignment]
    loss.backward()
    for network in (vision, text, region):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
