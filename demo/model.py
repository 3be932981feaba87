"""Builds the demo model's tokenizer, configuration and checkpoint folder in the hub's own layout."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil

TILE, PATCH, SCALE = 64, 8, 2
IMAGE_TOKENS = (TILE // PATCH // SCALE) ** 2
MAX_POSITIONS = 2048
BASE_VOCABULARY = 640
END, START, PAD, IMAGE, AROUND_IMAGE, GLOBAL_IMAGE = (
    "<end_of_utterance>", "<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>",
)  # fmt: skip
FIRST_TOKENS = ("<|endoftext|>", START, PAD, "<repo_name>", "<reponame>", "<file_sep>")
LAST_TOKENS = (
    GLOBAL_IMAGE,
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    AROUND_IMAGE,
    IMAGE,
    *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    END,
)
EXPANDED_IMAGE = AROUND_IMAGE + GLOBAL_IMAGE + IMAGE * IMAGE_TOKENS + AROUND_IMAGE
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def build_tokenizer(corpus: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE on the corpus; control tokens stand first and last, as in SmolVLM-256M."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in FIRST_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LAST_TOKENS])
    return tokenizer


def build_config(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Write down the model's shape; without a tokenizer (enough for the tower) the vocabulary is a stand-in."""
    vocabulary = tokenizer.get_vocab_size() if tokenizer else BASE_VOCABULARY + len(LAST_TOKENS)
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "image_token_id": tokenizer.token_to_id(IMAGE) if tokenizer else vocabulary - 6,
        "pad_token_id": 2,
        "scale_factor": SCALE,
        "text_config": _text_config(vocabulary),
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "use_cache": True,
        "vision_config": _vision_config(),
        "vocab_size": vocabulary,
    }


def _text_config(vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary,
        "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32,
        "max_position_embeddings": MAX_POSITIONS, "rope_theta": 10000.0, "rms_norm_eps": 1e-05,
        "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 2, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip


def _vision_config() -> dict[str, Any]:
    return {
        "model_type": "idefics3_vision", "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "image_size": TILE, "patch_size": PATCH, "dtype": "bfloat16",
        "max_image_size": {"longest_edge": TILE}, "size": {"longest_edge": TILE},
    }  # fmt: skip


def build_model(tokenizer: Tokenizer | None, seed: int) -> Idefics3ForConditionalGeneration:
    """Make the model with fresh float32 weights that depend on the seed alone."""
    torch.manual_seed(seed)
    config = Idefics3Config.from_dict({**build_config(tokenizer), "dtype": "float32"})
    config.text_config.dtype = config.vision_config.dtype = torch.float32
    return Idefics3ForConditionalGeneration(config)


def preprocessor_config() -> dict[str, Any]:
    """Say how pictures become pixel values: one tile, stretched to a square, values from -1 to 1."""
    return {
        "do_convert_rgb": True, "do_image_splitting": False, "do_normalize": True, "do_pad": True,
        "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Idefics3ImageProcessor", "processor_class": "Idefics3Processor",
        "max_image_size": {"longest_edge": TILE}, "size": {"longest_edge": TILE},
        "resample": 1, "rescale_factor": 1 / 255,
    }  # fmt: skip


def image_processor() -> Idefics3ImageProcessorPil:
    """Make the very image processor that serving loads from the checkpoint."""
    return Idefics3ImageProcessorPil.from_dict(preprocessor_config())


def write_checkpoint(
    folder: Path, model: Idefics3ForConditionalGeneration, tokenizer: Tokenizer, recipe: dict[str, Any]
) -> None:
    """Write a whole checkpoint; each file is replaced at once, and recipe.json last, with the weights' sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder, tokenizer)
    end, start, pad = (tokenizer.token_to_id(token) for token in (END, START, PAD))
    files = {
        "config.json": build_config(tokenizer),
        "generation_config.json": {"bos_token_id": start, "eos_token_id": end, "pad_token_id": pad},
        "preprocessor_config.json": preprocessor_config(),
        "processor_config.json": {"image_seq_len": IMAGE_TOKENS, "processor_class": "Idefics3Processor"},
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }
    for name, content in files.items():
        _write_json(folder / name, content)
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    partial = folder / "model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    os.replace(partial, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    _write_json(folder / "recipe.json", {**recipe, "weights_sha256": digest})


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    extra = [AROUND_IMAGE, IMAGE, END]
    named = {"bos_token": START, "eos_token": END, "pad_token": PAD, "unk_token": "<|endoftext|>"}
    added = {str(i): _described(t) for i, t in sorted(tokenizer.get_added_tokens_decoder().items())}
    _write_json(folder / "special_tokens_map.json", {"additional_special_tokens": extra, **named})
    about = {
        "add_prefix_space": False, "additional_special_tokens": extra, **named, "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False, "model_max_length": MAX_POSITIONS, "truncation_side": "left",
        "processor_class": "Idefics3Processor", "tokenizer_class": "GPT2Tokenizer",
    }  # fmt: skip
    _write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added, **about})


def _described(token: AddedToken) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": token.content, **flags, "special": True}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
