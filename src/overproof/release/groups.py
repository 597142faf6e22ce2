"""Measuring held-out examples on all cores, so that their number does not show in the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, Self, TypeVar

from overproof.core import device

device.prepare()

import torch  # noqa: E402

from overproof.core.console import Meter  # noqa: E402
from overproof.core.workers import spread  # noqa: E402
from overproof.teacher.forward import share  # noqa: E402

GROUP = 8  # examples scored together: bounds the memory of the teacher's full distributions


class Sums(Protocol):
    """What is counted of one model, an entry an example."""

    def extend(self, other: Self) -> None:
        """Count the examples of another behind those of this one."""


Found = TypeVar("Found", bound=Sums)
Measured = TypeVar("Measured")
Item = TypeVar("Item")


def in_groups(
    measure: Callable[[Measured, Sequence[Item]], dict[str, Found]],
    measured: Measured,
    items: Sequence[Item],
    models: Iterable[Any],
    meter: Meter,
) -> dict[str, Found]:
    """The sums of all examples by model.

    1. Groups of examples go to one process a core.
    2. Each group gives sums an example; they are put together in the examples' order.

    Args:
        measure: a function of a module, which other processes find by its name.
        models: whose memory all share.
        meter: counts examples.

    Raises:
        StageError: a worker died.
    """
    # 1.
    groups = [(start, items[start : start + GROUP]) for start in range(0, len(items), GROUP)]
    workers = min(device.cores(), len(groups))
    for model in models:
        share(model)
    parts: dict[int, dict[str, Found]] = {}
    for start, found in spread(
        _work,
        [(measure, measured, groups[rank::workers]) for rank in range(workers)],
        len(groups),
        name="an evaluation worker",
        hint="free memory, and run the same command again",
    ):
        parts[start] = found
        meter.advance(min(GROUP, len(items) - start))
    # 2.
    first, *others = sorted(parts)
    for start in others:
        for name, sums in parts[start].items():
            parts[first][name].extend(sums)
    return parts[first]


def _work(
    measure: Callable[[Any, Sequence[Any]], dict[str, Any]],
    measured: Any,
    groups: Sequence[tuple[int, Sequence[Any]]],
    results: Any,
) -> None:
    """A worker: one thread, its share of the groups."""
    torch.set_num_threads(1)
    for start, group in groups:
        results.put((start, measure(measured, group)))
