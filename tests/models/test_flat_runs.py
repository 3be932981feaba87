"""Every family's `run`, dense and packed, gives what its `forward` gives, however sequences share its flat passes.

The family that docs/families.md shows is in test_families_page.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flat_runs import check_flat_runs
from tiny_llava import build_llava
from tiny_moondream import SMALL, build_moondream
from tiny_qwen2_vl import build_qwen2_vl

from deployments.models.causal import CausalLanguage
from deployments.models.fused_decoder import can_fuse
from deployments.models.packing import can_pack
from deployments.models.registry import open_family

pytestmark = pytest.mark.torch
CPU = torch.device("cpu")

# Family, how its tiny checkpoint is built, position rows, and tokens at the beginning that see each other.
FAMILIES: dict[str, tuple[str, Callable[[Path], Path] | str, int, int]] = {
    "smolvlm": ("smolvlm", "256m", 1, 0),
    "smolvlm_instruct": ("smolvlm", "instruct", 1, 0),
    "qwen2_vl_tied": ("qwen2_vl", lambda folder: build_qwen2_vl(folder, variant="2b", seed=1), 3, 0),
    "qwen2_vl": ("qwen2_vl", lambda folder: build_qwen2_vl(folder, variant="7b", seed=1), 3, 0),
    "llava_llama": ("llava", lambda folder: build_llava(folder, language="llama"), 1, 0),
    "llava_mistral": ("llava", lambda folder: build_llava(folder, language="mistral"), 1, 0),
    "llava_qwen2": ("llava", lambda folder: build_llava(folder, language="qwen2"), 1, 0),
    "moondream": ("moondream", build_moondream, 1, 9),
    "moondream_shared_heads": ("moondream", lambda folder: build_moondream(folder, config=SMALL), 1, 9),
}
PACKINGS = {"dense": False, "packed": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[[str], Path]) -> dict[str, Path]:
    def build(name: str) -> Path:
        made = FAMILIES[name][1]
        return tiny_checkpoint(made) if isinstance(made, str) else made(tmp_path_factory.mktemp(name) / "checkpoint")

    return {name: build(name) for name in FAMILIES}


def check(name: str, folder: Path, packing: str, dtype: str, tolerance: float) -> None:
    family, _, position_rows, num_mutual = FAMILIES[name]
    language = open_family(family).open_language(folder, "cpu", dtype)
    need_packing(packing, language.dtype)
    check_flat_runs(
        language,
        position_rows=position_rows,
        num_mutual=num_mutual,
        is_packed=PACKINGS[packing],
        tolerance=tolerance,
    )


def need_packing(packing: str, dtype: torch.dtype) -> None:
    if PACKINGS[packing] and not can_pack(CPU, dtype):
        pytest.skip(f"this machine or this torch packs no weights of {dtype}")


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_run_equals_forward(folders: dict[str, Path], name: str, packing: str) -> None:
    check(name, folders[name], packing, "float32", 1e-4)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_run_is_near_forward_in_bfloat16(folders: dict[str, Path], name: str, packing: str) -> None:
    check(name, folders[name], packing, "bfloat16", 0.15)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_each_family_computes_with(folders: dict[str, Path], name: str) -> None:
    language: Any = open_family(FAMILIES[name][0]).open_language(folders[name], "cpu", "float32")
    if isinstance(language, CausalLanguage):
        assert can_fuse(language.module.get_decoder()), "else these tests would be of transformers' own layers"
