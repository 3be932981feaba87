"""SmolVLM's prompts: every picture as its tiles, with markers of their places; knows sizes, no pixels."""

from __future__ import annotations

from deployments.models.chat_prompt import ChatPromptFormat, Expansion
from deployments.models.chat_template import ChatTemplate
from deployments.models.generation_config import GenerationDefaults
from deployments.models.tiles import Tiling
from deployments.types import ImageRef

IMAGE, AROUND, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"


class SmolVLMPromptFormat(ChatPromptFormat):
    def __init__(self, chat: ChatTemplate, tiling: Tiling, defaults: GenerationDefaults) -> None:
        super().__init__(chat, chat.token_id(IMAGE), defaults)
        chat.token_id(AROUND)
        self._tiling = tiling
        self._expansions: dict[tuple[int, int], Expansion] = {}

    def _expand(self, image: ImageRef) -> Expansion:
        grid = self._tiling.grid(image.width, image.height)
        if grid not in self._expansions:
            self._expansions[grid] = self._expand_grid(*grid)
        return self._expansions[grid]

    def _expand_grid(self, rows: int, columns: int) -> Expansion:
        """One run of features per tile: a tile's image tokens are neighbours, and markers stand between tiles."""
        # As one string: markers of places are text in some checkpoints and control tokens in others.
        tile = IMAGE * self._tiling.tokens_per_tile
        grid = "".join(
            "".join(f"{AROUND}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        )
        whole = f"{AROUND}{GLOBAL}{tile}{AROUND}"
        ids = self._chat.encode_control(f"{grid}\n{whole}" if grid else whole)
        starts = (
            index
            for index, token_id in enumerate(ids)
            if token_id == self._image_token_id and ids[index - 1] != self._image_token_id
        )
        return Expansion(tuple(ids), tuple(starts), self._tiling.tokens_per_tile)
