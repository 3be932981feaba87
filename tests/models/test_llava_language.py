"""Our halves and a plain loop answer as transformers' whole LLaVA does, token for token, with each language model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_original import Original, recorded_reads
from safetensors.torch import load_file, save_file
from tiny_llava import build_llava
from transformers import DynamicCache

from deployments.errors import CheckpointError
from deployments.models.llava_language import LlavaLanguage
from deployments.models.registry import open_family

pytestmark = pytest.mark.torch

FAMILY = open_family("llava")
NEW_TOKENS = 32
CASES = {
    "llama": {"language": "llama"},
    "mistral": {"language": "mistral"},
    "qwen2": {"language": "qwen2"},
    "siglip": {"language": "qwen2", "tower": "siglip"},
    "seeded": {"language": "llama", "seed": 5, "tower_seed": 6, "names": "inner"},
    "between": {"language": "mistral", "seed": 7, "names": "between"},
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Original]:
    root = tmp_path_factory.mktemp("llava")
    return {name: Original(build_llava(root / name, **case)) for name, case in CASES.items()}  # type: ignore[arg-type]


@pytest.fixture(params=sorted(CASES))
def twin(request: pytest.FixtureRequest, originals: dict[str, Original]) -> Original:
    return originals[request.param]


@pytest.fixture
def talks(picture: Callable[..., Any], conversation: Callable[..., Any]) -> list[Any]:
    return [
        conversation("Hello, my name is Ada."),
        conversation("Hello, my name is Ada.", "Nice to meet you.", "What is my name?"),
        conversation((picture(64, 64, 1), "What do you see?")),
        conversation((picture(1500, 700, 2), "What do you see?")),
        conversation((picture(30, 2000, 3), "What is it?"), "A circle.", "Where is it?"),
        conversation((picture(1, 1), "What?"), "Nothing.", (picture(200, 90, 4), "And here?")),
        conversation((picture(70, 50, 5), picture(50, 70, 6), "Which is larger?")),
    ]


@torch.inference_mode()
def answer(folder: Path, conversation: Any, dtype: str = "float32") -> list[int]:
    """Greedy decoding of one conversation: the halves together as their users put them together."""
    prompts, language = FAMILY.open_prompt_format(folder), FAMILY.open_language(folder, "cpu", dtype)
    tower, preprocessor = FAMILY.open_tower(folder, "cpu", dtype), FAMILY.open_preprocessor(folder)
    prompt = prompts.build(conversation.messages)
    embeddings = language.embed(torch.tensor([prompt.token_ids])).clone()  # (1, S, D)
    seen = tower.encode([preprocessor(picture) for picture in conversation.pictures])
    for span, features in zip(prompt.images, seen, strict=True):
        embeddings[0, span.start : span.start + span.length] = language.project(features)
    positions = torch.from_numpy(prompt.positions)[:, None]  # (1, 1, S)
    length, cache = len(prompt.token_ids), DynamicCache()
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    token_ids: list[int] = []
    while True:
        logits = language.forward(embeddings, positions, cache, mask).logits
        token_ids.append(int(logits.argmax()))
        if token_ids[-1] in prompts.stop_token_ids or len(token_ids) == NEW_TOKENS:
            return token_ids
        embeddings = language.embed(torch.tensor([token_ids[-1:]]))
        positions = torch.tensor([[[prompt.next_position + len(token_ids) - 1]]])
        mask = torch.ones(1, 1, 1, length + len(token_ids), dtype=torch.bool)


def test_greedy_answers_equal_generate(twin: Original, talks: list[Any]) -> None:
    answers = [answer(twin.folder, talk) for talk in talks]
    assert answers == [twin.answer(talk.turns, talk.pictures, NEW_TOKENS) for talk in talks]
    # Else the checkpoint would prove nothing: answers hang on question and picture, and do not run in circles.
    assert len(set(map(tuple, answers))) == len(talks)
    assert all(len(set(token_ids)) > 8 for token_ids in answers if len(token_ids) == NEW_TOKENS)


def test_dimensions_are_the_checkpoints(twin: Original) -> None:
    language = FAMILY.open_language(twin.folder, "cpu", "float32")
    text = twin.model.config.text_config
    assert (language.num_layers, language.num_kv_heads, language.head_dim) == (3, text.num_key_value_heads, 16)
    assert language.vocab_size == text.vocab_size
    assert (language.max_context_tokens, language.feature_width) == (2048, 48)
    assert (language.device.type, language.dtype) == ("cpu", torch.float32)


def test_bfloat16_answers_are_finite_and_reach_the_end(twin: Original, talks: list[Any]) -> None:
    assert 1 <= len(answer(twin.folder, talks[2], "bfloat16")) <= NEW_TOKENS


def test_features_of_another_width_are_noticed(twin: Original) -> None:
    language = FAMILY.open_language(twin.folder, "cpu", "float32")
    with pytest.raises(AssertionError):
        language.project(torch.zeros(16, 64))


def test_the_tower_is_not_read(twin: Original, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded_reads(monkeypatch) as names:
        FAMILY.open_language(twin.folder, "cpu", "float32")
    assert names == {name for name in tensors_of(twin.folder) if "vision_tower." not in name}
    assert len([name for name in names if "multi_modal_projector" in name]) == 4


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for file in files for name, tensor in file.items()}


# --------------------------------------------------------------------------------- the projector


def test_the_projector_can_be_trained(twin: Original, picture: Callable[..., Any]) -> None:
    """Frozen as it comes; with gradients switched on, a loss behind the language model reaches the projector alone."""
    language = FAMILY.open_language(twin.folder, "cpu", "float32")
    assert isinstance(language, LlavaLanguage)
    assert not any(each.requires_grad for part in (language.projector, language.module) for each in part.parameters())
    language.projector.requires_grad_(requires_grad=True)
    tower, preprocessor = FAMILY.open_tower(twin.folder, "cpu", "float32"), FAMILY.open_preprocessor(twin.folder)
    [features] = tower.encode([preprocessor(picture(64, 64))])
    rows = language.project(features.clone())
    language.module(inputs_embeds=rows[None]).logits.logsumexp(-1).sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in language.projector.parameters())
    assert all(each.grad is None for each in language.module.parameters())


def test_the_projectors_activation_is_the_configurations(
    originals: dict[str, Original], tmp_path: Path, picture: Callable[..., Any]
) -> None:
    folder = altered(originals["llama"].folder, tmp_path, projector_hidden_act="relu")
    projected = project(folder, picture(64, 64))
    assert torch.equal(projected, Original(folder).projected(picture(64, 64)))
    assert not torch.equal(projected, project(originals["llama"].folder, picture(64, 64)))


def test_a_projector_without_bias(originals: dict[str, Original], tmp_path: Path, picture: Callable[..., Any]) -> None:
    folder = altered(originals["qwen2"].folder, tmp_path, multimodal_projector_bias=False)
    weights = tensors_of(folder)
    kept = {name: each for name, each in weights.items() if not ("projector" in name and name.endswith("bias"))}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(project(folder, picture(64, 64)), Original(folder).projected(picture(64, 64)))


@torch.inference_mode()
def project(folder: Path, picture: Any) -> torch.Tensor:
    [features] = FAMILY.open_tower(folder, "cpu", "float32").encode([FAMILY.open_preprocessor(folder)(picture)])
    rows: torch.Tensor = FAMILY.open_language(folder, "cpu", "float32").project(features)
    return rows


# --------------------------------------------------------------------------------- language models


def altered(folder: Path, target: Path, **changes: object) -> Path:
    copy = Path(shutil.copytree(folder, target / "altered"))
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**content, **changes}))
    return copy


def with_text(twin: Original, target: Path, **changes: object) -> Path:
    text = json.loads((twin.folder / "config.json").read_text())["text_config"]
    return altered(twin.folder, target, text_config={**text, **changes})


def test_a_window_bounds_the_context(originals: dict[str, Original], tmp_path: Path, talks: list[Any]) -> None:
    """Up to the window, attention through it is full attention; the engine gives no request more than this context."""
    for name, changes in (
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1}),
    ):
        folder = with_text(originals[name], tmp_path / name, **changes)
        assert FAMILY.open_language(folder, "cpu", "float32").max_context_tokens == 64
        expected = Original(folder).answer(talks[0].turns, [], 16)
        assert answer(folder, talks[0])[:16] == expected
    unused = with_text(originals["qwen2"], tmp_path / "unused", sliding_window=64, use_sliding_window=False)
    assert FAMILY.open_language(unused, "cpu", "float32").max_context_tokens == 2048


def test_another_language_model_is_refused(originals: dict[str, Original], tmp_path: Path) -> None:
    folder = with_text(originals["llama"], tmp_path, model_type="gpt2")
    with pytest.raises(CheckpointError, match="'gpt2'; there is llama, mistral, qwen2"):
        FAMILY.open_language(folder, "cpu", "float32")


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_positions_that_hang_on_the_longest_request_are_refused(
    originals: dict[str, Original], tmp_path: Path, rope_type: str
) -> None:
    scaling = {"rope_type": rope_type, "factor": 2.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    folder = with_text(originals["llama"], tmp_path, rope_scaling=scaling)
    with pytest.raises(CheckpointError, match=rope_type):
        FAMILY.open_language(folder, "cpu", "float32")


def test_a_checkpoint_without_a_projector(originals: dict[str, Original], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals["qwen2"].folder, tmp_path / "copy"))
    weights = {name: each for name, each in tensors_of(folder).items() if "projector" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"multi_modal_projector\.linear_1"):
        FAMILY.open_language(folder, "cpu", "float32")
