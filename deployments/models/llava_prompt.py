"""LLaVA's prompts: every picture in as many image tokens as the tower gives features."""

from __future__ import annotations

from deployments.models.chat_prompt import ChatPromptFormat, Expansion
from deployments.models.chat_template import ChatTemplate
from deployments.models.generation_config import GenerationDefaults
from deployments.types import ImageRef


class LlavaPromptFormat(ChatPromptFormat):
    """`tokens_per_image` is the same for all pictures: they are all brought to one size."""

    def __init__(
        self, chat: ChatTemplate, image_token_id: int, tokens_per_image: int, defaults: GenerationDefaults
    ) -> None:
        super().__init__(chat, image_token_id, defaults)
        self._expansion = Expansion((image_token_id,) * tokens_per_image, (0,), tokens_per_image)

    def _expand(self, image: ImageRef) -> Expansion:
        return self._expansion
