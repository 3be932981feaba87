"""Builds tiny random LLaVA checkpoints in the hub's file layout: equality of two code paths, never sense.

File names, config keys, tensor names, control tokens, chat templates, normaliser and decoder are as the hub has them;
every dimension, the vocabulary and the weights are not. Equal arguments give equal bytes, and a tensor's values depend
on its seed and its name alone: checkpoints of one `tower_seed` have the same tower, whatever their language part is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tiny_checkpoints import CORPUS, write_weights
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForImageTextToText, LlavaConfig

Language = Literal["llama", "mistral", "qwen2"]
TowerType = Literal["clip", "siglip"]
Names = Literal["hub", "inner", "between"]  # of tensors: inner as transformers 5 has them inside, between as 4.5x had

IMAGE = "<image>"
SIDE, PATCH = 56, 14  # px
WORD = "\u2581"  # stands for a space in Llama's vocabulary
PARTS = (
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{# Render all text next #}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
)
VICUNA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    + PARTS
    + "{% if message['role'] == 'assistant' %}{% generation %}{{ content['text'] + ' '}}{% endgeneration %}"
    "{% else %}{{ content['text'] + ' '}}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    + PARTS
    + "{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    num_kv_heads: int
    is_tied: bool  # embedding and head are one matrix
    template: str
    begin: str | None  # token that the tokenizer puts before a text
    end: str  # stop token
    shards: int


SHAPES: Mapping[Language, Shape] = {
    "llama": Shape(4, False, VICUNA_TEMPLATE, "<s>", "</s>", 3),  # LLaVA 1.5
    "mistral": Shape(2, False, VICUNA_TEMPLATE, "<s>", "</s>", 2),
    "qwen2": Shape(2, True, QWEN_TEMPLATE, None, "<|im_end|>", 1),  # as in LLaVA interleave
}


def build_llava(
    folder: Path,
    *,
    language: Language = "llama",
    tower: TowerType = "clip",
    seed: int = 0,
    tower_seed: int = 0,
    names: Names = "hub",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a checkpoint of about 1 MB into `folder`, which is made; returns the folder."""
    shape = SHAPES[language]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level_tokenizer() if language == "qwen2" else byte_fallback_tokenizer()
    _write_json(folder / "config.json", _model_config(language, tower, tokenizer))
    _write_tokenizer(folder, tokenizer, shape)
    _write_processor(folder, tower)
    stop = tokenizer.token_to_id(shape.end)
    begin = tokenizer.token_to_id(shape.begin) if shape.begin else None
    about = {"bos_token_id": begin, "eos_token_id": stop, "pad_token_id": tokenizer.token_to_id("<pad>")}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **about})
    weights = _random_weights(folder, seed, tower_seed, is_tied=shape.is_tied)
    named = {_rename(name, names): tensor.to(dtype) for name, tensor in weights.items()}
    write_weights(folder, named, shape.shards)
    return folder


# --------------------------------------------------------------------------------- tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """As Llama's: no pre-tokenizer, spaces as marks, a mark before every text, tokens for all bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement=WORD, prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[WORD],
        show_progress=False,
    )
    trained.train_from_iterator(CORPUS * 3, trainer)
    tokenizer = Tokenizer(trained.model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(WORD), normalizers.Replace(" ", WORD)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(WORD, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer.add_special_tokens([_special(name) for name in ("<unk>", "<s>", "</s>", IMAGE, "<pad>")])
    begins = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=begins
    )
    return tokenizer


def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE, "<pad>")
    tokenizer.add_special_tokens([_special(name) for name in names])
    return tokenizer


def _special(content: str) -> AddedToken:
    return AddedToken(content, special=True, normalized=False)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, shape: Shape) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = {
        str(token_id): {"content": token.content, **flags, "special": bool(token.special)}
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    is_llama = shape.begin is not None
    about = {
        **({"add_bos_token": True, "add_eos_token": False, "legacy": False} if is_llama else {}),
        "added_tokens_decoder": added,
        "bos_token": shape.begin,
        "clean_up_tokenization_spaces": False,
        "eos_token": shape.end,
        "image_token": IMAGE,
        "model_max_length": 4096,
        "pad_token": "<pad>",
        "processor_class": "LlavaProcessor",
        "tokenizer_class": "LlamaTokenizer" if is_llama else "Qwen2Tokenizer",
        "unk_token": "<unk>" if is_llama else None,
    }
    _write_json(folder / "tokenizer_config.json", about)
    _write_json(folder / "chat_template.json", {"chat_template": shape.template})


# --------------------------------------------------------------------------------- configuration


def _write_processor(folder: Path, tower: TowerType) -> None:
    about: dict[str, object] = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    square = {"height": SIDE, "width": SIDE}
    if tower == "clip":
        about |= {"do_center_crop": True, "crop_size": square, "size": {"shortest_edge": SIDE}}
    else:
        about |= {"image_processor_type": "SiglipImageProcessor", "size": square}
        about |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    _write_json(folder / "preprocessor_config.json", about)
    about = {
        "image_token": IMAGE,
        "num_additional_image_tokens": int(tower == "clip"),
        "patch_size": PATCH,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default" if tower == "clip" else "full",
    }
    _write_json(folder / "processor_config.json", about)


def _model_config(language: Language, tower: TowerType, tokenizer: Tokenizer) -> dict[str, object]:
    shape = SHAPES[language]
    text = {
        "model_type": language,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "sliding_window": None,
        "tie_word_embeddings": shape.is_tied,
        "torch_dtype": "float16",
        "vocab_size": -(-tokenizer.get_vocab_size(with_added_tokens=True) // 64) * 64,
    }
    vision = {
        "model_type": f"{tower}_vision_model",
        "hidden_size": 48,
        "image_size": SIDE,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "patch_size": PATCH,
        **({"projection_dim": 32, "vocab_size": 32000} if tower == "clip" else {"vision_use_head": False}),
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": tokenizer.token_to_id(IMAGE),
        "model_type": "llava",
        "pad_token_id": tokenizer.token_to_id("<pad>"),
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": shape.is_tied,
        "torch_dtype": "float16",
        "vision_config": vision,
        "vision_feature_layer": -2 if tower == "clip" else -1,
        "vision_feature_select_strategy": "default" if tower == "clip" else "full",
    }


# --------------------------------------------------------------------------------- weights


def _random_weights(folder: Path, seed: int, tower_seed: int, *, is_tied: bool) -> dict[str, torch.Tensor]:
    """By transformers' inner names."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(LlavaConfig.from_pretrained(folder))
    shapes = {name: tensor.shape for name, tensor in sorted(model.state_dict().items())}
    if is_tied:
        del shapes["lm_head.weight"]
    return {
        name: _random_tensor(name, shape, tower_seed if ".vision_tower." in name else seed, is_tied=is_tied)
        for name, shape in shapes.items()
    }


def _random_tensor(name: str, shape: torch.Size, seed: int, *, is_tied: bool) -> torch.Tensor:
    """Wild enough that greedy answers vary and hang on the picture, tame enough that float32 stays far from ties."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(int(digest[:15], 16)))
    if re.search(r"norm\d?\.weight$", name):
        return 1 + 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if "embed_tokens" in name:
        return noise * (0.4 if is_tied else 1.0)  # tied, it is the head as well
    if "embedding" in name and "patch" not in name:
        return noise
    gain = 5.0 if name.startswith("lm_head") else 1.5
    return noise * gain / shape[1:].numel() ** 0.5


def _rename(name: str, names: Names) -> str:
    if names == "inner":
        return name
    name = re.sub(r"^model\.vision_tower\.", "model.vision_tower.vision_model.", name)
    if names == "between":
        return name
    name = re.sub(r"^model\.vision_tower\.", "vision_tower.", name)
    name = re.sub(r"^model\.multi_modal_projector\.", "multi_modal_projector.", name)
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    return re.sub(r"^lm_head\.", "language_model.lm_head.", name)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
