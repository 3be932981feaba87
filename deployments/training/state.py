"""What a run must know to go on where it stood: one safetensors file with JSON in its header, replaced as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deployments.errors import ConfigError

if TYPE_CHECKING:
    import torch

FILE = "state.safetensors"
VERSION = "1"
GROUPS = ("projector", "best", "first_moments", "second_moments")  # of tensors, named "group/tensor" in the file
Tensors = Mapping[str, "torch.Tensor"]


@dataclass(slots=True)
class Standing:
    """How far a run is. Steps are those of the optimizer."""

    step: int = 0  # done
    evaluated_step: int = -1  # the last one after which validation ran; -1: never
    best_step: int = 0
    first_loss: float | None = None  # of validation, with the base's projector
    best_loss: float | None = None  # of validation; None without validation
    evaluations_without_gain: int = 0
    tokens: int = 0  # that went through the language model
    ended: Literal["", "steps", "patience"] = ""  # why it is over


@dataclass(slots=True)
class RunState:
    """Tensors on the CPU, float32."""

    standing: Standing
    projector: Tensors
    best: Tensors  # the projector of `best_step`; may be `projector` itself
    first_moments: Tensors = field(default_factory=dict)  # AdamW's, by the projector's names; none before step 1
    second_moments: Tensors = field(default_factory=dict)


def fresh_state(projector: Tensors) -> RunState:
    return RunState(Standing(), projector, projector)


def save_state(folder: Path, identity: Mapping[str, object], state: RunState) -> None:
    """Whole or not at all, also when the machine stops. Raises OSError."""
    import safetensors.torch

    groups = {
        "projector": state.projector,
        "best": state.best if state.best is not state.projector else {},
        "first_moments": state.first_moments,
        "second_moments": state.second_moments,
    }
    tensors = {f"{group}/{name}": tensor for group, members in groups.items() for name, tensor in members.items()}
    about = {
        "version": VERSION,
        "identity": json.dumps(identity, sort_keys=True),
        "standing": json.dumps(asdict(state.standing)),
    }
    write_whole(folder / FILE, safetensors.torch.save(tensors, about))


def read_identity(folder: Path) -> dict[str, object] | None:
    """What the run in this folder was asked to do; None where no state was saved. Raises ConfigError."""
    return _read_about(folder)[0] if (folder / FILE).is_file() else None


def load_state(folder: Path) -> RunState:
    """Raises ConfigError when the file is no state of ours."""
    from safetensors import SafetensorError, safe_open

    _, standing = _read_about(folder)
    groups: dict[str, dict[str, torch.Tensor]] = {name: {} for name in GROUPS}
    try:
        with safe_open(folder / FILE, framework="pt") as file:
            for key in list(file.keys()):
                group, _, name = key.partition("/")
                groups[group][name] = file.get_tensor(key)
    except (SafetensorError, KeyError) as error:
        raise _damaged(folder, error) from error
    groups["best"] = groups["best"] or groups["projector"]
    return RunState(standing, **groups)


def _read_about(folder: Path) -> tuple[dict[str, object], Standing]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / FILE, framework="np") as file:
            about = file.metadata() or {}
        if about.get("version") != VERSION:
            raise ValueError(f"version {about.get('version')!r} instead of {VERSION!r}")
        return json.loads(about["identity"]), Standing(**json.loads(about["standing"]))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{folder / FILE} cannot be gone on with ({error}): begin anew with --restart", "out")


def require_same(before: Mapping[str, object], now: Mapping[str, object], out: Path) -> None:
    """Raises ConfigError naming every option that differs."""
    names = sorted({*before, *now})
    differences = [
        f"{name} was {_show(before.get(name))} and is {_show(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise ConfigError(
            f"{out} holds a run with other options: {'; '.join(differences)}. Give the same to go on with it, "
            "--restart to begin anew, or another --out",
            "out",
        )


def _show(value: object) -> str:
    text = json.dumps(value)
    return f"{text[:12]}…" if isinstance(value, str) and len(value) == 64 else text  # a fingerprint


def write_whole(path: Path, content: bytes) -> None:
    """The old content or the new, never a part of it, also when the machine stops. Raises OSError."""
    draft = path.with_name(f".{path.name}.new")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside it last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
