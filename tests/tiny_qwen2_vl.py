"""Builds tiny random checkpoints of the Qwen2-VL types in the hub's file layout: equality of two paths, never sense.

File names, config keys, tensor names, control tokens and chat template are as the hub has them; every dimension, the
vocabulary and the weights are not. Equal arguments give equal bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tiny_checkpoints import write_weights
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForImageTextToText

Variant = Literal["2b", "7b"]

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PLACE_TOKENS = [f"<|{kind}_{end}|>" for kind in ("object_ref", "box", "quad", "vision") for end in ("start", "end")]
PAD_TOKENS = ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
CONTROL_TOKENS = [END_OF_TEXT, START, END, *PLACE_TOKENS, *PAD_TOKENS]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = (
    "What do you see in this picture? There is a small red circle to the left of a large blue square.",
    "How many shapes are there? There are two shapes, and the background is yellow.",
    "system user assistant Hello, my name is Ada. What is my name? Your name is Ada. You are a helpful assistant.",
    "Describe the image again, please. The old lighthouse stands on green cliffs above a grey and restless sea.",
    "この画像には何がありますか？ 赤い円と青い四角があります。この画像を説明してください。",
)
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    model_type: Literal["qwen2_vl", "qwen2_5_vl"]
    is_tied: bool  # head and embedding are one matrix
    shards: int
    repetition_penalty: float

    @property
    def prefix(self) -> str:
        """Of class names."""
        return "Qwen2VL" if self.model_type == "qwen2_vl" else "Qwen2_5_VL"


SHAPES: Mapping[Variant, Shape] = {
    "2b": Shape("qwen2_vl", is_tied=True, shards=2, repetition_penalty=1.0),  # Qwen2-VL-2B-Instruct
    "7b": Shape("qwen2_5_vl", is_tied=False, shards=5, repetition_penalty=1.05),  # Qwen2.5-VL-7B-Instruct
}


def build_qwen2_vl(folder: Path, *, variant: Variant, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint of about 1 MB into `folder`, which is made; returns the folder."""
    shape = SHAPES[variant]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _build_tokenizer()
    ids = {name: tokenizer.token_to_id(name) for name in CONTROL_TOKENS}
    _write_json(folder / "config.json", _model_config(shape, tokenizer, ids))
    _write_tokenizer(folder, tokenizer)
    _write_processor(folder, shape)
    about = {
        "bos_token_id": ids[END_OF_TEXT],
        "do_sample": True,
        "eos_token_id": [ids[END], ids[END_OF_TEXT]],
        "pad_token_id": ids[END_OF_TEXT],
        "repetition_penalty": shape.repetition_penalty,
        "temperature": 0.01,
    }
    _write_json(folder / "generation_config.json", about)
    write_weights(folder, _random_weights(folder, shape, seed, dtype), shape.shards)
    return folder


# --------------------------------------------------------------------------------- tokenizer


def _build_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), behavior="isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL_TOKENS])
    return tokenizer


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = {
        str(token_id): {"content": token.content, **flags, "special": bool(token.special)}
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    about = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": CONTROL_TOKENS[1:],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write_json(folder / "tokenizer_config.json", about)
    _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    bpe = json.loads(tokenizer.to_str())["model"]
    _write_json(folder / "vocab.json", bpe["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------- configuration


def _write_processor(folder: Path, shape: Shape) -> None:
    about = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": 12845056,
        "merge_size": 2,
        "min_pixels": 3136,
        "patch_size": 14,
        "processor_class": f"{shape.prefix}Processor",
        "temporal_patch_size": 2,
    }
    _write_json(folder / "preprocessor_config.json", about)


def _model_config(shape: Shape, tokenizer: Tokenizer, ids: Mapping[str, int]) -> dict[str, object]:
    """Flat, as the hub has it: the language part's values stand beside those of the whole."""
    return {
        "architectures": [f"{shape.prefix}ForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[END],
        "hidden_act": "silu",
        "hidden_size": 64,
        "image_token_id": ids["<|image_pad|>"],
        "intermediate_size": 128,
        "max_position_embeddings": 4096,
        "max_window_layers": 3,
        "model_type": shape.model_type,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [2, 3, 3], "type": "mrope"},
        "rope_theta": 1000000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": shape.is_tied,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": _vision_config(shape),
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "vocab_size": tokenizer.get_vocab_size(with_added_tokens=True) + 40,  # rows beyond the tokenizer, as there
    }


def _vision_config(shape: Shape) -> dict[str, object]:
    patches = {"in_chans": 3, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14}
    both = {**patches, "num_heads": 2, "temporal_patch_size": 2}
    if shape.model_type == "qwen2_vl":
        return {**both, "depth": 3, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 4}
    windows = {"fullatt_block_indexes": [1, 3], "window_size": 56}  # px
    width = {"hidden_act": "silu", "hidden_size": 32, "intermediate_size": 68, "out_hidden_size": 64}
    return {**both, **windows, **width, "depth": 4, "tokens_per_second": 2}


# --------------------------------------------------------------------------------- weights


def _random_weights(folder: Path, shape: Shape, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in sorted(model.state_dict().items())}
    if shape.is_tied:
        del shapes["lm_head.weight"]
    weights = {_hub_name(name): _random_tensor(name, size, generator) for name, size in shapes.items()}
    if shape.is_tied:
        # The embedding is the head as well: logits stay moderate, and the likeliest token is not always the last one.
        weights["model.embed_tokens.weight"] *= 0.4
        weights["model.norm.weight"] = torch.randn(weights["model.norm.weight"].shape, generator=generator)
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def _hub_name(name: str) -> str:
    return re.sub(r"^model\.(visual\.)", r"\1", re.sub(r"^model\.language_model\.", "model.", name))


def _random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Wild enough that greedy answers vary and hang on the picture, tame enough that float32 stays far from ties."""
    noise = torch.randn(shape, generator=generator)
    if re.search(r"(norm\d?|ln_q)\.weight$|layernorm\.weight$", name):
        return 1 + 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if "embed_tokens" in name:
        return noise
    gain = 3.0 if name.startswith("lm_head") else 1.5
    return noise * gain / shape[1:].numel() ** 0.5


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
