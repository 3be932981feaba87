"""Reads what a checkpoint's generation_config.json says of stopping and of sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.errors import CheckpointError
from deployments.models.weights import read_json

NAME = "generation_config.json"
# Keys that change greedy answers, with the values that change nothing besides null. What only random choice reads
# (top_k, temperature, ...) is the request's to say, and so is an answer's greatest length.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": ([], {}),
    "stop_strings": ([], ""),
    "suppress_tokens": ([],),
    "token_healing": (False,),
    "watermarking_config": (),
}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    stop_token_ids: frozenset[int]
    repetition_penalty: float  # 1 is none


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """config.json names a stop token as well, and in SmolVLM it is the wrong one.

    Raises CheckpointError, also for what would change answers and is not supported.
    """
    content = read_json(folder, NAME)
    _refuse_unsupported(folder, content)
    stop = content.get("eos_token_id")
    named = stop if isinstance(stop, list) else [stop]
    stop_ids = [each for each in named if isinstance(each, int) and not isinstance(each, bool) and each >= 0]
    if not stop_ids or len(stop_ids) < len(named):
        raise CheckpointError(f"{folder / NAME} should name stop tokens in eos_token_id, not {stop!r}")
    return GenerationDefaults(frozenset(stop_ids), _read_penalty(folder, content.get("repetition_penalty")))


def _refuse_unsupported(folder: Path, content: Mapping[str, object]) -> None:
    for key, neutral in UNSUPPORTED.items():
        value = content.get(key)
        if value is not None and value not in neutral:
            raise CheckpointError(
                f"{folder / NAME}: {key} is {_shortened(value)}, which changes answers and is not supported; serve a "
                f"copy of the checkpoint without {key}, if its answers are good without it",
                param="checkpoint",
            )


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_penalty(folder: Path, penalty: object) -> float:
    if penalty is None:
        return 1.0
    if not isinstance(penalty, int | float) or isinstance(penalty, bool) or not math.isfinite(penalty) or penalty <= 0:
        raise CheckpointError(f"{folder / NAME} should have a repetition_penalty above 0, not {penalty!r}")
    return float(penalty)
