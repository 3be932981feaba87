"""What comes out is served as any other checkpoint, and its tower is shared with the base's and with others'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from deployments.training.options import Places

pytestmark = pytest.mark.torch

TinyLlava = Callable[..., Path]
NEW_TOKENS = 24


def train(places: Places, spoken: Any, **changes: Any) -> Any:
    from deployments.training.options import Recipe
    from deployments.training.run import train_projector

    settings = {"steps": 40, "batch_size": 4, "evaluate_every": 20, "validation_share": 0.2, "learning_rate": 3e-3}
    return train_projector(places, Recipe(**{**settings, **changes}), spoken.progress)


def answer(folder: Path, image: Any, question: str) -> list[int]:
    """Greedy, by our halves."""
    import torch
    from transformers import DynamicCache

    from deployments.models.llava import FAMILY
    from deployments.types import ImagePart, ImageRef, Message, TextPart

    prompts, language = FAMILY.open_prompt_format(folder), FAMILY.open_language(folder, "cpu", "float32")
    tower, preprocess = FAMILY.open_tower(folder, "cpu", "float32"), FAMILY.open_preprocessor(folder)
    shown = ImagePart(ImageRef("a" * 64, *image.size, 1, "image/png"))
    prompt = prompts.build([Message("user", (shown, TextPart(question)))])
    with torch.inference_mode():
        embeddings = language.embed(torch.tensor([prompt.token_ids])).clone()
        [span] = prompt.images
        embeddings[0, span.start : span.start + span.length] = language.project(tower.encode([preprocess(image)])[0])
        ids: list[int] = []
        cache, length = DynamicCache(), embeddings.shape[1]
        positions, mask = torch.arange(length)[None, None], torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        while len(ids) < NEW_TOKENS and not (ids and ids[-1] in prompts.stop_token_ids):
            ids.append(int(language.forward(embeddings, positions, cache, mask).logits.argmax()))
            embeddings = language.embed(torch.tensor([ids[-1:]]))
            positions = torch.full((1, 1, 1), length + len(ids) - 1)
            mask = torch.ones(1, 1, 1, length + len(ids), dtype=torch.bool)
    return ids


@pytest.mark.parametrize("language", ["llama", "qwen2"])
def test_answers_equal_generate(places: Places, tiny_llava: TinyLlava, spoken: Any, language: str) -> None:
    from llava_original import Original
    from PIL import Image

    base = tiny_llava(language=language)
    train(replace(places, base=str(base)), spoken)
    original = Original(places.out)
    differing = 0
    for number in (0, 1, 2):
        image = Image.open(places.data.parent / f"{number}.png")
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]}]
        ours = answer(places.out, image, "What colour is it?")
        assert ours == original.answer(turns, [image], NEW_TOKENS)
        differing += ours != answer(base, image, "What colour is it?")
    assert differing > 0  # else training had changed nothing that is heard


def test_a_second_run_and_another_language_model_find_the_features(
    places: Places, tiny_llava: TinyLlava, tmp_path: Path, spoken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.models.llava_tower import LlavaTower

    assert train(places, spoken, steps=2).num_encoded == 12

    def refuse(self: LlavaTower, batch: object) -> None:
        raise AssertionError("the tower was run")

    monkeypatch.setattr(LlavaTower, "encode", refuse)
    assert train(replace(places, out=tmp_path / "second"), spoken, steps=2, seed=1).num_encoded == 0
    sibling = replace(places, out=tmp_path / "third", base=str(tiny_llava(language="qwen2")))
    assert train(sibling, spoken, steps=2).num_encoded == 0
    monkeypatch.undo()
    stranger = replace(places, out=tmp_path / "fourth", base=str(tiny_llava(tower_seed=9)))
    assert train(stranger, spoken, steps=2).num_encoded == 12


def test_base_and_result_share_one_tower(places: Places, spoken: Any) -> None:
    from deployments.config import parse_config
    from deployments.vision_encoder.towers import load_towers, share_towers

    train(places, spoken, steps=2)
    folders = {"before": places.base, "after": str(places.out)}
    models = [{"name": name, "family": "llava", "checkpoint": folder} for name, folder in folders.items()]
    towers = share_towers(load_towers(parse_config({"models": models, "device": "cpu"})))
    assert [shared.models for shared in towers] == [("before", "after")]


async def test_the_graph_serves_the_result(places: Places, tmp_path: Path, spoken: Any) -> None:
    from deployments.config import parse_config
    from deployments.ingress.turns import TurnChunk, TurnInput
    from deployments.local import open_graph

    train(places, spoken, steps=2)
    models = [{"name": "trained", "family": "llava", "checkpoint": str(places.out)}]
    config = parse_config({"models": models, "device": "cpu", "data_dir": str(tmp_path / "retina")})
    async with open_graph(config) as graph:
        image = await graph.add_image((places.data.parent / "0.png").read_bytes())
        turn = TurnInput(request_id="1", tenant=graph.tenant, text="What colour is it?", image=image)
        texts = [event.text async for event in graph.stream(turn) if isinstance(event, TurnChunk)]
    assert "".join(texts)
