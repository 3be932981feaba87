"""transformers' own model and processor of each tiny checkpoint: what ours must equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

VARIANTS = ("instruct", "256m", "smolvlm2")


class Original:
    """A checkpoint as transformers runs it, in float32; parts are loaded when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def model(self) -> Any:
        import torch
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def processor(self) -> Any:
        """Idefics3Processor for all three: SmolVLMProcessor cannot be made without torchvision."""
        import tiny_checkpoints
        from transformers import AutoImageProcessor, Idefics3Processor, TokenizersBackend

        return Idefics3Processor(
            AutoImageProcessor.from_pretrained(self.folder, backend="pil"),
            TokenizersBackend.from_pretrained(self.folder),
            image_seq_len=self.tokens_per_tile,
            chat_template=tiny_checkpoints.CHAT_TEMPLATE,
        )

    @cached_property
    def tokens_per_tile(self) -> int:
        config = self.model.config
        return (config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor) ** 2

    def inputs(self, conversation: Conversation) -> Any:
        text = self.processor.apply_chat_template(conversation.turns, add_generation_prompt=True)
        return self.processor(text=text, images=conversation.pictures or None, return_tensors="pt")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One and the same conversation in our words and in those of the template."""

    messages: tuple[Any, ...]  # Message
    pictures: list[Any]  # PIL images, in order

    @property
    def turns(self) -> list[dict[str, object]]:
        from deployments.types import TextPart

        return [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
                    for part in message.content
                ],
            }
            for message in self.messages
        ]


def make_picture(width: int, height: int, seed: int = 0) -> Any:
    """Blotches of colour: no flat areas, no flat tiles."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(seed).integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def make_conversation(*turns: str | tuple[object, ...]) -> Conversation:
    """Turns of user and assistant in alternation; a turn is a text, or texts and pictures in a tuple."""
    from deployments.types import ImagePart, ImageRef, Message, TextPart

    messages, pictures = [], []
    for index, turn in enumerate(turns):
        parts: list[object] = []
        for part in (turn,) if isinstance(turn, str) else turn:
            if isinstance(part, str):
                parts.append(TextPart(part))
                continue
            width, height = part.size
            parts.append(ImagePart(ImageRef(f"{len(pictures):064x}", width, height, 1, "image/png")))
            pictures.append(part)
        messages.append(Message("user" if index % 2 == 0 else "assistant", tuple(parts)))
    return Conversation(tuple(messages), pictures)


@pytest.fixture(scope="session")
def original(tiny_checkpoint: Callable[..., Path]) -> Callable[[str], Original]:
    """original(variant) -> the tiny checkpoint under transformers' classes, loaded once a run."""
    known: dict[str, Original] = {}

    def load(variant: str) -> Original:
        if variant not in known:
            known[variant] = Original(tiny_checkpoint(variant))
        return known[variant]

    return load


@pytest.fixture(params=VARIANTS)
def twin(request: pytest.FixtureRequest, original: Callable[[str], Original]) -> Original:
    return original(request.param)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Any]:
    return make_picture


@pytest.fixture(scope="session")
def conversation() -> Callable[..., Conversation]:
    return make_conversation
