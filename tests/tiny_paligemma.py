"""Builds tiny random PaliGemma checkpoints in the hub's file layout: equality of two code paths, never sense.

File names, config keys, tensor names, control tokens, normaliser and decoder are as the hub has them; every dimension,
the vocabulary and the weights are not. Equal arguments give equal bytes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from tiny_checkpoints import CORPUS, write_weights
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, PaliGemmaConfig

PAD, END, BEGIN, UNKNOWN, IMAGE = "<pad>", "<eos>", "<bos>", "<unk>", "<image>"
SIDE, PATCH = 56, 14  # px
WORD = "\u2581"  # stands for a space in Gemma's vocabulary
WIDTH = 64  # of the language part


def build_paligemma(folder: Path, *, seed: int = 0, inner_names: bool = False) -> Path:
    """Write a checkpoint of about 1 MB into `folder`, which is made; returns the folder.

    With `inner_names` tensors are called as transformers has them inside, not as the hub does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _build_tokenizer()
    _write_json(folder / "config.json", _model_config(tokenizer))
    _write_tokenizer(folder, tokenizer)
    _write_processor(folder)
    about = {"bos_token_id": 2, "eos_token_id": tokenizer.token_to_id(END), "pad_token_id": 0}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **about})
    weights = _random_weights(folder, seed)
    write_weights(folder, weights if inner_names else {_hub_name(name): weights[name] for name in weights}, 2)
    return folder


# --------------------------------------------------------------------------------- tokenizer


def _build_tokenizer() -> Tokenizer:
    """As Gemma's: spaces as marks and none before a text, tokens for all bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.normalizer = normalizers.Replace(" ", WORD)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(WORD, " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        special_tokens=[PAD, END, BEGIN, UNKNOWN, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[WORD, "\n"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([line.replace(" ", WORD) for line in CORPUS * 3], trainer)
    tokenizer = _without_added_tokens(tokenizer)
    tokenizer.add_tokens([AddedToken(f"<loc{number:04}>", normalized=False) for number in range(8)])
    names = (PAD, END, BEGIN, UNKNOWN, IMAGE)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer makes tokens of bytes special, which none is on the hub."""
    return Tokenizer.from_str(json.dumps({**json.loads(tokenizer.to_str()), "added_tokens": []}))


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "add_bos_token": True,
        "add_eos_token": False,
        "additional_special_tokens": [IMAGE],
        "bos_token": BEGIN,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": 4096,
        "pad_token": PAD,
        "processor_class": "PaliGemmaProcessor",
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": UNKNOWN,
    }
    _write_json(folder / "tokenizer_config.json", about)


# --------------------------------------------------------------------------------- configuration


def _write_processor(folder: Path) -> None:
    about = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": (SIDE // PATCH) ** 2,
        "image_std": [0.5] * 3,
        "processor_class": "PaliGemmaProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": SIDE, "width": SIDE},
    }
    _write_json(folder / "preprocessor_config.json", about)


def _model_config(tokenizer: Tokenizer) -> dict[str, object]:
    vocabulary = -(-tokenizer.get_vocab_size(with_added_tokens=True) // 64) * 64
    text = {
        "model_type": "gemma",
        "head_dim": 32,  # times heads it is not the width, as in Gemma 7B
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "max_position_embeddings": 2048,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_image_tokens": (SIDE // PATCH) ** 2,
        "num_key_value_heads": 1,
        "torch_dtype": "float32",
        "vocab_size": vocabulary,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 48,
        "image_size": SIDE,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "patch_size": PATCH,
        "projection_dim": WIDTH,
        "vision_use_head": False,
    }
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "bos_token_id": tokenizer.token_to_id(BEGIN),
        "eos_token_id": tokenizer.token_to_id(END),
        "hidden_size": WIDTH,
        "image_token_index": tokenizer.token_to_id(IMAGE),
        "model_type": "paligemma",
        "pad_token_id": tokenizer.token_to_id(PAD),
        "projection_dim": WIDTH,
        "text_config": text,
        "torch_dtype": "float32",
        "vision_config": vision,
    }


# --------------------------------------------------------------------------------- weights


def _random_weights(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """By transformers' inner names; the head is the embedding's matrix."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(PaliGemmaConfig.from_pretrained(folder))
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in sorted(model.state_dict().items()) if name != "lm_head.weight"}
    return {name: _random_tensor(name, shape, generator) for name, shape in shapes.items()}


def _random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Wild enough that greedy answers vary and hang on the picture, tame enough that float32 stays far from ties."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("language_model.norm.weight"):
        return 5 + 0.1 * noise  # the embedding is the head as well, and small
    if re.search(r"language_model.*norm\.weight$", name):
        return 0.1 * noise  # Gemma adds 1
    if re.search(r"norm\d?\.weight$", name):
        return 1 + 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if "embed_tokens" in name:
        return 0.1 * noise  # it comes multiplied by the root of the width
    if "embedding" in name and "patch" not in name:
        return noise
    gain = 4.0 if re.search(r"language_model.*(o_proj|down_proj)", name) else 1.5
    return noise * gain / shape[1:].numel() ** 0.5


def _hub_name(name: str) -> str:
    name = re.sub(r"^model\.vision_tower\.", "vision_tower.vision_model.", name)
    name = re.sub(r"^model\.multi_modal_projector\.", "multi_modal_projector.", name)
    return re.sub(r"^model\.language_model\.", "language_model.model.", name)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
