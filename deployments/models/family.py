"""What a model family must say of its checkpoints: the seam between `models/` and the parts that run them.

A family is stateless; it opens four things from a checkpoint folder. `vision_encoder` opens preprocessor and tower,
`generator` opens prompt format and language model; neither loads the other's half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image
    from transformers import Cache

    from deployments.types import Message


@dataclass(frozen=True, slots=True)
class Pixels:
    """One picture, ready for the tower."""

    tensors: Mapping[str, np.ndarray]  # the tower's inputs by name, without a batch axis over requests
    cost: int  # tower positions (patches of all tiles): what a batch limit adds up
    num_tokens: int  # rows of the features it will give


class Preprocessor(Protocol):
    """Pixels from pictures. Pillow and numpy only; thread-safe."""

    fingerprint: str  # of everything that shapes the pixels, hex

    def __call__(self, picture: Image.Image) -> Pixels:
        """`picture` is RGB, already upright."""
        ...


class Tower(Protocol):
    """Vision tower and, where it belongs to the vision side, connector. Used by one thread at a time."""

    fingerprint: str  # of the weights and of what configures the arithmetic, hex
    width: int  # D of the features

    def encode(self, batch: Sequence[Pixels]) -> list[torch.Tensor]:
        """Features of each picture, (num_tokens, D) in the tower's dtype, equal to those of a batch of one."""
        ...


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where the features of a picture go in the prompt. Spans of one picture may be many (tiles); rows go in order."""

    image_id: str
    start: int  # index into token_ids
    length: int


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: tuple[int, ...]
    positions: np.ndarray  # int64 (position_rows, S): 1 row, or 3 for mrope
    next_position: int  # of the first generated token, the same in all rows
    images: tuple[ImageSpan, ...]  # by start

    @property
    def num_image_tokens(self) -> int:
        return sum(span.length for span in self.images)


class PromptFormat(Protocol):
    """Token ids from conversations, and text from token ids. No weights; thread-safe."""

    stop_token_ids: frozenset[int]  # from generation_config

    def build(self, messages: Sequence[Message]) -> Prompt:
        """Render the checkpoint's chat template with a generation prompt at the end.

        Control tokens inside user text become ordinary text. Image token counts follow from ImageRef sizes alone.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, special tokens skipped; an unfinished UTF-8 sequence shows as U+FFFD."""
        ...


class LanguageModel(Protocol):
    """The language part alone. Used by one thread at a time, under inference mode."""

    device: torch.device
    dtype: torch.dtype
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context_tokens: int  # of the checkpoint

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(B, S) ids to (B, S, D) embeddings."""
        ...

    def forward(
        self,
        embeddings: torch.Tensor,  # (B, S, D)
        positions: torch.Tensor,  # (position_rows, B, S), int64
        cache: Cache,  # written in place; the caller's own layout
        mask: torch.Tensor,  # (B, 1, S, L) bool, True where attended; L is what the cache hands back
    ) -> torch.Tensor:
        """Logits of the last position, (B, vocab_size), float32."""
        ...


class Family(Protocol):
    name: str

    def open_preprocessor(self, folder: Path) -> Preprocessor: ...

    def open_tower(self, folder: Path, device: str, dtype: str) -> Tower:
        """`dtype` is "float32", "bfloat16" or "float16"."""
        ...

    def open_prompt_format(self, folder: Path) -> PromptFormat: ...

    def open_language(self, folder: Path, device: str, dtype: str) -> LanguageModel: ...
