"""One training run from beginning to end, or from where an interrupted one stood."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from deployments.bytes_cache import open_bytes_cache
from deployments.config import ImageConfig
from deployments.errors import CheckpointError, ConfigError
from deployments.families import FAMILIES
from deployments.models.llava import FAMILY
from deployments.models.placement import resolve_dtype
from deployments.models.weights import locate_checkpoint, read_json
from deployments.training.checkpoint import METRICS, fingerprint_folder, read_projector
from deployments.training.dataset import Dataset, part, read_dataset
from deployments.training.examples import ExampleBuilder, read_first_stop_token
from deployments.training.features import FeatureStore
from deployments.training.loop import Lesson, Trainer
from deployments.training.metrics_log import MetricsLog
from deployments.training.model import ProjectorModel
from deployments.training.options import Places, Recipe
from deployments.training.output import Output, open_output
from deployments.training.pictures import Picture
from deployments.training.progress import TerminalProgress
from deployments.training.state import RunState, Standing, fresh_state
from deployments.vision_encoder.towers import LoadedTower, SharedTower

TRAINABLE = ("llava",)  # families whose projector is on the language side
LIMITS = ImageConfig()
# Entered while the run can be stopped and gone on with; gives what says whether it should stop.
Listen = Callable[[], AbstractContextManager[Callable[[], bool]]]


def listen_to_nobody() -> AbstractContextManager[Callable[[], bool]]:
    return contextlib.nullcontext(lambda: False)


@dataclass(frozen=True, slots=True)
class Outcome:
    standing: Standing
    num_encoded: int  # pictures that the tower had to look at; the others were in the cache
    was_done_before: bool = False  # nothing was done now

    @property
    def is_finished(self) -> bool:
        return bool(self.standing.ended)


def train_projector(
    places: Places, recipe: Recipe, progress: TerminalProgress, listen: Listen = listen_to_nobody
) -> Outcome:
    """Blocks until the checkpoint stands in `places.out`, or until training is stopped; then the state is saved.

    Raises ConfigError, CheckpointError. What was saved before an error stays: the same call goes on from there.
    """
    with _disk_errors():
        base = locate_base(places)
        with progress.count("reading pictures") as count:
            dataset = read_dataset(places, recipe, LIMITS, count)
        identity = {"base": fingerprint_folder(base), **dataset.fingerprints, **recipe.describe()}
        with open_output(places.out, base, identity, restart=places.restart) as output:
            if (record := output.find_record()) is not None:
                return Outcome(_standing_of(record), num_encoded=0, was_done_before=True)
            return _train(base, dataset, places, recipe, output, progress, listen)


def locate_base(places: Places) -> Path:
    """Blocks while downloading. Raises CheckpointError for checkpoints without a projector of their own."""
    base = locate_checkpoint(places.base, places.revision)
    model_type = read_json(base, "config.json").get("model_type")
    if not any(model_type in FAMILIES[family].model_types for family in TRAINABLE):
        readable = ", ".join(f"{family} (model_type {FAMILIES[family].model_types[0]})" for family in TRAINABLE)
        raise CheckpointError(
            f"checkpoint {base} has model_type {model_type!r}; what can be trained is the projector of a family that "
            f"has it on the language side: {readable}",
            "base",
        )
    return base


# --------------------------------------------------------------------------------- training


def _train(
    base: Path,
    dataset: Dataset,
    places: Places,
    recipe: Recipe,
    output: Output,
    progress: TerminalProgress,
    listen: Listen,
) -> Outcome:
    torch.set_num_threads(recipe.threads)
    state = output.find_state()
    language = FAMILY.open_language(base, recipe.device, recipe.dtype)
    model = ProjectorModel(language, read_projector(base))
    builder = ExampleBuilder(FAMILY.open_prompt_format(base), read_first_stop_token(base), language.max_context_tokens)
    training, validation = part(dataset, builder, recipe)
    with _open_features(base, places, recipe, model) as features:
        _encode(features, dataset.pictures, progress)
        lesson = Lesson(
            training, validation, builder.image_tokens, lambda picture: features.read(dataset.pictures[picture])
        )
        state = state or fresh_state(model.weights())
        output.save(state)
        log = MetricsLog(output.folder / METRICS, state.standing)
        with contextlib.closing(log), listen() as is_stopped:
            trainer = Trainer(model, lesson, recipe, state, output.save, log, progress)
            progress.begin_training(state.standing, trainer.num_steps)
            state = trainer.run(places.save_every, is_stopped)
        if state.standing.ended:
            output.finish(base, state.best, _record(places, dataset, lesson, state))
        return Outcome(state.standing, features.num_encoded)


@contextlib.contextmanager
def _open_features(base: Path, places: Places, recipe: Recipe, model: ProjectorModel) -> Iterator[FeatureStore]:
    # As the service runs the tower unless it is told otherwise, whatever the language model's dtype is here.
    dtype = resolve_dtype("auto", recipe.device)
    tower = FAMILY.open_tower(base, recipe.device, dtype)
    if tower.width != model.feature_width:
        raise CheckpointError(
            f"checkpoint {base}: the tower's features are {tower.width} wide, the projector takes "
            f"{model.feature_width}",
            "base",
        )
    loaded = LoadedTower(FAMILY.open_preprocessor(base), tower, dtype, recipe.device)
    with contextlib.closing(open_bytes_cache(places.cache)) as disk:
        yield FeatureStore(SharedTower(loaded, TRAINABLE), disk, places.cache, LIMITS, recipe.threads)


def _encode(features: FeatureStore, pictures: Sequence[Picture], progress: TerminalProgress) -> None:
    missing = features.missing(pictures)
    if missing:
        progress.say(f"{len(missing)} of {len(pictures)} pictures are new to the feature cache")
        with progress.count("looking at pictures") as count:
            features.encode(missing, count(len(missing)))


# --------------------------------------------------------------------------------- results


def _record(places: Places, dataset: Dataset, lesson: Lesson, state: RunState) -> dict[str, object]:
    """What the checkpoint was made of, kept beside it."""
    return {
        "command": "train-projector",
        "base": places.base,
        "revision": places.revision,
        "pictures": len(dataset.pictures),
        "training_examples": len(lesson.training),
        "validation_examples": len(lesson.validation),
        "standing": asdict(state.standing),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _standing_of(record: Mapping[str, object]) -> Standing:
    standing = record.get("standing")
    if not isinstance(standing, dict) or standing.keys() != asdict(Standing()).keys():
        raise ConfigError(
            "the record of the finished run there is not this version's: begin anew with --restart", "out"
        )
    return Standing(**standing)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """A full or failing disk in words; what was saved before stays."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"the disk failed: {error}. What was saved stays: mend that and run the same command again", "out"
        ) from error
