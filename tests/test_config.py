"""The configuration refuses what it does not know and says what it does."""

from pathlib import Path

import pytest
import yaml

from deployments.config import RetinaConfig, parse_config
from deployments.errors import ConfigError
from deployments.settings_table import settings_page

FAKE = {"name": "one", "family": "fake"}
CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    for application in yaml.safe_load(path.read_text())["applications"]:
        assert parse_config(application["args"]).models


@pytest.mark.parametrize(
    ("args", "path", "allowed"),
    [
        ({"models": [FAKE], "colour": 1}, "args.colour", "session_router"),
        ({"models": [{**FAKE, "weights": "x"}]}, "args.models.0.weights", "checkpoint"),
        ({"models": [FAKE], "ingress": {"replica": {"num_cpu": 1}}}, "args.ingress.replica.num_cpu", "num_cpus"),
        ({"models": [{**FAKE, "generator": {"slots": 4}}]}, "models.0.generator.slots", "num_slots"),
        ({"models": [FAKE], "images": {"formats": ["SVG"]}}, "args.images.formats.0", "JPEG"),
        ({"models": [{"name": "one", "family": "bert"}]}, "args.models.0.family", "smolvlm"),
    ],
)
def test_an_offending_key_is_named_with_what_is_allowed(args: object, path: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(args)
    assert path in raised.value.message
    assert allowed in raised.value.message


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (None, "args"),
        ({}, "models"),
        ({"models": []}, "at least 1"),
        ({"models": [FAKE, FAKE]}, "must differ"),
        ({"models": [FAKE], "default_model": "two"}, "two"),
        ({"models": [{"name": "one", "family": "smolvlm"}]}, "needs a checkpoint"),
        ({"models": [{"name": "Not a name", "family": "fake"}]}, "args.models.0.name"),
        ({"models": [FAKE], "generator": {"num_slots": 0}}, "args.generator.num_slots"),
        ({"models": [FAKE], "session_router": {"lease_s": 60}}, "must be longer"),
        ({"models": [FAKE], "generator": {"replica": {"min_replicas": 3}}}, "below min_replicas"),
    ],
)
def test_nonsense_is_refused(args: object, said: str) -> None:
    with pytest.raises(ConfigError, match="not valid") as raised:
        parse_config(args)
    assert said in raised.value.message


def test_naming_one_key_of_a_subsection_keeps_the_defaults_of_the_others() -> None:
    config = parse_config({"models": [FAKE], "ingress": {"replica": {"num_cpus": 1}}})
    assert config.ingress.replica.num_cpus == 1
    untouched = RetinaConfig(models=config.models).ingress.replica
    assert config.ingress.replica.max_ongoing_requests == untouched.max_ongoing_requests


def test_a_model_may_replace_single_keys_of_the_generator_section() -> None:
    own = {**FAKE, "name": "two", "generator": {"num_slots": 3, "replica": {"num_gpus": 0.5}}}
    config = parse_config({"models": [FAKE, own], "generator": {"num_slots": 8, "replica": {"num_cpus": 2}}})
    assert config.generator_of("one").num_slots == 8
    assert config.generator_of("two").num_slots == 3
    assert config.generator_of("two").replica.num_cpus == 2
    assert config.generator_of("two").replica.num_gpus == 0.5


def test_values_are_frozen() -> None:
    config = parse_config({"models": [FAKE]})
    with pytest.raises(ValueError, match="frozen"):
        config.data_dir = "/elsewhere"


def test_the_configuration_page_is_what_the_command_prints() -> None:
    assert (CONFIGS.parent / "docs" / "configuration.md").read_text() == settings_page()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"family": "paligemma"}, "unknown family 'paligemma'; there is smolvlm"),
        (
            {"family": "llava", "checkpoint": "x", "max_image_tokens": 64},
            "max_image_tokens is for the family smolvlm, qwen2_vl",
        ),
        ({"family": "llava", "checkpoint": "x", "tokenizer": "y"}, "tokenizer is for the family moondream"),
        ({"family": "moondream", "checkpoint": "x", "tokenizer": ""}, "at least 1 character"),
        ({"family": "moondream", "checkpoint": "x", "tokenizer_revision": "main"}, "no tokenizer that it belongs to"),
        ({"family": "moondream"}, "needs a checkpoint"),
        ({"family": "qwen2_vl", "checkpoint": "x", "max_image_tokens": 2048}, "leaves no room for a question"),
        ({"family": "fake", "checkpoint": "x"}, "no checkpoint and no revision"),
        ({"family": "fake", "revision": "main"}, "no checkpoint and no revision"),
    ],
)
def test_a_model_with_what_its_family_has_not_is_refused(model: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({"models": [{"name": "m", **model}]})
