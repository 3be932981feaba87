"""SmolVLM's prompts: the chat template's ids with every picture expanded to its tiles; knows sizes, no pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deployments.errors import InvalidRequest
from deployments.models.chat_template import ChatTemplate
from deployments.models.family import ImageSpan, Prompt
from deployments.models.generation_config import GenerationDefaults
from deployments.models.tasks import to_messages
from deployments.models.tiles import Tiling
from deployments.types import Message, Task

IMAGE, AROUND, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"


class SmolVLMPromptFormat:
    def __init__(self, chat: ChatTemplate, tiling: Tiling, defaults: GenerationDefaults) -> None:
        self._chat = chat
        self._tiling = tiling
        self._image_token_id = chat.token_id(IMAGE)
        chat.token_id(AROUND)
        chat.require_ids(sorted(defaults.stop_token_ids))
        self._expansions: dict[tuple[int, int], tuple[int, ...]] = {}
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
            image = next(remaining)
            expansion = self._expand(*self._tiling.grid(image.width, image.height))
            spans += self._find_spans(image.id, expansion, len(token_ids))
            token_ids += expansion
        positions = np.arange(len(token_ids), dtype=np.int64)[None]  # (1, S)
        return Prompt(tuple(token_ids), positions, len(token_ids), tuple(spans), task)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._chat.decode(token_ids)

    def _expand(self, rows: int, columns: int) -> tuple[int, ...]:
        """Ids that stand for one picture in place of its `<image>`."""
        if (rows, columns) not in self._expansions:
            # As one string: markers of places are text in some checkpoints and control tokens in others.
            tile = IMAGE * self._tiling.tokens_per_tile
            grid = "".join(
                "".join(f"{AROUND}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1)) + "\n"
                for row in range(1, rows + 1)
            )
            whole = f"{AROUND}{GLOBAL}{tile}{AROUND}"
            text = f"{grid}\n{whole}" if grid else whole
            self._expansions[rows, columns] = tuple(self._chat.encode_control(text))
        return self._expansions[rows, columns]

    def _find_spans(self, image_id: str, expansion: Sequence[int], offset: int) -> list[ImageSpan]:
        """One span per tile: a tile's image tokens are neighbours, and markers stand between tiles."""
        length = self._tiling.tokens_per_tile
        firsts = [
            index
            for index, token_id in enumerate(expansion)
            if token_id == self._image_token_id and expansion[index - 1] != self._image_token_id
        ]
        return [ImageSpan(image_id, offset + first, length) for first in firsts]
