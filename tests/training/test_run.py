"""A run from pairs to a checkpoint that is served; interrupted ones end as if they had not been."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deployments.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from deployments.training.options import Places, Recipe
    from deployments.training.run import Outcome

pytestmark = pytest.mark.torch

TinyLlava = Callable[..., Path]


def recipe_of(**changes: Any) -> Recipe:
    from deployments.training.options import Recipe

    settings = {"steps": 24, "batch_size": 4, "evaluate_every": 5, "validation_share": 0.2, "learning_rate": 3e-3}
    return Recipe(**{**settings, **changes})


def train(places: Places, recipe: Recipe, spoken: Any, stop_after: int | None = None) -> Outcome:
    """`stop_after`: how often the run may go on when it asks; it asks after each step and each batch of validation."""
    from deployments.training.run import train_projector

    @contextlib.contextmanager
    def listen() -> Iterator[Callable[[], bool]]:
        asked = iter(range(10**9))
        yield lambda: stop_after is not None and next(asked) >= stop_after

    return train_projector(places, recipe, spoken.progress, listen)


def metrics(out: Path, key: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in lines if key in line]


def projector(folder: Path) -> dict[str, Any]:
    from deployments.training.checkpoint import read_projector

    return read_projector(folder)


def assert_same_projector(one: Path, other: Path) -> None:
    import torch

    here, there = projector(one), projector(other)
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_the_loss_falls_and_the_tower_stays(places: Places, base: Path, spoken: Any) -> None:
    from deployments.models.llava import FAMILY

    outcome = train(places, recipe_of(steps=60), spoken)
    standing = outcome.standing
    assert (standing.step, standing.ended, outcome.num_encoded) == (60, "steps", 12)
    assert standing.first_loss is not None
    assert standing.best_loss is not None
    assert standing.best_loss < 0.9 * standing.first_loss
    losses = [loss for _, loss in metrics(places.out, "loss")]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    towers = [FAMILY.open_tower(folder, "cpu", "float32").fingerprint for folder in (base, places.out)]
    assert towers[0] == towers[1]
    assert not (places.out / ".training").exists()


def test_the_best_projector_comes_out(places: Places, tmp_path: Path, spoken: Any, lines: Callable[..., Path]) -> None:
    """What is asked in validation is answered otherwise than in training: the longer, the worse."""
    wrong = [{"image": f"{n}.png", "prompt": "What colour is it?", "response": "grey cliffs"} for n in range(4)]
    judged = replace(places, validation=lines(tmp_path / "data" / "held_out.jsonl", wrong))
    standing = train(judged, recipe_of(validation_share=0.0, learning_rate=0.03, steps=60), spoken).standing
    evaluations = metrics(places.out, "validation_loss")
    assert (standing.best_step, standing.best_loss) == min(evaluations, key=lambda item: (item[1], item[0]))
    assert standing.best_step < 60
    again = replace(judged, out=tmp_path / "again", base=str(places.out))
    first_loss = train(again, recipe_of(validation_share=0.0, steps=1), spoken).standing.first_loss
    assert first_loss == pytest.approx(standing.best_loss, rel=1e-6)


def test_patience_ends_a_run(places: Places, spoken: Any) -> None:
    standing = train(places, recipe_of(learning_rate=3.0, steps=500, patience=2), spoken).standing
    assert standing.ended == "patience"
    assert standing.step == standing.best_step + 2 * 5
    assert metrics(places.out, "validation_loss")[-1][0] == standing.step


def test_without_validation_the_last_projector_comes_out(places: Places, spoken: Any) -> None:
    outcome = train(places, recipe_of(validation_share=0.0), spoken)
    assert (outcome.standing.best_step, outcome.standing.best_loss) == (24, None)
    assert metrics(places.out, "validation_loss") == []
    with pytest.raises(AssertionError):
        assert_same_projector(Path(places.base), places.out)


def test_epochs_are_counted_in_steps(places: Places, spoken: Any) -> None:
    standing = train(places, recipe_of(steps=None, epochs=2, validation_share=0.0, batch_size=5), spoken).standing
    assert standing.step == 2 * -(-36 // 5)


def test_a_validation_file_is_not_trained_on(
    places: Places, tmp_path: Path, spoken: Any, lines: Callable[..., Path]
) -> None:
    held_out = lines(tmp_path / "data" / "held_out.jsonl", [{"image": "3.png", "prompt": "Hue?", "response": "yellow"}])
    with_file = replace(places, validation=held_out)
    train(with_file, recipe_of(validation_share=0.0, patience=100), spoken)
    record = json.loads((places.out / "training.json").read_text())
    assert (record["training_examples"], record["validation_examples"]) == (36, 1)
    with pytest.raises(ConfigError, match="takes the place of validation_share"):
        train(replace(with_file, out=tmp_path / "other"), recipe_of(), spoken)


def test_a_validation_file_may_have_the_same_name(
    places: Places, tmp_path: Path, spoken: Any, lines: Callable[..., Path]
) -> None:
    (tmp_path / "held").mkdir()
    pairs = lines(tmp_path / "held" / "pairs.jsonl", [{"image": "../data/3.png", "response": "yellow"}])
    train(replace(places, validation=pairs), recipe_of(validation_share=0.0), spoken)
    record = json.loads((places.out / "training.json").read_text())
    assert (record["training_examples"], record["validation_examples"]) == (36, 1)


def test_accumulated_passes_equal_one_large_pass(places: Places, tmp_path: Path, spoken: Any) -> None:
    """The whole data in each step, so that only the cutting differs."""
    import torch

    train(places, recipe_of(steps=5, batch_size=36, validation_share=0.0), spoken)
    parts = replace(places, out=tmp_path / "parts")
    train(parts, recipe_of(steps=5, batch_size=9, accumulation=4, validation_share=0.0), spoken)
    here, there = projector(places.out), projector(parts.out)
    for name in here:
        torch.testing.assert_close(here[name], there[name], rtol=1e-3, atol=1e-4)


def test_equal_seeds_give_equal_weights_and_others_do_not(places: Places, tmp_path: Path, spoken: Any) -> None:
    outs = [tmp_path / name for name in ("one", "same", "other")]
    for out, seed in zip(outs, (0, 0, 1), strict=True):
        train(replace(places, out=out), recipe_of(seed=seed), spoken)
    assert_same_projector(outs[0], outs[1])
    with pytest.raises(AssertionError):
        assert_same_projector(outs[0], outs[2])


# --------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("seed", range(4))
def test_an_interrupted_run_ends_as_if_it_had_not_been(places: Places, tmp_path: Path, spoken: Any, seed: int) -> None:
    recipe = recipe_of(accumulation=1 + seed % 2, dtype="bfloat16" if seed == 3 else "float32")
    whole = replace(places, out=tmp_path / "whole", save_every=1000)
    train(whole, recipe, spoken)
    stops = random.Random(seed)
    pieces = replace(places, save_every=stops.randint(1, 7))
    interruptions = 0
    while not (outcome := train(pieces, recipe, spoken, stop_after=stops.randint(0, 15))).is_finished:
        assert (places.out / ".training").is_dir()
        assert not (places.out / "config.json").exists()
        interruptions += 1
    assert interruptions > 0
    assert outcome.num_encoded == 0
    assert_same_projector(whole.out, places.out)
    records = [json.loads((out / "training.json").read_text()) for out in (whole.out, places.out)]
    assert records[0] == records[1]
    for key in ("loss", "validation_loss", "learning_rate", "gradient_norm"):
        assert metrics(whole.out, key) == metrics(places.out, key)


def test_a_crash_goes_back_to_the_last_state(
    places: Places, tmp_path: Path, spoken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.training.model import ProjectorModel

    whole = replace(places, out=tmp_path / "whole")
    train(whole, recipe_of(), spoken)
    loss, calls = ProjectorModel.loss, iter(range(1000))

    def fail_once(self: ProjectorModel, *args: Any) -> Any:
        if next(calls) == 25:
            raise MemoryError("the machine is full")
        return loss(self, *args)

    monkeypatch.setattr(ProjectorModel, "loss", fail_once)
    often = replace(places, save_every=4)
    with pytest.raises(MemoryError):
        train(often, recipe_of(), spoken)
    assert train(often, recipe_of(), spoken).is_finished
    assert_same_projector(whole.out, places.out)
    assert metrics(whole.out, "loss") == metrics(places.out, "loss")


def test_a_crash_while_publishing_is_made_good(
    places: Places, tmp_path: Path, spoken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.training import output

    def full(draft: Path, out: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "publish", full)
    with pytest.raises(ConfigError, match=r"No space left on device.*run the same command again"):
        train(places, recipe_of(), spoken)
    monkeypatch.undo()
    steps = len(metrics(places.out, "loss"))
    assert train(places, recipe_of(), spoken).is_finished
    assert len(metrics(places.out, "loss")) == steps == 24
    whole = replace(places, out=tmp_path / "whole")
    train(whole, recipe_of(), spoken)
    assert_same_projector(whole.out, places.out)


def test_other_options_are_refused_until_restart(places: Places, spoken: Any) -> None:
    assert not train(places, recipe_of(), spoken, stop_after=3).is_finished
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.003 and is 0\.1"):
        train(places, recipe_of(learning_rate=0.1), spoken)
    with (places.data.parent / "pairs.jsonl").open("a") as file:
        file.write(json.dumps({"image": "0.png", "response": "More."}) + "\n")
    with pytest.raises(ConfigError, match="data was"):
        train(places, recipe_of(), spoken)
    assert train(replace(places, restart=True), recipe_of(learning_rate=0.1), spoken).is_finished
    assert metrics(places.out, "loss")[0][0] == 1


def test_a_finished_run_is_not_repeated(places: Places, spoken: Any) -> None:
    first = train(places, recipe_of(), spoken)
    stamp = (places.out / "config.json").stat().st_mtime_ns
    again = train(places, recipe_of(), spoken)
    assert (again.was_done_before, again.standing) == (True, first.standing)
    assert (places.out / "config.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        train(places, recipe_of(seed=1), spoken)
    assert (places.out / "config.json").exists()
    assert not train(replace(places, restart=True), recipe_of(seed=1), spoken).was_done_before


def test_a_record_of_another_version_asks_for_a_restart(places: Places, spoken: Any) -> None:
    train(places, recipe_of(), spoken)
    record = json.loads((places.out / "training.json").read_text())
    (places.out / "training.json").write_text(json.dumps({**record, "standing": {"step": 24}}))
    with pytest.raises(ConfigError, match="--restart"):
        train(places, recipe_of(), spoken)
    assert train(replace(places, restart=True), recipe_of(), spoken).is_finished


def test_a_restart_that_is_interrupted_goes_on(places: Places, spoken: Any) -> None:
    train(places, recipe_of(), spoken)
    anew = replace(places, restart=True)
    assert not train(anew, recipe_of(seed=1), spoken, stop_after=3).is_finished
    assert (places.out / "config.json").exists()  # the old checkpoint serves until the new one stands
    outcome = train(places, recipe_of(seed=1), spoken)
    assert outcome.is_finished
    assert not outcome.was_done_before


# --------------------------------------------------------------------------------- refusals


def test_folders_of_others_are_left_alone(places: Places, spoken: Any) -> None:
    places.out.mkdir()
    (places.out / "thesis.txt").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(ConfigError, match="no training run wrote"):
            train(replace(places, restart=restart), recipe_of(), spoken)
    assert (places.out / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ConfigError, match="is a file"):
        train(replace(places, out=places.out / "thesis.txt"), recipe_of(), spoken)
    for inside in (Path(places.base), Path(places.base) / "trained"):
        with pytest.raises(ConfigError, match="is the base itself or inside it"):
            train(replace(places, out=inside), recipe_of(), spoken)


def test_two_runs_do_not_share_a_folder(places: Places, spoken: Any) -> None:
    from deployments.training.output import open_output

    alone = open_output(places.out, Path(places.base), {}, restart=False)
    with alone, pytest.raises(ConfigError, match="another process is training"):
        train(places, recipe_of(), spoken)
    assert train(places, recipe_of(), spoken).is_finished


def test_a_run_that_fails_at_once_leaves_nothing(places: Places, spoken: Any) -> None:
    (places.data.parent / "5.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ConfigError, match=r"line 16: picture .*5\.png: the PNG picture is damaged"):
        train(places, recipe_of(), spoken)
    assert not places.out.exists()


def test_a_missing_picture_is_named_with_its_line(places: Places, spoken: Any) -> None:
    (places.data.parent / "5.png").unlink()
    with pytest.raises(ConfigError, match=r"line 16: picture .*5\.png: No such file"):
        train(places, recipe_of(), spoken)
    assert not places.out.exists()


def test_a_loss_that_is_no_number_ends_the_run(places: Places, spoken: Any) -> None:
    with pytest.raises(ConfigError, match="lower the learning rate"):
        train(places, recipe_of(learning_rate=1e30), spoken)


def test_a_family_without_projector_on_the_language_side(
    places: Places, tiny_checkpoint: Callable[..., Path], spoken: Any
) -> None:
    with pytest.raises(CheckpointError, match=r"model_type 'idefics3'.*llava \(model_type llava\)"):
        train(replace(places, base=str(tiny_checkpoint())), recipe_of(), spoken)


def test_patience_needs_something_to_measure_by(places: Places, spoken: Any) -> None:
    with pytest.raises(ConfigError, match="patience needs validation"):
        train(places, recipe_of(validation_share=0.0, patience=1), spoken)


def test_epochs_and_steps_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="not both"):
        recipe_of(epochs=1)
