"""Writes the checkpoint that all benchmarks use: shaped like SmolVLM, 45 million parameters, and it never ends early.

    python -m benchmarks.checkpoint FOLDER              # a square picture is one tile: 88 prompt tokens
    python -m benchmarks.checkpoint FOLDER --tiles 5    # it is five tiles: 354 prompt tokens

Every server makes as many tokens as it was asked for, also one that has no option to ignore the end: dimension 0 of
every embedding is large, no layer changes it, and tokens that must never come (the end, control tokens, halves of
characters) have a large negative weight on it. What the answers say means nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from transformers import Idefics3ForConditionalGeneration, PreTrainedTokenizerFast

Tiles = Literal[1, 5]
CACHE = Path(__file__).parent.parent / ".retina" / "benchmarks"
RECIPE = 2  # counted up when the files of equal arguments change
SEED = 20
VOCABULARY = 8192
TILE_PX = 256
END, AROUND, IMAGE, GLOBAL = "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", END, AROUND, IMAGE, GLOBAL]
PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] in ('image', 'image_url') %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
NUM_CORPUS_FILES = 150
ALWAYS, NEVER = 4.0, -40.0  # dimension 0 of every embedding; the weight on it of tokens that must not come


def cached_checkpoint(tiles: Tiles) -> Path:
    """The checkpoint's folder under .retina/benchmarks; written when it is not there."""
    folder = CACHE / f"recipe-{RECIPE}-tiles-{tiles}"
    if not (folder / "done").exists():
        build_checkpoint(folder, tiles)
        (folder / "done").touch()  # last: a build that was broken off is begun anew
    return folder


def build_checkpoint(folder: Path, tiles: Tiles) -> Path:
    """Write a checkpoint in the hub's layout into `folder`, which is made; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _build_tokenizer()
    model = _build_model(tokenizer)
    _fill(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_json(folder / "preprocessor_config.json", preprocessing(tiles))
    _write_json(folder / "processor_config.json", {"image_seq_len": 64, "processor_class": "Idefics3Processor"})
    _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    return folder


def preprocessing(tiles: Tiles) -> dict[str, object]:
    """What preprocessor_config.json holds."""
    return {
        "do_convert_rgb": True,
        "do_image_splitting": tiles > 1,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_processor_type": "Idefics3ImageProcessor",
        "image_std": [0.5] * 3,
        "max_image_size": {"longest_edge": TILE_PX},
        "processor_class": "Idefics3Processor",
        "resample": 1,
        "rescale_factor": 1 / 255,
        # Square pictures of twice a tile's side are two by two tiles, and all of it once more in small.
        "size": {"longest_edge": 2 * TILE_PX if tiles > 1 else TILE_PX},
    }


# ------------------------------------------------------------------------------------- tokenizer


def _build_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*CONTROL, *PLACES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token=END,
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=VOCABULARY,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": IMAGE,
            "fake_image_token": AROUND,
            "global_image_token": GLOBAL,
            "end_of_utterance_token": END,
        },
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _corpus() -> Iterator[str]:
    """Python's own library: text enough for a vocabulary, and it is on every machine."""
    for path in sorted(Path(os.__file__).parent.glob("*.py"))[:NUM_CORPUS_FILES]:
        yield path.read_text(encoding="utf-8", errors="ignore").encode("ascii", "ignore").decode()


# ------------------------------------------------------------------------------------- weights


def _build_model(tokenizer: PreTrainedTokenizerFast) -> Idefics3ForConditionalGeneration:
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

    start, end, padding, image = tokenizer.convert_tokens_to_ids(["<|im_start|>", END, "<|im_end|>", IMAGE])
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": padding}
    language = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=8192,
        rope_theta=100_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        **ids,
    )
    vision = {
        "model_type": "idefics3_vision",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "image_size": TILE_PX,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
    }
    config = Idefics3Config(
        vision_config=vision,
        text_config=language,
        scale_factor=2,
        image_token_id=image,
        tie_word_embeddings=False,
        pad_token_id=padding,
    )
    config.bos_token_id, config.eos_token_id = start, end
    torch.manual_seed(SEED)
    model = Idefics3ForConditionalGeneration(config).float().eval()
    for name, token_id in ids.items():
        setattr(model.generation_config, name, token_id)
    return model


def _fill(model: Idefics3ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Chance of such a size that pictures and words both tell in what comes out."""
    import torch

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                tensor.normal_(0, tensor[0].numel() ** -0.5)
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    tensor[0] = 0  # no layer changes dimension 0
            elif name.endswith("bias"):
                tensor.normal_(0, 0.02)
            else:
                tensor.fill_(1)
        embedding: torch.Tensor = model.get_input_embeddings().weight
        embedding.normal_(0, 0.5)
        embedding[:, 0] = ALWAYS
        head: torch.Tensor = model.lm_head.weight
        head.normal_(0, 0.25)
        head[:, 0] = 0
        head[_unwanted(tokenizer), 0] = NEVER


def _unwanted(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Control tokens, and what is no plain text by itself."""
    control = set(tokenizer.convert_tokens_to_ids([*CONTROL, *PLACES]))
    texts = tokenizer.batch_decode([[token_id] for token_id in range(VOCABULARY)])
    return [token_id for token_id, text in enumerate(texts) if token_id in control or not text.isascii() or not text]


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------- the command


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="is made; without: one under .retina/benchmarks")
    parser.add_argument("--tiles", type=int, choices=(1, 5), default=1, help="of a square picture")
    options = parser.parse_args(words)
    if options.folder is None:
        print(cached_checkpoint(options.tiles))
    else:
        print(build_checkpoint(options.folder, options.tiles))
    return 0


if __name__ == "__main__":
    sys.exit(main())
