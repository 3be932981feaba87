"""Builds the demo Qwen2-VL's tokenizer, configuration, first weights and checkpoint folder in the hub's own layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoint_files import id_of, write_json, write_tokenizer, write_weights
from dialects import Dialect, Position
from distilling import Grid
from qwen2_vl_tower import FRAMES, MERGE, PATCH
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

PIXELS = 64 * 64  # of every picture, more or less: both sides are whole cells
MAX_POSITIONS = 2048
BASE_VOCABULARY = 1024
CHARACTERS = 260  # that are tokens of their own; others are bytes
HIDDEN = 192
END, TEXT_END, START = "<|im_end|>", "<|endoftext|>", "<|im_start|>"
IMAGE, BEFORE_IMAGE, AFTER_IMAGE = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
CONTROL = (
    TEXT_END, START, END, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", BEFORE_IMAGE, AFTER_IMAGE, "<|vision_pad|>", IMAGE, "<|video_pad|>",
)  # fmt: skip
SYSTEM = "You are a helpful assistant."
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# One digit, one word with the mark or blank before it, or one run of anything else, as Qwen cuts its texts.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What BPE may join: Japanese runs of one script, so that a colour, a shape and a place are tokens of their own.
_SCRIPTS = r"\p{Han}+|\p{Hiragana}+|[\p{Katakana}ー]+"


def build_tokenizer(corpus: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE on the corpus; control tokens stand last, as in Qwen2-VL."""
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(_to_bytes(_character_merges(words, corpus)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    return tokenizer


def _character_merges(words: pre_tokenizers.Split, corpus: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The corpus's commonest characters, and which of them BPE would join."""
    tokenizer = Tokenizer(models.BPE())
    scripts = pre_tokenizers.Split(Regex(_SCRIPTS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, scripts])
    trainer = trainers.BpeTrainer(vocab_size=BASE_VOCABULARY, limit_alphabet=CHARACTERS, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    found = json.loads(tokenizer.to_str())["model"]
    return sorted(text for text in found["vocab"] if len(text) == 1), [(one, other) for one, other in found["merges"]]


def _to_bytes(found: tuple[list[str], list[tuple[str, str]]]) -> models.BPE:
    """Write the merges of characters in bytes, after those that make each character.

    Training on bytes would join the end of one character with the next, and so cut a name differently for the sake of
    the word that follows it.
    """
    characters, merges = found
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pairs = [(spelt[:end], spelt[end]) for spelt in map(_spelt, characters) for end in range(1, len(spelt))]
    pairs += [(_spelt(one), _spelt(other)) for one, other in merges]
    kept = []
    for one, other in dict.fromkeys(pairs):
        if len(vocabulary) < BASE_VOCABULARY:
            kept.append((one, other))
            vocabulary.setdefault(one + other, len(vocabulary))
    return models.BPE(vocab=vocabulary, merges=kept)


def _spelt(text: str) -> str:
    """The text's bytes, each as the character that stands for it in a byte-level vocabulary."""
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in pieces)


def build_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Write down the model's shape, flat, as Qwen2-VL's config.json does."""
    ids = {token: tokenizer.token_to_id(token) for token in CONTROL}
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "attention_dropout": 0.0,
        "bos_token_id": ids[TEXT_END], "eos_token_id": ids[END], "pad_token_id": ids[TEXT_END],
        "vision_start_token_id": ids[BEFORE_IMAGE], "vision_end_token_id": ids[AFTER_IMAGE],
        "vision_token_id": ids["<|vision_pad|>"], "image_token_id": ids[IMAGE], "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 3, "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": 4, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": MAX_POSITIONS,
        "rope_scaling": {"type": "mrope", "mrope_section": [6, 5, 5]}, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
        "vocab_size": tokenizer.get_vocab_size(), "vision_config": vision_config(),
    }  # fmt: skip


def vision_config() -> dict[str, Any]:
    """The tower's shape as it stands in config.json."""
    return {
        "depth": 4, "embed_dim": 128, "mlp_ratio": 4, "num_heads": 4, "in_chans": 3, "hidden_size": HIDDEN,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "spatial_patch_size": PATCH, "temporal_patch_size": FRAMES,
    }  # fmt: skip


def build_model(tokenizer: Tokenizer, seed: int) -> Any:
    """Make the model with fresh float32 weights that depend on the seed alone."""
    torch.manual_seed(seed)
    config = Qwen2VLConfig.from_dict({**build_config(tokenizer), "torch_dtype": "float32"})
    return Qwen2VLForConditionalGeneration(config).float()


def preprocessor_config() -> dict[str, Any]:
    """Say how pictures become patches: about PIXELS each, with the sides' ratio kept as far as whole cells allow."""
    return {
        "min_pixels": PIXELS, "max_pixels": PIXELS, "patch_size": PATCH, "temporal_patch_size": FRAMES,
        "merge_size": MERGE, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 1,
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
    }  # fmt: skip


def image_processor() -> Qwen2VLImageProcessorPil:
    """Make the very image processor that serving loads from the checkpoint."""
    return Qwen2VLImageProcessorPil.from_dict(preprocessor_config())


def write_checkpoint(folder: Path, model: Any, tokenizer: Tokenizer, recipe: dict[str, Any]) -> None:
    """Write a whole checkpoint under the hub's names; each file is replaced at once, recipe.json last."""
    end, text_end = tokenizer.token_to_id(END), tokenizer.token_to_id(TEXT_END)
    about = {
        "add_prefix_space": False, "additional_special_tokens": list(CONTROL[1:]), "bos_token": None,
        "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False, "eos_token": END, "pad_token": TEXT_END,
        "errors": "replace", "model_max_length": MAX_POSITIONS, "padding_side": "left", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, tokenizer, about)
    generation = {"bos_token_id": text_end, "eos_token_id": [end, text_end], "pad_token_id": text_end}
    write_json(folder / "config.json", build_config(tokenizer))
    write_json(folder / "generation_config.json", {**generation, "repetition_penalty": 1.0})
    write_json(folder / "preprocessor_config.json", preprocessor_config())
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_weights(folder, {_hub_name(name): value for name, value in model.state_dict().items()}, recipe)


def _hub_name(name: str) -> str:
    return re.sub(r"^model\.language_model\.", "model.", re.sub(r"^model\.visual\.", "visual.", name))


@dataclass(frozen=True, slots=True)
class QwenDialect(Dialect):
    """ChatML; a picture's tokens are numbered by line and column of its grid."""

    image_id: int
    tables: tuple[tuple[int, Grid], ...]  # how many pictures there are of each grid, numbered through

    def before_text(self, picture: int | None) -> str:
        """What stands before the user's text: as many placeholders as the picture's grid has cells."""
        if picture is None:
            return self.user
        lines, columns = self._grid(picture)
        return self.user_with_picture.replace(IMAGE, IMAGE * (lines * columns))

    def positions(self, ids: list[int], picture: int | None) -> tuple[list[Position], int]:
        """Text counts on; a picture's tokens share the time, and what follows comes after its longer side."""
        found, now = list[Position](), 0
        while len(found) < len(ids):
            if ids[len(found)] != self.image_id:
                found.append((now, now, now))
                now += 1
                continue
            assert picture is not None
            lines, columns = self._grid(picture)
            found += [(now, now + line, now + column) for line in range(lines) for column in range(columns)]
            now += max(lines, columns)
        return found, now

    def _grid(self, picture: int) -> Grid:
        for count, grid in self.tables:
            if picture < count:
                return grid
            picture -= count
        raise IndexError(f"no picture {picture} beyond the last table")


def dialect(tokenizer: Tokenizer, tables: tuple[tuple[int, Grid], ...]) -> QwenDialect:
    """How CHAT_TEMPLATE writes a conversation."""
    user = f"{START}user\n"
    return QwenDialect(
        start=f"{START}system\n{SYSTEM}{END}\n",
        user=user,
        user_with_picture=f"{user}{BEFORE_IMAGE}{IMAGE}{AFTER_IMAGE}",
        image=IMAGE,
        before_answer=f"{END}\n{START}assistant\n",
        answer=f"{{answer}}{END}",
        between="\n",
        pad=TEXT_END,
        image_id=id_of(tokenizer, IMAGE),
        tables=tables,
    )
