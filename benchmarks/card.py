"""The machine and the versions that figures belong to.

python -m benchmarks.card
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile", "bf16", "asimddp", "sve")
PACKAGES = ("torch", "transformers", "ray", "numpy")
BUSY_LOAD = 0.5  # waiting or running processes, averaged over a minute


@dataclass(frozen=True, slots=True)
class Card:
    cpu: str
    num_cores: int  # that this process may use
    cpu_flags: tuple[str, ...]  # those that decide how fast matrices are multiplied
    memory_gb: float
    gpu: str | None
    python: str
    versions: dict[str, str]  # of the packages that are installed
    commit: str  # with "+" where files differ from it; "" outside a checkout
    load_average: float  # of the last minute, before anything was measured

    @property
    def lines(self) -> list[str]:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        flags = f" ({' '.join(self.cpu_flags)})" if self.cpu_flags else ""
        lines = [
            f"{self.num_cores} cores of {self.cpu}{flags}, {self.memory_gb:g} GB, {self.gpu or 'no GPU'}",
            f"Python {self.python}, {versions}" + (f", commit {self.commit}" if self.commit else ""),
        ]
        if self.load_average > BUSY_LOAD:
            lines.append(f"the machine was busy before this began: load average {self.load_average:g}")
        return lines


def machine_card() -> Card:
    """Imports torch only where an NVIDIA driver is there."""
    return Card(
        cpu=_cpu_field("model name") or platform.machine(),
        num_cores=len(os.sched_getaffinity(0)),
        cpu_flags=tuple(flag for flag in TELLING_FLAGS if flag in _cpu_flags()),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        gpu=_gpu(),
        python=platform.python_version(),
        versions=_versions(),
        commit=_commit(),
        load_average=round(os.getloadavg()[0], 2),
    )


def _cpu_field(name: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _cpu_flags() -> list[str]:
    return (_cpu_field("flags") or _cpu_field("Features")).split()  # x86 and ARM


def _gpu() -> str | None:
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidiactl").exists():
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(0)
    return f"{about.name} with {about.total_memory / 1e9:.0f} GB"


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a benchmark without Ray runs where there is none
    return found


def _commit() -> str:
    """Short hash of the checkout that this file is in."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(words)
    card = machine_card()
    for line in card.lines:
        Console().print(line, soft_wrap=True, highlight=False)
    print(json.dumps(asdict(card)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
