"""Computing with several torch threads without disturbing an engine in the same process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def compute_apart(num_threads: int, work: Callable[[], T]) -> T:
    """`work` in a thread that ends with it, and its OpenMP threads with it.

    OpenMP keeps threads for each thread that computed with some. Once it has more of them than there are cores, they
    sleep between two kernels instead of spinning, and a decode step takes twice as long.
    """

    def compute() -> T:
        import torch

        torch.set_num_threads(num_threads)
        return work()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(compute).result()
