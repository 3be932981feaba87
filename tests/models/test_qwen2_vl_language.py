"""Our two halves and a plain loop answer as transformers' whole model does, token for token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import DynamicCache

from deployments.errors import CheckpointError, ConfigError
from deployments.models.registry import open_family

if TYPE_CHECKING:
    from qwen2_vl_original import Original

pytestmark = pytest.mark.torch

NEW_TOKENS = 32
VARIANTS = ("2b", "7b")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Original]:
    """original(variant) -> the tiny checkpoint under transformers' classes, loaded once."""
    from qwen2_vl_original import Original
    from tiny_qwen2_vl import build_qwen2_vl

    folder = tmp_path_factory.mktemp("qwen2-vl")
    known = {variant: Original(build_qwen2_vl(folder / variant, variant=variant, seed=1)) for variant in VARIANTS}
    return known.__getitem__


@pytest.fixture(params=VARIANTS)
def twin(request: pytest.FixtureRequest, original: Callable[[str], Original]) -> Original:
    return original(request.param)


@torch.inference_mode()
def answer(folder: Path, talk: Any, dtype: str = "float32") -> list[int]:
    """Greedy decoding of one conversation: the halves together as their users put them together."""
    family = open_family("qwen2_vl")
    prompts, language = family.open_prompt_format(folder), family.open_language(folder, "cpu", dtype)
    tower, preprocessor = family.open_tower(folder, "cpu", dtype), family.open_preprocessor(folder)
    prompt = prompts.build(talk.messages)
    embeddings = language.embed(torch.tensor([prompt.token_ids]))  # (1, S, D)
    for span, features in zip(prompt.images, tower.encode([preprocessor(each) for each in talk.pictures]), strict=True):
        embeddings[0, span.start : span.start + span.length] = language.project(features)

    cache = DynamicCache()
    positions = torch.from_numpy(prompt.positions)[:, None]  # (3, 1, S)
    length = len(prompt.token_ids)
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    token_ids: list[int] = []
    while True:
        logits = language.forward(embeddings, positions, cache, mask).logits
        assert (logits.shape, logits.dtype) == ((1, language.vocab_size), torch.float32)
        seen = [*prompt.token_ids, *token_ids]
        token_ids.append(int(penalized(logits[0], seen, prompts.repetition_penalty).argmax()))
        if token_ids[-1] in prompts.stop_token_ids or len(token_ids) == NEW_TOKENS:
            return token_ids
        embeddings = language.embed(torch.tensor([token_ids[-1:]]))
        positions = torch.full((3, 1, 1), prompt.next_position + len(token_ids) - 1)
        mask = torch.ones(1, 1, 1, length + len(token_ids), dtype=torch.bool)


def penalized(logits: torch.Tensor, seen: list[int], penalty: float) -> torch.Tensor:
    """Tokens that were there before are less likely (https://arxiv.org/abs/1909.05858, section 4.1)."""
    index = torch.tensor(sorted(set(seen)))
    logits = logits.clone()
    logits[index] = torch.where(logits[index] < 0, logits[index] * penalty, logits[index] / penalty)
    return logits


def answer_of_original(twin: Original, talk: Any) -> list[int]:
    return twin.answer(talk.turns, talk.pictures, NEW_TOKENS)


@pytest.fixture
def talks(picture: Callable[..., Any], conversation: Callable[..., Any]) -> list[Any]:
    return [
        conversation("Hello, my name is Ada."),
        conversation("Hello, my name is Ada.", "Nice to meet you.", "What is my name?"),
        conversation((picture(64, 64, 1), "What do you see?")),
        conversation((picture(64, 64, 2), "What do you see?")),
        conversation((picture(300, 200, 3), "What is it?"), "A circle.", "Where is it?"),
        conversation((picture(200, 90, 4), picture(90, 200, 5), "この二つの違いは何ですか？")),
        conversation((picture(1, 1), "What?"), "Nothing.", (picture(30, 2000, 6), "And here?")),
        conversation((picture(1500, 700, 7), "What?")),
    ]


def test_greedy_answers_equal_generate(twin: Original, talks: list[Any]) -> None:
    answers = [answer(twin.folder, talk) for talk in talks]
    assert answers == [answer_of_original(twin, talk) for talk in talks]
    # Else the checkpoint would prove nothing: answers hang on question and picture, and do not run in circles.
    assert len(set(map(tuple, answers))) == len(talks)
    assert all(len(set(token_ids)) > 8 for token_ids in answers if len(token_ids) == NEW_TOKENS)


def test_the_checkpoints_penalty_plays_a_part(
    original: Callable[[str], Original], talks: list[Any], tmp_path: Path
) -> None:
    """Else equality under 1.05 would prove nothing about it."""
    folder = Path(shutil.copytree(original("7b").folder, tmp_path / "copy"))
    rewrite(folder / "generation_config.json", repetition_penalty=1.0)
    assert any(answer(folder, talk) != answer_of_original(original("7b"), talk) for talk in talks[:5])
    rewrite(folder / "generation_config.json", repetition_penalty=1.7)
    strict = type(original("7b"))(folder)
    assert [answer(folder, talk) for talk in talks[:5]] == [answer_of_original(strict, talk) for talk in talks[:5]]


def test_an_answer_ends_at_either_stop_token(twin: Original, talks: list[Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(twin.folder, tmp_path / "copy"))
    third = answer(folder, talks[2])[2]
    rewrite(folder / "generation_config.json", eos_token_id=[7, third])
    ours = answer(folder, talks[2])
    assert ours == answer_of_original(type(twin)(folder), talks[2])
    assert len(ours) <= 3


# --------------------------------------------------------------------------------- checkpoints


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def resaved(twin: Original, target: Path, change: Callable[[str], str]) -> Path:
    """A copy of the checkpoint in one file, its tensors under other names."""
    import tiny_checkpoints

    copy = Path(shutil.copytree(twin.folder, target / "resaved", ignore=shutil.ignore_patterns("model*")))
    tiny_checkpoints.write_weights(copy, {change(name): t for name, t in weights_of(twin.folder).items()}, 1)
    return copy


def inner_name(name: str) -> str:
    """As transformers 4.52 and later name it inside, and some checkpoints with them."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def test_checkpoints_under_inner_names(twin: Original, talks: list[Any], tmp_path: Path) -> None:
    folder = resaved(twin, tmp_path, inner_name)
    assert any(name.startswith("model.language_model.") for name in weights_of(folder))
    assert answer(folder, talks[4]) == answer_of_original(twin, talks[4])


def test_head_and_embedding_are_one_matrix_where_the_checkpoint_ties_them(original: Callable[[str], Original]) -> None:
    for variant, is_tied in (("2b", True), ("7b", False)):
        folder = original(variant).folder
        assert ("lm_head.weight" not in weights_of(folder)) is is_tied
        module = open_family("qwen2_vl").open_language(folder, "cpu", "float32").module
        assert (module.lm_head.weight is module.model.embed_tokens.weight) is is_tied


def test_one_matrix_said_inside_text_config(
    original: Callable[[str], Original], talks: list[Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(original("2b").folder, tmp_path / "copy"))
    config = original("2b").model.config.to_dict()
    del config["tie_word_embeddings"]
    rewrite(folder / "config.json", **config, tie_word_embeddings=None)
    rewrite(folder / "config.json", text_config={**config["text_config"], "tie_word_embeddings": True})
    content = json.loads((folder / "config.json").read_text())
    del content["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(content))
    assert answer(folder, talks[2]) == answer_of_original(original("2b"), talks[2])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bfloat16_checkpoint(variant: Any, talks: list[Any], tmp_path: Path) -> None:
    from qwen2_vl_original import Original
    from tiny_qwen2_vl import build_qwen2_vl

    folder = build_qwen2_vl(tmp_path / "bf16", variant=variant, seed=2, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in weights_of(folder).values()} == {torch.bfloat16}
    twin = Original(folder)
    assert [answer(folder, talk) for talk in talks[:5]] == [answer_of_original(twin, talk) for talk in talks[:5]]
    assert 1 <= len(answer(folder, talks[2], "bfloat16")) <= NEW_TOKENS


class Slices:
    """Where transformers opens weight files: notes whose tensors' bytes are read."""

    def __init__(self, read: set[str], *args: Any, **options: Any) -> None:
        from safetensors import safe_open

        self._file = safe_open(*args, **options)
        self._read = read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_slice(self, name: str) -> Any:
        return Slice(self._read, name, self._file.get_slice(name))


class Slice:
    def __init__(self, read: set[str], name: str, tensor: Any) -> None:
        self._read, self._name, self._tensor = read, name, tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)

    def __getitem__(self, index: Any) -> Any:
        self._read.add(self._name)
        return self._tensor[index]


def test_a_half_reads_its_own_tensors_only(twin: Original, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    monkeypatch.setattr("transformers.modeling_utils.safe_open", lambda *args, **opts: Slices(read, *args, **opts))
    names = set(weights_of(twin.folder))
    of_vision = {name for name in names if name.startswith("visual.")}
    open_family("qwen2_vl").open_tower(twin.folder, "cpu", "float32")
    assert read == of_vision
    read.clear()
    open_family("qwen2_vl").open_language(twin.folder, "cpu", "float32")
    assert read == names - of_vision


def test_dimensions_are_the_checkpoints(twin: Original) -> None:
    language = open_family("qwen2_vl").open_language(twin.folder, "cpu", "float32")
    text = twin.model.config.text_config
    assert (language.num_layers, language.num_kv_heads, language.head_dim) == (3, 2, 16)
    assert (language.vocab_size, language.max_context_tokens) == (text.vocab_size, 4096)
    assert language.feature_width == open_family("qwen2_vl").open_tower(twin.folder, "cpu", "float32").width == 64
    assert (language.device.type, language.dtype) == ("cpu", torch.float32)


@pytest.mark.parametrize(
    ("part", "name"), [("tower", "visual.patch_embed.proj.weight"), ("language", "model.norm.weight")]
)
def test_missing_tensors_are_not_made_up(twin: Original, tmp_path: Path, part: str, name: str) -> None:
    folder = resaved(twin, tmp_path, lambda each: "elsewhere" if each == name else each)
    with pytest.raises(CheckpointError, match=name):
        getattr(open_family("qwen2_vl"), f"open_{part}")(folder, "cpu", "float32")


def test_sliding_windows_and_unknown_dtypes_are_refused(twin: Original, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(twin.folder, tmp_path / "copy"))
    rewrite(folder / "config.json", use_sliding_window=True, max_window_layers=1)
    with pytest.raises(CheckpointError, match="use_sliding_window"):
        open_family("qwen2_vl").open_language(folder, "cpu", "float32")
    with pytest.raises(ConfigError, match="float32, bfloat16, float16"):
        open_family("qwen2_vl").open_language(twin.folder, "cpu", "int8")


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
