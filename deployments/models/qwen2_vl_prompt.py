"""Qwen2-VL's prompts: the chat template's ids with every picture expanded to its tokens, and their mrope positions.

Knows sizes, no pixels. A position has three rows (time, row, column): text counts up in all three at once; a picture's
tokens share one time and count its rows and columns from there; text goes on behind the longer of its sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deployments.errors import InvalidRequest
from deployments.models.chat_template import ChatTemplate
from deployments.models.family import ImageSpan, Prompt
from deployments.models.generation_config import GenerationDefaults
from deployments.models.qwen2_vl_captions import CAPTIONS
from deployments.models.qwen2_vl_patches import Patching
from deployments.models.tasks import to_messages
from deployments.types import ImageRef, Message, Task

IMAGE = "<|image_pad|>"


class Qwen2VLPromptFormat:
    def __init__(self, chat: ChatTemplate, patching: Patching, defaults: GenerationDefaults) -> None:
        self._chat = chat
        self._patching = patching
        self._image_token_id = chat.token_id(IMAGE)
        chat.require_ids(sorted(defaults.stop_token_ids))
        self.stop_token_ids = defaults.stop_token_ids
        self.repetition_penalty = defaults.repetition_penalty
        self.byte_token_ids = chat.byte_token_ids

    def build(self, messages: Sequence[Message], task: Task | None = None) -> Prompt:
        """Raises InvalidImage for pictures too thin, besides what every PromptFormat raises."""
        if task is not None:
            messages = to_messages(task, messages, CAPTIONS)
        images = [image for message in messages for image in message.images]
        rendered = self._chat.encode(messages)
        if rendered.count(self._image_token_id) != len(images):
            raise InvalidRequest("the model's chat template does not show each picture exactly once", "message")
        layout = _Layout()
        begin = 0
        for image in images:
            end = rendered.index(self._image_token_id, begin)
            layout.add_text(rendered[begin:end])
            layout.add_picture(image, self._image_token_id, *self._patching.tokens(image.width, image.height))
            begin = end + 1
        layout.add_text(rendered[begin:])
        return layout.to_prompt(task)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._chat.decode(token_ids)


class _Layout:
    """A prompt that grows at its end."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._spans: list[ImageSpan] = []
        self._positions: list[np.ndarray] = []  # (3, tokens) each
        self._next_position = 0

    def add_text(self, token_ids: Sequence[int]) -> None:
        counted = np.arange(self._next_position, self._next_position + len(token_ids), dtype=np.int64)
        self._positions.append(np.broadcast_to(counted, (3, len(token_ids))))
        self._token_ids += token_ids
        self._next_position += len(token_ids)

    def add_picture(self, image: ImageRef, token_id: int, rows: int, columns: int) -> None:
        offsets = np.indices((1, rows, columns), dtype=np.int64).reshape(3, -1)  # time, row, column
        self._positions.append(offsets + self._next_position)
        self._spans.append(ImageSpan(image.id, len(self._token_ids), rows * columns))
        self._token_ids += [token_id] * (rows * columns)
        self._next_position += max(rows, columns)

    def to_prompt(self, task: Task | None) -> Prompt:
        positions = np.concatenate(self._positions, axis=1)  # (3, S)
        return Prompt(tuple(self._token_ids), positions, self._next_position, tuple(self._spans), task)
