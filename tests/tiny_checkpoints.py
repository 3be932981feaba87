"""Builds tiny random SmolVLM-type checkpoints in the hub's file layout: equality of two code paths, never sense.

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
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText

Variant = Literal["instruct", "256m", "smolvlm2"]

END, IMAGE, AROUND, GLOBAL = "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>"
FIRST_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>"]
PLACE_TOKENS = [GLOBAL, *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))]
CORPUS = (
    "What do you see in this picture? There is a small red circle to the left of a large blue square.",
    "How many shapes are there? There are two shapes, and the background is yellow.",
    "User: Assistant: System: Hello, my name is Ada. What is my name? Your name is Ada. You are a helpful assistant.",
    "Describe the image again, please. The old lighthouse stands on green cliffs above a grey and restless sea.",
    "Where is the triangle? It is at the top, above the star. Is there a ring? No, there is none.",
)
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    model_type: Literal["idefics3", "smolvlm"]
    tile: int  # px per side
    patch: int  # px per side
    scale: int  # of the pixel shuffle
    num_kv_heads: int
    place_tokens: Literal["text", "special", "added"]  # what `<row_1_col_1>` is to the tokenizer
    shards: int

    @property
    def tokens_per_tile(self) -> int:
        return (self.tile // self.patch // self.scale) ** 2


SHAPES: Mapping[Variant, Shape] = {
    "instruct": Shape("idefics3", 58, 14, 2, 4, "text", 2),  # the tile is no multiple of the patch, as on the hub
    "256m": Shape("idefics3", 64, 16, 2, 2, "special", 1),
    "smolvlm2": Shape("smolvlm", 48, 12, 2, 2, "added", 1),
}


def build_smolvlm(folder: Path, *, variant: Variant, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint of about 1 MB into `folder`, which is made; returns the folder."""
    shape = SHAPES[variant]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _build_tokenizer(shape)
    _write_json(folder / "config.json", _model_config(shape, tokenizer))
    _write_tokenizer(folder, tokenizer, variant)
    _write_processor(folder, shape, variant)
    ids = {name: tokenizer.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>", END)}
    # A list of stop tokens in one variant: both forms occur on the hub.
    stop = [ids[END], ids["<|im_end|>"]] if variant == "smolvlm2" else ids[END]
    about = {"bos_token_id": ids["<|im_start|>"], "eos_token_id": stop, "pad_token_id": ids["<|im_end|>"]}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **about})
    write_weights(folder, _random_weights(folder, seed, dtype), shape.shards)
    return folder


def write_weights(folder: Path, weights: Mapping[str, torch.Tensor], shards: int) -> None:
    """Write model.safetensors, or that many shards and their index; a module may straddle two shards."""
    names = list(weights)
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
        return
    size = -(-len(names) // shards)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number * size : (number + 1) * size]
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.nbytes for tensor in weights.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


# --------------------------------------------------------------------------------- tokenizer


def _build_tokenizer(shape: Shape) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=440,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[_added(name) for name in FIRST_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    if shape.place_tokens != "text":
        tokenizer.add_tokens([_added(name, special=shape.place_tokens == "special") for name in PLACE_TOKENS])
    tokenizer.add_tokens([_added(name) for name in (AROUND, IMAGE, END)])
    return tokenizer


def _added(content: str, *, special: bool = True) -> AddedToken:
    return AddedToken(content, special=special, normalized=False)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, variant: Variant) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = {
        str(token_id): {"content": token.content, **flags, "special": bool(token.special)}
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    about: dict[str, object] = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [AROUND, IMAGE, END],
        "bos_token": "<|im_start|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "processor_class": "Idefics3Processor",
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>",
    }
    # The three places where hub repositories keep the template, one per variant.
    if variant == "instruct":
        about["chat_template"] = CHAT_TEMPLATE
    elif variant == "256m":
        _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    else:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", about)
    bpe = json.loads(tokenizer.to_str())["model"]
    _write_json(folder / "vocab.json", bpe["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------- configuration


def _write_processor(folder: Path, shape: Shape, variant: Variant) -> None:
    prefix = "SmolVLM" if variant == "smolvlm2" else "Idefics3"
    switches = ("do_convert_rgb", "do_image_splitting", "do_normalize", "do_pad", "do_rescale", "do_resize")
    about = {
        **dict.fromkeys(switches, True),
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": f"{prefix}ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": shape.tile},
        "processor_class": f"{prefix}Processor",
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": 4 * shape.tile},
    }
    _write_json(folder / "preprocessor_config.json", about)
    about = {"image_seq_len": shape.tokens_per_tile, "processor_class": f"{prefix}Processor"}
    _write_json(folder / "processor_config.json", about)


def _model_config(shape: Shape, tokenizer: Tokenizer) -> dict[str, object]:
    vocabulary = tokenizer.get_vocab_size(with_added_tokens=True)
    text = {
        "architectures": ["VLlama3ForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000,
        "bos_token_id": 0,
        "eos_token_id": 0,  # not the stop token: that stands in generation_config.json
        "pad_token_id": 2,
        "torch_dtype": "bfloat16",
        "vocab_size": vocabulary,
    }
    vision = {
        "model_type": "smolvlm_vision" if shape.model_type == "smolvlm" else "idefics3_vision",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": shape.tile,
        "patch_size": shape.patch,
        "torch_dtype": "bfloat16",
    }
    return {
        "architectures": [f"{'SmolVLM' if shape.model_type == 'smolvlm' else 'Idefics3'}ForConditionalGeneration"],
        "model_type": shape.model_type,
        "image_token_id": tokenizer.token_to_id(IMAGE),
        "scale_factor": shape.scale,
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_config": vision,
        "vocab_size": vocabulary,
    }


# --------------------------------------------------------------------------------- weights


def _random_weights(folder: Path, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in sorted(model.state_dict().items())}
    return {name: _random_tensor(name, shape, generator).to(dtype) for name, shape in shapes.items()}


def _random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Wild enough that greedy answers vary and hang on the picture, tame enough that float32 stays far from ties."""
    noise = torch.randn(shape, generator=generator)
    if re.search(r"norm\d?\.weight$", name):
        return 1 + 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if "embed" in name and "patch" not in name:
        return noise
    gain = 3.0 if name.startswith("lm_head") else 1.5
    return noise * gain / shape[1:].numel() ** 0.5


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
