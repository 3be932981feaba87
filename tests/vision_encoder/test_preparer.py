"""Pictures are fetched only when a thread is free for them, and nothing heavy is imported to say so."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from vision_encoder.bench import FakePreprocessor, png, until, until_true

from deployments.config import RetinaConfig, VisionEncoderConfig
from deployments.images.check import check_image
from deployments.images.stores.memory import MemoryImageStore
from deployments.types import StoredImage
from deployments.vision_encoder.preparer import Preparer

LIMITS = RetinaConfig.model_fields["images"].default


class CountingStore(MemoryImageStore):
    num_gets = 0

    async def get(self, tenant: str, image_id: str) -> StoredImage:
        self.num_gets += 1
        return await super().get(tenant, image_id)


async def test_files_are_fetched_when_a_thread_is_free() -> None:
    """A file may have 20 MB and hundreds may wait."""
    store, preprocess = CountingStore(10**6), FakePreprocessor()
    image = check_image(png(1), LIMITS, b"secret")
    await store.put("t", image)
    preparer = Preparer(store, LIMITS, num_threads=2)
    assert preparer.seconds_per_image == 0
    preprocess.gate.clear()
    tasks = [asyncio.create_task(preparer.prepare("t", image.ref.id, preprocess)) for _ in range(6)]
    await until(preprocess.entered)
    await until(preprocess.entered)
    await until_true(preparer._desks.locked)
    assert store.num_gets == 2
    preprocess.gate.set()
    assert {pixels.num_tokens for pixels in await asyncio.gather(*tasks)} == {3}
    assert (store.num_gets, preprocess.num_calls) == (6, 6)
    assert preparer.seconds_per_image > 0
    preparer.close()


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, 1),
        ({"replica": {"num_cpus": 0.4}}, 1),
        ({"replica": {"num_cpus": 0}}, 1),
        ({"replica": {"num_cpus": 2.5}}, 3),
        ({"replica": {"num_cpus": 4}, "preprocess_threads": 2}, 2),
    ],
)
def test_as_many_threads_as_the_replica_has_cores(settings: dict[str, object], number: int) -> None:
    config = VisionEncoderConfig.model_validate(settings)
    assert config.num_preprocess_threads == number


def test_importing_the_encoder_is_light() -> None:
    heavy = "{'torch', 'transformers', 'ray', 'fastapi'} & set(sys.modules)"
    program = f"import sys, deployments.vision_encoder.encoder; print(sorted({heavy}))"
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
