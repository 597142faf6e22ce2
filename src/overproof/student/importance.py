"""Which layers of its base the student keeps, by measurement.

`greedy-kl` drops one layer after the other, each time the one whose loss costs least: the
divergence from the intact teacher on its own text. Every candidate is tried, one process a core.

Shape suffixes: R sequences, T tokens, P positions with a target, D width, K kept tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from overproof.core import device
from overproof.core.console import Meter
from overproof.core.errors import UsageError
from overproof.core.sections import StudentConfig
from overproof.core.workers import CONTEXT, sharing, spread
from overproof.data.pack import Packed
from overproof.student.losses import Sparse, divergence_of
from overproof.student.stack import Stack
from overproof.teacher.forward import share

ROWS = 32  # positions whose logits are worked on at a time: 49,152 in fp32 are 6 MB
BARRIER_SECONDS = 600.0  # a round takes seconds; a worker that is this late is dead


@dataclass(frozen=True)
class Removal:
    """One step of the measurement: the layer dropped, and the divergence after it in nats."""

    layer: int
    kl: float


@dataclass(frozen=True)
class Calibration:
    """Teacher text to measure on.

    Attributes:
        batch: packed sequences in the teacher's tokens.
        picked: which places have a target, (R, T).
        ids_PK, probs_PK: the teacher's own distribution there.
        temperature: of that.
    """

    batch: Packed
    picked: Tensor
    ids_PK: Tensor
    probs_PK: Tensor
    temperature: float = 1.0

    def within(self, rows: int) -> Self:
        """The same without tokens from `rows` on: the teacher's padding, which a base may lack."""
        there = self.ids_PK < rows
        return replace(
            self,
            ids_PK=self.ids_PK.where(there, 0),
            probs_PK=self.probs_PK.where(there, 0.0),
        )


def trials(total: int, config: StudentConfig) -> int:
    """Layers that the measurement has to try, for a progress bar."""
    keep = config.layers or total
    return sum(range(keep + 1, total + 1)) if config.importance == "greedy-kl" else 0


def choose_layers(
    base: Any, config: StudentConfig, calibration: Calibration, meter: Meter
) -> tuple[list[int], list[Removal]]:
    """Which layers stay, and the measurement that says so.

    Raises:
        UsageError: more layers are wanted than the base has.
        StageError: a worker died.
    """
    total = len(base.model.layers)
    keep = config.layers or total
    if keep > total:
        raise UsageError(
            f"student.layers is {keep}",
            details=[f"the model that it is cut from has {total} layers"],
        )
    if keep == total:
        return list(range(total)), []
    if config.importance == "even":
        return choose_layers_evenly(total, keep), []
    if config.importance == "angular":
        return _by_angle(base, keep, calibration)
    return _greedy(base, keep, calibration, meter)


def choose_layers_evenly(total: int, keep: int) -> list[int]:
    """Layers at equal distances, the first and the last among them."""
    span = max(keep - 1, 1)
    return [round(i * (total - 1) / span) for i in range(keep)]


def _greedy(
    base: Any, keep: int, calibration: Calibration, meter: Meter
) -> tuple[list[int], list[Removal]]:
    """Drop the layer that costs least, again and again."""
    kept = list(range(len(base.model.layers)))
    removals: list[Removal] = []
    workers = max(1, min(device.cores(), len(kept)))
    barrier = CONTEXT.Barrier(workers)
    share(base)
    with sharing():
        scores = torch.zeros(len(kept)).share_memory_()
    shares = [(base, keep, calibration, rank, workers, scores, barrier) for rank in range(workers)]
    rounds = len(kept) - keep
    for layer, kl in spread(
        _work,
        shares,
        rounds,
        name="a worker that measures layers",
        hint="lower student.calibration_tokens, or free memory, and run the same command again",
    ):
        meter.advance(len(kept), f"{kl:.2f} nats per token without {len(removals) + 1} layers")
        kept.remove(layer)
        removals.append(Removal(layer, kl))
    return kept, removals


@torch.inference_mode()
def _work(
    base: Any,
    keep: int,
    calibration: Calibration,
    rank: int,
    workers: int,
    scores: Tensor,
    barrier: threading.Barrier,
    results: Any,
) -> None:
    """Try every candidate of the own share; all workers then drop the same one."""
    torch.set_num_threads(1)
    stack = Stack(base, calibration.batch)
    kept = list(range(len(base.model.layers)))
    while len(kept) > keep:
        for index, hidden_RTD in _states(stack, kept):
            if index % workers == rank:
                left = stack.through(hidden_RTD, kept[index + 1 :])
                scores[kept[index]] = divergence(base, left, calibration)
        barrier.wait(BARRIER_SECONDS)
        layer = min(kept, key=lambda layer: (float(scores[layer]), layer))
        if rank == 0:
            results.put((layer, float(scores[layer])))
        barrier.wait(BARRIER_SECONDS)
        kept.remove(layer)


def _states(stack: Stack, kept: list[int]) -> Iterator[tuple[int, Tensor]]:
    """For each kept layer the states that enter it."""
    hidden_RTD = stack.embedded
    for index, layer in enumerate(kept):
        yield index, hidden_RTD
        hidden_RTD = stack.through(hidden_RTD, [layer])


@torch.inference_mode()
def _by_angle(base: Any, keep: int, calibration: Calibration) -> tuple[list[int], list[Removal]]:
    """Drop the block with the least angle between what enters and leaves it (arXiv 2403.17887)."""
    stack = Stack(base, calibration.batch)
    total = len(base.model.layers)
    states = [stack.embedded]
    for layer in range(total):
        states.append(stack.through(states[-1], [layer]))
    valid = torch.from_numpy(calibration.batch.segments_RT >= 0)
    drop = total - keep

    def angle(start: int) -> float:
        cosine = torch.cosine_similarity(
            states[start][valid].float(), states[start + drop][valid].float(), dim=-1
        )
        return float(torch.arccos(cosine.clamp(-1, 1)).mean())

    start = min(range(1, keep + 1), key=angle)
    kept = [layer for layer in range(total) if not start <= layer < start + drop]
    kl = divergence(base, stack.through(stack.embedded, kept), calibration)
    return kept, [Removal(layer, kl) for layer in range(start, start + drop)]


def divergence(base: Any, hidden_RTD: Tensor, calibration: Calibration) -> float:
    """Mean divergence of what these last states predict from the teacher, nats a position."""
    logits_PU = base.lm_head(base.model.norm(hidden_RTD[calibration.picked]))
    total = 0.0
    for rows in zip(
        logits_PU.split(ROWS),
        calibration.ids_PK.split(ROWS),
        calibration.probs_PK.split(ROWS),
        strict=True,
    ):
        loss_P, _ = divergence_of(
            rows[0].float() / calibration.temperature, Sparse.of(rows[1], rows[2])
        )
        total += float(loss_P.double().sum())
    return total / len(logits_PU)
