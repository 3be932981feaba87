"""The loss is that of transformers' whole LLaVA with labels on the answers alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch

TinyLlava = Callable[..., Path]
CONVERSATIONS = [
    ("What is it?", "A red circle."),
    ("Say a lot about it, please.", "The old lighthouse stands on green cliffs above a grey and restless sea."),
    ("How many?", "7", "Sure?", "Yes, 7."),
    ("And here?", "No."),
]


@pytest.fixture(params=["llama", "mistral", "qwen2"])
def folder(request: pytest.FixtureRequest, tiny_llava: TinyLlava) -> Path:
    return tiny_llava(language=request.param)


def pictures() -> list[Any]:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (50 + 9 * n, 80, 3), np.uint8)) for n in range(4)]


def features_of(folder: Path, images: list[Any]) -> list[Any]:
    from deployments.models.llava import FAMILY
    from deployments.vision_encoder.towers import to_features

    tower, preprocess = FAMILY.open_tower(folder, "cpu", "float32"), FAMILY.open_preprocessor(folder)
    return [to_features(rows, "float32") for rows in tower.encode([preprocess(image) for image in images])]


def batch_of(folder: Path) -> Any:
    from deployments.models.llava import FAMILY
    from deployments.training.batches import collate
    from deployments.training.examples import ExampleBuilder, read_first_stop_token
    from deployments.training.pairs import Exchange, Pair

    builder = ExampleBuilder(FAMILY.open_prompt_format(folder), read_first_stop_token(folder), 2048)
    pairs = [
        Pair("", Path(), tuple(Exchange(*texts[index : index + 2]) for index in range(0, len(texts), 2)))
        for texts in CONVERSATIONS
    ]
    return collate(builder.build_all(pairs, range(len(pairs))), builder.image_tokens)


def model_of(folder: Path, dtype: str = "float32") -> Any:
    from deployments.models.llava import FAMILY
    from deployments.training.checkpoint import read_projector
    from deployments.training.model import ProjectorModel

    return ProjectorModel(FAMILY.open_language(folder, "cpu", dtype), read_projector(folder))


def loss_by_labels(folder: Path, images: list[Any]) -> tuple[Any, int]:
    """Summed loss and count of labels, an answer at a time: prompt as the processor makes it, answer, stop token."""
    import torch
    from llava_original import Original

    original = Original(folder)
    stop = original.model.generation_config.eos_token_id
    total, count = torch.zeros(()), 0
    for texts, image in zip(CONVERSATIONS, images, strict=True):
        for last in range(1, len(texts), 2):
            turns = [
                {
                    "role": "assistant" if index % 2 else "user",
                    "content": [*([] if index else [{"type": "image"}]), {"type": "text", "text": text}],
                }
                for index, text in enumerate(texts[:last])
            ]
            rendered = original.processor.apply_chat_template(turns, add_generation_prompt=True)
            space = "" if rendered.endswith("\n") else " "
            prompt = original.processor(text=rendered, images=[image], return_tensors="pt")
            whole = original.processor(text=rendered + space + texts[last], images=[image], return_tensors="pt")
            ids = torch.cat([whole["input_ids"], torch.tensor([[stop]])], dim=1)
            labels = ids.clone()
            labels[:, : prompt["input_ids"].shape[1]] = -100
            output = original.model(input_ids=ids, pixel_values=whole["pixel_values"], labels=labels)
            num_labels = int((labels != -100).sum())
            total, count = total + output.loss * num_labels, count + num_labels
    return total, count


def test_the_loss_of_a_batch_equals_that_of_labels(folder: Path) -> None:
    import torch

    images, batch = pictures(), batch_of(folder)
    order = list(batch.pictures)
    with torch.no_grad():
        loss = model_of(folder).loss(batch, features_of(folder, [images[index] for index in order]))
        expected, num_labels = loss_by_labels(folder, images)
    assert batch.num_targets == num_labels
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-3)


def test_gradients_reach_the_projector_and_nothing_else(folder: Path) -> None:
    import torch

    images, batch, model = pictures(), batch_of(folder), model_of(folder)
    model.loss(batch, features_of(folder, [images[index] for index in batch.pictures])).backward()
    gradients = [parameter.grad for parameter in model.projector.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    others = [*model._language.module.parameters(), *model._language.projector.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in others)
    assert all(parameter.dtype == torch.float32 for parameter in model.projector.parameters())


def test_padding_does_not_change_the_loss(tiny_llava: TinyLlava) -> None:
    import torch

    from deployments.training.batches import collate

    folder = tiny_llava()
    images = pictures()
    model, features = model_of(folder), features_of(folder, images)
    builder_batch = batch_of(folder)
    assert len({len(row) for row in builder_batch.token_ids}) == 1
    from deployments.models.llava import FAMILY
    from deployments.training.examples import ExampleBuilder, read_first_stop_token
    from deployments.training.pairs import Exchange, Pair

    builder = ExampleBuilder(FAMILY.open_prompt_format(folder), read_first_stop_token(folder), 2048)
    examples = [
        builder.build(Pair("", Path(), (Exchange(texts[0], texts[1]),)), index)[0]
        for index, texts in enumerate(CONVERSATIONS)
    ]
    with torch.no_grad():
        together = model.loss(collate(examples, builder.image_tokens), features)
        alone = [
            model.loss(collate([example], builder.image_tokens), [features[example.picture]]) for example in examples
        ]
    torch.testing.assert_close(together, torch.stack(alone).sum(), rtol=1e-5, atol=1e-3)


def test_a_language_model_in_bfloat16_keeps_the_projector_in_float32(tiny_llava: TinyLlava) -> None:
    import torch

    folder, images = tiny_llava(), pictures()
    batch = batch_of(folder)
    features = features_of(folder, [images[index] for index in batch.pictures])
    model = model_of(folder, "bfloat16")
    loss = model.loss(batch, features)
    loss.backward()
    assert model._language.module.dtype == torch.bfloat16
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.projector.parameters())
    expected = model_of(folder).loss(batch, features)
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    exact = model_of(folder).projector.state_dict()
    assert all(torch.equal(tensor, exact[name]) for name, tensor in model.projector.state_dict().items())


def test_short_and_long_rows_have_the_same_loss_in_bfloat16(
    tiny_llava: TinyLlava, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go through different attention kernels."""
    import torch

    from deployments.training import model as model_file

    folder, images = tiny_llava(), pictures()
    batch = batch_of(folder)
    features = features_of(folder, [images[index] for index in batch.pictures])
    model = model_of(folder, "bfloat16")
    losses, gradients = [], []
    for limit in (0, 10_000):
        monkeypatch.setattr(model_file, "MAX_PLAIN_TOKENS", limit)
        model.projector.zero_grad()
        loss = model.loss(batch, features)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.projector.parameters()]))
    torch.testing.assert_close(losses[0], losses[1], rtol=0.01, atol=0)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.95


def test_features_kept_in_bfloat16_are_read_as_such() -> None:
    import torch

    from deployments.training.model import stack
    from deployments.vision_encoder.towers import to_features

    rows = torch.randn(2, 3, 4).to(torch.bfloat16)
    stacked = stack([to_features(picture, "bfloat16") for picture in rows])
    assert torch.equal(stacked, rows)
