"""What `retina check` says of a config beside its settings: checkpoints, sizes, and how it can be served."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deployments.capacity import Cluster, Node, num_cores, require_cpus, require_shared_stores
from deployments.config import ModelConfig, RetinaConfig
from deployments.errors import ClusterTooSmall, ConfigError
from deployments.families import FAMILIES

Row = tuple[str, str]


def models_table(config: RetinaConfig) -> str:
    """Raises CheckpointError for one that cannot be loaded, as far as that is seen without loading."""
    return _table((model.name, _checkpoint(model, config)) for model in config.models)


def _checkpoint(model: ModelConfig, config: RetinaConfig) -> str:
    from deployments.models.registry import check_model_type

    default = ", default" if model.name == config.first_model else ""
    if not FAMILIES[model.family].module:
        return f"{model.family}, without a checkpoint{default}"
    place = _locate(model.checkpoint, model.revision)
    if place is None:
        return f"{model.family} from the hub: {model.checkpoint} at {model.revision}{default}"
    check_model_type(model.family, place)
    if model.tokenizer is not None:
        _locate(model.tokenizer, model.tokenizer_revision)
    return f"{model.family} in {place}{default}"


def _locate(checkpoint: str, revision: str | None) -> Path | None:
    """Its folder; None for a hub id, which is not fetched. Raises CheckpointError."""
    from deployments.models.weights import HUB_ID, locate_checkpoint

    is_on_hub = HUB_ID.fullmatch(checkpoint) and not Path(checkpoint).expanduser().is_dir()
    return None if is_on_hub and revision is not None else locate_checkpoint(checkpoint, revision)


def sizes_table(config: RetinaConfig) -> str:
    """Upper bounds, each of one replica unless it is said."""
    rows = [
        ("pictures, stored", _store(config.images.store, config.images.store_max_bytes)),
        ("features, in memory", f"{_bytes(config.vision_encoder.memory_cache_bytes)} a replica of vision_encoder"),
        ("features, on disk", _bytes(config.vision_encoder.disk_cache_bytes)),
        ("sessions, stored", _store(config.session_router.store, None, config.session_router.max_sessions)),
    ]
    return _table([*rows, *((f"generator-{model.name}", _kv(config, model.name)) for model in config.models)])


def _kv(config: RetinaConfig, name: str) -> str:
    own = config.generator_of(name)
    slots = f"{own.num_slots} slots of {own.max_context_tokens} tokens"
    if own.kv_cache_bytes is not None:
        return f"{slots}, K and V {_bytes(own.kv_cache_bytes)} in all"
    if own.kv_cache_share is not None:
        return f"{slots}, K and V {own.kv_cache_share:.0%} of the GPU memory that the weights leave"
    return f"{slots}, and {_bytes(own.prefix_cache_bytes)} of remembered beginnings"


def serving_table(config: RetinaConfig) -> str:
    """What `retina serve` would refuse under Ray; without it the config may serve all the same."""
    rows = [("one process", "retina serve --in-process")]
    try:
        require_shared_stores(config, None)
    except ConfigError as error:
        return _table([*rows, ("under Ray", f"no: {error.message}")])
    try:
        require_cpus(config, Cluster((Node(num_cores(), 0),)))
    except ClusterTooSmall:
        return _table([*rows, ("under Ray", f"needs more than the {num_cores()} cores of this machine")])
    return _table([*rows, ("under Ray", f"retina serve; the {num_cores()} cores of this machine will do")])


def _store(kind: str, max_bytes: int | None, max_items: int | None = None) -> str:
    size = _bytes(max_bytes) if max_bytes is not None else f"{max_items:,} of a tenant"
    return f"{size}, {'on disk' if kind == 'disk' else 'in memory, lost at the end'}"


def _bytes(count: int) -> str:
    if count == 0:
        return "none"
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:g} {unit}"
    return f"{count} bytes"


def _table(rows: Iterable[Row]) -> str:
    return "\n".join(f"  {name:<28} {said}" for name, said in rows)
