"""What generation_config.json says is followed, or refused where it would change answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import CheckpointError
from deployments.models.generation_config import UNSUPPORTED, read_generation_defaults


def write(folder: Path, **about: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **about}))
    return folder


def test_what_is_followed(tmp_path: Path) -> None:
    defaults = read_generation_defaults(write(tmp_path, eos_token_id=[2, 0], repetition_penalty=1.05))
    assert (defaults.stop_token_ids, defaults.repetition_penalty) == (frozenset({0, 2}), 1.05)
    assert read_generation_defaults(write(tmp_path, repetition_penalty=None)).repetition_penalty == 1.0


def test_what_only_random_choice_reads_is_the_requests(tmp_path: Path) -> None:
    random: dict[str, Any] = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.001, "max_length": 4096}
    assert read_generation_defaults(write(tmp_path, **random, pad_token_id=0)).stop_token_ids == {2}


CHANGING: list[tuple[str, Any]] = [
    ("bad_words_ids", [[5]]),
    ("begin_suppress_tokens", [5]),
    ("dola_layers", "high"),
    ("encoder_no_repeat_ngram_size", 2),
    ("encoder_repetition_penalty", 1.5),
    ("exponential_decay_length_penalty", [5, 1.1]),
    ("forced_bos_token_id", 0),
    ("forced_eos_token_id", 0),
    ("guidance_scale", 1.5),
    ("min_length", 1),
    ("min_new_tokens", 20),
    ("no_repeat_ngram_size", 2),
    ("num_beams", 4),
    ("penalty_alpha", 0.6),
    ("sequence_bias", [[[5], -1.0]]),
    ("stop_strings", ["\n"]),
    ("suppress_tokens", list(range(100))),
    ("token_healing", True),
    ("watermarking_config", {"bias": 2.0}),
]


@pytest.mark.parametrize(("key", "value"), CHANGING)
def test_what_would_change_answers_is_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is .* a copy of the checkpoint without {key}") as caught:
        read_generation_defaults(write(tmp_path, **{key: value}))
    assert len(caught.value.message) < 400 + len(str(tmp_path))


def test_every_key_is_tried_and_neutral_values_are_taken(tmp_path: Path) -> None:
    assert {key for key, _ in CHANGING} == set(UNSUPPORTED)
    for key, neutral in UNSUPPORTED.items():
        for value in (None, *neutral):
            assert read_generation_defaults(write(tmp_path, **{key: value})).stop_token_ids == {2}


@pytest.mark.torch
def test_the_keys_are_those_of_transformers(tmp_path: Path) -> None:
    """A key that transformers would not know by this name refuses nothing."""
    from transformers import GenerationConfig

    known = GenerationConfig()
    assert [key for key in UNSUPPORTED if not hasattr(known, key)] == []
    for key, neutral in UNSUPPORTED.items():
        assert getattr(known, key) in (None, *neutral)


@pytest.mark.parametrize("stop", [None, [], ["x"], -1, [2, -1], True, 2.0])
def test_stop_tokens_are_ids(tmp_path: Path, stop: object) -> None:
    with pytest.raises(CheckpointError, match="eos_token_id"):
        read_generation_defaults(write(tmp_path, eos_token_id=stop))


@pytest.mark.parametrize("penalty", [0, -1, "x", True, [1]])
def test_penalties_are_above_0(tmp_path: Path, penalty: object) -> None:
    with pytest.raises(CheckpointError, match="repetition_penalty above 0"):
        read_generation_defaults(write(tmp_path, repetition_penalty=penalty))
