"""Qwen2-VL's prompts: every picture in as many tokens as it has patches, merged, and all in their mrope positions.

Knows sizes, no pixels. A position has three rows (time, row, column): text counts up in all three at once; a picture's
tokens share one time and count its rows and columns from there; text goes on behind the longer of its sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deployments.models.chat_prompt import ChatPromptFormat, Expansion
from deployments.models.chat_template import ChatTemplate
from deployments.models.family import ImageSpan, Prompt
from deployments.models.generation_config import GenerationDefaults
from deployments.models.qwen2_vl_captions import CAPTIONS
from deployments.models.qwen2_vl_patches import Patching
from deployments.types import ImageRef, Message, Task

IMAGE = "<|image_pad|>"


class Qwen2VLPromptFormat(ChatPromptFormat):
    def __init__(self, chat: ChatTemplate, patching: Patching, defaults: GenerationDefaults) -> None:
        super().__init__(chat, chat.token_id(IMAGE), defaults, CAPTIONS)
        self._patching = patching

    def build(self, messages: Sequence[Message], task: Task | None = None) -> Prompt:
        """Raises InvalidImage for pictures too thin, besides what every PromptFormat raises."""
        prompt = super().build(messages, task)
        grids = [self._grid(image) for message in messages for image in message.images]
        positions, next_position = _count_positions(prompt.images, grids, len(prompt.token_ids))
        return replace(prompt, positions=positions, next_position=next_position)

    def _grid(self, image: ImageRef) -> tuple[int, int]:
        return self._patching.tokens(image.width, image.height)

    def _expand(self, image: ImageRef) -> Expansion:
        rows, columns = self._grid(image)
        return Expansion((self._image_token_id,) * (rows * columns), (0,), rows * columns)


def _count_positions(
    spans: Sequence[ImageSpan], grids: Sequence[tuple[int, int]], length: int
) -> tuple[np.ndarray, int]:
    """(3, length) positions, and the one that comes next."""
    pieces: list[np.ndarray] = []  # (3, tokens) each
    end = position = 0  # of the last picture: the token behind it, and that token's position
    for span, (rows, columns) in zip(spans, grids, strict=True):
        pieces.append(_text_positions(position, span.start - end))
        position += span.start - end
        pieces.append(np.indices((1, rows, columns), dtype=np.int64).reshape(3, -1) + position)  # time, row, column
        position, end = position + max(rows, columns), span.start + span.length
    pieces.append(_text_positions(position, length - end))
    return np.concatenate(pieces, axis=1), position + length - end


def _text_positions(start: int, length: int) -> np.ndarray:
    return np.broadcast_to(np.arange(start, start + length, dtype=np.int64), (3, length))
