"""build(args) -> Application: bind the deployments from a typed config, nothing else."""

from __future__ import annotations

from pathlib import Path

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from deployments.capacity import require_capacity, require_shared_stores, resolve_device, resolve_paths
from deployments.config import ReplicaConfig, RetinaConfig, parse_config, read_config
from deployments.generator.deployment import GeneratorReplica
from deployments.handles import cluster_now
from deployments.ingress.deployment import Ingress
from deployments.serve_settings import REPLICA_SETTINGS
from deployments.session_router.deployment import SessionRouterReplica
from deployments.vision_encoder.deployment import VisionEncoderReplica

STICKY = RequestRouterConfig(request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter")
CONFIGS = Path(__file__).parent / "configs"
HEALTH_CHECK_PERIOD_S = 2.0  # a killed replica is noticed, and begun anew, within this time
ADMITTED_CALLS = 992  # at a time, of ingress and session_router, which mostly wait for others
ROOM = 32  # calls beyond what a part admits: refusals and statistics must get through when it is full
STORING_S = 40.0  # a turn whose answer is whole may take this much longer until it is stored


def build(args: dict[str, object] | RetinaConfig) -> Application:
    """The Serve application that `args` of a Serve config describes.

    Raises ConfigError for keys that are wrong and ClusterTooSmall when the minimum replicas cannot fit.
    """
    config = resolve_paths(parse_config(args))
    cluster = cluster_now()
    require_shared_stores(config, cluster)
    if cluster is not None:
        config = resolve_device(config, cluster)
        require_capacity(config, cluster)
    return bind(config)


def __getattr__(name: str) -> Application:
    """`graph:local` is the application of configs/local.yaml, and so on: for `serve build graph:local`."""
    path = CONFIGS / f"{name}.yaml"
    if name.startswith("_") or not path.is_file():
        raise AttributeError(f"module 'graph' has no attribute {name!r}, and there is no configs/{name}.yaml")
    return build(read_config(path))


def bind(config: RetinaConfig) -> Application:
    router = _deployment(
        SessionRouterReplica, "session_router", config.session_router.replica, STORING_S, admits=ADMITTED_CALLS
    ).bind(config)
    section = config.vision_encoder
    encoder = _deployment(
        VisionEncoderReplica,
        "vision_encoder",
        section.replica,
        section.timeout_s,
        admits=section.max_waiting_images,
        routing=STICKY,
    ).bind(config)
    generators = {
        model.name: _generator(config, model.name).bind(config, model.name, encoder) for model in config.models
    }
    longest_turn_s = config.ingress.turn_timeout_s + STORING_S
    ingress = _deployment(Ingress, "ingress", config.ingress.replica, longest_turn_s, admits=ADMITTED_CALLS)
    return ingress.bind(config, router, encoder, generators)


def _generator(config: RetinaConfig, model: str) -> serve.Deployment:
    section = config.generator_of(model)
    return _deployment(
        GeneratorReplica,
        f"generator-{model}",
        section.replica,
        section.max_timeout_s,
        admits=section.max_admitted_requests,
        routing=STICKY,
    )


def _deployment(
    replica_class: type,
    name: str,
    replica: ReplicaConfig,
    longest_request_s: float,  # a replica that is taken down finishes what it has, this long at most
    admits: int,  # requests that the part takes in before it answers 503 by itself
    routing: RequestRouterConfig | None = None,
) -> serve.Deployment:
    options: dict[str, object] = {"request_router_config": routing} if routing else {}
    return serve.deployment(
        replica_class,
        name=name,
        ray_actor_options={
            "num_cpus": replica.num_cpus,
            "num_gpus": replica.num_gpus,
            "runtime_env": {"env_vars": dict(REPLICA_SETTINGS)},
        },
        autoscaling_config=AutoscalingConfig(
            min_replicas=replica.min_replicas,
            max_replicas=replica.max_replicas,
            target_ongoing_requests=replica.target_ongoing_requests,
        ),
        max_ongoing_requests=replica.max_ongoing_requests or admits + ROOM,
        max_queued_requests=replica.max_queued_requests,
        graceful_shutdown_timeout_s=longest_request_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        **options,
    )
