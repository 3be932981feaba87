"""Whether a cluster can hold a config's minimum replicas, and what device `auto` means there; pure, knows no Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from deployments.config import ReplicaConfig, RetinaConfig
from deployments.errors import ClusterTooSmall, ConfigError

ROUNDING = 1e-6  # sums of fractions such as 0.1 + 0.2


@dataclass(frozen=True, slots=True)
class Node:
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True)
class Cluster:
    nodes: tuple[Node, ...]

    @property
    def num_cpus(self) -> float:
        return sum(node.num_cpus for node in self.nodes)

    @property
    def num_gpus(self) -> float:
        return sum(node.num_gpus for node in self.nodes)


def replicas_of(config: RetinaConfig) -> Iterator[tuple[str, ReplicaConfig]]:
    """Every deployment's name and what each of its replicas asks for."""
    yield "ingress", config.ingress.replica
    yield "session_router", config.session_router.replica
    yield "vision_encoder", config.vision_encoder.replica
    for model in config.models:
        yield f"generator-{model.name}", config.generator_of(model.name).replica


def capacity_table(config: RetinaConfig) -> str:
    """One line per deployment and the sum, as people read it before a start."""
    rows = [
        f"  {name:<28} {replica.min_replicas:>3} x {replica.num_cpus:g} CPU, {replica.num_gpus:g} GPU"
        for name, replica in replicas_of(config)
    ]
    cpus, gpus = _needed(config)
    return "\n".join([*rows, f"  {'sum':<28} {cpus:>7g} CPU, {gpus:g} GPU"])


def require_capacity(config: RetinaConfig, cluster: Cluster) -> None:
    """Raises ClusterTooSmall with the sums when the minimum replicas can never all be placed."""
    require_cpus(config, cluster)
    if _needed(config)[1] > cluster.num_gpus + ROUNDING:
        raise _too_small(config, cluster)
    left_over = _place(config, cluster)
    if left_over is not None:
        name, replica = left_over
        raise ClusterTooSmall(
            f"the minimum replicas fit the cluster's sum but not its nodes: no place is left for a replica of {name}, "
            f"which needs {replica.num_cpus:g} CPU and {replica.num_gpus:g} GPU on one node:\n{capacity_table(config)}"
        )


def require_cpus(config: RetinaConfig, cluster: Cluster) -> None:
    """Raises ClusterTooSmall with the sums when the cores do not suffice; says nothing of GPUs and of nodes."""
    if _needed(config)[0] > cluster.num_cpus + ROUNDING:
        raise _too_small(config, cluster)


def _too_small(config: RetinaConfig, cluster: Cluster) -> ClusterTooSmall:
    cpus, gpus = _needed(config)
    return ClusterTooSmall(
        f"there are {cluster.num_cpus:g} CPU and {cluster.num_gpus:g} GPU; the minimum replicas need "
        f"{cpus:g} CPU and {gpus:g} GPU:\n{capacity_table(config)}\n"
        "Lower num_cpus, num_gpus or min_replicas in the config, or start Ray with more."
    )


@dataclass(slots=True)
class _Free:
    """What a node has left; a share of a GPU must come from one and the same GPU."""

    num_cpus: float
    gpus: list[float]

    def take(self, replica: ReplicaConfig) -> bool:
        """Whether the replica fits here; then its share is gone."""
        if replica.num_cpus > self.num_cpus + ROUNDING:
            return False
        whole, share = divmod(replica.num_gpus, 1)
        untouched = [index for index, left in enumerate(self.gpus) if left > 1 - ROUNDING]
        chosen = untouched[: int(whole)]
        fitting = [i for i, left in enumerate(self.gpus) if i not in chosen and share <= left + ROUNDING]
        if len(chosen) < whole or (share > ROUNDING and not fitting):
            return False
        for index in chosen:
            self.gpus[index] = 0
        if share > ROUNDING:
            self.gpus[min(fitting, key=lambda index: self.gpus[index])] -= share
        self.num_cpus -= replica.num_cpus
        return True


def _place(config: RetinaConfig, cluster: Cluster) -> tuple[str, ReplicaConfig] | None:
    """The first replica for which nothing is left when the largest are placed first; None when all have a place."""
    free = [_Free(node.num_cpus, [1.0] * int(node.num_gpus)) for node in cluster.nodes]
    wanted = [(name, replica) for name, replica in replicas_of(config) for _ in range(replica.min_replicas)]
    wanted.sort(key=lambda item: (item[1].num_gpus, item[1].num_cpus), reverse=True)
    return next(((name, replica) for name, replica in wanted if not any(node.take(replica) for node in free)), None)


def _needed(config: RetinaConfig) -> tuple[float, float]:
    replicas = [replica for _, replica in replicas_of(config)]
    cpus = sum(replica.min_replicas * replica.num_cpus for replica in replicas)
    gpus = sum(replica.min_replicas * replica.num_gpus for replica in replicas)
    return round(cpus, 6), round(gpus, 6)


def require_shared_stores(config: RetinaConfig, cluster: Cluster | None) -> None:
    """The parts are processes of their own here: what lives in one's memory the others never see."""
    if config.images.store == "memory":
        raise ConfigError("images.store: memory works in one process only; under Ray use disk", "images.store")
    num_nodes = sum(node.num_cpus > 0 for node in cluster.nodes) if cluster else 1
    if num_nodes > 1:
        raise ConfigError(
            f"the disk stores work on one node, and this cluster has {num_nodes}: every node would have sessions and "
            "pictures of its own. Run Retina on a cluster of one node",
            "data_dir",
        )
    if config.session_router.store == "memory" and config.session_router.replica.max_replicas > 1:
        raise ConfigError(
            "session_router.store: memory cannot be shared by several replicas; use disk, or max_replicas: 1",
            "session_router.store",
        )
    if config.ingress.streams.store == "memory" and config.ingress.replica.max_replicas > 1:
        raise ConfigError(
            "ingress.streams.store: memory cannot be shared by several replicas; use disk, or max_replicas: 1",
            "ingress.streams.store",
        )


def resolve_device(config: RetinaConfig, cluster: Cluster) -> RetinaConfig:
    """`auto` becomes cpu without shares unless the models ask for GPU shares and the cluster has GPUs.

    Where both is so it stays auto: only a replica on its node can tell whether torch can use the GPU that Ray gave it.
    """
    if config.device == "auto":
        wants = any(replica.num_gpus > 0 for _, replica in replicas_of(config))
        if not wants or cluster.num_gpus == 0:
            config = config.model_copy(update={"device": "cpu"})
    return _without_gpus(config) if config.device == "cpu" else _with_gpus(config)


def _with_gpus(config: RetinaConfig) -> RetinaConfig:
    for name, replica in replicas_of(config):
        if name not in ("ingress", "session_router") and replica.num_gpus == 0:
            raise ConfigError(
                f"device: {config.device} on a cluster with GPUs, but {name} asks for no GPU; set its "
                "replica.num_gpus, e.g. 0.25, or device: cpu"
            )
    return config


def _without_gpus(config: RetinaConfig) -> RetinaConfig:
    def stripped(replica: ReplicaConfig) -> ReplicaConfig:
        return replica.model_copy(update={"num_gpus": 0})

    sections = {
        name: getattr(config, name).model_copy(update={"replica": stripped(getattr(config, name).replica)})
        for name in ("ingress", "session_router", "vision_encoder", "generator")
    }
    models = tuple(
        model.model_copy(update={"generator": _without_own_gpus(model.generator)}) for model in config.models
    )
    return config.model_copy(update={**sections, "models": models})


def _without_own_gpus(own: dict[str, object]) -> dict[str, object]:
    replica = own.get("replica")
    return {**own, "replica": {**replica, "num_gpus": 0}} if isinstance(replica, dict) else own


def resolve_paths(config: RetinaConfig) -> RetinaConfig:
    """Relative folders become absolute, since replicas may start in another working directory than the build."""
    models = tuple(
        model.model_copy(
            update={
                "checkpoint": _absolute(model.checkpoint),
                "tokenizer": model.tokenizer and _absolute(model.tokenizer),
            }
        )
        for model in config.models
    )
    return config.model_copy(
        update={"data_dir": os.path.abspath(os.path.expanduser(config.data_dir)), "models": models}
    )


def _absolute(source: str) -> str:
    """A folder that is there as an absolute path; a hub id, or nothing, as it is."""
    return os.path.abspath(source) if source and os.path.isdir(source) else source


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
