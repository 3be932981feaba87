"""The folder that comes out: the base's files byte for byte, but for the projector's numbers in its weight files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from deployments.errors import CheckpointError, ConfigError
from deployments.models.weights import list_tensors, read_tensors
from deployments.training.state import sync_folder

PROJECTOR = "multi_modal_projector."  # before it, the hub has nothing and newer transformers `model.`
RECORD = "training.json"  # what the checkpoint was made of
METRICS = "metrics.jsonl"
OWN_FILES = {RECORD, METRICS}  # of a training run; those of the base's own training are not the new checkpoint's
# Weights in other formats still hold the old projector, and nobody here reads them.
OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".pkl", ".safetensors"}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where the numbers of one tensor stand in a safetensors file."""

    file: str
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    begin: int  # bytes from the beginning of the file
    end: int


def read_projector(folder: Path) -> dict[str, torch.Tensor]:
    """The projector's tensors, float32, by their names inside the projector. Raises CheckpointError."""
    names = {name: inner for name in list_tensors(folder) if (inner := _inner_name(name)) is not None}
    if not names:
        raise CheckpointError(f"checkpoint {folder} has no tensors named {PROJECTOR}*", "base")
    return {names[name]: tensor for name, tensor in read_tensors(folder, names, "float32").items()}


def fingerprint_folder(folder: Path) -> str:
    """SHA-256 over names and contents of the files that a checkpoint made of this folder takes over. Blocks; hex."""
    digest = hashlib.sha256()
    for name in sorted(_files_to_copy(folder)):
        with (folder / name).open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def draft_checkpoint(
    base: Path, draft: Path, projector: Mapping[str, torch.Tensor], record: Mapping[str, object]
) -> None:
    """Fill the folder `draft` with the whole checkpoint; what was there goes. Raises OSError, ConfigError."""
    if draft.exists():
        shutil.rmtree(draft)
    draft.mkdir()
    for name in _files_to_copy(base):
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / name, draft / name)  # follows the links that hub snapshots are made of
    for inner, place in _projector_places(draft).items():
        content = _to_bytes(projector[inner], place)
        with (draft / place.file).open("r+b") as file:
            file.seek(place.begin)
            file.write(content)
    whole = {**record, "files": [*sorted(_names_in(draft)), RECORD]}
    (draft / RECORD).write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in draft.rglob("*"):
        if path.is_file():
            _sync_file(path)


def publish(draft: Path, out: Path) -> None:
    """Move the draft's files into `out`, and remove those of a checkpoint that an earlier run put there.

    A folder without config.json is no checkpoint, so that one goes first and comes last: nobody can load half of an
    old checkpoint and half of the new one.
    """
    config, names = "config.json", _names_in(draft)
    (out / config).unlink(missing_ok=True)
    for name in _earlier_files(out) - names:
        (out / name).unlink(missing_ok=True)
    for name in [*sorted(names - {config}), config]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).replace(out / name)
    sync_folder(out)


def _names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _earlier_files(out: Path) -> set[str]:
    """Of the run whose record lies there; what others put beside them is theirs."""
    record = read_record(out) or {}
    files = record.get("files")
    names = {name for name in files if isinstance(name, str)} if isinstance(files, list) else set()
    return {name for name in names if (out / name).resolve().is_relative_to(out.resolve())}


def read_record(out: Path) -> dict[str, object] | None:
    """The record of a finished run; None where there is none. Raises ConfigError when it is not one of ours."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out / RECORD} cannot be read ({error}): name another --out", "out") from error
    if not isinstance(record, dict) or not isinstance(record.get("identity"), dict):
        raise ConfigError(f"{out / RECORD} is no record of a training run: name another --out", "out")
    return record


def _files_to_copy(base: Path) -> list[str]:
    """Paths relative to the base. Hidden files, other formats of the weights and records of its own training stay."""
    weights = set(list_tensors(base).values())
    names = [str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()]
    return [name for name in names if name in weights or _is_kept(Path(name))]


def _is_kept(name: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in name.parts)
    return not is_hidden and name.suffix not in OTHER_WEIGHTS and str(name) not in OWN_FILES


def _inner_name(name: str) -> str | None:
    """`linear_1.weight` of `multi_modal_projector.linear_1.weight`; None for other parts' tensors."""
    name = name.removeprefix("model.")
    return name.removeprefix(PROJECTOR) if name.startswith(PROJECTOR) else None


def _projector_places(folder: Path) -> dict[str, TensorPlace]:
    files = {file for name, file in list_tensors(folder).items() if _inner_name(name) is not None}
    return {
        inner: place
        for file in sorted(files)
        for name, place in _read_places(folder, file)
        if (inner := _inner_name(name)) is not None
    }


def _read_places(folder: Path, file: str) -> Iterator[tuple[str, TensorPlace]]:
    """From the header: its length in eight bytes, then JSON, then the numbers."""
    with (folder / file).open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(header_bytes))
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = (8 + header_bytes + offset for offset in about["data_offsets"])
            yield name, TensorPlace(file, about["dtype"], tuple(about["shape"]), begin, end)


def _to_bytes(tensor: torch.Tensor, place: TensorPlace) -> bytes:
    if place.dtype not in DTYPES:
        raise CheckpointError(f"the projector in {place.file} is {place.dtype}; there is {', '.join(DTYPES)}", "base")
    assert tensor.shape == place.shape, (tensor.shape, place)
    rounded = tensor.to(DTYPES[place.dtype]).contiguous()
    if not torch.isfinite(rounded).all():
        raise ConfigError(
            f"the trained projector does not fit into the checkpoint's {place.dtype}: lower the learning rate",
            "learning_rate",
        )
    content = rounded.view(torch.uint8).numpy().tobytes()
    assert len(content) == place.end - place.begin, place
    return content


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
