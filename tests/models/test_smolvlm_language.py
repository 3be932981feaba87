"""Our two halves and a plain loop answer as transformers' whole model does, token for token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from deployments.errors import CheckpointError, ConfigError
from deployments.models.registry import open_family

pytestmark = pytest.mark.torch

NEW_TOKENS = 32


@torch.inference_mode()
def answer(folder: Path, conversation: Any, dtype: str = "float32") -> list[int]:
    """Greedy decoding of one conversation: the halves together as their users put them together."""
    family = open_family("smolvlm")
    prompts, language = family.open_prompt_format(folder), family.open_language(folder, "cpu", dtype)
    tower, preprocessor = family.open_tower(folder, "cpu", dtype), family.open_preprocessor(folder)
    prompt = prompts.build(conversation.messages)
    embeddings = language.embed(torch.tensor([prompt.token_ids]))  # (1, S, D)
    features = tower.encode([preprocessor(picture) for picture in conversation.pictures])
    put_in(embeddings, prompt, torch.cat(features) if features else None)

    cache = DynamicCache()
    positions = torch.from_numpy(prompt.positions)[:, None]  # (1, 1, S)
    length = len(prompt.token_ids)
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    token_ids: list[int] = []
    while True:
        logits = language.forward(embeddings, positions, cache, mask).logits
        assert logits.shape == (1, language.vocab_size)
        assert logits.dtype == torch.float32
        token_ids.append(int(logits.argmax()))
        if token_ids[-1] in prompts.stop_token_ids or len(token_ids) == NEW_TOKENS:
            return token_ids
        embeddings = language.embed(torch.tensor([token_ids[-1:]]))
        positions = torch.tensor([[[prompt.next_position + len(token_ids) - 1]]])
        mask = torch.ones(1, 1, 1, length + len(token_ids), dtype=torch.bool)


def put_in(embeddings: torch.Tensor, prompt: Any, features: torch.Tensor | None) -> None:
    used = 0
    for span in prompt.images:
        assert features is not None
        embeddings[0, span.start : span.start + span.length] = features[used : used + span.length]
        used += span.length


def answer_of_original(twin: Any, conversation: Any) -> list[int]:
    inputs = twin.inputs(conversation)
    output = twin.model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture
def talks(picture: Callable[..., Any], conversation: Callable[..., Any]) -> list[Any]:
    return [
        conversation("Hello, my name is Ada."),
        conversation("Hello, my name is Ada.", "Nice to meet you.", "What is my name?"),
        conversation((picture(64, 64, 1), "What do you see?")),
        conversation((picture(64, 64, 2), "What do you see?")),
        conversation((picture(300, 200, 3), "What is it?"), "A circle.", "Where is it?"),
        conversation((picture(1, 1), "What?"), "Nothing.", (picture(10_000, 1, 4), "And here?")),
    ]


def test_greedy_answers_equal_generate(twin: Any, talks: list[Any]) -> None:
    answers = [answer(twin.folder, talk) for talk in talks]
    assert answers == [answer_of_original(twin, talk) for talk in talks]
    # Else the checkpoint would prove nothing: answers hang on question and picture, and do not run in circles.
    assert len(set(map(tuple, answers))) == len(talks)
    assert all(len(set(token_ids)) > 8 for token_ids in answers if len(token_ids) == NEW_TOKENS)


def test_an_answer_ends_at_the_stop_token(
    original: Callable[[str], Any], conversation: Callable[..., Any], tmp_path: Path
) -> None:
    talk = conversation("Where is the triangle?")
    folder = Path(shutil.copytree(original("256m").folder, tmp_path / "copy"))
    third = answer(folder, talk)[2]
    rewrite(folder / "generation_config.json", eos_token_id=[7, third])
    twin = type(original("256m"))(folder)
    assert answer(folder, talk) == answer_of_original(twin, talk)
    assert len(answer(folder, talk)) <= 3


def test_one_matrix_for_head_and_embedding(original: Callable[[str], Any], talks: list[Any], tmp_path: Path) -> None:
    import tiny_checkpoints
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(original("256m").folder, tmp_path / "tied"))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    tiny_checkpoints.write_weights(folder, weights, 1)
    rewrite(folder / "config.json", tie_word_embeddings=True)
    twin = type(original("256m"))(folder)
    assert answer(folder, talks[2]) == answer_of_original(twin, talks[2])


def test_dimensions_are_the_checkpoints(twin: Any) -> None:
    language = open_family("smolvlm").open_language(twin.folder, "cpu", "float32")
    text = twin.model.config.text_config
    assert (language.num_layers, language.num_kv_heads, language.head_dim) == (3, text.num_key_value_heads, 16)
    assert language.vocab_size == text.vocab_size
    assert language.max_context_tokens == 4096
    assert (language.device.type, language.dtype) == ("cpu", torch.float32)


def test_the_language_part_holds_no_tower(twin: Any) -> None:
    language = open_family("smolvlm").open_language(twin.folder, "cpu", "float32")
    parameters = sum(tensor.numel() for tensor in language.module.state_dict().values())
    whole = twin.model.state_dict().items()
    assert parameters == sum(t.numel() for name, t in whole if not name.startswith(("model.vision", "model.connector")))


def test_bfloat16_answers_are_finite_and_reach_the_end(twin: Any, talks: list[Any]) -> None:
    assert 1 <= len(answer(twin.folder, talks[2], "bfloat16")) <= NEW_TOKENS


def test_an_unknown_dtype_is_refused(twin: Any) -> None:
    with pytest.raises(ConfigError, match="float32, bfloat16, float16"):
        open_family("smolvlm").open_language(twin.folder, "cpu", "int8")


def test_another_language_part_is_refused(original: Callable[[str], Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original("256m").folder, tmp_path / "copy"))
    text = json.loads((folder / "config.json").read_text())["text_config"]
    rewrite(folder / "config.json", text_config={**text, "model_type": "qwen2"})
    with pytest.raises(CheckpointError, match="qwen2 language part"):
        open_family("smolvlm").open_language(folder, "cpu", "float32")


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
