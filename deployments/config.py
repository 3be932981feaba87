"""The configuration of a graph: frozen, typed, unknown keys refused, units in names, one section per part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deployments.errors import ConfigError
from deployments.families import FAMILIES

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _keep_section_defaults(cls, given: object) -> object:
        """A subsection that names one key keeps the defaults that stand here for its other keys."""
        if not isinstance(given, Mapping):
            return given
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {
            key: _overlay(default.model_dump(), value)
            if isinstance(default := defaults.get(key), Section) and isinstance(value, Mapping)
            else value
            for key, value in given.items()
        }


class ReplicaConfig(Section):
    """What each replica of a part asks of the cluster, and how many there are."""

    num_cpus: float = Field(0.5, ge=0, description="cores by which Ray places a replica")
    num_gpus: float = Field(0, ge=0, description="share of a GPU by which Ray places a replica")
    min_replicas: int = Field(1, ge=1, description="replicas that always run")
    max_replicas: int = Field(1, ge=1, description="replicas under load")
    target_ongoing_requests: float = Field(16, gt=0, description="autoscaling aims at this many per replica")
    max_ongoing_requests: int | None = Field(
        None, ge=1, description="a replica takes no more at a time; null: what the part admits by itself, and some room"
    )
    max_queued_requests: int = Field(64, ge=-1, description="wait at each caller beyond that; -1 is unbounded")

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        return self


class ImageConfig(Section):
    """What is accepted as a picture, and where pictures are kept."""

    formats: tuple[ImageFormat, ...] = Field(("JPEG", "PNG", "WEBP", "GIF", "BMP"), description="that are read")
    max_image_bytes: int = Field(20_000_000, ge=1, description="of the encoded file")
    max_image_pixels: int = Field(50_000_000, ge=1, description="width times height")
    max_image_side_px: int = Field(16_384, ge=1, description="of the longer side")
    max_aspect_ratio: float = Field(10_000, ge=1, description="longer side over shorter side")
    store: Literal["disk", "memory"] = Field("disk", description="memory: lost at the end, one process only")
    store_max_bytes: int = Field(2_000_000_000, ge=1, description="oldest pictures go first")


class StreamConfig(Section):
    """Streams that clients may come back to."""

    store: Literal["disk", "memory"] = Field("disk", description="memory: lost at the end, one process only")
    keep_s: float = Field(60, ge=0, description="generation goes on this long without a reader")
    retain_s: float = Field(300, ge=0, description="an ended stream can be read again this long")
    max_streams: int = Field(10_000, ge=1, description="kept at a time, per tenant; beyond that 503")


class IngressConfig(Section):
    replica: ReplicaConfig = ReplicaConfig(num_cpus=0.2, max_queued_requests=256)
    max_body_bytes: int = Field(24_000_000, ge=1, description="of a request, picture and form together")
    max_message_chars: int = Field(
        64_000, ge=1, description="of what one turn brings: question, other input and instructions together"
    )
    turn_timeout_s: float = Field(120, gt=0, description="open_turn to the last chunk")
    picture_threads: int = Field(2, ge=1, description="that check pictures, per replica")
    max_waiting_pictures: int = Field(32, ge=1, description="waiting for a check beyond that: 503")
    max_listed_sessions: int = Field(1000, ge=1, description="in one answer of GET /chat/sessions")
    max_input_messages: int = Field(256, ge=1, description="in one request of /v1")
    max_input_images: int = Field(16, ge=1, description="in one request of /v1")
    max_choices: int = Field(8, ge=1, description="answers to one request of /v1/chat/completions")
    max_sockets: int = Field(256, ge=1, description="open at a time at /ws/chat, per replica")
    socket_idle_s: float = Field(600, gt=0, description="a socket without a turn and without a message is closed")
    streams: StreamConfig = StreamConfig()


class SessionRouterConfig(Section):
    replica: ReplicaConfig = ReplicaConfig(num_cpus=0.1, max_queued_requests=1024)
    store: Literal["disk", "memory"] = Field("disk", description="memory: lost at the end, one process only")
    max_messages: int = Field(20, ge=2, multiple_of=2, description="kept per session; the oldest exchange goes first")
    lease_s: float = Field(
        150, gt=0, description="an open turn holds its session at most this long; above ingress.turn_timeout_s"
    )
    lease_wait_s: float = Field(10, ge=0, description="a second turn waits this long, then 409")
    max_waiting_turns: int = Field(8, ge=0, description="wait for one session; beyond that 409 at once")
    max_session_id_chars: int = Field(128, ge=32, description="of an id that a client chose")
    max_sessions: int = Field(100_000, ge=1, description="per tenant; the longest unused goes first")
    max_records: int = Field(100_000, ge=1, description="stored responses, and files, per tenant; the oldest go first")
    response_retain_s: float = Field(2_592_000, gt=0, description="a stored response is kept this long")


class VisionEncoderConfig(Section):
    replica: ReplicaConfig = ReplicaConfig(num_cpus=0.5)
    num_threads: int = Field(1, ge=1, description="of torch, per replica")
    preprocess_threads: int | None = Field(
        None,
        ge=1,
        description="that decode and resize pictures, per replica; null: replica.num_cpus, rounded up",
    )
    max_batch_images: int = Field(
        8, ge=1, description="pictures that go through a tower together; twice as many are kept ready for it"
    )
    max_batch_patches: int = Field(
        32_768,
        ge=1,
        description="that go through a tower together, of any pictures' tiles; on CPUs and in float32 each goes alone",
    )
    max_waiting_images: int = Field(256, ge=1, description="waiting beyond that: 503")
    memory_cache_bytes: int = Field(256_000_000, ge=0, description="of features in memory, per replica")
    disk_cache_bytes: int = Field(2_000_000_000, ge=0, description="0: no disk level")
    timeout_s: float = Field(30, gt=0, description="for one picture, waiting included")

    @property
    def num_preprocess_threads(self) -> int:
        return self.preprocess_threads or max(1, math.ceil(self.replica.num_cpus))


class GeneratorConfig(Section):
    """How one model generates. A model's own `generator:` section replaces single keys of the shared one."""

    replica: ReplicaConfig = ReplicaConfig(num_cpus=1.0)
    mode: Literal["batch", "simple"] = Field("batch", description="simple: one request at a time, the slow twin")
    dtype: Dtype = Field(
        "auto", description="auto: bfloat16 where the device computes it natively, else float32 (CPU), float16 (CUDA)"
    )
    num_threads: int = Field(1, ge=1, description="of torch, per replica")
    num_slots: int = Field(16, ge=1, description="requests that decode together")
    max_context_tokens: int = Field(
        2048, ge=16, description="per slot, prompt and answer; a checkpoint's lower limit wins"
    )
    prefill_chunk_tokens: int = Field(512, ge=16, description="prompt tokens computed between two decode steps")
    cuda_graphs: bool = Field(True, description="on CUDA: decode steps are captured and replayed; false: for debugging")
    kv_cache_bytes: int | None = Field(
        None,
        ge=1,
        description="of K and V in all: as many slots as fit, then remembered beginnings; null: no bound but num_slots "
        "and prefix_cache_bytes",
    )
    kv_cache_share: float | None = Field(
        None, gt=0, lt=1, description="the same as a share of the GPU memory that is free once the weights are loaded"
    )
    prefix_cache_bytes: int = Field(
        256_000_000, ge=0, description="of K and V that are remembered for requests with the same beginning; 0: none"
    )
    max_waiting_requests: int = Field(128, ge=0, description="waiting for a slot beyond that: 503")
    max_new_tokens: int = Field(4096, ge=1, description="a request may ask for at most this many")
    default_new_tokens: int = Field(256, ge=1, description="when a request does not say")
    max_timeout_s: float = Field(120, gt=0, description="from arrival to the last token")
    max_stop_strings: int = Field(8, ge=0, description="of one request")
    max_stop_chars: int = Field(256, ge=1, description="of each of them")
    max_schema_chars: int = Field(65_536, ge=2, description="of a JSON schema that answers must fit")

    @model_validator(mode="after")
    def _ordered(self) -> GeneratorConfig:
        if self.default_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"default_new_tokens {self.default_new_tokens} is above max_new_tokens {self.max_new_tokens}"
            )
        return self

    @property
    def max_admitted_requests(self) -> int:
        return self.num_slots + self.max_waiting_requests


class PriceConfig(Section):
    """Money per million tokens, in the currency that whoever runs the service counts in."""

    prompt: Decimal = Field(Decimal(0), ge=0, description="text of the prompt that was computed")
    image: Decimal | None = Field(None, ge=0, description="image tokens; null: as prompt")
    reused: Decimal | None = Field(
        None, ge=0, description="prompt tokens that were not computed again; null: as computed ones"
    )
    completion: Decimal = Field(Decimal(0), ge=0, description="tokens of the answer")


class ModelConfig(Section):
    name: Name = Field(description="what clients call it")
    family: str = Field(description="how its checkpoint is read: smolvlm, moondream, … (deployments/families.py)")
    checkpoint: str = Field("", description="a folder, or a hub id owner/name")
    revision: str | None = Field(None, description="of a hub id, which needs one: a commit, tag or branch")
    tokenizer: str | None = Field(
        None,
        min_length=1,
        description="moondream: where its tokenizer is, a folder or a hub id; null: with the checkpoint",
    )
    tokenizer_revision: str | None = Field(None, description="of the tokenizer's hub id")
    max_image_tokens: int | None = Field(
        None,
        ge=4,
        description="smolvlm, qwen2_vl: of one picture, larger ones are scaled down; null: the checkpoint's own limit "
        "(smolvlm), 1280 (qwen2_vl)",
    )
    prices: PriceConfig | None = Field(None, description="what its tokens cost; null: answers have no cost")
    generator: dict[str, object] = Field(default_factory=dict, description="keys of the generator section to replace")

    @field_validator("family")
    @classmethod
    def _is_known(cls, family: str) -> str:
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r}; there is {', '.join(FAMILIES)}")
        return family

    @model_validator(mode="after")
    def _takes_options(self) -> ModelConfig:
        entry = FAMILIES[self.family]
        for key in sorted({option for one in FAMILIES.values() for option in one.options} - set(entry.options)):
            if getattr(self, key) is not None:
                takers = [name for name, one in FAMILIES.items() if key in one.options]
                raise ValueError(f"{key} is for the family {', '.join(takers)}; model {self.name!r} is {self.family}")
        if self.tokenizer_revision is not None and self.tokenizer is None:
            raise ValueError(f"model {self.name!r} has a tokenizer_revision and no tokenizer that it belongs to")
        return self

    @model_validator(mode="after")
    def _has_checkpoint(self) -> ModelConfig:
        if FAMILIES[self.family].module:
            if not self.checkpoint:
                raise ValueError(f"model {self.name!r} needs a checkpoint: a folder or a hub id")
        elif self.checkpoint or self.revision is not None:
            raise ValueError(f"model {self.name!r} is {self.family}, which has no checkpoint and no revision")
        return self


class RetinaConfig(Section):
    models: tuple[ModelConfig, ...] = Field(min_length=1, description="at least one")
    default_model: Name | None = Field(None, description="for sessions that name none; null: the first")
    data_dir: str = Field(".retina", description="sessions, pictures, features, secret; relative to where Ray runs")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where the cluster has it")
    images: ImageConfig = ImageConfig()
    ingress: IngressConfig = IngressConfig()
    session_router: SessionRouterConfig = SessionRouterConfig()
    vision_encoder: VisionEncoderConfig = VisionEncoderConfig()
    generator: GeneratorConfig = GeneratorConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RetinaConfig:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"model names must differ: {names}")
        if self.default_model is not None and self.default_model not in names:
            raise ValueError(f"default_model {self.default_model!r} is not among the models {names}")
        if self.session_router.lease_s <= self.ingress.turn_timeout_s:
            raise ValueError(
                f"session_router.lease_s ({self.session_router.lease_s:g}) must be longer than ingress.turn_timeout_s "
                f"({self.ingress.turn_timeout_s:g}): a turn may not outlive its lease"
            )
        for index, model in enumerate(self.models):
            try:
                generator = self.generator_of(model.name)
            except ValidationError as error:
                raise ValueError(_explain(error, f"models.{index}.generator", GeneratorConfig)) from error
            if model.max_image_tokens is not None and model.max_image_tokens >= generator.max_context_tokens:
                raise ValueError(
                    f"model {model.name!r}: max_image_tokens {model.max_image_tokens} leaves no room for a question in "
                    f"generator.max_context_tokens {generator.max_context_tokens}"
                )
        return self

    @property
    def first_model(self) -> str:
        return self.default_model or self.models[0].name

    def model(self, name: str) -> ModelConfig:
        return next(model for model in self.models if model.name == name)

    def with_model(self, name: str) -> RetinaConfig:
        """The same without the other models."""
        return self.model_copy(update={"models": (self.model(name),), "default_model": None})

    def generator_of(self, name: str) -> GeneratorConfig:
        """The shared generator section with the model's own keys laid over it."""
        own = self.model(name).generator
        merged = _overlay(self.generator.model_dump(), own)
        return GeneratorConfig.model_validate(merged)


def _overlay(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _overlay(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_config(args: object) -> RetinaConfig:
    """Read `args` of the Serve application. Raises ConfigError naming each offending key and what is allowed."""
    if isinstance(args, RetinaConfig):
        return args
    try:
        return RetinaConfig.model_validate(args)
    except ValidationError as error:
        raise ConfigError("the configuration is not valid:\n" + _explain(error, "args", RetinaConfig)) from error


def read_config(path: Path) -> RetinaConfig:
    """`args` of the first application of a Serve config file. Raises ConfigError."""
    try:
        args = yaml.safe_load(path.read_text(encoding="utf-8"))["applications"][0]["args"]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{path}: a Serve config has applications, and the first of them has args") from error
    return parse_config(args)


def _explain(error: ValidationError, prefix: str, root: type[Section]) -> str:
    """One line per offending key, with its whole path."""
    items = error.errors(include_url=False)
    lines = []
    for item in items:
        location = item["loc"]
        if item["type"] == "too_short" and any(
            other["loc"][: len(location)] == location for other in items if other is not item
        ):
            continue  # pydantic counts the items that are wrong as missing, too
        where = ".".join([prefix, *(str(step) for step in location)])
        message = item["msg"].removeprefix("Value error, ").strip()
        lines.append(f"  {where}: {_allowed(location, root) if item['type'] == 'extra_forbidden' else message}")
    return "\n".join(lines)


def _allowed(location: tuple[int | str, ...], root: type[Section]) -> str:
    section = _section_at(location[:-1], root)
    return f"unknown key; allowed here: {', '.join(section.model_fields)}" if section else "unknown key"


def _section_at(location: tuple[int | str, ...], section: type[Section]) -> type[Section] | None:
    """The section class that a location such as ("ingress", "replica") stands in."""
    for step in location:
        if isinstance(step, int):
            continue
        annotation = ModelConfig if step == "models" else section.model_fields[step].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return None
        section = annotation
    return section
