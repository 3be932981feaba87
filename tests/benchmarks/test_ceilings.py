"""What a step must multiply and read at least."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.ceilings import Ceilings, LanguageShape, measure_ceilings, read_shape, step_ceiling_ms

SHAPE = LanguageShape(
    width=512,
    inner_width=1536,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    vocab_size=8192,
    is_tied=False,
)
TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
}


def write(folder: Path, config: dict[str, object]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_shape_is_read_from_a_checkpoint(tmp_path: Path) -> None:
    assert read_shape(write(tmp_path, {"text_config": TEXT, "tie_word_embeddings": False})) == SHAPE


def test_sizes_may_stand_beside_the_rest(tmp_path: Path) -> None:
    assert read_shape(write(tmp_path, {**TEXT, "tie_word_embeddings": True})).is_tied


def test_other_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_attention_heads"):
        read_shape(write(tmp_path, {"model_type": "moondream1"}))


def test_weights_and_keys_are_counted() -> None:
    per_layer = 512 * (512 + 2 * 256) + 512 * 512 + 512 * 2 * 1536 + 1536 * 512

    assert SHAPE.num_weights == 8 * per_layer + 512 * 8192
    assert SHAPE.num_bytes(2) == 2 * (SHAPE.num_weights + 512 * 8192)
    assert SHAPE.kv_bytes(1, 2) == 2 * 8 * 4 * 64 * 2


def test_a_step_is_its_products_and_the_reading_of_keys_and_values() -> None:
    ceilings = Ceilings(10.0, 100.0, {16: 2.0}, {16: 3.0})

    # 16 * 160 tokens of 8192 bytes at 10 GB/s
    assert step_ceiling_ms(SHAPE, ceilings, 16, 160, 2) == pytest.approx(2.0 + 16 * 160 * 8192 / 10e9 * 1000)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ceilings_are_measured(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from benchmarks import ceilings

    monkeypatch.setattr(ceilings, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "SIDE", 64)
    monkeypatch.setattr(ceilings, "MEASURE_FOR_S", 0.0)
    shape = LanguageShape(64, 128, 2, 4, 2, 16, 256, is_tied=False)

    measured = measure_ceilings(shape, (1, 4), getattr(torch, dtype), "cpu")

    assert measured.read_gb_per_s > 0
    assert measured.matrix_gflop_per_s > 0
    for batch in (1, 4):
        assert 0 < measured.products_ms[batch] <= measured.plain_products_ms[batch]
