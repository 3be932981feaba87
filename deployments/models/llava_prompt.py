"""LLaVA's prompts: the chat template's ids with every picture in as many image tokens as the tower gives features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deployments.errors import InvalidRequest
from deployments.models.chat_template import ChatTemplate
from deployments.models.family import ImageSpan, Prompt
from deployments.models.generation_config import GenerationDefaults
from deployments.models.tasks import to_messages
from deployments.types import Message, Task


class LlavaPromptFormat:
    """`tokens_per_image` is the same for all pictures: they are all brought to one size."""

    def __init__(
        self, chat: ChatTemplate, image_token_id: int, tokens_per_image: int, defaults: GenerationDefaults
    ) -> None:
        chat.require_ids(sorted({image_token_id, *defaults.stop_token_ids}))
        self._chat = chat
        self._image_token_id = image_token_id
        self._tokens_per_image = tokens_per_image
        self.stop_token_ids = defaults.stop_token_ids
        self.repetition_penalty = defaults.repetition_penalty
        self.byte_token_ids = chat.byte_token_ids

    def build(self, messages: Sequence[Message], task: Task | None = None) -> Prompt:
        if task is not None:
            messages = to_messages(task, messages)
        images = [image for message in messages for image in message.images]
        rendered = self._chat.encode(messages)
        if rendered.count(self._image_token_id) != len(images):
            raise InvalidRequest("the model's chat template does not show each picture exactly once", "message")
        token_ids: list[int] = []
        spans: list[ImageSpan] = []
        remaining = iter(images)
        for token_id in rendered:
            if token_id != self._image_token_id:
                token_ids.append(token_id)
                continue
            spans.append(ImageSpan(next(remaining).id, len(token_ids), self._tokens_per_image))
            token_ids += [token_id] * self._tokens_per_image
        positions = np.arange(len(token_ids), dtype=np.int64)[None]  # (1, S)
        return Prompt(tuple(token_ids), positions, len(token_ids), tuple(spans), task)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._chat.decode(token_ids)
