"""How much memory it takes to load one half of a checkpoint, against the whole one through transformers.

    python benchmarks/loading.py                                         # a made-up LLaVA of 0.5 billion parameters
    python benchmarks/loading.py --family smolvlm --checkpoint FOLDER    # one that you have

Each load runs in a process of its own; "peak" is the process's largest resident size, less that of a process that has
only imported the same libraries.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

PARTS = ("imports", "vision", "language", "whole")
WITHOUT_WHOLE = ("moondream",)  # transformers cannot load these
MB = 1_000_000


def main() -> None:
    options = _parse()
    if options.part:
        print(json.dumps(load(options.part, options.family, Path(options.checkpoint), options.dtype)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.checkpoint or str(build_llava(Path(scratch) / "llava"))
        report(options.family, folder, options.dtype)


def report(family: str, folder: str, dtype: str) -> None:
    """A table, then the same as one JSON line."""
    parts = [part for part in PARTS if part != "whole" or family not in WITHOUT_WHOLE]
    measured = {part: _measure(part, family, folder, dtype) for part in parts}
    idle = measured["imports"]["peak_bytes"]
    file_bytes = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    table = Table("part", title=f"{family} in {dtype}, {file_bytes / MB:.0f} MB of weight files")
    for heading in ("weights, MB", "peak above imports, MB"):
        table.add_column(heading, justify="right")
    for part in parts[1:]:
        peak = measured[part]["peak_bytes"] - idle
        table.add_row(part, f"{measured[part]['weight_bytes'] / MB:.0f}", f"{peak / MB:.0f}")
    Console().print(table)
    result = {"benchmark": "loading", "family": family, "dtype": dtype, "file_bytes": file_bytes, "parts": measured}
    print(json.dumps(result))


def _measure(part: str, family: str, folder: str, dtype: str) -> dict[str, int]:
    words = [sys.executable, __file__, "--part", part, "--family", family, "--checkpoint", folder, "--dtype", dtype]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    measured: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return measured


def load(part: str, family_name: str, folder: Path, dtype: str) -> dict[str, int]:
    """Peak resident bytes of this process after loading, and the bytes of the weights it holds."""
    import torch
    from transformers import AutoModelForImageTextToText

    from deployments.models.registry import open_family

    family = open_family(family_name)
    if part == "vision":
        loaded: object = family.open_tower(folder, "cpu", dtype)
    elif part == "language":
        loaded = family.open_language(folder, "cpu", dtype)
    elif part == "whole":
        loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype))
    else:
        loaded = None
    return {"peak_bytes": _peak_bytes(), "weight_bytes": _weight_bytes(loaded)}


def _peak_bytes() -> int:
    # Not getrusage's ru_maxrss, which also counts what the parent held when it made this process.
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _weight_bytes(loaded: object) -> int:
    """Of all modules that are reachable from the object's fields, each tensor once."""
    import torch

    modules = [loaded] if isinstance(loaded, torch.nn.Module) else list(getattr(loaded, "__dict__", {}).values())
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for module in modules
        if isinstance(module, torch.nn.Module)
        for tensor in module.parameters()
    }
    return sum(tensors.values())


def build_llava(folder: Path) -> Path:
    """A LLaVA with 87 million parameters of tower and 400 million of language, all zeros but of full size."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, image_size=336),
        text_config=LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=20, vocab_size=32064),
        image_token_index=32000,
        image_seq_length=110,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    weights = {
        _hub_name(name): torch.zeros(value.shape, dtype=torch.float16) for name, value in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _hub_name(name: str) -> str:
    """The name that llava-hf's checkpoints give a tensor."""
    renamed = {
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    }
    old = next(old for old in renamed if name.startswith(old))
    return renamed[old] + name.removeprefix(old)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory that loading a half takes.")
    parser.add_argument("--family", default="llava", help="smolvlm, qwen2_vl, llava, moondream")
    parser.add_argument("--checkpoint", help="a folder; without one a LLaVA is made up")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--part", choices=PARTS, help="used by itself: load one part and print what it took")
    return parser.parse_args()


if __name__ == "__main__":
    main()
