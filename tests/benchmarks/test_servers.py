"""The configuration that the measured graph is started with."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from benchmarks.servers import GraphSettings, answers, free_port, parse_override, write_config
from deployments.capacity import Cluster, Node, require_capacity
from deployments.config import read_config


def settings(**overrides: object) -> GraphSettings:
    return GraphSettings(Path("checkpoint"), dtype="bfloat16", num_threads=2, overrides=overrides)


def test_the_configuration_is_one_that_serve_takes(tmp_path: Path) -> None:
    config = read_config(write_config(settings(), tmp_path, 1234))

    assert config.generator.dtype == "bfloat16"
    assert config.generator.num_threads == 2
    assert Path(config.models[0].checkpoint).is_absolute()
    assert Path(config.data_dir).parent == tmp_path
    require_capacity(config, Cluster((Node(2, 0),)))


def test_single_keys_are_replaced_and_their_neighbours_stay(tmp_path: Path) -> None:
    overrides = {"generator.num_slots": 32, "vision_encoder.replica.num_cpus": 0.3, "generator.replica.num_cpus": 0.9}

    config = read_config(write_config(GraphSettings(Path("c"), overrides=overrides), tmp_path, 1234))

    assert config.generator.num_slots == 32
    assert config.generator.num_threads == 2
    assert (config.vision_encoder.replica.num_cpus, config.generator.replica.num_cpus) == (0.3, 0.9)


def test_an_override_cannot_lead_through_a_value() -> None:
    with pytest.raises(ValueError, match="device is no section"):
        GraphSettings(Path("c"), overrides={"device.name": 1}).arguments(Path("data"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("generator.num_slots=32", ("generator.num_slots", 32)),
        ("generator.mode=simple", ("generator.mode", "simple")),
        ("images.formats=[PNG]", ("images.formats", ["PNG"])),
        ("default_model=null", ("default_model", None)),
    ],
)
def test_overrides_are_read_as_yaml(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["generator.num_slots", "=3"])
def test_other_words_are_no_overrides(text: str) -> None:
    with pytest.raises(ValueError, match="KEY=VALUE"):
        parse_override(text)


def test_a_port_that_nobody_listens_on_does_not_answer() -> None:
    port = free_port()

    assert not answers(f"http://127.0.0.1:{port}/readyz")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))  # it was free indeed
