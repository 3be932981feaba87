"""A cluster that cannot hold the minimum is refused with the sum; `auto` follows what the cluster has."""

import os
from pathlib import Path

import pytest

from deployments.capacity import (
    Cluster,
    Node,
    capacity_table,
    require_capacity,
    require_shared_stores,
    resolve_device,
    resolve_paths,
)
from deployments.config import RetinaConfig, parse_config
from deployments.errors import ClusterTooSmall, ConfigError


def config_with(**args: object) -> RetinaConfig:
    return parse_config({"models": [{"name": "one", "family": "fake"}, {"name": "two", "family": "fake"}], **args})


def cluster(*nodes: tuple[float, float]) -> Cluster:
    return Cluster(tuple(Node(*node) for node in nodes))


def test_the_minimum_fits_exactly() -> None:
    require_capacity(config_with(), cluster((2.8, 0)))  # 0.2 + 0.1 + 0.5 + 2 x 1.0, in spite of rounding


def test_too_small_names_the_sums_and_the_parts() -> None:
    with pytest.raises(ClusterTooSmall) as raised:
        require_capacity(config_with(), cluster((2, 0)))
    for said in ("2 CPU", "2.8 CPU", "generator-one", "vision_encoder", "Lower num_cpus"):
        assert said in raised.value.message


def test_minimum_replicas_multiply() -> None:
    config = config_with(generator={"replica": {"min_replicas": 3, "max_replicas": 4}})
    require_capacity(config, cluster((6.8, 0)))
    with pytest.raises(ClusterTooSmall):
        require_capacity(config, cluster((6.7, 0)))


def test_a_replica_must_fit_on_one_node() -> None:
    config = config_with(generator={"replica": {"num_cpus": 4}})
    with pytest.raises(ClusterTooSmall, match="on one node"):
        require_capacity(config, cluster((3, 0), (3, 0), (3, 0)))


def test_the_sum_may_fit_and_the_nodes_not() -> None:
    config = config_with(generator={"replica": {"num_cpus": 0.6}})
    require_capacity(config, cluster((2, 0)))
    with pytest.raises(ClusterTooSmall, match="not its nodes"):
        require_capacity(config, cluster((1, 0), (0.5, 0), (0.5, 0)))


def test_a_share_of_a_gpu_comes_from_one_gpu() -> None:
    shares = {"replica": {"num_cpus": 0.1, "num_gpus": 0.6}}
    config = config_with(generator=shares, vision_encoder=shares)
    require_capacity(config, cluster((8, 3)))
    with pytest.raises(ClusterTooSmall, match=r"0\.6 GPU on one node"):
        require_capacity(config, cluster((8, 2)))


def test_shares_fill_up_gpus_and_whole_gpus_need_untouched_ones() -> None:
    config = config_with(
        generator={"replica": {"num_gpus": 1}},
        vision_encoder={"replica": {"num_gpus": 0.5, "min_replicas": 2, "max_replicas": 2}},
    )
    require_capacity(config, cluster((8, 3)))
    with pytest.raises(ClusterTooSmall):
        require_capacity(config, cluster((8, 2)))


def test_auto_is_left_to_the_replicas_only_where_shares_and_gpus_meet() -> None:
    shares = {"replica": {"num_gpus": 0.3}}
    wanting = config_with(vision_encoder=shares, generator=shares)
    resolved = resolve_device(wanting, cluster((8, 1)))
    assert resolved.device == "auto"
    assert "0.3 GPU" in capacity_table(resolved)
    assert resolve_device(config_with(), cluster((8, 1))).device == "cpu"


def test_without_gpus_the_shares_are_dropped() -> None:
    shares = {"replica": {"num_gpus": 0.3}}
    config = parse_config(
        {"models": [{"name": "one", "family": "fake", "generator": shares}], "vision_encoder": shares}
    )
    resolved = resolve_device(config, cluster((8, 0)))
    assert resolved.device == "cpu"
    assert "0.3" not in capacity_table(resolved)
    require_capacity(resolved, cluster((8, 0)))


def test_cuda_without_a_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_gpus"):
        resolve_device(config_with(device="cuda"), cluster((8, 1)))


def test_auto_where_only_some_parts_have_a_share_is_refused() -> None:
    shares = {"replica": {"num_gpus": 0.3}}
    with pytest.raises(ConfigError, match=r"device: auto .* vision_encoder asks for no GPU"):
        resolve_device(config_with(generator=shares), cluster((8, 1)))


def test_relative_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    models = [
        {"name": "folder", "family": "smolvlm", "checkpoint": "weights"},
        {"name": "hub", "family": "smolvlm", "checkpoint": "owner/name"},
        {"name": "moon", "family": "moondream", "checkpoint": "owner/name", "tokenizer": "weights"},
        {"name": "star", "family": "moondream", "checkpoint": "owner/name", "tokenizer": "owner/other"},
    ]
    config = resolve_paths(parse_config({"models": models, "data_dir": "data"}))
    assert [model.checkpoint for model in config.models] == [str(tmp_path / "weights"), *["owner/name"] * 3]
    assert [model.tokenizer for model in config.models] == [None, None, str(tmp_path / "weights"), "owner/other"]
    assert os.path.isabs(config.data_dir)


def test_memory_and_several_nodes_are_refused_where_parts_are_processes() -> None:
    one, two = cluster((4, 0)), cluster((4, 0), (4, 0))
    require_shared_stores(config_with(), one)
    require_shared_stores(config_with(), cluster((0, 0), (4, 0)))  # a head without cores holds no replica
    with pytest.raises(ConfigError, match="one node"):
        require_shared_stores(config_with(), two)
    with pytest.raises(ConfigError, match=r"images\.store"):
        require_shared_stores(config_with(images={"store": "memory"}), None)
    sessions = {"store": "memory", "replica": {"max_replicas": 2}}
    with pytest.raises(ConfigError, match=r"session_router\.store"):
        require_shared_stores(config_with(session_router=sessions), one)
    require_shared_stores(config_with(session_router={"store": "memory"}), one)
    require_shared_stores(config_with(session_router={**sessions, "store": "disk"}), one)
    streams = {"streams": {"store": "memory"}, "replica": {"max_replicas": 2}}
    with pytest.raises(ConfigError, match=r"ingress\.streams\.store"):
        require_shared_stores(config_with(ingress=streams), one)
    require_shared_stores(config_with(ingress={"streams": {"store": "memory"}}), one)
