"""How fast one core multiplies matrices: what most of a run's time depends on."""

from __future__ import annotations

import time
from functools import cache

from overproof.core import device

device.prepare()

import torch  # noqa: E402

SHAPE = (1024, 576, 1536)  # a training step's rows, a small model's width, its MLP
COUNT = 20  # products; the first ones prepare what the others use


@cache
def rate() -> float:
    """Floating-point operations a second of one core, in the type that a run would use.

    The best of many products, since other work on the machine only slows them down.
    """
    rows, inner, columns = SHAPE
    dtype = torch.bfloat16 if device.processor().bf16 else torch.float32
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = float("inf")
        for _ in range(COUNT):
            start = time.perf_counter()
            left @ right.T
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 2 * rows * inner * columns / best
