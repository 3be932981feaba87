"""Prompts of models that talk: a chat template's ids, with every picture expanded to what its tower gives of it.

Knows sizes of pictures, no pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deployments.errors import InvalidRequest
from deployments.models.chat_template import ChatTemplate
from deployments.models.family import ImageSpan, Prompt
from deployments.models.generation_config import GenerationDefaults
from deployments.models.tasks import ENGLISH, Captions, to_messages
from deployments.types import ImageRef, Message, Task


@dataclass(frozen=True, slots=True)
class Expansion:
    """What stands for one picture in place of the template's one token."""

    token_ids: tuple[int, ...]
    starts: tuple[int, ...]  # index into token_ids, of each run of features
    length: int  # of each run


class ChatPromptFormat(ABC):
    """PromptFormat of a family that says how a picture is expanded. Raises CheckpointError."""

    def __init__(
        self, chat: ChatTemplate, image_token_id: int, defaults: GenerationDefaults, captions: Captions = ENGLISH
    ) -> None:
        chat.require_ids(sorted({image_token_id, *defaults.stop_token_ids}))
        chat.require_picture(image_token_id)
        self._chat = chat
        self._image_token_id = image_token_id
        self._captions = captions
        self.stop_token_ids = defaults.stop_token_ids
        self.repetition_penalty = defaults.repetition_penalty
        self.byte_token_ids = chat.byte_token_ids

    @abstractmethod
    def _expand(self, image: ImageRef) -> Expansion: ...

    def build(self, messages: Sequence[Message], task: Task | None = None) -> Prompt:
        if task is not None:
            messages = to_messages(task, messages, self._captions)
        rendered = self._chat.encode(messages)
        images = [image for message in messages for image in message.images]
        if rendered.count(self._image_token_id) != len(images):
            raise InvalidRequest("the model's chat template does not show each picture exactly once", "message")
        token_ids: list[int] = []
        spans: list[ImageSpan] = []
        remaining = iter(images)
        for token_id in rendered:
            if token_id != self._image_token_id:
                token_ids.append(token_id)
                continue
            image = next(remaining)
            expansion = self._expand(image)
            spans += [ImageSpan(image.id, len(token_ids) + start, expansion.length) for start in expansion.starts]
            token_ids += expansion.token_ids
        positions = np.arange(len(token_ids), dtype=np.int64)[None]  # (1, S)
        return Prompt(tuple(token_ids), positions, len(token_ids), tuple(spans), task)

    def tokenizer_json(self) -> str:
        return self._chat.tokenizer_json()

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._chat.decode(token_ids)
