"""The benchmark checkpoint: prompts are as long as is said, and answers never end early."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks import checkpoint as checkpoint_file
from benchmarks.checkpoint import build_checkpoint, cached_checkpoint
from benchmarks.users import QUESTION
from deployments.types import ImagePart, ImageRef, Message, TextPart

if TYPE_CHECKING:
    from deployments.models.family import PromptFormat

pytestmark = pytest.mark.torch
TALK = (Message("user", (ImagePart(ImageRef("a" * 64, 256, 256, 1000, "image/png")), TextPart(QUESTION))),)


@pytest.fixture(scope="module")
def one_tile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("checkpoint") / "one", 1)


@pytest.fixture(scope="module")
def five_tiles(one_tile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights and tokens: only pictures are cut otherwise."""
    folder = shutil.copytree(one_tile, tmp_path_factory.mktemp("checkpoint") / "five")
    (folder / "preprocessor_config.json").write_text(json.dumps(checkpoint_file.preprocessing(5)))
    return folder


def prompt_format(folder: Path) -> PromptFormat:
    from deployments.models.registry import open_family

    return open_family("smolvlm").open_prompt_format(folder)


def test_a_picture_of_one_tile_and_the_question_are_88_tokens(one_tile: Path) -> None:
    prompt = prompt_format(one_tile).build(TALK)

    assert len(prompt.token_ids) == 88
    assert prompt.num_image_tokens == 64


def test_a_picture_of_five_tiles_and_the_question_are_354_tokens(five_tiles: Path) -> None:
    prompt = prompt_format(five_tiles).build(TALK)

    assert len(prompt.token_ids) == 354
    assert prompt.num_image_tokens == 320


def test_transformers_reads_a_picture_as_we_do(one_tile: Path, five_tiles: Path) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    for folder, num_tokens in ((one_tile, 88), (five_tiles, 354)):
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        assert processor(text=text, images=[Image.new("RGB", (256, 256))])["input_ids"][0].__len__() == num_tokens


def test_answers_never_end_and_are_plain_text(one_tile: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    prompts = prompt_format(one_tile)
    model = AutoModelForImageTextToText.from_pretrained(one_tile)
    ids = torch.randint(200, 8000, (4, 12), generator=torch.Generator().manual_seed(0))
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)

    assert made.shape == (4, 52)
    for row in made[:, 12:].tolist():
        assert not prompts.stop_token_ids & set(row)
        assert prompts.decode(row).isascii()
        assert all(prompts.decode([token]) for token in row)


def test_pictures_change_what_is_said(one_tile: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(one_tile)
    ids = torch.tensor([prompt_format(one_tile).build(TALK).token_ids])
    with torch.inference_mode():
        logits = [
            model(input_ids=ids, pixel_values=torch.full((1, 1, 3, 256, 256), shade)).logits[0, -1]
            for shade in (-1.0, 1.0)
        ]

    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


def test_a_folder_that_was_not_finished_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []

    def build(folder: Path, tiles: int) -> Path:
        folder.mkdir(exist_ok=True, parents=True)
        built.append(folder)
        if len(built) == 1:
            raise KeyboardInterrupt
        return folder

    monkeypatch.setattr(checkpoint_file, "CACHE", tmp_path)
    monkeypatch.setattr(checkpoint_file, "build_checkpoint", build)
    with pytest.raises(KeyboardInterrupt):
        cached_checkpoint(1)

    assert cached_checkpoint(1) == cached_checkpoint(1) == built[1]
    assert len(built) == 2
