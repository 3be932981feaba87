"""Builds the two demo LLaVAs' tokenizers, configurations, first weights and checkpoint folders as the hub has them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoint_files import id_of, write_json, write_tokenizer, write_weights
from dialects import Dialect
from llava_tower import FEATURE_LAYER, IMAGE_TOKENS, PATCH, SIDE, vision_config
from tokenizers import AddedToken, Tokenizer, processors
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration

HIDDEN, MAX_POSITIONS = 192, 2048
INTERMEDIATE = 352  # of the 512 that the language halves begin with: all demo checkpoints have to fit into 30 MB
IMAGE = "<image>"


@dataclass(frozen=True, slots=True)
class Language:
    """What sets one LLaVA apart from the other: its language half and how its conversations are written."""

    begins_as: str  # the demo model whose language half it begins with
    model_type: str  # of the text config
    start: str  # the token before every prompt, or nothing
    end: str
    pad: str
    control: tuple[str, ...]  # the tokenizer's, IMAGE among them
    same: dict[str, str]  # control tokens that take the place of others in the model it begins as
    template: str
    dialect: Dialect
    languages: tuple[str, ...]


def _dialect(user: str, before_answer: str, answer: str, start: str, pad: str) -> Dialect:
    with_picture = f"{user}{IMAGE * IMAGE_TOKENS}\n"
    return Dialect(start, user, with_picture, IMAGE, before_answer, answer, "\n", pad)


_PICTURES_FIRST = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
)
_LLAMA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}Assistant: " + _PICTURES_FIRST + "</s>\n"
    "{% else %}{{ message['role'] | capitalize }}: " + _PICTURES_FIRST + "{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n" + _PICTURES_FIRST + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = Language(
    begins_as="smolvlm",
    model_type="llama",
    start="<s>",
    end="</s>",
    pad="<pad>",
    control=("<unk>", "<s>", "</s>", IMAGE, "<pad>"),
    same={"<s>": "<|im_start|>", "</s>": "<end_of_utterance>", "<pad>": "<|im_end|>"},
    template=_LLAMA_TEMPLATE,
    dialect=_dialect("User: ", "\nAssistant:", " {answer}</s>", "<s>", "<pad>"),
    languages=("en",),
)
QWEN = Language(
    begins_as="qwen2_vl",
    model_type="qwen2",
    start="",
    end="<|im_end|>",
    pad="<|endoftext|>",
    control=("<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE),
    same={},
    template=_QWEN_TEMPLATE,
    dialect=_dialect(
        "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "{answer}<|im_end|>", "", "<|endoftext|>"
    ),
    languages=("en", "ja"),
)
LANGUAGES = {"llava": LLAMA, "llava_qwen2": QWEN}


def build_tokenizer(language: Language, known: Tokenizer) -> Tokenizer:
    """Take the words of the model it begins as, with control tokens of its own; a prompt begins with `start`."""
    content = json.loads(known.to_str())
    strange = {token["content"] for token in content.pop("added_tokens")}
    words = [token for token, _ in sorted(content["model"]["vocab"].items(), key=lambda item: item[1])]
    kept = [word for word in words if word not in strange]
    content["model"]["vocab"] = {word: number for number, word in enumerate(kept)}
    tokenizer = Tokenizer.from_str(json.dumps({**content, "added_tokens": []}))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in language.control])
    if language.start:
        number = tokenizer.token_to_id(language.start)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{language.start} $A", pair=f"{language.start} $A $B", special_tokens=[(language.start, number)]
        )
    return tokenizer


def build_config(language: Language, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write down the model's shape; the tower's part is the same in both LLaVAs."""
    end, pad = id_of(tokenizer, language.end), id_of(tokenizer, language.pad)
    return {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "ignore_index": -100,
        "image_token_index": tokenizer.token_to_id(IMAGE), "image_seq_length": IMAGE_TOKENS, "pad_token_id": pad,
        "projector_hidden_act": "gelu", "text_config": _text_config(language, tokenizer.get_vocab_size(), end, pad),
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vision_config": vision_config(),
        "vision_feature_layer": FEATURE_LAYER, "vision_feature_select_strategy": "default",
    }  # fmt: skip


def _text_config(language: Language, vocabulary: int, end: int, pad: int) -> dict[str, Any]:
    kind = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[language.model_type]
    own: dict[str, Any] = {"head_dim": 32} if language.model_type == "llama" else {"use_sliding_window": False}
    return {
        "architectures": [kind], "model_type": language.model_type, "vocab_size": vocabulary, "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3,
        "max_position_embeddings": MAX_POSITIONS, "rope_theta": 10000.0, "rms_norm_eps": 1e-05,
        "eos_token_id": end, "pad_token_id": pad, "tie_word_embeddings": False, "torch_dtype": "bfloat16", **own,
    }  # fmt: skip


def build_model(language: Language, tokenizer: Tokenizer, seed: int) -> Any:
    """Make the model with fresh float32 weights that depend on the seed alone."""
    torch.manual_seed(seed)
    config = LlavaConfig.from_dict(build_config(language, tokenizer))
    return LlavaForConditionalGeneration(config).float()


def preprocessor_config() -> dict[str, Any]:
    """Say how pictures become pixel values: the whole of each, stretched to a square, so that no edge is cut off."""
    return {
        "do_center_crop": False, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "crop_size": {"height": SIDE, "width": SIDE}, "size": {"height": SIDE, "width": SIDE}, "resample": 1,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 1 / 255,
        "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor",
    }  # fmt: skip


def image_processor() -> CLIPImageProcessorPil:
    """Make the very image processor that serving loads from the checkpoint."""
    return CLIPImageProcessorPil.from_dict(preprocessor_config())


def write_checkpoint(
    folder: Path, language: Language, model: Any, tokenizer: Tokenizer, recipe: dict[str, Any]
) -> None:
    """Write a whole checkpoint under the hub's names; each file is replaced at once, recipe.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    start = {"bos_token": language.start} if language.start else {}
    about = {
        "add_bos_token": bool(language.start), "add_eos_token": False, "clean_up_tokenization_spaces": False, **start,
        "eos_token": language.end, "image_token": IMAGE, "model_max_length": MAX_POSITIONS, "pad_token": language.pad,
        "padding_side": "left", "processor_class": "LlavaProcessor", "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    write_tokenizer(folder, tokenizer, about)
    ids = {"bos_token_id": language.start, "eos_token_id": language.end, "pad_token_id": language.pad}
    files = {
        "config.json": build_config(language, tokenizer),
        "generation_config.json": {name: tokenizer.token_to_id(token) for name, token in ids.items() if token},
        "preprocessor_config.json": preprocessor_config(),
        "processor_config.json": {
            "image_token": IMAGE, "num_additional_image_tokens": 1, "patch_size": PATCH,
            "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default",
        },
        "chat_template.json": {"chat_template": language.template},
    }  # fmt: skip
    for name, content in files.items():
        write_json(folder / name, content)
    write_weights(folder, {_hub_name(name): value for name, value in model.state_dict().items()}, recipe)


def _hub_name(name: str) -> str:
    for ours, theirs in (
        (r"^model\.vision_tower\.", "vision_tower.vision_model."),
        (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
    ):
        name = re.sub(ours, theirs, name)
    return name
