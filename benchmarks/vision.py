"""What a picture costs on its way to features: each stage alone, the tower against transformers', the whole encoder.

    python -m benchmarks.vision                          # bench checkpoint, pictures of one tile and of five
    python -m benchmarks.vision --short                  # within seconds: one tile, few pictures
    python -m benchmarks.vision --dtype bfloat16 --threads 2 --out vision.json --plot vision.png

No Ray, no HTTP. On a GPU where there is one. core_ms is the processor time of all threads: what a picture takes away
from everybody else. "route" follows one picture's features through memory: what is copied, and how many bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from benchmarks.card import machine_card
from benchmarks.checkpoint import Tiles, cached_checkpoint
from benchmarks.features_route import follow
from benchmarks.pictures import picture
from benchmarks.report import Plot, Report, Row, add_report_options, write_plot
from deployments.config import ImageConfig, RetinaConfig, parse_config
from deployments.images.check import check_image
from deployments.images.decode import decode_picture
from deployments.images.stores.memory import MemoryImageStore
from deployments.types import EncodeRequest, FeatureDtype

if TYPE_CHECKING:
    import torch

    from deployments.models.family import Pixels
    from deployments.vision_encoder.encoder import Encoder
    from deployments.vision_encoder.towers import SharedTower

DTYPES: tuple[FeatureDtype, ...] = ("float32", "bfloat16")
TENANT, MODEL = "benchmark", "bench"
LIMITS = ImageConfig()
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Plan:
    tiles: Sequence[Tiles]
    dtypes: Sequence[FeatureDtype]
    batches: Sequence[int]  # pictures given to the tower at once
    users: Sequence[int]  # who ask the encoder at once
    num_pictures: int  # of each measurement
    device: Literal["auto", "cpu", "cuda"]
    num_threads: int  # of torch


@dataclass(frozen=True, slots=True)
class Spent:
    ms: float  # median of one call
    core_ms: float

    @classmethod
    def on(cls, work: Callable[[], object], times: int) -> Spent:
        """Of each of so many calls, after one that does not count."""
        work()
        walls, cores = [], []
        for _ in range(times):
            wall, core = time.perf_counter(), time.process_time()
            work()
            walls.append(time.perf_counter() - wall)
            cores.append(time.process_time() - core)
        return cls(round(1000 * median(walls), 3), round(1000 * median(cores), 3))


def measure(plan: Plan) -> list[Row]:
    import torch

    torch.set_num_threads(plan.num_threads)
    rows: list[Row] = []
    for tiles, dtype in itertools.product(plan.tiles, plan.dtypes):
        subject = Subject(cached_checkpoint(tiles), tiles, dtype, plan)
        with torch.inference_mode():
            rows += [*subject.stages(), *subject.towers()]
        rows += asyncio.run(subject.whole_encoder())
    return rows


class Subject:
    """One checkpoint in one dtype."""

    def __init__(self, folder: Path, tiles: Tiles, dtype: FeatureDtype, plan: Plan) -> None:
        from deployments.vision_encoder.towers import load_towers, share_towers

        self._folder, self._plan = folder, plan
        self._about: Row = {"tiles": tiles, "dtype": dtype}
        self._dtype = dtype
        self._eye: SharedTower = share_towers(load_towers(self._config("")))[0]
        files = self._new_files()
        self._pixels = [self._prepare(next(files)) for _ in range(max(*plan.batches, 2))]

    def _config(self, data_dir: str) -> RetinaConfig:
        model = {"name": MODEL, "family": "smolvlm", "checkpoint": str(self._folder)}
        return parse_config(
            {
                "models": [{**model, "generator": {"dtype": self._dtype}}],
                "data_dir": data_dir,
                "device": self._plan.device,
                "vision_encoder": {"num_threads": self._plan.num_threads},
            }
        )

    @staticmethod
    def _new_files() -> Iterator[bytes]:
        """Nobody has seen any of them."""
        started = time.time_ns()
        return (picture(f"{started} {number}") for number in itertools.count())

    def _prepare(self, file: bytes) -> Pixels:
        return self._eye.loaded.preprocess(decode_picture(file, LIMITS))

    def stages(self) -> Iterator[Row]:
        """One picture through each stage that computes."""
        from deployments.vision_encoder.cache import from_record, to_record

        file, pixels = picture("stages"), self._pixels[0]
        decoded, [features] = decode_picture(file, LIMITS), self._eye.run([pixels])
        record = to_record(features)
        stages: dict[str, Callable[[], object]] = {
            "check": lambda: check_image(file, LIMITS, b"secret"),
            "decode": lambda: decode_picture(file, LIMITS),
            "preprocess": lambda: self._eye.loaded.preprocess(decoded),
            "tower": lambda: self._eye.run([pixels]),
            "to record": lambda: to_record(features),
            "from record": lambda: from_record(record),
        }
        for stage, work in stages.items():
            spent = Spent.on(work, self._plan.num_pictures)
            yield {"part": "stages", **self._about, "stage": stage, "ms": spent.ms, "core_ms": spent.core_ms}

    def towers(self) -> Iterator[Row]:
        """Several pictures at a time, through this tower and through transformers' own code."""
        original = self._open_original()
        for batch in self._plan.batches:
            pixels = self._pixels[:batch]
            for code, look in (("retina", self._eye.run), ("transformers", original)):
                spent = Spent.on(partial(look, pixels), max(2, self._plan.num_pictures // batch))
                yield {
                    "part": "tower",
                    **self._about,
                    "code": code,
                    "batch": batch,
                    "ms_per_picture": round(spent.ms / batch, 2),
                    "core_ms_per_picture": round(spent.core_ms / batch, 2),
                    "pictures_per_s": round(1000 * batch / spent.ms, 1),
                }

    def _open_original(self) -> Callable[[Sequence[Pixels]], object]:
        """transformers' `get_image_features` on the same pixels, all pictures in one pass."""
        import torch
        from transformers import AutoModelForImageTextToText

        from deployments.models.byte_pixels import look_up

        dtype, device = getattr(torch, self._dtype), torch.device(self._eye.loaded.device)
        model = AutoModelForImageTextToText.from_pretrained(self._folder, dtype=dtype).eval().to(device)

        def look(batch: Sequence[Pixels]) -> torch.Tensor:
            tiles = torch.cat([torch.from_numpy(pixels.tensors["tiles"]) for pixels in batch])
            table = torch.from_numpy(batch[0].tensors["values"])
            values = look_up(tiles, table, tiles[0, 0].numel(), device, dtype)[None]
            features: torch.Tensor = torch.cat(list(model.get_image_features(values).pooler_output))
            return features.cpu()

        return look

    # ------------------------------------------------------------------------------- the whole encoder

    async def whole_encoder(self) -> list[Row]:
        from deployments.vision_encoder.encoder import open_encoder

        images = MemoryImageStore(10**9)
        with tempfile.TemporaryDirectory() as data_dir:
            encoder = open_encoder(self._config(data_dir), images)
            try:
                rows = [row for users in self._plan.users for row in await self._load(encoder, images, users)]
                request = await self._store(images, next(self._new_files()))
                steps = await follow(self._eye, encoder, request, self._pixels[0])
                return rows + [{"part": "route", **self._about, **asdict(step)} for step in steps]
            finally:
                await encoder.close()

    async def _load(self, encoder: Encoder, images: MemoryImageStore, users: int) -> list[Row]:
        """New pictures, then the same ones again."""
        files = self._new_files()
        number = max(users, self._plan.num_pictures // users * users)
        requests = [await self._store(images, next(files)) for _ in range(number)]
        return [
            {"part": "encoder", **self._about, "users": users, **await _ask(encoder, requests, users)} for _ in range(2)
        ]

    async def _store(self, images: MemoryImageStore, file: bytes) -> EncodeRequest:
        image = check_image(file, LIMITS, b"secret")
        await images.put(TENANT, image)
        return EncodeRequest(TENANT, MODEL, image.ref, TIMEOUT_S)


async def _ask(encoder: Encoder, requests: Sequence[EncodeRequest], users: int) -> Row:
    waits: list[float] = []
    sources: set[str] = set()

    async def ask(mine: Sequence[EncodeRequest]) -> None:
        for request in mine:
            started = time.perf_counter()
            sources.add((await encoder.encode(request)).source)
            waits.append(time.perf_counter() - started)

    started, core = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask(requests[user::users]) for user in range(users)))
    wall, cores = time.perf_counter() - started, time.process_time() - core
    return {
        "source": ", ".join(sorted(sources)),
        "pictures_per_s": round(len(requests) / wall, 1),
        "p50_ms": round(1000 * median(waits), 2),
        "core_ms_per_picture": round(1000 * cores / len(requests), 2),
    }


def to_plan(options: argparse.Namespace) -> Plan:
    short = options.short
    return Plan(
        tiles=(1,) if short else (1, 5),
        dtypes=(options.dtype,) if options.dtype else ("bfloat16",) if short else DTYPES,
        batches=(1, 4) if short else (1, 2, 4, 8),
        users=(1, 16) if short else (1, 4, 16),
        num_pictures=8 if short else 16,
        device=options.device,
        num_threads=options.threads,
    )


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one tile, fewer pictures, bfloat16")
    parser.add_argument("--dtype", choices=DTYPES, help="without: both")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    add_report_options(parser)
    options = parser.parse_args(words)
    card, plan = machine_card(), to_plan(options)
    rows = measure(plan)
    settings = {"short": options.short, "device": options.device, "threads": options.threads}
    picture_of, options.plot = options.plot, None
    Report("vision", card, rows, settings=settings).finish(options)
    if picture_of is not None:
        lines = [{**row, "line": f"{row['code']} {row['dtype']}"} for row in rows if row["part"] == "tower"]
        panels = [{**row, "panel": f"{row['tiles']} tile(s) a picture"} for row in lines]
        write_plot(Report("vision", card, panels, plot=Plot("batch", "ms_per_picture", "line", "panel")), picture_of)
    return 0


if __name__ == "__main__":
    sys.exit(main())
