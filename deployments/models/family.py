"""What a model family must say of its checkpoints: the seam between `models/` and the parts that run them.

A family is stateless; it opens four things from a checkpoint folder. `vision_encoder` opens preprocessor and tower,
`generator` opens prompt format and language model; neither loads the other's half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image
    from transformers import Cache

    from deployments.types import Box, Message, Point, Task


@dataclass(frozen=True, slots=True)
class Options:
    """What a model's configuration may say of a checkpoint, of families whose registry entry names the key."""

    max_image_tokens: int | None = None  # of one picture; None: the family's default
    tokenizer: Path | None = None  # folder of the tokenizer; None: the checkpoint's


NO_OPTIONS = Options()


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
    shares_passes: bool  # whether it pays to send several pictures through together; else one at a time

    def encode(self, batch: Sequence[Pixels]) -> list[torch.Tensor]:
        """Features of each picture, (num_tokens, D) in the tower's dtype, equal to those of a batch of one."""
        ...


@runtime_checkable
class SplittingTower(Protocol):
    """A tower whose pictures consist of tiles that do not see each other."""

    def split(self, pixels: Pixels) -> Sequence[Pixels]:
        """What may go through `encode` apart; the features of the pieces in a row are the picture's."""
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
    task: Task | None = None  # None: a conversation
    num_mutual: int = 0  # tokens at the beginning that all see each other; every other one sees what is before it
    places: tuple[tuple[int, tuple[float, ...]], ...] = ()  # index into token_ids, and the coordinates that go there

    @property
    def num_image_tokens(self) -> int:
        return sum(span.length for span in self.images)


class PromptFormat(Protocol):
    """Token ids from conversations and tasks, and text from token ids. No weights; thread-safe."""

    stop_token_ids: frozenset[int]  # from generation_config
    repetition_penalty: float  # from generation_config; 1 where it names none
    byte_token_ids: frozenset[int]  # one byte each, in vocabularies with byte fallback: text when a run of them ends

    def build(self, messages: Sequence[Message], task: Task | None = None) -> Prompt:
        """Render the checkpoint's chat template with a generation prompt at the end.

        Control tokens inside user text become ordinary text. Image token counts follow from ImageRef sizes alone. With
        a task, `messages` is one user message with at most one picture and no text.

        Raises InvalidRequest for what the checkpoint cannot do (a task, a language, a role), naming what it can.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, special tokens skipped; an unfinished UTF-8 sequence shows as U+FFFD."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward pass gives of each row's last position."""

    logits: torch.Tensor  # (B, vocab_size) float32
    hidden: torch.Tensor | None = None  # (B, D) before the last norm; only of models whose rules read it


@dataclass(frozen=True, slots=True)
class Ruling:
    """What becomes of a token that was just chosen."""

    embedding: torch.Tensor | None = None  # (D,) goes into the model next; None: the embedding of `token_id`
    token_id: int = -1  # goes into the model next, if there is no `embedding`
    kind: Literal["answer", "thought", "silent"] = "answer"  # whose text the chosen token is; silent: nobody's
    found: Box | Point | None = None  # complete with this step
    grounding: Point | None = None  # a point that the thoughts speak of, complete with this step
    begins_phrase: bool = False  # of the thoughts: their text is decoded anew from this token on
    is_last: bool = False  # the answer ends here; the chosen token belongs to no text


class Rules(Protocol):
    """How one answer is made that is more than text up to a stop token. One request's state, in the engine's thread."""

    def banned_token_ids(self) -> Sequence[int]:
        """Tokens that may not be chosen next."""
        ...

    def accept(self, token_id: int, hidden: torch.Tensor) -> Ruling:
        """`token_id` was chosen from logits that belong to `hidden` (D,)."""
        ...


@runtime_checkable
class ResumableRules(Protocol):
    """Rules of an answer that may be gone on with elsewhere."""

    def resume(self, token_ids: Sequence[int]) -> None:
        """These were chosen before, with other rules of this kind, and went into the model as they are."""
        ...


class Attend(Protocol):
    """The caller's attention over the keys and values that it keeps."""

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,  # (N, heads, head_dim), turned by its positions
        key: torch.Tensor,  # (N, kv_heads, head_dim), turned as well
        value: torch.Tensor,  # (N, kv_heads, head_dim)
        scale: float | None = None,  # of the products of query and key; None: 1 / sqrt(head_dim)
    ) -> torch.Tensor:
        """Keep key and value, and mix what each token may see: (N, heads * head_dim)."""
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
    feature_width: int  # of the tower's features that `project` takes

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(B, S) ids to (B, S, D) embeddings."""
        ...

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """(image_tokens, feature_width) of one picture to (image_tokens, D). The features themselves, where the
        vision side has the connector."""
        ...

    def embed_place(self, coordinates: Sequence[float]) -> torch.Tensor:
        """(D,) of one coordinate, or of a width and a height: what goes over a prompt's `places`."""
        ...

    def open_rules(self, prompt: Prompt, max_new_tokens: int) -> Rules | None:
        """Rules for the answer to this prompt; None: tokens are text up to one of the format's stop tokens."""
        ...

    def pack(self) -> None:
        """Bring the weights into the form in which `run` is fastest on this device. `forward` may be gone after it."""
        ...

    def run(
        self,
        embeddings: torch.Tensor,  # (N, D), the tokens of all sequences one after the other
        positions: torch.Tensor,  # (position_rows, N), int64
        attend: Attend,
        last: torch.Tensor,  # (R,) int64: whose outputs are wanted
    ) -> Output:
        """One pass over tokens of any number of sequences; which of them see each other is `attend`'s knowledge."""
        ...

    def forward(
        self,
        embeddings: torch.Tensor,  # (B, S, D)
        positions: torch.Tensor,  # (position_rows, B, S), int64
        cache: Cache,  # written in place; the caller's own layout
        mask: torch.Tensor,  # (B, 1, S, L) bool, True where attended; L is what the cache hands back
    ) -> Output:
        """The same by the model's own layers, one mask for all: slower, and what `run` is held against."""
        ...


class Family(Protocol):
    name: str

    def open_preprocessor(self, folder: Path, options: Options = NO_OPTIONS) -> Preprocessor: ...

    def open_tower(self, folder: Path, device: str, dtype: str) -> Tower:
        """`dtype` is "float32", "bfloat16" or "float16"."""
        ...

    def open_prompt_format(self, folder: Path, options: Options = NO_OPTIONS) -> PromptFormat: ...

    def open_language(self, folder: Path, device: str, dtype: str) -> LanguageModel: ...
