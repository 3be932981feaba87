"""Finds checkpoints in a folder or on the hub, reads parts of them, and fingerprints what was read.

Whatever is wrong with a checkpoint becomes a CheckpointError that says what was looked for, where, and the way out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.errors import CheckpointError, ConfigError, RetinaError

if TYPE_CHECKING:
    import torch

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "merges.txt"]
DTYPES = ("float32", "bfloat16", "float16")


# --------------------------------------------------------------------------------- finding


def locate_checkpoint(checkpoint: str, revision: str | None) -> Path:
    """Folder of a checkpoint: an existing folder as it is, else a hub id, downloaded unless the hub cache holds it.

    Blocks while downloading. Raises CheckpointError.
    """
    folder = Path(checkpoint).expanduser()
    if checkpoint and os.path.isdir(folder):
        if revision is not None:
            raise CheckpointError(
                f"checkpoint {checkpoint!r} is the folder {folder.resolve()}, which has no revision {revision!r}: "
                "leave out the revision, or rename the folder if the hub's repository is meant",
                param="revision",
            )
        return folder.resolve()
    if not HUB_ID.fullmatch(checkpoint):
        raise CheckpointError(
            f"checkpoint {checkpoint!r} is neither a folder (looked for {folder.absolute()}) nor a hub id (owner/name)",
            param="checkpoint",
        )
    if revision is None:
        raise CheckpointError(
            f"checkpoint {checkpoint!r} is no folder here (looked for {folder.absolute()}), so it is taken for a hub "
            "id, which needs a pinned revision: set `revision` to a commit, tag or branch of that repository",
            param="revision",
        )
    return _fetch_snapshot(checkpoint, revision)


def _fetch_snapshot(hub_id: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Sub-folders hold other formats (onnx, gguf) of the same weights.
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=HUB_FILES, ignore_patterns="*/*"))
    except Exception as error:  # lost connections come as whatever its HTTP library raises
        raise CheckpointError(_explain_fetch(hub_id, revision, error), param="checkpoint") from error


def _explain_fetch(hub_id: str, revision: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        why = "the repository is gated: accept its terms on the hub and set HF_TOKEN"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = "the hub has no such repository, or it is private: check the name, or set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        why = f"the repository has no revision {revision!r}: name a commit, tag or branch that it has"
    elif isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set and the cache does not hold all of it: unset HF_HUB_OFFLINE to download it"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        why = "the hub cannot be reached and the cache does not hold all of it: check the network"
    elif isinstance(error, PermissionError):
        why = f"no permission ({error}): set HF_HOME to a folder that can be written"
    else:
        why = f"{type(error).__name__}: {_first_line(error)}"
    return (
        f"cannot get checkpoint {hub_id!r} at revision {revision!r}; looked in the cache folder "
        f"{constants.HF_HUB_CACHE} and at {constants.ENDPOINT}: {why}. "
        "A folder that holds a copy of the repository works as well: give its path as the checkpoint"
    )


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Raises CheckpointError naming the files that are missing or cannot be read."""
    missing = [name for name in names if not (os.path.isfile(folder / name) and os.access(folder / name, os.R_OK))]
    if missing:
        there = ", ".join(sorted(os.listdir(folder))) if os.path.isdir(folder) else "no such folder"
        raise CheckpointError(
            f"checkpoint {folder} lacks {', '.join(missing)} (there: {there or 'nothing'}); download the whole "
            "repository again, or correct the checkpoint's path",
            param="checkpoint",
        )


def read_json(folder: Path, name: str) -> dict[str, object]:
    """Content of a JSON file that must hold an object. Raises CheckpointError."""
    require_files(folder, [name])
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / name} cannot be read as JSON: {error}", param="checkpoint") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / name} should hold a JSON object, not {type(content).__name__}")
    return content


def require_counts(folder: Path, counts: Mapping[str, object]) -> None:
    """Raises CheckpointError naming the settings that are no whole numbers from 1 up."""
    wrong = {name: count for name, count in counts.items() if not _is_count(count)}
    if wrong:
        said = ", ".join(f"{name} {count!r}" for name, count in wrong.items())
        raise CheckpointError(f"checkpoint {folder}: should be whole numbers above 0: {said}", param="checkpoint")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


# --------------------------------------------------------------------------------- reading


@contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Turns what libraries raise over a bad checkpoint into CheckpointError; tokenizers raises plain Exception."""
    try:
        yield
    except RetinaError:
        raise
    except Exception as error:
        raise CheckpointError(f"cannot read the {what} of checkpoint {folder}: {error}", param="checkpoint") from error


def check_dtype(dtype: str) -> None:
    """Raises ConfigError naming the choices."""
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; there is {', '.join(DTYPES)}", param="dtype")


def list_tensors(folder: Path) -> dict[str, str]:
    """The file of each of the checkpoint's tensors, by the tensor's name; reads no more than the files' headers.

    Raises CheckpointError.
    """
    return {name: file for name, (file, _) in _read_headers(folder).items()}


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """By the tensors' names; reads no more than the files' headers. Raises CheckpointError."""
    return {name: shape for name, (_, shape) in _read_headers(folder).items()}


def _read_headers(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """File and shape of each tensor."""
    from safetensors import safe_open

    check_weight_files(folder)
    stored: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in _weight_files(folder):
        with reading(folder, "weights"), safe_open(folder / file, framework="np") as opened:
            names = opened.keys()
            stored.update({name: (file, tuple(opened.get_slice(name).get_shape())) for name in names})
    return stored


def read_tensors(folder: Path, names: Iterable[str], dtype: str) -> dict[str, torch.Tensor]:
    """These tensors of the checkpoint in `dtype`, on the CPU; others are not read. Raises CheckpointError."""
    import torch
    from safetensors import safe_open

    check_dtype(dtype)
    wanted, files = set(names), list_tensors(folder)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted({files[name] for name in wanted}):
        with reading(folder, "weights"), safe_open(folder / file, framework="pt") as opened:
            for name in sorted(wanted):
                if files[name] == file:
                    tensors[name] = opened.get_tensor(name).to(getattr(torch, dtype))
    return tensors


def check_weight_files(folder: Path) -> None:
    """Open every safetensors file once; a missing, cut or foreign one raises CheckpointError with its name."""
    from safetensors import SafetensorError, safe_open

    for name in _weight_files(folder):
        try:
            with safe_open(folder / name, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            size = (folder / name).stat().st_size
            raise CheckpointError(
                f"{folder / name} ({size} bytes) is cut short or no safetensors file ({error}); download it again "
                "(a file of about 130 bytes is a git-lfs pointer: run `git lfs pull`)",
                param="checkpoint",
            ) from error


def _weight_files(folder: Path) -> list[str]:
    index = "model.safetensors.index.json"
    if not os.path.isfile(folder / index):
        require_files(folder, ["model.safetensors"])
        return ["model.safetensors"]
    weight_map = read_json(folder, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / index} has no weight_map", param="checkpoint")
    names = sorted({str(name) for name in weight_map.values()})
    require_files(folder, names)
    return names


# --------------------------------------------------------------------------------- fingerprints


def fingerprint_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, whatever the order and the files they came from; hex."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_values(values: Mapping[str, object]) -> str:
    """SHA-256 over JSON values, whatever the order of keys; hex."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
